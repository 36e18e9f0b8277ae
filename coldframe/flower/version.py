"""The places in flwr 1.41 that Coldframe's adapters rely on, and digests of how they read."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

_SQL_STATE = "flwr.supercore.corestate.sql_corestate:SqlCoreState"
_MEMORY_STATE = "flwr.supercore.corestate.in_memory_corestate:InMemoryCoreState"
_NODE_STATE = "flwr.supernode.nodestate.in_memory_nodestate:InMemoryNodeState"
# By short names.
SEAMS = {
    "get_executor": "flwr.supercore.superexec.executor.factory:get_executor",
    "run_superexec": "flwr.supercore.superexec.run_superexec:run_superexec",
    "run_clientapp": "flwr.supernode.runtime.run_clientapp:run_clientapp",
    "push_message": "flwr.supernode.runtime.run_clientapp:push_message",
    "push_messages": "flwr.supernode.start_client_internal:_push_messages",
    "node_get_messages": f"{_NODE_STATE}.get_messages_legacy",
    "node_store_message": f"{_NODE_STATE}.store_message",
    "node_store_object": f"{_NODE_STATE}.store_object",
    "start_client": "flwr.supernode.start_client_internal:start_client_internal",
    "insert_message": "flwr.supernode.start_client_internal:_insert_message",
    "pull_and_store": "flwr.supernode.start_client_internal:_pull_and_store_message",
    "node_create_app": "flwr.supernode.main:create_app",
    "link_create_app": "flwr.superlink.main:create_app",
    "link_middleware": "flwr.superlink.main:_get_middleware",
    "fleet_router": "flwr.superlink.routers.fleet.router:",
    "node_auth": "flwr.superlink.routers.fleet.node_auth:",
    "runtime_router": "flwr.supercore.routers.runtime.router:",
    "runtime_dependencies": "flwr.supercore.dependencies.runtime:",
    "superexec_dependency": "flwr.supercore.dependencies.superexec:",
    "task_dependency": "flwr.supercore.dependencies.task:",
    "translation": "flwr.supercore.protobuf.translation:ProtobufTranslationMiddleware",
    "error_translator": "flwr.supercore.error.http:http_error_translator",
    "protobuf_client": "flwr.supercore.protobuf.client:ProtobufClient",
    "pull_objects": "flwr.supercore.inflatable.inflatable_utils:pull_objects",
    "pull_and_inflate": "flwr.supercore.inflatable.inflatable_utils:pull_and_inflate_object_from_tree",
    "push_contents": "flwr.supercore.inflatable.inflatable_utils:push_object_contents_from_iterable",
    "object_functions": "flwr.supercore.inflatable.inflatable_protobuf_utils:",
    "runtime_client": "flwr.supercore.runtime.runtime_http_client:",
    "fleet_client": "flwr.supernode.fleet_http_client:",
    "telemetry": "flwr.supercore.telemetry:",
    "heartbeats": "flwr.supercore.heartbeat:",
    "subprocess_launch": "flwr.supercore.superexec.executor.subprocess_executor:SubprocessExecutor.launch",
    "send_and_receive": "flwr.superlink.grid.http_grid:HttpGrid.send_and_receive",
    "run_serverapp": "flwr.superlink.runtime.run_serverapp:run_serverapp",
    "grid_push": "flwr.superlink.grid.http_grid:HttpGrid.push_messages",
    "grid_pull": "flwr.superlink.grid.http_grid:HttpGrid.pull_messages",
    "cleanup_tokens": f"{_SQL_STATE}._cleanup_expired_task_tokens",
    "task_by_token": f"{_SQL_STATE}.get_task_by_token",
    "sql_session": "flwr.supercore.sql_mixin:SqlMixin.session",
    "link_factories": "flwr.superlink.config_loader:get_objectstore_linkstate_factories",
    "store_traffic": "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.store_traffic",
    "activate_node": "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.activate_node",
    "deactivate_node": "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.deactivate_node",
    "get_run_status": "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.get_run_status",
    "get_run_info": "flwr.server.superlink.linkstate.sql_linkstate:SqlLinkState.get_run_info",
    "sql_state_init": f"{_SQL_STATE}.__init__",
    "memory_start_session": f"{_MEMORY_STATE}.start_session",
    "memory_preregister": f"{_MEMORY_STATE}.preregister_object_tree",
    "memory_store_object": f"{_MEMORY_STATE}.store_object",
    "memory_get_object": f"{_MEMORY_STATE}.get_object",
    "memory_cleanup_session": f"{_MEMORY_STATE}._cleanup_push_session",
    "memory_delete_sessions": f"{_MEMORY_STATE}.delete_sessions_in_run",
    "claim_task": f"{_SQL_STATE}.claim_task",
    "acknowledge_heartbeat": f"{_SQL_STATE}.acknowledge_task_heartbeat",
    "push_task_output": "flwr.supernode.runtime.run_clientapp:push_task_output",
    "clientapp_runtime": "flwr.supernode.runtime.run_clientapp:",
    "call_app": "flwr.clientapp.client_app:ClientApp.__call__",
    "strategy": "flwr.serverapp.strategy.strategy:Strategy",
    "legacy_strategy": "flwr.server.strategy.strategy:Strategy",
    "legacy_server": "flwr.server.server:",
    "legacy_app": "flwr.server.compat.app:",
    "default_workflow": "flwr.server.workflow.default_workflows:DefaultWorkflow.__call__",
    "http_grid": "flwr.superlink.grid.http_grid:HttpGrid",
    "run_app": "flwr.server.run_serverapp:run",
}


def digest(seam: str) -> str:
    """Return the first half of the SHA-256 of a seam's source, or why there is none."""
    module, _, path = SEAMS[seam].partition(":")
    try:
        found = functools.reduce(getattr, filter(None, path.split(".")), importlib.import_module(module))
        return hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]
    except (ImportError, AttributeError, OSError) as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Adapter:
    """One change to flwr: in which process, and the digests of what it relies on."""

    process: str
    relies_on: dict[str, str]
    apply: Callable[[], None]


ADAPTERS: list[Adapter] = []


def adapter(process: str, **relies_on: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function as adapter of a process; `relies_on` maps names of seams to digests."""

    def register(apply: Callable[[], None]) -> Callable[[], None]:
        ADAPTERS.append(Adapter(process, relies_on, apply))
        return apply

    return register
