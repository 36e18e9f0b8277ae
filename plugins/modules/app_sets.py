"""Keeps on a machine what apps have brought along: sets of dependencies, and folders of data."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: app_sets
short_description: The dependencies and the data of apps on a machine
description:
  - Notes for an app, by the hash of its FAB, which set of dependencies and which folder of data it has. Both
    stand below I(root), which is mounted into every container of the federation, by their names, which are
    hashes of their contents.
  - Says which of them the machine lacks. Each is shipped to C(<kind>/<name>.part/) then, and the module is
    called again with I(arrived).
  - Removes what the fewest will miss, as I(keep) says, and never what a running run uses.
  - Needs nothing but Python on the machine.
options:
  root:
    description: Where they stand.
    type: path
    required: true
  fab:
    description: The hash of the app's FAB.
    type: str
    required: true
  python:
    description: The version of Python that the dependencies are for.
    type: str
    required: true
  sets:
    description: What the app has.
    type: list
    elements: dict
    required: true
    suboptions:
      kind:
        description: Which kind it is.
        type: str
        choices: [dependencies, data]
        required: true
      name:
        description: The hash of its content.
        type: str
        required: true
      bytes:
        description: How large it is.
        type: int
        required: true
      path:
        description: Where the controller has it; not used here.
        type: str
  running:
    description: The hashes of the FABs of running runs.
    type: list
    elements: str
    default: []
  keep:
    description: How many notes of each kind, the newest, keep what they name.
    type: dict
    default: {dependencies: 10, data: 3}
  arrived:
    description: What the machine lacked has been shipped.
    type: bool
    default: false
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Does the machine have them
  app_sets:
    root: /var/lib/coldframe/coldframe/apps
    fab: "{{ fab_hash }}"
    python: "3.11.2"
    sets: [{kind: dependencies, name: 0123456789abcdef, bytes: 1000000}]
  become: true
"""

RETURN = r"""
missing:
  description: The names of the sets that the machine lacks; where there is one, nothing is noted yet.
  type: list
  elements: str
  returned: success
removed:
  description: What was removed, by kind and name.
  type: list
  elements: str
  returned: success
"""

KINDS = ("dependencies", "data")
NOTES = "by-fab"
PART = ".part"
ABANDONED = 86400  # seconds after which nobody goes on with a transfer
ROOM = 64 << 20  # bytes that are to stay free


class Full(Exception):
    """The machine's disk has no room for what is to be shipped."""


def read_notes(root: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the notes by the hash of their FAB, the newest first."""
    found = []
    for path in (root / NOTES).glob("*"):
        try:
            found.append((path.stat().st_mtime_ns, path.name, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            continue
    return [(name, note) for _, name, note in sorted(found, key=lambda item: item[:2], reverse=True)]


def in_use(
    notes: Iterable[tuple[str, dict[str, Any]]], running: Iterable[str], kind: str, keep: int
) -> set[str]:
    """Return the names that the newest notes have for a kind, and those of running runs."""
    names: list[str] = []
    kept = set()
    for fab, note in notes:
        name = note.get(kind)
        if name and name not in names:
            names.append(name)
        if name and fab in running:
            kept.add(name)
    return kept | set(names[:keep])


def prune(root: Path, running: Iterable[str], keep: dict[str, int], wanted: Iterable[str]) -> list[str]:
    """Remove what is not in use; return what that was.

    Parameters
    ----------
    wanted : iterable of str
        Names that stay, whatever the notes say.
    """
    notes, running, removed = read_notes(root), set(running), []
    for kind in KINDS:
        used = in_use(notes, running, kind, keep[kind]) | set(wanted)
        for path in (root / kind).glob("*"):
            name = path.name[: -len(PART)] if path.name.endswith(PART) else path.name
            abandoned = path.name != name and time.time() - path.stat().st_mtime > ABANDONED
            if name not in used and (path.name == name or abandoned):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(f"{kind}/{path.name}")
    for fab, note in notes:
        gone = [kind for kind in KINDS if note.get(kind) and f"{kind}/{note[kind]}" in removed]
        if gone:
            (root / NOTES / fab).unlink(missing_ok=True)
    return removed


def write_note(root: Path, fab: str, note: dict[str, Any]) -> bool:
    """Write the note of an app, so that who reads it sees the old or the new; return whether it changed."""
    path, text = root / NOTES / fab, json.dumps(note, sort_keys=True) + "\n"
    same = path.is_file() and path.read_text(encoding="utf-8") == text
    if same:
        os.utime(path)
        return False
    part = path.with_name(f".{fab}")
    part.write_text(text, encoding="utf-8")
    part.chmod(0o644)
    part.rename(path)
    return True


def bring(root: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Take over what has arrived and note what the app has, or say what is missing; remove what is not used.

    Raises
    ------
    Full
        If what is missing does not fit.
    """
    for name in (*KINDS, NOTES):
        (root / name).mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    for name in (*KINDS, NOTES):
        (root / name).chmod(0o755)
    changed = False
    if given["arrived"]:
        for item in given["sets"]:
            part, place = root / item["kind"] / f"{item['name']}{PART}", root / item["kind"] / item["name"]
            if part.is_dir() and not place.is_dir():
                part.rename(place)
                changed = True
    removed = prune(root, given["running"], given["keep"], [item["name"] for item in given["sets"]])
    missing = [item for item in given["sets"] if not (root / item["kind"] / item["name"]).is_dir()]
    if missing:
        there = os.statvfs(root)
        free, need = there.f_bavail * there.f_frsize, sum(item["bytes"] for item in missing) + ROOM
        if free < need:
            what = " and ".join(item["kind"] for item in missing)
            raise Full(
                f"{free / 1e9:.1f} GB are free on {root}, {need / 1e9:.1f} GB needed for the app's {what}:"
                " make room there (docker system prune -a frees what the engine does not use), then type the"
                " same again"
            )
    else:
        note = {item["kind"]: item["name"] for item in given["sets"]}
        sizes = {f"{item['kind']}_bytes": item["bytes"] for item in given["sets"]}
        changed = write_note(root, given["fab"], {**note, **sizes, "python": given["python"]}) or changed
    return {
        "changed": changed or bool(removed),
        "missing": [item["name"] for item in missing],
        "removed": removed,
    }


def main() -> None:
    """Do it."""
    module = AnsibleModule(
        {
            "root": {"type": "path", "required": True},
            "fab": {"type": "str", "required": True},
            "python": {"type": "str", "required": True},
            "sets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "kind": {"type": "str", "required": True, "choices": list(KINDS)},
                    "name": {"type": "str", "required": True},
                    "bytes": {"type": "int", "required": True},
                    "path": {"type": "str"},
                },
            },
            "running": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "dict", "default": {"dependencies": 10, "data": 3}},
            "arrived": {"type": "bool", "default": False},
        },
    )
    try:
        result = bring(Path(module.params["root"]), module.params)
    except Full as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
