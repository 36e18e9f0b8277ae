"""All of Coldframe's changes to flwr 1.41, each a few lines with its reason, and how they are applied.

`python -m coldframe.adapters superlink|supernode ARGS` is flwr's own `flower-superlink` or `flower-supernode`
with the adapters of that process applied. `COLDFRAME_ADAPTERS=0` leaves all of them out: everything still
works, as slowly as stock.

An adapter names what it relies on, with a digest of that source. A flwr in which any of it reads differently
stops the process with a message instead of changing something that is no longer there. No adapter touches
authentication, authorization, version checks or TLS.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flwr
from flwr.app import Message


class AdapterError(RuntimeError):
    """What an adapter relies on is not in this flwr."""


@dataclass(frozen=True)
class Adapter:
    """One change to flwr: in which process, and the digests of what it relies on."""

    process: str
    relies_on: dict[str, str]
    apply: Callable[[], None]


ADAPTERS: list[Adapter] = []


def adapter(process: str, **relies_on: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function as adapter of a process; `relies_on` maps names in `SEAMS` to digests."""

    def register(apply: Callable[[], None]) -> Callable[[], None]:
        ADAPTERS.append(Adapter(process, relies_on, apply))
        return apply

    return register


# How long a request or a look for something that is not there yet is held before it is answered with nothing.
HOLD_SECONDS = 5.0

_NODE_STATE = "flwr.supernode.nodestate.in_memory_nodestate:InMemoryNodeState"
# Short names for the places in flwr that adapters rely on.
SEAMS = {
    "get_executor": "flwr.supercore.superexec.executor.factory:get_executor",
    "run_superexec": "flwr.supercore.superexec.run_superexec:run_superexec",
    "run_clientapp": "flwr.supernode.runtime.run_clientapp:run_clientapp",
    "push_message": "flwr.supernode.runtime.run_clientapp:push_message",
    "push_messages": "flwr.supernode.start_client_internal:_push_messages",
    "node_get_messages": f"{_NODE_STATE}.get_messages_legacy",
    "node_store_message": f"{_NODE_STATE}.store_message",
    "node_store_object": f"{_NODE_STATE}.store_object",
    "push_task_output": "flwr.supernode.runtime.run_clientapp:push_task_output",
}


