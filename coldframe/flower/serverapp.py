"""The changes to flwr in a ServerApp's process."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message

from coldframe.flower import transport
from coldframe.flower.changes import POLL_SECONDS, change, replace

_GRID = "flwr.superlink.grid.http_grid:HttpGrid"


@change(
    "flwr.superlink.runtime.run_serverapp:run_serverapp", f"{_GRID}.push_messages", f"{_GRID}.pull_messages"
)
def explain_failed_run(
    on_sent: Callable[[str, int], None],
    on_reply: Callable[[str, int, str | None], None],
    explain: Callable[[Exception], Exception],
) -> None:
    """Raise an error that names the clients' errors: without replies a ServerApp fails with one of its own.

    Parameters
    ----------
    on_sent : callable
        Called with the id of a message and its node.
    on_reply : callable
        Called with the id of the answered message, the node, and its error, if it replied with one.
    explain : callable
        Returns the error to raise in the place of the app's own.
    """
    from flwr.app.exception import AppExitException
    from flwr.superlink.grid.http_grid import HttpGrid

    # The package has a function of the module's name.
    runtime = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    run, push, pull = vars(runtime)["run_"], HttpGrid.push_messages, HttpGrid.pull_messages

    def push_messages(grid: HttpGrid, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        message_ids = list(push(grid, messages))
        for message, message_id in zip(messages, message_ids, strict=False):
            on_sent(message_id, message.metadata.dst_node_id)
        return message_ids

    def pull_messages(grid: HttpGrid, message_ids: Iterable[str]) -> list[Message]:
        replies = list(pull(grid, message_ids))
        for reply in replies:
            reason = (reply.error.reason or "no reason given") if reply.has_error() else None
            on_reply(reply.metadata.reply_to_message_id, reply.metadata.src_node_id, reason)
        return replies

    def run_and_explain(**kwargs: Any) -> Any:
        try:
            return run(**kwargs)
        except AppExitException:
            raise
        except Exception as error:
            raise explain(error) from error

    replace(runtime, "run_", run_and_explain)
    replace(HttpGrid, "push_messages", push_messages)
    replace(HttpGrid, "pull_messages", pull_messages)


@change(f"{_GRID}.send_and_receive", f"{_GRID}.pull_messages")
def receive_replies_as_they_arrive() -> None:
    """Ask for replies without a pause: flwr sleeps 3 s in between; our SuperLink holds the request."""
    from flwr.superlink.grid.http_grid import HttpGrid

    def send_and_receive(
        grid: HttpGrid, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        waiting = set(grid.push_messages(messages))
        del messages
        deadline = float("inf") if timeout is None else time.time() + timeout
        replies: list[Message] = []
        while time.time() < deadline:
            start = time.monotonic()
            arrived = list(grid.pull_messages(waiting))
            replies.extend(arrived)
            waiting.difference_update(reply.metadata.reply_to_message_id for reply in arrived)
            if not waiting:
                break
            if not arrived:
                time.sleep(max(0.0, POLL_SECONDS - (time.monotonic() - start)))
        return replies

    replace(HttpGrid, "send_and_receive", send_and_receive)


def apply() -> None:
    """Apply those that need nothing of the caller."""
    receive_replies_as_they_arrive()
    transport.apply()
