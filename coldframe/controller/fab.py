"""Packs a Flower app into a FAB, on the controller, and says what is wrong with one that cannot be run.

python -m coldframe.controller.fab APP OUT_DIR                prints the file's path
python -m coldframe.controller.fab APP OUT_DIR --config JSON  prints JSON: path, commit, clean, problems

APP is a folder, a FAB, or a folder of a git repository: see `coldframe.controller.app`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coldframe.controller import app
from coldframe.machine.standing import sources_digest

ROOT = Path(__file__).resolve().parents[2]
# What our own app's FAB is made from, by what, and what has judged it.
MADE_FROM = ("pyproject.toml", ".gitignore", "LICENSE", "fl", "coldframe/controller")


def pack(found: app.Found, manifest: dict[str, Any]) -> bytes:
    """Return the FAB of an app that can be run.

    Raises
    ------
    app.Refused
        If it cannot.
    """
    # Not with the module: that takes a second, and a FAB that was packed before needs none of it.
    from flwr.cli import build
    from flwr.common.constant import FAB_MAX_SIZE

    build.FAB_MAX_SIZE = sys.maxsize  # of the packing alone: `judge_size` names the largest files
    if found.path.is_file():
        content = found.path.read_bytes()
    else:
        try:
            content = build.build_fab_from_disk(found.path)
        except Exception as error:  # of many kinds: a pattern, a licence, a file that cannot be read
            text = " ".join(str(getattr(error, "message", error)).split())
            raise app.Refused(
                f"app={found.given} cannot be packed: {text}", "correct its pyproject.toml"
            ) from None
    files = app.read_fab(found.given, content)
    app.judge_size(found, len(content), FAB_MAX_SIZE, files)
    app.judge_components(found, manifest, files)
    return content


def own_note(directory: Path) -> Path:
    """Return the file that names the FAB of our own app as it is now, if that was packed before."""
    digest = hashlib.sha256(f"{sources_digest(ROOT, MADE_FROM)} {version('flwr')}".encode()).hexdigest()
    return directory / f"own-{digest[:16]}"


def packed_before(note: Path) -> str:
    """Return the path to the FAB that a note names; empty where there is none, or another content."""
    try:
        path = note.parent / note.read_text(encoding="utf-8")
        whole = hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem)
    except OSError:
        return ""
    return str(path) if whole else ""


def main(arguments: list[str]) -> int:
    """Build the FAB and name it by its content, so that an unchanged app is not shipped again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("app")
    parser.add_argument("directory", type=Path, help="gets the FAB")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "coldframe")
    parser.add_argument("--name", default="", help="what the app was called by who typed it")
    parser.add_argument("--config", type=json.loads, help="the run's configuration: judge it, and print JSON")
    given = parser.parse_args(arguments)
    note = None
    if given.config is None and Path(given.app).resolve() == ROOT:
        note = own_note(given.directory)
        if known := packed_before(note):
            print(known)
            return 0
    told: dict[str, Any] = {"path": "", "commit": None, "clean": None, "problems": []}
    try:
        found = app.find(given.app, Path.cwd(), given.cache, given.name)
        told |= {"commit": found.commit, "clean": found.clean}
        manifest = app.read_manifest(found)
        told["problems"] = app.judge_config(given.config or {}, manifest, found.given)
        content = pack(found, manifest)
        path = given.directory / f"{hashlib.sha256(content).hexdigest()[:16]}.fab"
        given.directory.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        if note:
            note.write_text(path.name, encoding="utf-8")
        told["path"] = str(path)
    except app.Refused as refused:
        told["problems"].append((refused.problem, refused.remedy))
    if given.config is not None:
        print(json.dumps(told))
        return 0
    for problem, remedy in told["problems"]:
        print(f"{problem}: {remedy}", file=sys.stderr)
    print(told["path"])
    return 1 if told["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
