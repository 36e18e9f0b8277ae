"""Beneath a ServerApp, in its process: flwr's own `run` with ours before and after it.

Done only where COLDFRAME_STATE names the directory that outlives the server's container.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

import coldframe
from coldframe.recording import apps, files, flower
from coldframe.recording.grid import RecordingGrid
from coldframe.recording.journal import Journal
from coldframe.recording.probes import Probes
from coldframe.recording.rounds import Recorder

ROUNDS_KEYS = ("num-server-rounds", "num_rounds", "num-rounds")  # of a run_config, as Flower's apps have them


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
            apps.enter(grid.run.fab_hash, context)
            own = kwargs.get("server_app_attr") == flower.OWN_SERVER_APP
            if own or grid.run.fab_id == flower.OWN_APP:  # it keeps its own record
                found: Context = inner(grid=grid, context=context, **kwargs)
            else:
                found = record(
                    functools.partial(inner, context=context, **kwargs), grid, context, Path(state)
                )
        finally:
            shutil.rmtree(work / "tmp", ignore_errors=True)
        return found

    runtime.run_ = run  # type: ignore[attr-defined]


def record(run: Any, grid: Grid, context: Context, state: Path) -> Context:
    """Run an app, and leave a journal of it however it ends."""
    folder = state / "runs" / str(context.run_id)
    journal = Journal(folder / "journal.jsonl")
    recorder = Recorder(journal, state / "nodes.json")
    journal.append("run_started", **about(context, recorder))
    Probes(recorder).install()
    status, reason = "completed", None
    try:
        found: Context = run(grid=RecordingGrid(grid, recorder))
    except BaseException as error:
        status, reason = ending(error)
        raise
    finally:
        recorder.finish(status, reason, folder)
        journal.close()
    return found


def about(context: Context, recorder: Recorder) -> dict[str, Any]:
    """Return what is known of a run before its app is loaded; what an app does not tell is null."""
    config = dict(context.run_config)
    planned = next((config[key] for key in ROUNDS_KEYS if isinstance(config.get(key), int)), None)
    untold = ("run_name", "strategy", "dataset", "partitioner", "seed", "oversubscribed")
    return {
        "run_id": str(context.run_id),
        **dict.fromkeys(untold),
        "rounds": planned,
        "config": config,
        "clients": [
            {"name": client.name, "partition_id": client.partition_id, "node_id": str(client.node_id)}
            for client in recorder.clients()
        ],
        "versions": {
            **{name: version for name in ("flwr", "torch", "numpy") if (version := version_of(name))},
            "python": platform.python_version(),
            "coldframe": coldframe.__version__,
        },
    }


def version_of(package: str) -> str | None:
    """Return the version of a package, if it is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def ending(error: BaseException) -> tuple[str, str]:
    """Say how an app ended that did not return: the status and why.

    flwr ends a run that is stopped by SystemExit, too: it comes from its own module.
    """
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = place.tb_frame.f_globals.get("__name__", "") if place is not None else ""
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and module.startswith("flwr.supercore.exit")
    ):
        return "stopped", "the run was stopped"
    if isinstance(error, SystemExit):
        return "failed", f"the ServerApp ended itself by sys.exit({error.code!r})"
    return "failed", f"{type(error).__name__}: {error}"
