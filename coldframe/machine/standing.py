"""What a deployment has left on a machine, as digests: by them the next one sees that it still stands."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RECORD = "deployed.json"
# What a record holds besides what `look` finds.
ASIDE = ("plan", "data_plan", "data", "description")
# Below the federation's directory: what lives while the federation works, and no deployment writes again.
LIVING = (
    *("agent", "apps", "cache", "data", "events.jsonl", "fabs", "files", "grafana/data", "logs"),
    *("prometheus/data", "scratch", "server", RECORD),
)
# But for this, in a directory that lives.
WRITTEN = ("server/clients.json",)


def files_digest(root: Path, living: Iterable[str] = LIVING, written: Iterable[str] = WRITTEN) -> str:
    """Digest of all that a deployment writes below a directory: names, owners, modes and contents."""
    digest = hashlib.sha256()
    paths = [*walk(root, {root / name for name in living}), *(root / name for name in written)]
    for path in sorted(paths):
        try:
            found = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
        except OSError as error:
            digest.update(f"{path}: {error.errno}\n".encode())
            continue
        line = f"{path} {found.st_mode:o} {found.st_uid} {found.st_gid} {content}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def walk(directory: Path, leave_out: set[Path]) -> Iterable[Path]:
    """Yield a directory and everything below it but for some paths and what is below them."""
    yield directory
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if path in leave_out:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(path, leave_out)
        else:
            yield path


def data_digest(directory: Path) -> str:
    """Digest of a data set's files; empty where there is none.

    It stands for their contents without reading them: whoever writes to a file, or puts another in its place,
    changes the time of its last change (ctime), which nobody can set.
    """
    try:
        found = [(entry.name, entry.stat()) for entry in os.scandir(directory)]
    except OSError:
        return ""
    lines = [f"{name} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for name, s in sorted(found)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sources_digest(root: Path, names: Iterable[str]) -> str:
    """Digest of files and of directories of files, without what Python compiles them to."""
    digest = hashlib.sha256()
    for name in names:
        top = root / name
        paths = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        for path in paths:
            if "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Digest of a value that can be written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def read_record(root: Path) -> dict[str, Any]:
    """Return what the last deployment noted; empty where there was none, or where it cannot be read."""
    try:
        found = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def look(
    root: Path,
    federation: str = "",
    data: Path | None = None,
    images: Iterable[str] = (),
    containers: Iterable[Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Return what can be found of a deployment: digests, its containers, and which of some images are there.

    Parameters
    ----------
    root : Path
        The federation's directory on this machine.
    federation : str
        Its name; without it the engine is not asked: the controller has none.
    data : Path, optional
        The data set's directory.
    images : iterable of str
        Images that a deployment uses where it finds them.
    containers : iterable of mapping, optional
        The federation's containers, and `images` those of them that are there, where the caller has asked
        the engine: `id`, `image`, `state`, `role` and `status` of each.
    """
    found: dict[str, Any] = {"files": files_digest(root), "data": data_digest(data) if data else ""}
    if not federation:
        return found
    if containers is not None:
        words = ("id", "image", "state", "role", "status")
        found["containers"] = sorted(describe(*(item[word] for word in words)) for item in containers)
        found["images"] = list(images)
        return found
    own = f"label=coldframe.federation={federation}"
    lines = docker("ps", "--all", "--no-trunc", "--filter", own, FORMAT)
    found["containers"] = sorted(describe(*line.split(" ", 4)) for line in lines)
    found["images"] = [name for name in images if docker("image", "ls", "--quiet", name)]
    return found


FORMAT = '--format={{.ID}} {{.Image}} {{.State}} {{.Label "coldframe.role"}} {{.Status}}'


def describe(name: str, image: str, state: str, role: str, status: str) -> str:
    """Say of a container who it is, of which image, and whether it runs; of the server, whether it answers.

    An image that has lost its name, which the next client would need, is shown by its id.
    """
    return f"{name} {image} {state}" + (" healthy" if role == "server" and "(healthy)" in status else "")


def docker(*words: str) -> list[str]:
    """Return the lines that a docker command prints; none where there is no engine."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def stands(noted: Mapping[str, Any], found: Mapping[str, Any], plan: str) -> bool:
    """Say whether a machine, its data set aside, is as its last deployment left it, which followed this plan.

    >>> note = {"plan": "p", "files": "f", "containers": ["a running"]}
    >>> stands(note, {"files": "f", "containers": ["a running"]}, "p")
    True
    >>> stands(note, {"files": "f", "containers": ["a exited"]}, "p")
    False
    """
    was, now = ({k: v for k, v in item.items() if k not in ASIDE} for item in (noted, found))
    running = all(" running" in container for container in found.get("containers", []))
    return bool(plan) and noted.get("plan") == plan and was == now and running


def data_stands(noted: Mapping[str, Any], found: Mapping[str, Any], plan: str) -> bool:
    """Say whether a machine has the data set that its last deployment brought, which followed this plan."""
    same = bool(found.get("data")) and noted.get("data") == found.get("data")
    return bool(plan) and noted.get("data_plan") == plan and same
