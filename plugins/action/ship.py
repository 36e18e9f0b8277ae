"""Moves files between controller and machine with ansible.posix.synchronize, and shows how far it is."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible.utils.display import Display
from ansible_collections.ansible.posix.plugins.action import synchronize

from coldframe.controller.follow import BAR_MARK, ON_TERMINAL, Output
from coldframe.controller.transfer import RECEIVE, SEND, progress

display = Display()

LOOK = 0.5  # seconds between two looks at the transfer
LINE = 10.0  # seconds between two lines about it where no bar can be drawn
DEFAULTS = {"use_ssh_args": True, "verify_host": True, "archive": False}


class ActionModule(synchronize.ActionModule):
    """Takes the options of synchronize; those in DEFAULTS have other defaults."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Transfer; rsync itself, on the controller, tells by its open files where it is."""
        self._task.args = {**DEFAULTS, **self._task.args}
        with self._answering():
            return self._show(tmp, task_vars)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Let the transfer answer sudo's question on the other side, if there is an answer (-K)."""
        connection, context = self._connection, self._play_context
        become = connection.become
        password = become.get_option("become_pass", playcontext=context) if become else None
        if not password or connection.transport != "ssh" or become.name != "sudo":
            yield
            return
        ssh = ["ssh", "-S", "none"]
        if key := connection.get_option("private_key_file"):
            ssh += ["-i", key]
        if port := connection.get_option("port"):
            ssh += ["-p", str(port)]
        given = [connection.get_option(f"ssh_{kind}args") or "" for kind in ("", "common_", "extra_")]
        options = {
            "sudo": shlex.quote(become.get_option("become_exe", playcontext=context) or "sudo"),
            "user": shlex.quote(become.get_option("become_user", playcontext=context) or "root"),
        }
        with tempfile.TemporaryDirectory(prefix="coldframe-") as directory:
            for pipe in ("answer", "input"):
                os.mkfifo(f"{directory}/{pipe}", 0o600)
            # Open for reading too, so that nobody waits for the other; it is never a file on a disk.
            with os.fdopen(os.open(f"{directory}/answer", os.O_RDWR), "w") as file:
                file.write(f"{password}\n")
                file.flush()
                shell = f"{shlex.join(['sh', '-c', SEND, 'sh', directory, *ssh])} {' '.join(given)}"
                self._task.args = {
                    **self._task.args,
                    "rsync_path": f"sh -c {shlex.quote(RECEIVE.format(**options))} sh",
                    "rsync_opts": [*self._task.args.get("rsync_opts", []), f"--rsh={shlex.quote(shell)}"],
                }
                yield

    def _show(self, tmp: str | None, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Transfer, and show how far it is."""
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
