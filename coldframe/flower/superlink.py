"""The changes to flwr in the SuperLink's process."""

from __future__ import annotations

import threading
import time
from typing import Any

from coldframe.flower import http_server
from coldframe.flower.changes import change, is_traced, replace

FLUSH_SECONDS = 1.0  # how often expiry and traffic are written to the database

_SQL_LINK = "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState"
_SQL_CORE = "flwr.supercore.corestate.sql_corestate:SqlCoreState"
_MEMORY_CORE = "flwr.supercore.corestate.in_memory_corestate:InMemoryCoreState"


def apply() -> None:
    """Apply all of them."""
    serve_rounds_on_fast_path()
    write_expiry_and_traffic_once_per_second()
    read_run_status_once_per_batch()
    keep_objects_in_memory()
    allow_reactivation_of_online_node()
    http_server.wake_less_often()


@change(
    "flwr.superlink.main:create_app",
    "flwr.superlink.main:_get_middleware",
    "flwr.superlink.routers.fleet.router:",
    "flwr.superlink.routers.fleet.node_auth:",
    "flwr.supercore.routers.runtime.router:",
    "flwr.supercore.dependencies.superexec:",
    "flwr.supercore.dependencies.runtime:",
    "flwr.supercore.dependencies.task:",
    "flwr.supercore.protobuf.translation:ProtobufTranslationMiddleware",
    "flwr.supercore.error.http:http_error_translator",
    "flwr.supercore.sql_mixin:SqlMixin.session",
)
def serve_rounds_on_fast_path() -> None:
    """Answer the requests of a round on a short path: 75 per client and round, 4 to 5 ms each with flwr."""
    from flwr.superlink import extensions, main

    from coldframe.flower.fast_path import FastPath
    from coldframe.flower.fast_path_calls import superlink_calls

    create_app = main.create_app

    def create_app_with_fast_path(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)
        # An extension or a log that has to see each request is not passed by.
        if not (is_traced() or extensions.get_middleware() or app.state.fleet_event_log_plugin):
            app.add_middleware(FastPath, calls=superlink_calls())
        return app

    replace(main, "create_app", create_app_with_fast_path)


@change(
    f"{_SQL_CORE}._cleanup_expired_task_tokens",
    f"{_SQL_CORE}.get_task_by_token",
    f"{_SQL_LINK}.store_traffic",
    f"{_SQL_LINK}.get_run_info",
)
def write_expiry_and_traffic_once_per_second() -> None:
    """Write expired tokens and traffic once a second: flwr does both for each object that is moved.

    A token's validity does not depend on that write: `get_task_by_token` compares the time itself. Traffic is
    written before it is read.
    """
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    cleanup, store_traffic = SqlLinkState._cleanup_expired_task_tokens, SqlLinkState.store_traffic
    get_run_info = SqlLinkState.get_run_info
    lock = threading.Lock()
    due = {"expiry": 0.0, "traffic": 0.0}
    counted: dict[int, list[int]] = {}

    def cleanup_when_due(state: SqlLinkState) -> None:
        if time.monotonic() >= due["expiry"]:
            due["expiry"] = time.monotonic() + FLUSH_SECONDS
            cleanup(state)

    def write_traffic(state: SqlLinkState) -> None:
        with lock:
            counts = dict(counted)
            counted.clear()
            due["traffic"] = time.monotonic() + FLUSH_SECONDS
        for run_id, (sent, received) in counts.items():
            store_traffic(state, run_id, bytes_sent=sent, bytes_recv=received)

    def count_traffic(state: SqlLinkState, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        with lock:
            count = counted.setdefault(run_id, [0, 0])
            count[0] += bytes_sent
            count[1] += bytes_recv
        if time.monotonic() >= due["traffic"]:
            write_traffic(state)

    def get_run_info_with_traffic(state: SqlLinkState, *args: Any, **kwargs: Any) -> Any:
        write_traffic(state)
        return get_run_info(state, *args, **kwargs)

    replace(SqlLinkState, "_cleanup_expired_task_tokens", cleanup_when_due)
    replace(SqlLinkState, "store_traffic", count_traffic)
    replace(SqlLinkState, "get_run_info", get_run_info_with_traffic)


@change(f"{_SQL_LINK}.get_run_status")
def read_run_status_once_per_batch() -> None:
    """Read a run's status once per batch of objects: flwr reads it for each object."""
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    from coldframe.flower.fast_path import run_statuses

    get_run_status = SqlLinkState.get_run_status

    def get_run_status_once(state: SqlLinkState, run_ids: set[int]) -> Any:
        known = run_statuses.get()
        if known is None:
            return get_run_status(state, run_ids)
        key = frozenset(run_ids)
        if key not in known:
            known[key] = get_run_status(state, run_ids)
        return known[key]

    replace(SqlLinkState, "get_run_status", get_run_status_once)


@change(
    "flwr.superlink.config_loader:get_objectstore_linkstate_factories",
    f"{_SQL_CORE}.__init__",
    f"{_MEMORY_CORE}.start_session",
    f"{_MEMORY_CORE}.preregister_object_tree",
    f"{_MEMORY_CORE}.store_object",
    f"{_MEMORY_CORE}.get_object",
    f"{_MEMORY_CORE}._cleanup_push_session",
    f"{_MEMORY_CORE}.delete_sessions_in_run",
)
def keep_objects_in_memory() -> None:
    """Keep objects in memory as flwr does without a database: a message of 20 objects is 400 SQL statements.

    Runs, nodes, tasks and messages stay in the database. Objects in transit are lost if the SuperLink dies;
    the clients concerned count as failures of that round, and the next round works.
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

    replace(SqlCoreState, "__init__", init_with_sessions)
    for name in (
        *("start_session", "preregister_object_tree", "store_object", "get_object"),
        *("_cleanup_push_session", "delete_sessions_in_run"),
    ):
        replace(SqlCoreState, name, getattr(InMemoryCoreState, name))
    replace(config_loader, "ObjectStoreFactory", lambda _database: ObjectStoreFactory())


@change(f"{_SQL_LINK}.activate_node", f"{_SQL_LINK}.deactivate_node")
def allow_reactivation_of_online_node() -> None:
    """Activate a node that counts as online: flwr refuses a client that ended without a goodbye for 60 s.

    Its key and signature were checked before.
    """
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

    activate = SqlLinkState.activate_node

    def activate_again(state: SqlLinkState, node_id: int, interval: float) -> bool:
        with state.session():
            state.deactivate_node(node_id)
            return activate(state, node_id, interval)

    replace(SqlLinkState, "activate_node", activate_again)
