"""All of Coldframe's changes to flwr 1.41, each a few lines with its reason, and how they are applied.

`python -m coldframe.flower.adapters superlink|supernode|serverapp-superexec ARGS` is flwr's own command with
the adapters of that process; the executor beside a SuperNode is `coldframe.client.executor`. With
`COLDFRAME_ADAPTERS=0` everything works without them, as slowly as stock.

An adapter names what it relies on, with a digest of that source; a flwr that reads differently stops the
process. Keys, tokens and versions are checked by flwr's own functions, a node's key before a body is read.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import flwr
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from coldframe.flower import app_hooks  # noqa: F401 (it has adapters of its own)
from coldframe.flower.version import ADAPTERS, SEAMS, adapter, digest
from coldframe.supervise import keep_freed_memory

KEPT_MEGABYTES = 16  # what long-lived processes keep of the memory that they free: a few messages


class AdapterError(RuntimeError):
    """What an adapter relies on is not in this flwr."""


# How long a look for something that is not there yet may last before other things are looked after.
HOLD_SECONDS = 5.0
# How often a server that does not hold a question is asked it.
UNHELD_SECONDS = 0.5
# When a task first says that it lives; who has handed it out looks for that after 30 s.
SIGN_SECONDS = 10.0


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
            + "\n  ".join([*moved, "Install coldframe/requirements.txt, or set COLDFRAME_ADAPTERS=0."])
        )
    for entry in ADAPTERS:
        if entry.process == process:
            entry.apply()


PRELOAD = "torch,numpy"


@adapter("executor", get_executor="891abfc53747", run_superexec="d11f4e7fbc8f")
def use_warm_executor() -> None:
    """flwr chooses between executors of its own only: hand out ours in place of the subprocess one."""
    from flwr.supercore.superexec import run_superexec

    from coldframe.client.executor import WarmExecutor, fork_zygote

    preload = os.environ.get("COLDFRAME_PRELOAD", PRELOAD)
    modules = [name for name in preload.split(",") if name]
    first = fork_zygote(modules)  # now: later there are threads
    run_superexec.get_executor = lambda *_args, **_kwargs: WarmExecutor(modules, first)


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


@adapter(
    "supernode",
    insert_message="a0c6f4605e99",
    start_client="9e89a6eb68fb",
    pull_and_store="eaf5d0e36dc3",
    node_create_app="28b04dd1c246",
    runtime_router="59bd7cd3edcc",
    runtime_dependencies="5c6ae7d095ab",
    superexec_dependency="4e5293a1c7ac",
    task_dependency="a28eae914ba2",
    translation="5ff23a6fdd06",
    error_translator="63e39a121204",
)
def serve_tasks_on_the_lean_path() -> None:
    """Tasks are handed out before their messages are there, are asked for in vain, and make 60 requests each.

    Wait for the message, hold the question, shorten the requests.

    The SuperNode itself sleeps 3 s when the SuperLink has nothing for it. If the SuperLink holds such
    requests there is no need to; one that does not is asked twice a second.
    """
    from flwr.supernode import main, start_client_internal

    from coldframe.flower import fast_path

    create_app, pull_and_store = main.create_app, start_client_internal._pull_and_store_message
    idle = threading.Event()
    idle.set()
    paths: list[fast_path.LeanPath] = []

    def create_lean_app(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)

        def lean_path(inner: Any) -> fast_path.LeanPath:
            paths.append(fast_path.LeanPath(inner, fast_path.supernode_calls(idle.is_set)))
            return paths[-1]

        if not _is_traced():
            app.add_middleware(lean_path)
        return app

    def pull_and_store_message(*, receive: Callable[[], Any], **kwargs: Any) -> int | None:
        message: Message | None = None

        def receive_and_close() -> Any:
            nonlocal message
            received = receive()
            if received is not None:
                message = received[0]
                idle.clear()
            return received

        while True:
            start, message = time.monotonic(), None
            try:
                run_id = pull_and_store(receive=receive_and_close, **kwargs)
            finally:
                idle.set()
            for path in paths:
                path.ring_from_thread("tasks")
            if run_id is not None:
                return run_id
            if message is not None:
                # Received without all of its objects: flwr drops it, and the ServerApp waits in vain.
                error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "The SuperNode could not fetch all of it.")
                reply = Message(error, reply_to=message)
                start_client_internal._insert_message(reply, kwargs["state"], kwargs["object_store"])
                return message.metadata.run_id
            time.sleep(max(0.0, UNHELD_SECONDS - (time.monotonic() - start)))

    main.create_app = create_lean_app
    start_client_internal._pull_and_store_message = pull_and_store_message


@adapter(
    "superlink",
    link_create_app="ee966b630c8b",
    sql_session="2aa8a8351f33",
    link_middleware="acdbc2dce152",
    fleet_router="98ce9e07f1cb",
    node_auth="8646e6bfd8e5",
    runtime_router="59bd7cd3edcc",
    superexec_dependency="4e5293a1c7ac",
    runtime_dependencies="5c6ae7d095ab",
    task_dependency="a28eae914ba2",
    translation="5ff23a6fdd06",
    error_translator="63e39a121204",
)
def serve_rounds_on_the_lean_path() -> None:
    """Per client and round the SuperLink answers some 75 requests, 4 to 5 ms each, many of them in vain."""
    from flwr.superlink import extensions, main

    from coldframe.flower import fast_path

    create_app = main.create_app

    def create_lean_app(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)
        # What would have to see each request is not passed by.
        if not (_is_traced() or extensions.get_middleware() or app.state.fleet_event_log_plugin):
            app.add_middleware(fast_path.LeanPath, calls=fast_path.superlink_calls())
        return app

    main.create_app = create_lean_app


@adapter(
    "superlink",
    cleanup_tokens="34301eae2ee4",
    task_by_token="cf6795c48519",
    store_traffic="cc82e5eaf2bb",
    get_run_info="b6686f297300",
)
def write_less_to_the_database() -> None:
    """With a database, each object writes to it twice: to expire tasks without heartbeats and for its size.

    Do both once a second, and count before somebody reads. Whether a token is still valid does not depend on
    the expiry: `get_task_by_token` compares the time by itself.
    """
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    cleanup, store_traffic = SqlLinkState._cleanup_expired_task_tokens, SqlLinkState.store_traffic
    get_run_info = SqlLinkState.get_run_info
    lock = threading.Lock()
    due = {"expire": 0.0, "count": 0.0}
    counted: dict[int, list[int]] = {}

    def cleanup_expired_task_tokens(state: SqlLinkState) -> None:
        if time.monotonic() >= due["expire"]:
            due["expire"] = time.monotonic() + 1.0
            cleanup(state)

    def write_counts(state: SqlLinkState) -> None:
        with lock:
            counts = dict(counted)
            counted.clear()
            due["count"] = time.monotonic() + 1.0
        for run_id, (sent, received) in counts.items():
            store_traffic(state, run_id, bytes_sent=sent, bytes_recv=received)

    def count_traffic(state: SqlLinkState, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        with lock:
            count = counted.setdefault(run_id, [0, 0])
            count[0] += bytes_sent
            count[1] += bytes_recv
        if time.monotonic() >= due["count"]:
            write_counts(state)

    def get_run_info_with_counts(state: SqlLinkState, *args: Any, **kwargs: Any) -> Any:
        write_counts(state)
        return get_run_info(state, *args, **kwargs)

    SqlLinkState._cleanup_expired_task_tokens = cleanup_expired_task_tokens
    SqlLinkState.store_traffic = count_traffic
    SqlLinkState.get_run_info = get_run_info_with_counts


@adapter("superlink", get_run_status="9f5531faa145")
def read_the_status_of_a_run_once_per_batch() -> None:
    """Each object pushed or pulled asks whether its run goes on; those of a batch share the answer."""
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    from coldframe.flower import fast_path

    get_run_status = SqlLinkState.get_run_status

    def get_run_status_once(state: SqlLinkState, run_ids: set[int]) -> Any:
        known = fast_path.run_statuses.get()
        if known is None:
            return get_run_status(state, run_ids)
        key = frozenset(run_ids)
        if key not in known:
            known[key] = get_run_status(state, run_ids)
        return known[key]

    SqlLinkState.get_run_status = get_run_status_once


@adapter(
    "superlink",
    link_factories="9f697d33f493",
    sql_state_init="ee58a642aa78",
    memory_start_session="232e93255876",
    memory_preregister="6b9ea0838259",
    memory_store_object="2f952e079f4d",
    memory_get_object="d68857ff2fba",
    memory_cleanup_session="38de64b03262",
    memory_delete_sessions="ecc399e24628",
)
def keep_objects_in_memory() -> None:
    """A message of 20 objects is 400 statements of SQL: keep objects in memory, as flwr without a database.

    Runs, nodes, tasks and messages stay in the database. Objects on their way when a SuperLink dies are lost;
    the clients concerned are failures of that round, and the next round works.
    """
    from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState
    from flwr.supercore.corestate.sql_corestate import SqlCoreState
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink import config_loader

    init = SqlCoreState.__init__

    def init_with_sessions(state: Any, *args: Any, **kwargs: Any) -> None:
        init(state, *args, **kwargs)
        state._object_push_sessions = {}
        state._object_push_session_by_root = {}
        state._lock_object_push_sessions = threading.RLock()

    SqlCoreState.__init__ = init_with_sessions
    for name in (
        *("start_session", "preregister_object_tree", "store_object", "get_object"),
        *("_cleanup_push_session", "delete_sessions_in_run"),
    ):
        setattr(SqlCoreState, name, getattr(InMemoryCoreState, name))
    config_loader.ObjectStoreFactory = lambda _database: ObjectStoreFactory()


@adapter("superlink", activate_node="a06be1bac7e1", deactivate_node="c3ad2ab2beb4")
def let_in_who_comes_back() -> None:
    """A client that ended without a goodbye is turned away for 60 s: its key says who it is, so let it in."""
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    activate = SqlLinkState.activate_node

    def activate_again(state: SqlLinkState, node_id: int, interval: float) -> bool:
        with state.session():
            state.deactivate_node(node_id)
            return activate(state, node_id, interval)

    SqlLinkState.activate_node = activate_again


_REQUEST_SEAMS = {
    "protobuf_client": "e2206492f910",
    "pull_objects": "31bb2de46b45",
    "pull_and_inflate": "139811483a15",
}


@adapter("supernode", **_REQUEST_SEAMS)
@adapter("task", **_REQUEST_SEAMS)
@adapter("executor", **_REQUEST_SEAMS)
@adapter("serverapp", **_REQUEST_SEAMS)
def make_lean_requests() -> None:
    """httpx is most of what a request costs its sender, and who finds an object missing waits a second."""
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.protobuf.client import ProtobufClient

    from coldframe.flower.http_client import LeanClient

    def init(
        client: ProtobufClient,
        base_url: str,
        *,
        interceptors: Sequence[Any] = (),
        verify: Any = True,
        timeout: float = 30.0,
        retry_invoker: Any = None,
    ) -> None:
        client._base_url = base_url.rstrip("/")
        client._interceptors = tuple(interceptors)
        client._retry_invoker = retry_invoker
        client._client = LeanClient(verify, timeout)

    ProtobufClient.__init__ = init
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        function.__kwdefaults__["initial_backoff"] = 0.05


_OBJECT_SEAMS = {
    "pull_objects": "31bb2de46b45",
    "push_contents": "89d2efe1cf72",
    "object_functions": "aeac102e54a8",
    "runtime_client": "efdac833ff30",
}


@adapter("supernode", **_OBJECT_SEAMS, fleet_client="9b09bd3e5237")
@adapter("task", **_OBJECT_SEAMS)
@adapter("executor", **_OBJECT_SEAMS)
@adapter("serverapp", **_OBJECT_SEAMS)
def move_objects_together() -> None:
    """Each object of a message is a request of its own, 2 to 5 ms: send as many in one as fit.

    The server checks a batch as it checks a single object, see `fast_path.together`. flwr pushes objects with
    threads; here none is started, so that a client at its limit of pids can still say what failed.
    """
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.runtime import RuntimeHttpClient

    from coldframe.flower import object_batches

    flwr_pull_objects = inflatable_utils.pull_objects

    def pull_objects(
        object_ids: Iterable[str], pull_object_fn: Callable[[str], bytes], **limits: Any
    ) -> dict[str, bytes]:
        return object_batches.pull_objects(flwr_pull_objects, object_ids, pull_object_fn, **limits)

    def push_contents(
        object_contents: Iterable[tuple[str, bytes]], push_object_fn: Callable[[str, bytes], None], **_: Any
    ) -> None:
        object_batches.push_contents(object_contents, push_object_fn)

    def share_requests(client: Any) -> None:
        pull, push = client.PullObject, client.PushObject
        client.PullObject = lambda it, request: object_batches.pull(it, pull, request)
        client.PushObject = lambda it, request: object_batches.push(it, push, request)

    share_requests(RuntimeHttpClient)
    inflatable_utils.pull_objects = pull_objects
    inflatable_utils.push_object_contents_from_iterable = push_contents
    # Whoever has imported the functions by name already; who does so later gets ours.
    if grid := sys.modules.get("flwr.superlink.grid.http_grid"):
        grid.pull_objects = pull_objects  # type: ignore[attr-defined]
    if node := sys.modules.get("flwr.supernode.start_client_internal"):
        node.pull_objects = pull_objects  # type: ignore[attr-defined]
        node.push_object_contents_from_iterable = push_contents  # type: ignore[attr-defined]
        share_requests(sys.modules["flwr.supernode.fleet_http_client"].FleetHttpClient)


@adapter("task", telemetry="3ffeafefef95", heartbeats="5eee250956e1")
def leave_out_what_a_short_task_needs_not() -> None:
    """A task runs `uname` and `file` for telemetry that is switched off, and says at once that it lives."""
    from flwr.supercore import heartbeat, telemetry
    from flwr.supernode.runtime import run_clientapp

    if telemetry.FLWR_TELEMETRY_ENABLED != "1" and telemetry.FLWR_TELEMETRY_LOGGING != "1":
        off: Future[str] = Future()
        off.set_result("disabled")
        for module in (run_clientapp, importlib.import_module("flwr.supercore.exit.exit")):
            vars(module)["event"] = lambda *_args, **_kwargs: off

    run = heartbeat.HeartbeatSender._run

    def run_after_a_pause(sender: heartbeat.HeartbeatSender) -> None:
        if not sender._stop_event.wait(SIGN_SECONDS):
            run(sender)

    heartbeat.HeartbeatSender._run = run_after_a_pause


@adapter(
    "serverapp-superexec",
    subprocess_launch="83abf3dbe022",
    runtime_client="efdac833ff30",
    claim_task="35fd1c6c4f6a",
    acknowledge_heartbeat="b4e87c4b327d",
)
def start_serverapps_with_adapters() -> None:
    """A ServerApp is a process of its own, started by the name of its command: name ours.

    One that does not say within 30 s of being asked for that it lives is asked for again. On a machine that
    takes longer to start Python, each is too late in its turn, and all of them run: speak for it meanwhile.
    """
    from flwr.supercore.superexec.executor import subprocess_executor

    from coldframe.server import serverapp_launcher

    subprocess_executor.subprocess = serverapp_launcher.Subprocess(SIGN_SECONDS)


@adapter("serverapp", send_and_receive="699c9f048f3c", grid_pull="67a5266a5a2e")
def look_for_replies_as_they_come() -> None:
    """flwr's grid sleeps 3 s between two looks for replies, which our SuperLink holds until there are any."""
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
                time.sleep(max(0.0, UNHELD_SECONDS - (time.monotonic() - start)))
        return replies

    HttpGrid.send_and_receive = send_and_receive


def _is_traced() -> bool:
    return os.environ.get("FLWR_TRACING_ENABLED") == "1"


COMMANDS = {
    "superlink": "flwr.superlink.cli.flower_superlink:flower_superlink",
    "supernode": "flwr.supernode.cli.flower_supernode:flower_supernode",
    "serverapp-superexec": "flwr.supercore.cli.flower_superexec:flower_superexec",
    "serverapp": "coldframe.recording.server:main",
}


def run(process: str) -> None:
    """Run one of flwr's own commands, on the arguments in `sys.argv`, with the adapters of its process."""
    install(process)
    if enabled():
        keep_freed_memory(KEPT_MEGABYTES)
    module, _, function = COMMANDS[process].partition(":")
    getattr(importlib.import_module(module), function)()


def main() -> None:
    """Run the command that the first argument names."""
    process = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if process not in COMMANDS:
        sys.exit(f"usage: python -m coldframe.flower.adapters {'|'.join(COMMANDS)} ARGS (not {process!r})")
    run(process)


if __name__ == "__main__":
    main()
