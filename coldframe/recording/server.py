"""Beneath a ServerApp, in its process: flwr's own `run` with ours before and after it.

Done only where COLDFRAME_STATE names the directory that outlives the server's container.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from coldframe.recording import files, flower


def main() -> None:
    """Run flwr's own command with the recording beneath it."""
    from flwr.superlink.cli.flwr_serverapp import flwr_serverapp

    install()
    flwr_serverapp()


def install() -> None:
    """Put what is ours around flwr's `run`, which loads the app and calls it."""
    state = os.environ.get("COLDFRAME_STATE")
    if not state or not flower.is_known("serverapp"):
        return
    # The package has a function of the module's name.
    runtime = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    inner = runtime.run_

    @functools.wraps(inner)
    def run(grid: Grid, context: Context, **kwargs: Any) -> Context:
        home = Path(state, "home")
        work = files.enter(Path(state, "runs"), str(context.run_id), home, files.SERVER_FILE)
        try:
            found: Context = inner(grid=grid, context=context, **kwargs)
        finally:
            shutil.rmtree(work / "tmp", ignore_errors=True)
        return found

    runtime.run_ = run  # type: ignore[attr-defined]
