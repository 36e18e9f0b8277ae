"""What a transfer with rsync needs beside it: the answer to sudo's question, and how far it is."""

from __future__ import annotations

from pathlib import Path

import psutil

# rsync speaks with the other side over ssh's standard input and output, where sudo there cannot ask for a
# password as well. So it is sent as a first line, ahead of what rsync sends; a shell there takes that line,
# and sudo asks a program, printenv: it is called with sudo's prompt, which here is the name of a variable.
# Where sudo asks for nothing, the line is taken all the same.
SEND = """
coldframe_pipes=$1; shift; exec 3<&0
IFS= read -r coldframe_answer <"$coldframe_pipes/answer" || exit
{ printf "%s\\n" "$coldframe_answer"; exec cat <&3; } >"$coldframe_pipes/input" &
"$@" <"$coldframe_pipes/input" 3<&-
coldframe_code=$?
kill $! 2>/dev/null
exit $coldframe_code
"""
RECEIVE = (
    "IFS= read -r COLDFRAME; SUDO_ASKPASS=$(command -v printenv); export COLDFRAME SUDO_ASKPASS; "
    'exec {sudo} -A -H -p COLDFRAME -u {user} rsync "$@"'
)


def under_way(place: str) -> tuple[Path, int] | None:
    """Find the file at or below ``place`` that a descendant of this process has open: it, and the byte that
    it is at."""
    for process in psutil.Process().children(recursive=True):
        try:
            for file in process.open_files():
                if file.path == place or file.path.startswith(place.rstrip("/") + "/"):
                    return Path(file.path), file.position
        except psutil.Error:
            continue  # it has ended meanwhile
    return None


def progress(source: str, target: str, pull: bool) -> tuple[int, int, str] | None:
    """Say how far rsync is, by the file that it reads or, of a pull, writes here: bytes done, and in all
    (0 where that is known there alone), and a line about it."""
    found = under_way(str(Path(target).parent) if pull else source)
    if found is None:
        return None
    path, done = found
    if pull:
        return done, 0, f"{Path(target).name or Path(source).name}: {done / 1e6:.0f} MB"
    total = path.stat().st_size
    return done, total, f"{path.name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
