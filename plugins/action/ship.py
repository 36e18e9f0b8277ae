"""Moves files between controller and machine with ansible.posix.synchronize, and shows how far it is."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from ansible.utils.display import Display
from ansible_collections.ansible.posix.plugins.action import synchronize

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from plugins.action.follow import BAR_MARK, ON_TERMINAL, Output

display = Display()

LOOK = 0.5  # seconds between two looks at the transfer
LINE = 10.0  # seconds between two lines about it where no bar can be drawn
DEFAULTS = {"use_ssh_args": True, "verify_host": True, "archive": False}


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


class ActionModule(synchronize.ActionModule):
    """Takes the options of synchronize; those in DEFAULTS have other defaults."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Transfer; rsync itself, on the controller, tells by its open files where it is."""
        self._task.args = {**DEFAULTS, **self._task.args}
        ended = threading.Event()
        watcher = threading.Thread(
            target=self._watch, args=((task_vars or {}).get("inventory_hostname", ""), ended), daemon=True
        )
        watcher.start()
        try:
            result: dict[str, Any] = super().run(tmp, task_vars)
        finally:
            ended.set()
            watcher.join()
        return result

    def _watch(self, machine: str, ended: threading.Event) -> None:
        output = Output(
            show=lambda text: display.display(text, newline=False),
            label=machine,
            terminal=ON_TERMINAL,
            columns=display.columns or 79,
        )
        arguments = self._task.args
        pull, said = arguments.get("mode") == "pull", time.monotonic()
        while not ended.wait(LOOK):
            if not (now := progress(str(arguments["src"]), str(arguments["dest"]), pull)):
                continue
            done, total, text = now
            if ON_TERMINAL and total:
                bar = json.dumps({"done": done, "total": total, "text": text})
                output.feed(f"{BAR_MARK}{bar}\n".encode())
            elif time.monotonic() - said >= LINE:
                said = time.monotonic()
                output.feed(f"{text}\n".encode())
        output.close()