def digest(seam: str) -> str:
    """Return the first half of the SHA-256 of a seam's source, or why there is none."""
    module, _, path = SEAMS[seam].partition(":")
    try:
        found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]
    except (ImportError, AttributeError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def enabled() -> bool:
    """Say whether adapters are to be applied."""
    return os.environ.get("COLDFRAME_ADAPTERS", "1") != "0"


def check(process: str) -> list[str]:
    """Return one line for each thing that the adapters of a process rely on and this flwr has otherwise."""
    return [
        f"{SEAMS[seam]} ({entry.apply.__name__}): expected {expected}, found {found}"
        for entry in ADAPTERS
        if entry.process == process
        for seam, expected in entry.relies_on.items()
        if (found := digest(seam)) != expected
    ]


def install(process: str) -> None:
    """Apply the adapters of a process to the flwr in it."""
    if not enabled():
        return
    if moved := check(process):
        raise AdapterError(
            f"flwr {flwr.__version__} is not the flwr that Coldframe's adapters were written for:\n  "
            + "\n  ".join(moved)
            + "\nInstall the flwr that coldframe/requirements.txt names, or set COLDFRAME_ADAPTERS=0 to run "
            "without them, slower."
        )
    for entry in ADAPTERS:
        if entry.process == process:
            entry.apply()


@adapter("executor", get_executor="891abfc53747", run_superexec="d11f4e7fbc8f")
def use_warm_executor() -> None:
    """flwr chooses between executors of its own only: hand out ours in place of the subprocess one."""
    from flwr.supercore.superexec import run_superexec

    from coldframe.executor import WarmExecutor

    modules = [name for name in os.environ.get("COLDFRAME_PRELOAD", "torch,numpy").split(",") if name]
    run_superexec.get_executor = lambda *_args, **_kwargs: WarmExecutor(modules)


@dataclass
class TaskEvents:
    """What the process of a task wants to be told as flwr's code goes along."""

    on_message: Callable[[bytes], None] = lambda _message: None
    on_reply: Callable[[], None] = lambda: None
    on_done: Callable[[], None] = lambda: None


task_events = TaskEvents()


@adapter("task", run_clientapp="6ce09559f3a2", push_message="07cb512c93e0", push_task_output="9206407456e7")
def watch_task() -> None:
    """A sudden end can only be reported by somebody who knows how far the task was: have the task tell.

    A task that could not reply stays open at the SuperNode: closed without a reply, it would be waited for
    for ever.
    """
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime import run_clientapp

    pull, push = RuntimeHttpClient.PullMessages, run_clientapp.push_message
    finish = run_clientapp.push_task_output
    replied = False

    def pull_messages(client: RuntimeHttpClient, request: Any) -> Any:
        response = pull(client, request)
        for message in response.messages_list:
            task_events.on_message(message.SerializeToString())
        return response

    def push_message(*args: Any, **kwargs: Any) -> None:
        nonlocal replied
        push(*args, **kwargs)
        replied = True
        task_events.on_reply()

    def push_task_output(*args: Any, **kwargs: Any) -> None:
        if replied:
            finish(*args, **kwargs)
            task_events.on_done()

    RuntimeHttpClient.PullMessages = pull_messages
    run_clientapp.push_message = push_message
    run_clientapp.push_task_output = push_task_output


@adapter(
    "supernode",
    push_messages="00bb86faffde",
    node_get_messages="1a5a9140a90c",
    node_store_message="8d38cc83c3fb",
    node_store_object="2f952e079f4d",
)
def hand_over_complete_replies() -> None:
    """The SuperNode looks for a reply every 0.5 s and takes it before its objects are there: wake it then.

    Taken early, a reply whose sender died while pushing would be waited for for ever: the SuperNode has no
    time limit there. Taken when complete, the error reply that comes instead is found.
    """
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState as State

    get_messages, store_message, store_object = (
        State.get_messages_legacy,
        State.store_message,
        State.store_object,
    )
    changed = threading.Event()

    def missing(state: State, message_id: str) -> bool:
        session = state._object_push_sessions.get(state._object_push_session_by_root.get(message_id, ""))
        return session is not None and bool(session.pending_object_ids)

    def take_replies(state: State) -> list[Message]:
        get_messages(state, run_ids=())  # takes none, but expires tasks whose heartbeats have stopped
        with state._lock_object_push_sessions, state.lock_msg_store:
            entries = [e for e in state.msg_store.values() if e.message.metadata.reply_to_message_id]
            taken = [
                e for e in entries if not e.is_retrieved and not missing(state, e.message.metadata.message_id)
            ]
            answered = {e.message.metadata.reply_to_message_id for e in taken}
            for entry in taken:
                entry.is_retrieved = True
            for entry in entries:
                metadata = entry.message.metadata
                if not entry.is_retrieved and metadata.reply_to_message_id in answered:
                    session = state._object_push_session_by_root[metadata.message_id]
                    state._cleanup_push_session(session, cleanup_messages=True)
        return [entry.message for entry in taken]

    def get_messages_legacy(
        state: State, *, is_reply: bool | None = None, **filters: Any
    ) -> Sequence[Message]:
        if not is_reply:
            return get_messages(state, is_reply=is_reply, **filters)
        deadline = time.monotonic() + HOLD_SECONDS
        while True:
            changed.clear()
            if (replies := take_replies(state)) or not changed.wait(max(0.0, deadline - time.monotonic())):
                return replies

    def announcing(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            changed.set()
            return result

        return call

    State.get_messages_legacy = get_messages_legacy
    State.store_message = announcing(store_message)
    State.store_object = announcing(store_object)


def main() -> None:
    """Run one of flwr's own commands with the adapters of its process."""
    commands = {
        "superlink": "flwr.superlink.cli.flower_superlink:flower_superlink",
        "supernode": "flwr.supernode.cli.flower_supernode:flower_supernode",
    }
    process = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if process not in commands:
        sys.exit(f"usage: python -m coldframe.adapters {'|'.join(commands)} ARGS (not {process!r})")
    install(process)
    module, _, function = commands[process].partition(":")
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()
