"""Made-up machines for what reads control groups: files, the kernel's list of mounts, and processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from coldframe.cgroups import CONTROLLERS


def write(folder: Path, files: dict[str, str]) -> None:
    """Write files, by name below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def mountinfo(root: Path, controllers: Iterable[str] = (), unified: str | None = "", top: str = "/") -> str:
    """Return the kernel's list of mounts: a hierarchy of version 1 for each of the controllers, below `root`.

    Parameters
    ----------
    unified : str, optional
        Where the unified hierarchy is, below `root`; None where there is none.
    top : str
        The group that is seen at the top of the mounts.
    """
    lines = ["21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw", "22 21 0:4 / /proc rw - proc proc rw"]
    kinds = [(name, "cgroup", f"rw,{name}") for name in controllers]
    lines.append(
        f"30 21 0:29 / {root} rw - tmpfs tmpfs rw" if kinds else "22 21 0:4 / /proc rw - proc proc rw"
    )
    kinds += [(unified, "cgroup2", "rw,nsdelegate")] if unified is not None else []
    for number, (name, kind, options) in enumerate(kinds, 31):
        place = f"{root}/{name}".rstrip("/").replace(" ", "\\040")
        lines.append(f"{number} 30 0:{number} {top} {place} rw,relatime shared:9 - {kind} cgroup {options}")
    return "\n".join(lines) + "\n"


def paths_of(group: str, version: int) -> str:
    """Return a process's `/proc/PID/cgroup`; under version 1 there is a unified hierarchy beside."""
    unified = f"0::/{group}\n"
    if version == 2:
        return unified
    names = ["name=systemd", *CONTROLLERS]
    return "".join(f"{9 - number}:{name}:/{group}\n" for number, name in enumerate(names)) + unified
