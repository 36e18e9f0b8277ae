"""The changes to flwr in the process of a ClientApp's task, a fork of the zygote."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from flwr.app import Error, Message

from coldframe.flower import transport
from coldframe.flower.changes import FIRST_HEARTBEAT_SECONDS, change, replace

_TASK = "flwr.supernode.runtime.run_clientapp"


def apply(describe: Callable[[BaseException], str]) -> None:
    """Apply those that all tasks share, in the zygote; `report_progress` is applied in each task.

    Parameters
    ----------
    describe : callable
        Says of an exception what it is and where in the app it was raised.
    """
    reply_why_task_failed(describe)
    transport.apply()
    skip_telemetry_and_first_heartbeat()


@change(f"{_TASK}:run_clientapp", f"{_TASK}:push_message")
def reply_why_task_failed(describe: Callable[[BaseException], str]) -> None:
    """Reply with an exception and its line: flwr says only its text, or that the app cannot be loaded."""
    from flwr.supernode.runtime import run_clientapp

    log, push = run_clientapp.log, run_clientapp.push_message
    reasons: list[str] = []

    def log_and_note(*args: Any, exc_info: BaseException | None = None, **kwargs: Any) -> None:
        if exc_info is not None and not reasons:
            reasons.append(describe(exc_info))
        log(*args, exc_info=exc_info, **kwargs)

    def push_message(client: Any, message: Message, context: Any) -> None:
        if message.has_error() and reasons:
            message.error = Error(message.error.code, reasons[0])
        push(client, message, context)

    replace(run_clientapp, "log", log_and_note)
    replace(run_clientapp, "push_message", push_message)


@change(f"{_TASK}:run_clientapp", f"{_TASK}:push_message", f"{_TASK}:push_task_output")
def report_progress(
    on_message: Callable[[bytes], None], on_reply: Callable[[], None], on_done: Callable[[], None]
) -> None:
    """Report how far a task is: only then can a process that outlives it say what a sudden end means.

    A task that could not reply stays open at the SuperNode, which would otherwise wait for the reply without
    a time limit.

    Parameters
    ----------
    on_message : callable
        Called with the task's message, serialized, when it has been received.
    on_reply, on_done : callable
        Called when the reply, and when the end of the task, has been sent.
    """
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime import run_clientapp

    pull, push = RuntimeHttpClient.PullMessages, run_clientapp.push_message
    finish = run_clientapp.push_task_output
    replied = False

    def pull_messages(client: RuntimeHttpClient, request: Any) -> Any:
        response = pull(client, request)
        for message in response.messages_list:
            on_message(message.SerializeToString())
        return response

    def push_message(*args: Any, **kwargs: Any) -> None:
        nonlocal replied
        push(*args, **kwargs)
        replied = True
        on_reply()

    def push_task_output(*args: Any, **kwargs: Any) -> None:
        if replied:
            finish(*args, **kwargs)
            on_done()

    replace(RuntimeHttpClient, "PullMessages", pull_messages)
    replace(run_clientapp, "push_message", push_message)
    replace(run_clientapp, "push_task_output", push_task_output)


@change("flwr.supercore.telemetry:", "flwr.supercore.heartbeat:")
def skip_telemetry_and_first_heartbeat() -> None:
    """Skip what a short task does not need: an early heartbeat, and `uname` and `file` for telemetry
    that is off.
    """
    from flwr.supercore import heartbeat, telemetry
    from flwr.supernode.runtime import run_clientapp

    if telemetry.FLWR_TELEMETRY_ENABLED != "1" and telemetry.FLWR_TELEMETRY_LOGGING != "1":
        off: Future[str] = Future()
        off.set_result("disabled")
        for module in (run_clientapp, importlib.import_module("flwr.supercore.exit.exit")):
            replace(module, "event", lambda *_args, **_kwargs: off)

    run = heartbeat.HeartbeatSender._run

    def run_after_a_pause(sender: heartbeat.HeartbeatSender) -> None:
        if not sender._stop_event.wait(FIRST_HEARTBEAT_SECONDS):
            run(sender)

    replace(heartbeat.HeartbeatSender, "_run", run_after_a_pause)
