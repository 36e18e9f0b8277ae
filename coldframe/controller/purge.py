"""What `teardown.yml -e purge=true` deletes for good, in words, before it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SHOWN = 5  # results that are named: the latest

COMMAND = "ansible-playbook teardown.yml -e purge=true -e yes=true"


def losses(
    federation: str, results: Sequence[Path], machines: Sequence[str], root: Path, controller: Path
) -> list[str]:
    """Lines that say what will be gone, the results first.

    Parameters
    ----------
    results : sequence of Path
        The folders of the federation's results, oldest first.
    machines : sequence of str
        The machines that answer.
    root, controller : Path
        The federation's directories on each machine and on the controller.
    """
    lines = [f"purge=true deletes for good what federation {federation} has:"]
    if results:
        count = f"{len(results)} result{'' if len(results) == 1 else 's'}"
        where = ", ".join(f"{folder}/" for folder in dict.fromkeys(path.parent for path in results))
        lines.append(f"  - {count} of its runs in {where}, with what was made of them:")
        if len(results) > SHOWN:
            lines.append(f"      ... and {len(results) - SHOWN} older ones")
        lines += [f"      {path.name}" for path in results[-SHOWN:]]
    else:
        lines.append("  - no results: there are none")
    if machines:
        lines.append(
            f"  - {root} on {', '.join(machines)}: runs and models that were not fetched, data, keys, limits,"
            " apps' dependencies and data"
        )
    lines.append(f"  - {controller} on this controller: its certificate authority, passwords, packed apps")
    lines.append("  - images and calibrations of machines that hold no other federation")
    return lines
