"""The changes to flwr in a SuperNode's process."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, Status, SubStatus

from coldframe.flower import http_server, transport
from coldframe.flower.changes import POLL_SECONDS, change, is_traced, replace
from coldframe.flower.fast_path import HOLD_SECONDS, TASKS, FastPath
from coldframe.flower.fast_path_calls import supernode_calls

_STATE = "flwr.supernode.nodestate.in_memory_nodestate:InMemoryNodeState"


def apply() -> None:
    """Apply all of them."""
    hand_over_complete_replies()
    serve_tasks_on_fast_path()
    transport.apply()
    http_server.wake_less_often()


@change(
    "flwr.supernode.start_client_internal:_push_messages",
    f"{_STATE}.get_messages_legacy",
    f"{_STATE}.store_message",
    "flwr.supercore.corestate.in_memory_corestate:InMemoryCoreState.store_object",
)
def hand_over_complete_replies() -> None:
    """Wake the SuperNode when a reply is complete: flwr looks every 0.5 s, and takes it without its objects.

    Taken early, a reply whose sender died while pushing would be waited for without a time limit. Taken when
    complete, the error reply that comes instead is found.
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

    replace(State, "get_messages_legacy", get_messages_legacy)
    replace(State, "store_message", announcing(store_message))
    replace(State, "store_object", announcing(store_object))


@change(
    "flwr.supernode.start_client_internal:_insert_message",
    "flwr.supernode.start_client_internal:start_client_internal",
    "flwr.supernode.start_client_internal:_pull_and_store_message",
    "flwr.supernode.main:create_app",
    "flwr.supercore.routers.runtime.router:",
    "flwr.supercore.dependencies.runtime:",
    "flwr.supercore.dependencies.superexec:",
    "flwr.supercore.dependencies.task:",
    "flwr.supercore.protobuf.translation:ProtobufTranslationMiddleware",
    "flwr.supercore.error.http:http_error_translator",
)
def serve_tasks_on_fast_path() -> None:
    """Answer the 60 requests of a task on a short path, and hand a task out when its message is complete.

    flwr hands it out before, and the task asks for objects that are not there. The SuperNode sleeps 3 s when
    the SuperLink has no message; one that holds such requests makes the sleep unnecessary, any other is asked
    every POLL_SECONDS.
    """
    from flwr.supernode import main, start_client_internal

    create_app, pull_and_store = main.create_app, start_client_internal._pull_and_store_message
    insert = start_client_internal._insert_message
    no_message_arriving = threading.Event()
    no_message_arriving.set()
    paths: list[FastPath] = []

    def drop_tasks(state: Any, run_id: int) -> None:
        """End the task of a message that is not taken.

        Where the run was stopped meanwhile flwr leaves it, and its reply is taken for the next message's.
        """
        for task in state.get_tasks(run_ids=[run_id], statuses=[Status.PENDING]):
            state.finish_task(task.task_id, SubStatus.FAILED, "its message was not received")

    def create_app_with_fast_path(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)

        def fast_path(inner: Any) -> FastPath:
            paths.append(FastPath(inner, supernode_calls(no_message_arriving.is_set)))
            return paths[-1]

        if not is_traced():
            app.add_middleware(fast_path)
        return app

    def pull_and_store_message(*, receive: Callable[[], Any], **kwargs: Any) -> int | None:
        message: Message | None = None

        def receive_and_hold_tasks() -> Any:
            nonlocal message
            received = receive()
            if received is not None:
                message = received[0]
                no_message_arriving.clear()
            return received

        while True:
            start, message = time.monotonic(), None
            try:
                run_id = pull_and_store(receive=receive_and_hold_tasks, **kwargs)
                if run_id is None and message is not None:
                    drop_tasks(kwargs["state"], message.metadata.run_id)
            finally:
                no_message_arriving.set()
            for path in paths:
                path.notify_from_thread(TASKS)
            if run_id is not None:
                return run_id
            if message is not None:
                # Some of its objects could not be fetched: flwr drops it, and the ServerApp waits in vain.
                error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "The SuperNode could not fetch all of it.")
                insert(Message(error, reply_to=message), kwargs["state"], kwargs["object_store"])
                return message.metadata.run_id
            time.sleep(max(0.0, POLL_SECONDS - (time.monotonic() - start)))

    replace(main, "create_app", create_app_with_fast_path)
    replace(start_client_internal, "_pull_and_store_message", pull_and_store_message)
