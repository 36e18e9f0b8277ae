"""Plays a single task on this machine with our plugins, as a user's terminal or pipe would see it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def one_task(directory: Path, task: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Write a playbook of one task; the command line that plays it, and its environment."""
    return some_tasks(directory, {"register": "r", **task}, {"ansible.builtin.debug": {"var": "r.rc"}})


def some_tasks(directory: Path, *tasks: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Write a playbook; the command line that plays it, and its environment."""
    play = [{"hosts": "all", "gather_facts": False, "connection": "local", "tasks": tasks}]
    (directory / "play.yml").write_text(json.dumps(play), encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "plugins" / "callback"),
        "ANSIBLE_STDOUT_CALLBACK": "coldframe",
        "TMPDIR": str(directory),
        "TERM": "xterm",
    }
    binary = str(Path(sys.executable).parent / "ansible-playbook")
    return [binary, "-i", "one,", str(directory / "play.yml")], environment


def on_terminal(command: list[str], environment: dict[str, str], mark: bytes) -> tuple[int, bytes, float]:
    """Run a command on a terminal: its exit code, all it wrote, and how many seconds before its end it first
    wrote ``mark``."""
    reader, writer = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=writer, stderr=writer, stdin=writer) as process:
        os.close(writer)
        text, first = b"", 0.0
        while True:
            try:
                data = os.read(reader, 65536)
            except OSError:
                break
            text += data
            first = first or (time.monotonic() if mark in text else 0.0)
        seconds = time.monotonic() - first
    os.close(reader)
    return process.returncode, text, seconds
