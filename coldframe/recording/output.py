"""Keep what a process prints in a file of bounded size: its first and its last part."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LIMIT = 8 << 20  # bytes of a file; half of it is the first part
# In the environment of a ServerApp: the file with its output, until its process knows the run.
VARIABLE = "COLDFRAME_OUTPUT"
UNCLAIMED = "output"  # directory of such files below the state directory
NAME = "logs/serverapp.log"  # below the run's directory


class BoundedFile:
    """A file that keeps the first half of ``limit`` bytes, and at least the last quarter.

    It is written at once, so a reader finds what was printed so far, and it may be renamed meanwhile.

    Parameters
    ----------
    path : Path
        Made anew, with its directory.
    limit : int
        Bytes that the file has at most, but for the line that says what was left out.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._path = path
        self._limit = limit
        self._size = 0
        self._first = 0  # bytes of the first part, once it is complete
        self._left_out = 0

    def write(self, data: bytes) -> None:
        """Append; where that makes the file too large, drop lines from its middle."""
        step = self._limit // 4
        for start in range(0, len(data), step):
            chunk = data[start : start + step]
            os.pwrite(self._file, chunk, self._size)
            self._size += len(chunk)
            if self._size > self._limit:
                self._drop()

    def _drop(self) -> None:
        if not self._first:
            half = os.pread(self._file, self._limit // 2, 0)
            self._first = half.rfind(b"\n") + 1 or len(half)
        begin = self._size - self._limit // 4
        last = os.pread(self._file, self._limit // 4, begin)
        line_end = last.find(b"\n") + 1
        self._left_out += begin + line_end - self._first
        note = f"[... about {self._left_out:,} bytes are left out here ...]\n".encode()
        os.ftruncate(self._file, self._first)
        kept = note + last[line_end:]
        os.pwrite(self._file, kept, self._first)
        self._size = self._first + len(kept)

    @property
    def path(self) -> Path:
        """Where the file is now, or was when it was closed."""
        if self._file >= 0:
            self._path = Path(f"/proc/self/fd/{self._file}").readlink()
        return self._path

    def close(self) -> None:
        """Close the file."""
        self._path = self.path
        os.close(self._file)
        self._file = -1


def copy_output(source: int, file: BoundedFile, also: int) -> None:
    """Copy what comes from a pipe into a file and to another descriptor, until its writers are gone.

    A full disk must not stop who writes into the pipe: then the file ends there.
    """
    writable = True
    try:
        while data := os.read(source, 1 << 16):
            _write_all(also, data)
            if writable:
                try:
                    file.write(data)
                except OSError:
                    writable = False
    finally:
        os.close(source)
        file.close()


def _write_all(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return


def claim(state: Path, run_id: int) -> None:
    """Give the output of this process, a ServerApp's, to its run; without such output do nothing."""
    found = os.environ.pop(VARIABLE, "")
    if not found:
        return
    target = state / "runs" / str(run_id) / NAME
    with contextlib.suppress(OSError):  # then the container's log alone has it
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(found).rename(target)
