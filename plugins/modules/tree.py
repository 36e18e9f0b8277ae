"""Brings directories and small files of a machine to what they should be, all in one call."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: tree
short_description: Directories and small files of a machine, in one call
description:
  - What C(file), C(copy) and C(template) do for one path each, for many paths in one call. Over SSH a call
    costs half a second, whatever it does, and a role configures a dozen files.
  - A file is written beside its path and then renamed, so that who reads it sees the old or the new.
  - Below I(root) no symbolic link is followed; one that is in the way is an error.
options:
  root:
    description: An absolute path, before the path of each entry.
    type: path
    required: true
  entries:
    description: The directories and files, parents before what they hold.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: >-
          Relative to I(root); empty for I(root) itself. Directories above that are missing get the mode 0755.
        type: str
        required: true
      owner:
        description: Name or number; left alone where it is not given.
        type: str
      group:
        description: Name or number; left alone where it is not given.
        type: str
      mode:
        description: Octal.
        type: str
        required: true
      content:
        description: What the file holds, to the last newline. Neither this nor I(files) makes a directory.
        type: str
      keep:
        description: The file is made with I(content) where it is missing; what is there stays.
        type: bool
        default: false
      files:
        description: For a directory, files in it, content by name, with the owner and group of the directory.
        type: dict
      files_mode:
        description: Octal, of I(files).
        type: str
        default: "0644"
      exclusive:
        description: A pattern; files in the directory that match it and are not among I(files) are removed.
        type: str
      validate:
        description: A command that must accept a new content before it is used; C(%s) is the path to it.
        type: str
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Configuration
  tree:
    root: /var/lib/coldframe/coldframe/prometheus
    entries:
      - {path: "", owner: "10001", mode: "0700"}
      - path: prometheus.yml
        owner: "10001"
        mode: "0444"
        content: "{{ lookup('ansible.builtin.template', 'prometheus.yml.j2') }}"
        validate: promtool check config %s
  become: true
"""

RETURN = r"""
changed_paths:
  description: What was made, written, removed or given another owner or mode.
  type: list
  elements: str
  returned: always
"""


class Tree:
    """The work of one call."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.root = Path(module.params["root"])
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []

    def bring(self, entry: dict[str, Any]) -> None:
        """Bring one entry to what it should be."""
        path = self.root / entry["path"]
        self.refuse_links(path)
        if entry["content"] is not None:
            self.file(path, entry["content"].encode(), entry, entry["mode"])
            return
        if not path.is_dir():
            if path.exists() or path.is_symlink():
                self.module.fail_json(msg=f"{path} is there and no directory: move it out of the way")
            self.note(path, "absent", "directory")
            if not self.module.check_mode:
                self.make(path)
        self.own(path, entry, entry["mode"])
        files = entry["files"] or {}
        for name, content in files.items():
            self.file(path / name, content.encode(), entry, entry["files_mode"])
        if entry["exclusive"] and path.is_dir():
            for name in sorted(child.name for child in path.iterdir()):
                if fnmatch.fnmatch(name, entry["exclusive"]) and name not in files:
                    self.note(path / name, "file", "absent")
                    if not self.module.check_mode:
                        (path / name).unlink()

    @staticmethod
    def make(path: Path) -> None:
        """Make a directory; those above it that are missing can be passed by all, whatever the umask."""
        missing = [parent for parent in path.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            parent.chmod(0o755)
        path.mkdir()

    def file(self, path: Path, content: bytes, entry: dict[str, Any], mode: str) -> None:
        """Bring a file to what it should be."""
        self.refuse_links(path)
        standing = path.read_bytes() if path.is_file() else None
        if standing is None or (standing != content and not entry["keep"]):
            before, after = (standing or b"").decode(errors="replace"), content.decode(errors="replace")
            self.note(path, before, after)
            # In check mode the directory, or what a validating command needs, may not be there yet.
            if not self.module.check_mode:
                self.write(path, content, entry, mode)
        self.own(path, entry, mode)

    def refuse_links(self, path: Path) -> None:
        """Follow no link below the root: a container may own a directory there, and this runs as root."""
        for part in (path, *path.parents):
            if part == self.root:
                return
            if part.is_symlink():
                self.module.fail_json(
                    msg=f"{part} is a symbolic link to {part.readlink()}, and links are not followed here: "
                    f"remove it, and find out which container made it"
                )

    def write(self, path: Path, content: bytes, entry: dict[str, Any], mode: str) -> None:
        """Write a file, if the command finds it valid; one that is to be kept only if it is still missing."""
        if entry["keep"]:
            with contextlib.suppress(FileExistsError), path.open("xb") as stream:
                stream.write(content)
            return
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as stream:
                stream.write(content)
            self.attributes(Path(name), entry, mode)  # the command may run as the owner
            if entry["validate"]:
                command = [word.replace("%s", name) for word in shlex.split(entry["validate"])]
                code, out, error = self.module.run_command(command)
                if code != 0:
                    self.module.fail_json(msg=f"{path} would not be valid: {(out + error).strip()}")
            self.module.atomic_move(name, str(path))
        finally:
            Path(name).unlink(missing_ok=True)

    def own(self, path: Path, entry: dict[str, Any], mode: str) -> None:
        """Bring owner, group and mode of a path to what they should be."""
        if not path.exists():
            return  # check mode
        if self.attributes(path, entry, mode) and str(path) not in self.changed:
            self.changed.append(str(path))

    def attributes(self, path: Path, entry: dict[str, Any], mode: str) -> bool:
        """Set owner, group and mode; whether that was a change."""
        wanted = {"path": str(path), "owner": entry["owner"], "group": entry["group"], "mode": mode}
        arguments = {**wanted, "secontext": [], "attributes": None}
        return bool(self.module.set_fs_attributes_if_different(arguments, False))

    def note(self, path: Path, before: str, after: str) -> None:
        """Note a change."""
        self.changed.append(str(path))
        self.diffs.append(
            {"before_header": str(path), "after_header": str(path), "before": before, "after": after}
        )


def main() -> None:
    """Bring all entries to what they should be."""
    text = {"type": "str"}
    module = AnsibleModule(
        {
            "root": {"type": "path", "required": True},
            "entries": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "str", "required": True},
                    "owner": text,
                    "group": text,
                    "mode": {"type": "str", "required": True},
                    "content": text,
                    "keep": {"type": "bool", "default": False},
                    "files": {"type": "dict"},
                    "files_mode": {"type": "str", "default": "0644"},
                    "exclusive": text,
                    "validate": text,
                },
            },
        },
        supports_check_mode=True,
    )
    tree = Tree(module)
    for entry in module.params["entries"]:
        tree.bring(entry)
    module.exit_json(
        changed=bool(tree.changed),
        changed_paths=tree.changed,
        diff=tree.diffs if module._diff else [],
    )


if __name__ == "__main__":
    main()
