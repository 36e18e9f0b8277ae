"""What preflight demands of the folder of data that an app of the user's gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coldframe.controller.app_data import Unusable, measure
from coldframe.controller.checks import Machine
from coldframe.controller.settings import Finding, typed
from coldframe.units import format_size

ANOTHER = "type -e app_data=DIR with the folder that holds the app's data, or leave it out"
ROOM = 64 << 20  # bytes that stay free


def folder_of(values: Mapping[str, Any], base: Path) -> str:
    """The folder's path; a relative one starts at `base`; nothing where none is given."""
    given = values.get("app_data")
    return str(base / Path(given).expanduser()) if given else ""


def check_app_data(values: Mapping[str, Any], base: Path, machines: Iterable[Machine]) -> list[Finding]:
    """The folder is there, for an app that is not ours, holds files, and fits on every machine."""
    folder = folder_of(values, base)
    if not folder:
        return []
    given = f"app_data={values['app_data']}"
    if not values.get("app"):
        remedy = f"{typed('app', 'path/to/app')} too; our own app's data set is dataset, from fl_data_dir"
        return [Finding(f"{given} is for an app of your own, and none is given", f"type {remedy}")]
    if not Path(folder).is_dir():
        return [Finding(f"{given} is not a folder on this machine", ANOTHER)]
    try:
        files, size = measure(Path(folder))
    except Unusable as error:
        return [Finding(f"{given}: {error}", "mend or remove that in the folder")]
    if not files:
        return [Finding(f"{given} is empty", ANOTHER)]
    return [
        Finding(
            f"{format_size(free)} are free on {facts['disk_path']}, and {given} has {format_size(size)}",
            "make room there, or give the app fewer data",
            machine.name,
        )
        for machine in machines
        # What an earlier run has brought there takes no more room.
        if (facts := machine.facts) and size not in facts.get("app_data", [])
        if (free := facts["disk_free"]) < size + ROOM
    ]
