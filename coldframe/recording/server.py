"""Beneath a ServerApp, in its process: flwr's own `run` with ours before and after it.

Done only where COLDFRAME_STATE names the directory that outlives the server's container.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from flwr.app import Context
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
)

import coldframe
from coldframe.recording import apps, files, flower, output, reading, settings, threads, torchvision_import
from coldframe.recording.app_errors import AppError
from coldframe.recording.checkpoint import CheckpointError, Checkpoints, forget, newest
from coldframe.recording.grid import RecordingGrid
from coldframe.recording.journal import STOPPED, Journal
from coldframe.recording.policy import Policy
from coldframe.recording.probes import Probes
from coldframe.recording.replay import NO_ORDER, ReplayError, order_of
from coldframe.recording.replies import Rules
from coldframe.recording.rounds import Recorder
from coldframe.recording.settings import Settings

EPOCHS_KEYS = ("local-epochs", "local_epochs")
# What a stopped ServerApp has to save its model and end its journal on a busy machine. flwr gives it 5 s.
SAVING_SECONDS = 60.0
FINITE_KEY = "allow-nonfinite"  # an app whose run_config has it has its replies checked
# Of the journal's `run_started`: what a run_config may tell, as text; and as JSON, of its arguments.
TOLD = ("strategy", "dataset", "partitioner")
ARGUMENTS = {"strategy_args": "strategy-args", "partitioner_args": "partitioner-args"}
ROUNDS_KEYS = ("num-server-rounds", "num_rounds", "num-rounds")  # of a run_config, as Flower's apps have them


def main() -> None:
    """Run flwr's own command with the recording beneath it."""
    from flwr.superlink.cli.flwr_serverapp import flwr_serverapp

    torchvision_import.install()
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

    reading.install()
    claim_output(Path(state))
    vars(importlib.import_module("flwr.supercore.exit.exit"))["FORCE_EXIT_TIMEOUT_SECONDS"] = SAVING_SECONDS

    @functools.wraps(inner)
    def run(grid: Grid, context: Context, **kwargs: Any) -> Context:
        home = Path(state, "home")
        work = files.enter(Path(state, "runs"), str(context.run_id), home, files.SERVER_FILE)
        threads.apply()  # before the app imports what starts them
        try:
            apps.enter(grid.run.fab_hash, context)
            return record(functools.partial(inner, context=context, **kwargs), grid, context, Path(state))
        except SystemExit as error:
            if is_stop(error):
                raise
            if not error.code:
                return context
            # flwr looks for exceptions: of this one it would find out when the heartbeats have stopped.
            raise AppError(ending(error)[1]) from error
        finally:
            shutil.rmtree(work / "tmp", ignore_errors=True)

    runtime.run_ = run  # type: ignore[attr-defined]


def claim_output(state: Path) -> None:
    """Give the file with this process's output to the run, as soon as that is known."""
    from flwr.superlink.grid.http_grid import HttpGrid

    set_run = HttpGrid.set_run

    def set_run_and_claim(grid: HttpGrid, run: Any) -> None:
        set_run(grid, run)
        output.claim(state, run.run_id)

    HttpGrid.set_run = set_run_and_claim  # type: ignore[method-assign, assignment]


