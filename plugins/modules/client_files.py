"""Puts together what the ClientApps of one run have written on a machine, for its collection."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: client_files
short_description: The files that the ClientApps of one run have written on a machine
description:
  - Links the regular files of each client's working directory into one directory, from where they are
    fetched. Small files come first, up to the client's share of I(limit).
  - No link is followed, and none is taken along, nor a device or a pipe. The clients' containers own what is
    read here, and this runs as root.
  - What is left out is named in C(left_out.json), with the reason.
options:
  scratch:
    description: The directory with a directory for each client.
    type: path
    required: true
  run_id:
    description: Whose files.
    type: str
    required: true
  dest:
    description: >-
      Where to put them, in C(clients/<name>/). It is removed first, and not made where no client has written
      anything.
    type: path
    required: true
  limit:
    description: Bytes of all clients of this machine, which share them equally.
    type: int
    default: 1073741824
  most:
    description: Number of files of one client.
    type: int
    default: 10000
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Files of the run's ClientApps
  client_files:
    scratch: /var/lib/coldframe/coldframe/scratch
    run_id: "1234567890"
    dest: /var/lib/coldframe/coldframe/files
  become: true
"""

RETURN = r"""
clients:
  description: By client that has written something, the number of its files that are in I(dest).
  type: dict
  returned: always
  sample: {node1-0: 2}
"""

BELOW = ("runs", "{run_id}", "app", "files")  # of a client's directory
NAMED = 100  # left out files that are named, of each client
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def opened(path: Path, *below: str) -> Iterator[int]:
    """Open a directory step by step, through no link; give its descriptor."""
    descriptor = os.open(path, DIRECTORY)
    try:
        for name in below:
            above, descriptor = descriptor, os.open(name, DIRECTORY, dir_fd=descriptor)
            os.close(above)
        yield descriptor
    finally:
        os.close(descriptor)


def walk(directory: int) -> Iterator[tuple[str, str, int]]:
    """Return path, name and parent's descriptor of all below that is no directory; links are not followed."""
    for folder, _, names, parent in os.fwalk(".", dir_fd=directory):
        for name in names:
            yield str(Path(folder, name)), name, parent


def choose(found: dict[str, os.stat_result], share: int, most: int) -> tuple[set[str], dict[str, str]]:
    """Return the paths that are collected, and for the others why not."""
    chosen: set[str] = set()
    left_out: dict[str, str] = {}
    total = 0
    for path, status in sorted(found.items(), key=lambda item: (item[1].st_size, item[0])):
        if not stat.S_ISREG(status.st_mode):
            left_out[path] = "no regular file"
        elif total + status.st_size > share:
            size = status.st_size / 1e9
            left_out[path] = f"{size:.2f} GB: of this client, {share / 1e9:.2f} GB are collected"
        elif len(chosen) >= most:
            left_out[path] = f"of this client, {most} files are collected"
        else:
            chosen.add(path)
            total += status.st_size
    return chosen, left_out


def look(directory: int) -> dict[str, os.stat_result]:
    """Return what is below a directory, by path."""
    found = {}
    for path, name, parent in walk(directory):
        try:
            found[path] = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            continue
    return found


def link(directory: int, chosen: set[str], dest: Path) -> None:
    """Link the chosen files into a directory; one that has become something else meanwhile is left."""
    for path, name, parent in walk(directory):
        if path not in chosen:
            continue
        target = dest / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(name, target, src_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(target.lstat().st_mode):
            target.unlink()


def collect(scratch: Path, run_id: str, dest: Path, limit: int, most: int) -> dict[str, int]:
    """Put the clients' files below ``dest``; return how many of each."""
    shutil.rmtree(dest, ignore_errors=True)
    below = [part.format(run_id=run_id) for part in BELOW]
    written: dict[str, dict[str, os.stat_result]] = {}
    for client in sorted(path.name for path in scratch.iterdir()) if scratch.is_dir() else []:
        try:
            with opened(scratch, client, *below) as directory:
                found = look(directory)
        except OSError:
            continue  # it had no task of this run, or has put something else in the place
        if found:
            written[client] = found
    clients: dict[str, int] = {}
    named: dict[str, dict[str, str]] = {}
    for client, found in written.items():
        dest.mkdir(mode=0o700, exist_ok=True)
        chosen, left_out = choose(found, limit // len(written), most)
        with opened(scratch, client, *below) as directory:
            link(directory, chosen, dest / "clients" / client)
        clients[client] = len(chosen)
        if left_out:
            named[client] = {printable(path): left_out[path] for path in sorted(left_out)[:NAMED]}
        if len(left_out) > NAMED:
            named[client]["..."] = f"and {len(left_out) - NAMED} more"
    if named:
        (dest / "left_out.json").write_text(json.dumps(named))
    return clients


def printable(path: str) -> str:
    """Return a file's name as text that JSON can hold, whatever bytes it has."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def main() -> None:
    """Put together what is there."""
    module = AnsibleModule(
        {
            "scratch": {"type": "path", "required": True},
            "run_id": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "limit": {"type": "int", "default": 1 << 30},
            "most": {"type": "int", "default": 10_000},
        },
        supports_check_mode=False,
    )
    given = module.params
    if not given["run_id"].isdigit():
        module.fail_json(msg=f"run_id={given['run_id']} is no run: give the number that status.yml shows")
    try:
        clients = collect(
            Path(given["scratch"]), given["run_id"], Path(given["dest"]), given["limit"], given["most"]
        )
    except OSError as error:
        module.fail_json(msg=f"the clients' files cannot be put together in {given['dest']}: {error}")
    module.exit_json(changed=False, clients=clients)


if __name__ == "__main__":
    main()
