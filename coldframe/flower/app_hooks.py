"""What the processes of an app tell beyond what flwr has them tell: why they failed.

Adapters like those of `coldframe.flower.adapters`.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message

from coldframe.flower.version import adapter
from coldframe.recording import app_errors


@adapter("task", run_clientapp="6ce09559f3a2", push_message="07cb512c93e0")
def reply_why_a_task_failed() -> None:
    """flwr replies with the exception's text, or only that the app cannot be loaded: say what and where."""
    from flwr.supercore.utils import get_flwr_home
    from flwr.supernode.runtime import run_clientapp

    log, push = run_clientapp.log, run_clientapp.push_message
    reasons: list[str] = []

    def log_and_note(*args: Any, exc_info: BaseException | None = None, **kwargs: Any) -> None:
        if exc_info is not None and not reasons:
            reasons.append(app_errors.describe(exc_info, get_flwr_home().absolute()))
        log(*args, exc_info=exc_info, **kwargs)

    def push_message(client: Any, message: Message, context: Any) -> None:
        if message.has_error() and reasons:
            message.error = Error(message.error.code, reasons[0])
        push(client, message, context)

    vars(run_clientapp).update(log=log_and_note, push_message=push_message)


@adapter("serverapp", run_serverapp="2cf00cc3bc7e", grid_push="9aa5938ad18d", grid_pull="67a5266a5a2e")
def explain_why_a_run_failed() -> None:
    """A ServerApp without replies fails with an error of its own: name the clients' errors first."""
    from flwr.app.exception import AppExitException
    from flwr.supercore.utils import get_flwr_home
    from flwr.superlink.grid.http_grid import HttpGrid

    run_serverapp = vars(importlib.import_module("flwr.superlink.runtime.run_serverapp"))
    run, push, pull = run_serverapp["run_"], HttpGrid.push_messages, HttpGrid.pull_messages
    errors = app_errors.ClientErrors()

    def push_messages(grid: HttpGrid, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        message_ids = list(push(grid, messages))
        for message, message_id in zip(messages, message_ids, strict=False):
            errors.sent(message_id, message.metadata.dst_node_id)
        return message_ids

    def pull_messages(grid: HttpGrid, message_ids: Iterable[str]) -> list[Message]:
        replies = list(pull(grid, message_ids))
        for reply in replies:
            reason = (reply.error.reason or "no reason given") if reply.has_error() else None
            errors.replied(reply.metadata.reply_to_message_id, reply.metadata.src_node_id, reason)
        return replies

    def run_and_explain(**kwargs: Any) -> Any:
        try:
            return run(**kwargs)
        except AppExitException:
            raise
        except Exception as error:
            own = app_errors.describe(error, get_flwr_home().absolute())
            raise app_errors.AppError(errors.explain(own, client_names())) from error

    run_serverapp["run_"] = run_and_explain
    HttpGrid.push_messages, HttpGrid.pull_messages = push_messages, pull_messages


def client_names() -> dict[int, str]:
    """Return the names of the federation's clients by node id; none where Coldframe did not deploy it."""
    try:
        nodes = json.loads((Path(os.environ.get("COLDFRAME_STATE", "/state")) / "nodes.json").read_text())
    except (OSError, ValueError):
        return {}
    return {int(node_id): str(node["name"]) for node_id, node in nodes.items()}