def record(run: Any, grid: Grid, context: Context, state: Path) -> Context:
    """Run an app, and leave a journal of it however it ends."""
    folder = state / "runs" / str(context.run_id)
    asked = settings.read(state, str(context.run_id))  # of a run that is resumed the journal is there then
    journal = Journal(folder / "journal.jsonl")
    recorder = Recorder(journal, state / "nodes.json")
    recorder.known = about(context, recorder, asked)
    recorder.epochs = first_whole(context.run_config, EPOCHS_KEYS) or 1
    journal.append("run_started", **recorder.known)
    nonfinite = context.run_config.get(FINITE_KEY)
    rules = Rules(finite=not nonfinite) if isinstance(nonfinite, bool) else None
    policy = Policy(recorder, asked) if asked.round_deadline else None
    recording = RecordingGrid(grid, recorder, rules, asked.wait_timeout, policy)
    # The checkpoint that it goes on from is not held here: it is large, and not needed for long.
    checkpoints = Checkpoints(
        recorder, folder, asked.checkpoint, newest(folder) if asked.resumed_from else None
    )
    order = None
    if asked.replay:
        config, clients = dict(context.run_config), recorder.clients()
        order = functools.partial(order_of, state, asked.replay, config, clients)
    probes = Probes(recorder, policy=policy, order=order, checkpoints=checkpoints)
    probes.install()
    status, reason = "completed", None
    try:
        try:
            if asked.resumed_from and not checkpoints.goes_on:
                raise CheckpointError(
                    f"the checkpoint of run {asked.resumed_from} cannot be read on the server: type"
                    f" -e resume={asked.resumed_from} again, or leave resume out to train anew"
                )
            found: Context = run(grid=recording)
            if order is not None and not probes.replays:
                raise ReplayError(NO_ORDER)
        except Exception as error:
            if is_refused(error):
                with suppress(Exception):
                    grid.get_node_ids()  # of a stopped run this is refused too, and flwr ends the process
            raise
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code or is_stop(error):
            status, reason = ending(error)
        raise
    finally:
        probes.remove()
        recording.close_policy()
        checkpoints.end()
        recorder.finish(status, reason, folder)  # first of all: a slow disk may outlast the process's time
        checkpoints.close()
        journal.close()
        if status == "completed":
            forget(folder)
    return found


def about(context: Context, recorder: Recorder, asked: Settings) -> dict[str, Any]:
    """Return what is known of a run before its app is loaded; what nobody tells is null."""
    config = dict(context.run_config)
    return {
        "run_id": str(context.run_id),
        "run_name": asked.run_name,
        "oversubscribed": asked.oversubscribed,
        **({"replay": asked.replay} if asked.replay else {}),
        "rounds": first_whole(config, ROUNDS_KEYS),
        **{name: config[name] if isinstance(config.get(name), str) else None for name in TOLD},
        **{name: read_object(config.get(key)) for name, key in ARGUMENTS.items()},
        "seed": first_whole(config, ("seed",)),
        "config": config,
        "clients": [
            {"name": client.name, "partition_id": client.partition_id, "node_id": str(client.node_id)}
            for client in recorder.clients()
        ],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what a ServerApp runs on."""
    return {
        **{name: version for name in ("flwr", "torch", "numpy") if (version := version_of(name))},
        "python": platform.python_version(),
        "coldframe": coldframe.__version__,
    }


def first_whole(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """Return the first whole number that one of the keys has."""
    return next((config[key] for key in keys if type(config.get(key)) is int), None)


def read_object(text: Any) -> dict[str, Any] | None:
    """Return the JSON object that a value of a run_config holds, if it is one."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def version_of(package: str) -> str | None:
    """Return the version of a package, if it is installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_stop(error: BaseException) -> bool:
    """Whether the run was stopped: flwr raises SystemExit then, which an app may do, too."""
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = place.tb_frame.f_globals.get("__name__", "") if place is not None else ""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and module.startswith("flwr.supercore.exit")
    )


def is_refused(error: BaseException | None) -> bool:
    """Whether the SuperLink refused something: of a run that is stopped, a message on its way for example."""
    seen: set[int] = set()  # an app may raise exceptions from one another in a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, httpx.HTTPError | ObjectPushError | ObjectPullError | ObjectUnavailableError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def ending(error: BaseException) -> tuple[str, str]:
    """Say how an app ended that did not return: the status and why.

    A model that became NaN or infinite is a FloatingPointError.
    """
    raised = error.__cause__ if isinstance(error, AppError) and error.__cause__ else error
    if isinstance(raised, FloatingPointError):
        return "diverged", str(raised)
    if is_stop(error):
        return "stopped", STOPPED
    if isinstance(error, SystemExit):
        return "failed", f"the ServerApp ended itself by sys.exit({error.code!r})"
    return "failed", str(error) if isinstance(error, AppError) else f"{type(error).__name__}: {error}"
