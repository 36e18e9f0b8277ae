"""Bounds what the server keeps of runs: the files of those that a controller has collected, oldest first."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

COLLECTED = "collected"  # a file in the folder of a run that a controller has fetched
PRUNED = "pruned"  # in its place, once everything else is gone
RESUMABLE = 3  # of the runs that ended without completing so many keep their checkpoints


def prune(runs: Path, keep: int) -> list[str]:
    """Remove the files of runs beyond the newest ``keep``; a run that was not collected is never touched.

    Parameters
    ----------
    runs : Path
        The folder with a folder for each run.
    keep : int
        How many runs keep their files.

    Returns
    -------
    list of str
        The ids of the runs whose files were removed, oldest first.
    """
    folders = [path for path in runs.iterdir() if path.is_dir() and not (path / PRUNED).exists()]
    collected = sorted(
        (path for path in folders if (path / COLLECTED).exists()),
        key=lambda path: (path / COLLECTED).stat().st_mtime,
    )
    removed = collected[: max(len(folders) - keep, 0)]
    for folder in removed:
        (folder / PRUNED).touch()
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != PRUNED:
                path.unlink(missing_ok=True)
    return [folder.name for folder in removed]


def thin(checkpoints: Sequence[Path]) -> None:
    """Remove the checkpoints of all runs but the first RESUMABLE that have any.

    Parameters
    ----------
    checkpoints : sequence of Path
        The folders of the runs that have ended, in the order in which they are kept; one that has completed
        has none.
    """
    for folder in [path for path in checkpoints if any(path.glob("*.zip"))][RESUMABLE:]:
        shutil.rmtree(folder, ignore_errors=True)
