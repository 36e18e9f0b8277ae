"""What preflight demands of the run's data and of its division, by the code that prepares and divides it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldframe.controller.settings import EARLIER, Finding, typed


def data_folder(settings: Mapping[str, Any], base: Path) -> Path | None:
    """The folder that the data set is taken from, if there is one; a relative one starts at `base`."""
    name = settings.get("fl_data_dir")
    return base / Path(str(name)).expanduser() if name else None


def check_training_set(
    values: Mapping[str, Any], folder: Path | None, clients: int, prepared: Path
) -> list[Finding]:
    """Findings about the run's data and its division among the clients, by what prepares and divides it.

    Parameters
    ----------
    folder : Path, optional
        The user's folder with the data set.
    prepared : Path
        Where the controller keeps prepared data sets: where this one is, the division itself is tried.
    """
    if not trains_ours(values) or (folder and not folder.is_dir()):
        return []
    # Not with the module: numpy takes 0.2 s to import, for each verb.
    from fl import data, partition
    from fl.formats import SourceError

    dataset, labels = values["dataset"], None
    try:
        if folder:
            labels = data.check_folder(dataset, folder)
        elif data.is_prepared(dataset, prepared):
            labels = data.load_array(prepared, dataset, "train_y")
    except (SourceError, OSError) as error:
        return [
            Finding(
                f"fl_data_dir: {error}", "correct the file, or type -e fl_data_dir=DIR with another folder"
            )
        ]
    scheme, given, most = values["partitioner"], values["partitioner_args"], values["max_samples"]
    try:
        if labels is None or not clients:
            partition.validate(scheme, given, max(1, clients), most)
        else:
            partition.partition(labels, scheme, given, values["seed"], clients, most)
    except partition.PartitionError as error:
        if error.argument:
            example = json.dumps({**given, error.argument: partition.DEFAULTS[scheme][error.argument]})
            return [Finding(f"partitioner_args: {error}", f"type {typed('partitioner_args', example)}")]
        problem, _, remedy = str(error).rpartition(": ")
        return [Finding(problem, remedy)]
    return []


def trains_ours(values: Mapping[str, Any]) -> bool:
    """Whether a verb's values are about a new run of our own training."""
    return not values["app"] and not any(values[name] for name in EARLIER)
