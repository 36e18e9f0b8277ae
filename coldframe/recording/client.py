"""Beneath a ClientApp, in the process of its task: flwr's own steps with ours before and after them.

Done only where COLDFRAME_SCRATCH names a directory of the machine's disk, as in a client's container.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from coldframe.recording import files, flower


def main() -> None:
    """Run flwr's own command with the recording beneath it."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    install()
    flwr_clientapp()


def install() -> None:
    """Put what is ours around flwr's steps of a task."""
    scratch = os.environ.get("COLDFRAME_SCRATCH")
    if scratch and flower.is_known("clientapp"):
        Task(Path(scratch)).install()


class Task:
    """The one task of this process; `scratch` is the directory that this client may write to."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.work: Path | None = None
        self.run_id = ""

    def install(self) -> None:
        """Take the place of flwr's functions."""
        from flwr.supernode.runtime import run_clientapp

        pull, unpack, call = (
            run_clientapp.pull_task_input,
            run_clientapp.install_from_fab,
            ClientApp.__call__,
        )

        @functools.wraps(pull)
        def pull_task_input(*args: Any, **kwargs: Any) -> Any:
            found = pull(*args, **kwargs)
            self.run_id = str(found[2].run_id)
            return found

        @functools.wraps(unpack)
        def install_from_fab(*args: Any, **kwargs: Any) -> Any:
            self.enter()  # not earlier: what is raised now becomes an error reply
            return unpack(*args, **kwargs)

        @functools.wraps(call)
        def call_app(app: ClientApp, message: Message, context: Context) -> Message:
            try:
                return call(app, message, context)
            finally:
                if self.work is not None:
                    files.check(self.work)

        run_clientapp.pull_task_input = pull_task_input
        run_clientapp.install_from_fab = install_from_fab
        ClientApp.__call__ = call_app  # type: ignore[method-assign, assignment]

    def enter(self) -> None:
        """Go to the run's directory."""
        runs = self.scratch / "runs"
        if not (runs / self.run_id).exists():
            (runs / self.run_id).mkdir(parents=True)
            files.forget_old(runs)
        self.work = files.enter(runs, self.run_id, self.scratch / "home")
