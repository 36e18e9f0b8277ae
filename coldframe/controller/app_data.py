"""The data of an app: a folder on the controller, told by a hash of its files.

    python -m coldframe.controller.app_data FOLDER FAB CACHE

The last line on stdout is JSON: `name` (the hash), `path`, `bytes`, and `fab`, the path of a copy of the FAB
that bears the name of the data in its archive's comment. So an app with other data has another hash, and
that hash is all that the processes of a run need to know.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

BAR = "\x1e"  # a line that starts with it carries a progress bar's state as JSON
PIECE = 1 << 22  # bytes
STEP = 1 << 28  # bytes between two updates of the bar


class Unusable(ValueError):
    """What is wrong with a folder of data."""


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give each file below a folder, by name, with its status; links are followed.

    Raises
    ------
    Unusable
        At what is neither file nor folder, and at a link that leads to nothing or in a circle.
    """
    yield from _walk(folder, "", [])


def _walk(folder: Path, above: str, parents: list[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        status = folder.stat()
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise Unusable(f"{above or folder} cannot be read ({error.strerror})") from error
    own = (status.st_dev, status.st_ino)
    if own in parents:
        raise Unusable(f"the link {above.rstrip('/')} leads in a circle")
    for name in names:
        try:
            found = (folder / name).stat()
        except OSError as error:
            raise Unusable(f"{above}{name} leads to nothing ({error.strerror})") from error
        if stat.S_ISDIR(found.st_mode):
            yield from _walk(folder / name, f"{above}{name}/", [*parents, own])
        elif stat.S_ISREG(found.st_mode):
            yield f"{above}{name}", found
        else:
            raise Unusable(f"{above}{name} is neither a file nor a folder")


def measure(folder: Path) -> tuple[int, int]:
    """Return how many files there are below a folder, and their bytes."""
    sizes = [status.st_size for _, status in walk(folder)]
    return len(sizes), sum(sizes)


def digest(folder: Path, index: Path) -> tuple[str, int]:
    """Return a hash of the names and contents of a folder's files, and their bytes.

    Parameters
    ----------
    index : Path
        Keeps the hash of each file; one that has not changed since is not read again.
    """
    try:
        known = dict(json.loads(index.read_text()))
    except (OSError, ValueError):
        known = {}
    files = list(walk(folder))
    total = sum(status.st_size for _, status in files)
    done, shown, noted = 0, 0, {}
    whole = hashlib.sha256()
    for name, status in files:
        mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        if known.get(name, [None])[:-1] != mark:
            if done - shown >= STEP:
                shown = done
                bar = {"done": done, "total": total, "text": f"{done / 1e6:.0f} of {total / 1e6:.0f} MB read"}
                print(f"{BAR}{json.dumps(bar)}", flush=True)
            known[name] = [*mark, file_digest(folder / name)]
        noted[name] = known[name]
        done += status.st_size
        whole.update(f"{name}\0{noted[name][-1]}\n".encode(errors="surrogateescape"))
    index.parent.mkdir(parents=True, exist_ok=True)
    part = index.with_suffix(".part")
    part.write_text(json.dumps(noted))
    part.rename(index)
    return whole.hexdigest()[:16], total


def file_digest(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark(fab: bytes, name: str) -> bytes:
    """Return a FAB that bears the name of its data."""
    content = io.BytesIO(fab)
    with zipfile.ZipFile(content, "a") as archive:
        archive.comment = f"app-data {name}".encode()
    return content.getvalue()


def main(arguments: list[str]) -> int:
    """Find the name of a folder's data, and mark the FAB with it."""
    folder, fab, cache = map(Path, arguments)
    index = cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.json"
    try:
        name, size = digest(folder, index)
    except (OSError, Unusable) as error:
        print(json.dumps({"error": f"app_data={folder}: {error}"}))
        return 0
    content = mark(fab.read_bytes(), name)
    marked = fab.with_name(f"{hashlib.sha256(content).hexdigest()[:16]}.fab")
    if not marked.exists():
        marked.write_bytes(content)
    answer = {"error": "", "name": name, "path": str(folder), "bytes": size, "fab": str(marked)}
    print(json.dumps({**answer, "fab_hash": hashlib.sha256(content).hexdigest()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
