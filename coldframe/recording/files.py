"""Where an app may write: a working directory, a home and a place for temporary files on the machine's disk.

The root file system of a container is read-only, and /tmp is memory. Each run has `<runs>/<run id>/app`: in
it `files`, the working directory (an app may write beside it, too), and `tmp`. The home is shared by all
runs, so that what is cached there is fetched once.

What bounds it: no file can grow beyond a limit (the kernel refuses, the app gets an OSError), and a client's
files are counted after each task. Between two counts several files together can take more: a container has no
quota of the disk.

    python -m coldframe.recording.files FOLDER     links what a ServerApp has written into FOLDER/written
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIMIT = 1 << 30  # bytes: of all files of a client, and of what is collected from a ServerApp
SERVER_FILE = 8 << 30  # bytes of one file of a ServerApp
KEPT = 3  # runs whose files a client keeps
MANIFEST = "written.json"  # what was collected, and what was left out and why


class TooLarge(OSError):
    """A client's files take more of the machine's disk than they may."""


def enter(runs: Path, run_id: str, home: Path, largest: int = LIMIT) -> Path:
    """Make the directories of a run and go there; return its `app`.

    Parameters
    ----------
    runs : Path
        Holds a folder per run.
    home : Path
        Shared by all runs.
    largest : int
        Bytes that one file may have.
    """
    work = runs / run_id / "app"
    for directory in (work / "files", work / "tmp", home):
        directory.mkdir(parents=True, exist_ok=True)
    os.environ.update(HOME=str(home), TMPDIR=str(work / "tmp"), USER="coldframe")
    tempfile.tempdir = None  # it remembers /tmp
    os.chdir(work / "files")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = largest if hard == resource.RLIM_INFINITY else min(largest, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return work


def forget_old(runs: Path, kept: int = KEPT) -> None:
    """Remove the files of all but the runs that were entered last."""
    found = [path for path in runs.iterdir() if (path / "app").is_dir()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)[kept:]:
        shutil.rmtree(path, ignore_errors=True)


def check(work: Path, limit: int = LIMIT) -> None:
    """Remove all files of a run if they take more than the limit.

    Raises
    ------
    TooLarge
        If they did.
    """
    home = work.parents[2] / "home"
    size = sum(status.st_blocks * 512 for root in (work, home) for _, status in walk(root))
    if size <= limit:
        return
    for folder in (work / "files", work / "tmp", home):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
    raise TooLarge(
        f"the app's files on this client took {size / 1e9:.1f} GB, and may take {limit / 1e9:.1f} GB: they"
        " were removed. Write less, or remove files in the ClientApp"
    )


def walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Return all below a directory that is no directory, with its status; links are not followed."""
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder) / name
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue  # it was removed meanwhile


def collect(run: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Link the files that a ServerApp has written into `<run>/written`, small ones first, up to the limit.

    Returns
    -------
    dict
        `files`: path to bytes; `left_out`: path to the reason. It is also written to `<run>/written.json`.
    """
    source, target = run / "app" / "files", run / "written"
    shutil.rmtree(target, ignore_errors=True)
    found: dict[str, int] = {}
    left_out: dict[str, str] = {}
    total = 0
    for path, status in sorted(walk(source), key=lambda item: (item[1].st_size, item[0])):
        name = str(path.relative_to(source))
        if not stat.S_ISREG(status.st_mode):
            left_out[name] = "no regular file"
        elif total + status.st_size > limit:
            left_out[name] = f"{status.st_size / 1e9:.2f} GB: of all, {limit / 1e9:.2f} GB are collected"
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target / name)
            found[name] = status.st_size
            total += status.st_size
    manifest = {"files": found, "left_out": left_out}
    (run / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


if __name__ == "__main__":
    print(json.dumps(collect(Path(sys.argv[1]))))
