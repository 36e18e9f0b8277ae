"""Make .venv, the checkout's own environment: the packages of a shared one, and coldframe from this checkout.

    SHARED/bin/python scripts/checkout_venv.py

Many checkouts share an environment, so it cannot hold any one's coldframe. Like pip's editable installation,
a .pth file here names two directories: the shared packages, and the checkout. Each command of the shared
environment has a copy here that starts this environment's Python.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE = ("python", "activate", "Activate")  # by venv itself
SHEBANG = 120  # bytes: the kernel cuts a longer first line


def command(text: bytes, python: Path) -> bytes:
    """Return a command of pip's making with another Python to start it."""
    _, _, rest = text.partition(b"\n")
    if text.startswith(b"#!/bin/sh\n'''exec'"):
        rest = text.split(b"\n", 3)[3]
    first = f"#!{python}"
    if " " in first or len(first) > SHEBANG:
        first = f"#!/bin/sh\n'''exec' {shlex.quote(str(python))} \"$0\" \"$@\"\n' '''"
    return f"{first}\n".encode() + rest


def make(target: Path, shared: Path) -> None:
    """Make the environment, unless it is as it should be."""
    commands = sorted(path for path in (shared / "bin").iterdir() if not path.name.startswith(MADE))
    state = "\n".join([str(shared), str(target), *(path.name for path in commands)])
    mark = target / ".checkout"
    if not target.is_symlink() and mark.is_file() and mark.read_text(encoding="utf-8") == state:
        return
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise SystemExit(
            f"setup: {target} cannot be made, since {target.parent} is not writable: type"
            f" cp -r {shlex.quote(str(target.parent))} ~/coldframe && cd ~/coldframe && make setup"
        )
    if target.is_symlink():
        target.unlink()
    elif target.exists() and not mark.exists():
        raise SystemExit(f"setup: {target} is an environment of your own: move it away, then type make setup")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    mark.touch()
    venv.create(target, symlinks=True)
    (site,) = target.glob("lib/python3*/site-packages")
    (site / "coldframe.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n", encoding="utf-8")
    for path in commands:
        text = path.read_bytes()
        own = target / "bin" / path.name
        if text.startswith((f"#!{shared}/bin/python".encode(), b"#!/bin/sh\n'''exec'")):
            own.write_bytes(command(text, target / "bin" / "python"))
            own.chmod(0o755)
        else:
            own.symlink_to(path)
    mark.write_text(state, encoding="utf-8")


if __name__ == "__main__":
    make(ROOT / ".venv", Path(sys.prefix))
