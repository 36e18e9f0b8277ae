"""The calls that take the fast path: which checks of flwr lead to which handler, and what is held."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import HTTPException, Request
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto import fleet_pb2, log_pb2, message_pb2, runtime_pb2
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.runtime import get_runtime_handlers, get_runtime_state
from flwr.supercore.dependencies.superexec import authenticate_superexec_request
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.servicer.runtime import runtime_handlers as core_handlers

from coldframe.flower.fast_path import (
    HOLD_SECONDS,
    TASKS,
    Answer,
    Authorize,
    Call,
    FastPath,
    Handle,
    Run,
    batched,
    in_one_transaction,
)
from coldframe.flower.object_batches import PullAnswers, PullRequests, PushAnswers, PushRequests

# A ServerApp looks at its own clock between its requests, so it is not kept from that for long.
SERVERAPP_HOLD_SECONDS = 2.0
NODE_BYTES = 2 << 30  # of objects that a node stores for a run, from one message that it gets to the next


# How handlers are run: what is noted before and after, and what is held until there is an answer.


async def push_messages(path: FastPath, request: Request, handle: Handle) -> Answer:
    """Store messages; the receiver is notified when the last object of one is there."""
    message = request.state.protobuf_request
    known: list[str] = []
    for item, tree in zip(message.messages_list, message.message_object_trees, strict=False):
        metadata = item.metadata
        receiver = (
            ("run", metadata.run_id) if metadata.reply_to_message_id else ("node", metadata.dst_node_id)
        )
        path.pending.add(item, tree, receiver)
        known.append(metadata.message_id)
    try:
        response: Any = await path.work(handle)
    except BaseException:
        path.pending.discard(known)
        raise
    path.pending.expect_only(known, set(response.objects_to_push))
    return response


async def push_reply(path: FastPath, request: Request, handle: Handle) -> Answer:
    """Store a node's reply: one, its own, to the ServerApp. flwr looks at the first message alone."""
    push = request.state.protobuf_request
    if len(push.messages_list) != 1 or len(push.message_object_trees) != 1:
        raise HTTPException(400, "A node pushes one message at a time.")
    metadata = push.messages_list[0].metadata
    if (
        metadata.src_node_id != request.state.sender
        or metadata.dst_node_id != SUPERLINK_NODE_ID
        or not metadata.reply_to_message_id
        or metadata.message_id != push.message_object_trees[0].object_id
    ):
        raise HTTPException(400, "A node pushes replies of its own to the ServerApp.")
    return await push_messages(path, request, handle)


def limit_stored_bytes(path: FastPath, request: Request, items: Iterable[Any]) -> None:
    """Count the bytes that a node stores, and refuse what exceeds its maximum."""
    sender = getattr(request.state, "sender", None)
    if sender is None:
        return  # a ServerApp
    stored = path.pending.stored_bytes
    for item in items:
        stored[item.run_id, sender] += len(item.object_content)
        if stored[item.run_id, sender] > NODE_BYTES:
            raise HTTPException(413, f"A reply has at most {NODE_BYTES} bytes.")


async def push_object(path: FastPath, request: Request, handle: Handle) -> Answer:
    """Store an object, or all of a batch."""
    batch = getattr(request.state, "batch", None)
    items = [request.state.protobuf_request] if batch is None else batch
    limit_stored_bytes(path, request, items)
    response: Any = await path.work(handle)
    path.worked = time.monotonic()
    answers = [response] if batch is None else response
    for item, answer in zip(items, answers, strict=True):
        if answer.stored:
            path.pending.object_stored(item.object_id)
    return response


async def fetch_as_node(path: FastPath, request: Request, handle: Handle) -> Answer:
    """Fetch a part of a message, which confirms that the node has received the message."""
    path.pending.unconfirmed.pop(request.state.protobuf_request.node.node_id, None)
    return await path.work(handle)


async def pull_as_node(path: FastPath, request: Request, handle: Handle) -> Answer:
    """Give a node its next message as soon as it is complete."""
    node_id = request.state.protobuf_request.node.node_id
    if (lost := path.pending.unconfirmed.pop(node_id, None)) is not None:
        return lost
    receiver = ("node", node_id)

    async def attempt() -> Answer:
        if path.pending.incomplete_for(receiver):
            return fleet_pb2.PullMessagesResponse()
        return await path.work(handle)

    response: Any = await path.hold(
        request, receiver, HOLD_SECONDS, attempt, lambda found: bool(found.messages_list)
    )
    if response.messages_list:
        path.pending.unconfirmed[node_id] = response
        path.pending.stored_bytes.pop((response.messages_list[0].metadata.run_id, node_id), None)
    else:
        await path.rest()
    return response


async def pull_as_serverapp(path: FastPath, request: Request, handle: Handle) -> Answer:
    """Give a ServerApp the replies that are complete, as soon as there is one."""
    message = request.state.protobuf_request
    wanted = list(message.message_ids)
    if not wanted:
        return await path.work(handle)
    receiver = ("run", request.state.task.run_id)

    async def attempt() -> Answer:
        incomplete = path.pending.incomplete_for(receiver)
        del message.message_ids[:]
        message.message_ids.extend(item for item in wanted if item not in incomplete)
        if not message.message_ids:
            return runtime_pb2.PullAppMessagesResponse()
        return await path.work(handle)

    return await path.hold(
        request, receiver, SERVERAPP_HOLD_SECONDS, attempt, lambda found: bool(found.messages_list)
    )


def acquire_when(may_hand_out_tasks: Callable[[], bool]) -> Run:
    """Return how an executor that has room for a task is given the next one as soon as there is one."""

    async def acquire_task(path: FastPath, request: Request, handle: Handle) -> Answer:
        async def attempt() -> Answer:
            return await path.work(handle) if may_hand_out_tasks() else runtime_pb2.AcquireTaskResponse()

        seconds = HOLD_SECONDS if request.state.protobuf_request.supported_task_types else 0.0
        return await path.hold(request, TASKS, seconds, attempt, lambda found: bool(found.token))

    return acquire_task


# Which calls there are.


def version_check(component: str) -> Callable[[Request], None]:
    """Return flwr's check of the version of who calls a component's Runtime API."""
    return VersionDependency(component_name=component, connection_name=f"Caller <-> {component} Runtime API")


def as_executor(component: str) -> Authorize:
    """Return the checks of an executor that asks a component for a task."""
    check_version = version_check(component)

    def authorize(request: Request) -> Handle:
        check_version(request)
        state, handlers = get_runtime_state(request), get_runtime_handlers(request)
        authenticate_superexec_request(request, state, "/flwr.proto.Runtime/AcquireTask")
        return lambda: handlers.acquire_task(request.state.protobuf_request, state)

    return authorize


def runtime_calls(component: str) -> dict[str, Call]:
    """Return the calls of a component's Runtime API, `SuperLink` or `SuperNode`, that tasks make."""
    check_version = version_check(component)

    def as_task(name: str) -> Authorize:
        def authorize(request: Request) -> Handle:
            check_version(request)
            state, handlers = get_runtime_state(request), get_runtime_handlers(request)
            task = authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state)
            request.state.task = task
            handler = getattr(handlers, name, None) or getattr(core_handlers, name)
            return in_one_transaction(state, lambda: handler(request.state.protobuf_request, state, task))

        return authorize

    prefix = "/v1/runtime"
    pull = Call(message_pb2.PullObjectRequest, as_task("pull_object"))
    push = Call(message_pb2.PushObjectRequest, as_task("push_object"), push_object)
    return {
        f"{prefix}/send-task-heartbeat": Call(
            runtime_pb2.SendTaskHeartbeatRequest, as_task("send_task_heartbeat")
        ),
        f"{prefix}/pull-task-input": Call(runtime_pb2.PullTaskInputRequest, as_task("pull_task_input")),
        f"{prefix}/push-task-output": Call(runtime_pb2.PushTaskOutputRequest, as_task("push_task_output")),
        f"{prefix}/pull-object": pull,
        f"{prefix}/push-object": push,
        f"{prefix}/pull-object-batch": batched(pull, PullRequests, PullAnswers, get_runtime_state),
        f"{prefix}/push-object-batch": batched(push, PushRequests, PushAnswers, get_runtime_state),
        f"{prefix}/confirm-message-received": Call(
            message_pb2.ConfirmMessageReceivedRequest, as_task("confirm_message_received")
        ),
        f"{prefix}/push-messages": Call(
            runtime_pb2.PushAppMessagesRequest, as_task("push_messages"), push_messages
        ),
        f"{prefix}/pull-messages": Call(runtime_pb2.PullAppMessagesRequest, as_task("pull_messages")),
        f"{prefix}/get-nodes": Call(runtime_pb2.GetNodesRequest, as_task("get_nodes")),
        f"{prefix}/push-logs": Call(log_pb2.PushLogsRequest, as_task("push_logs")),
    }


def superlink_calls() -> dict[str, Call]:
    """Return the calls of a SuperLink that a round consists of."""
    from flwr.superlink.dependencies.linkstate import get_linkstate
    from flwr.superlink.routers.fleet.router import router
    from flwr.superlink.servicer.fleet import fleet_handlers

    check_version: Any = router.dependencies[0].dependency

    def as_node(name: str, store: bool = False) -> Authorize:
        handler = getattr(fleet_handlers, name)

        def authorize(request: Request) -> Handle:
            if request.state.protobuf_request.node.node_id != request.state.sender:
                raise HTTPException(401, "Invalid SuperNode authentication")
            check_version(request)
            state = get_linkstate(request)
            extra = {"store": state.object_store} if store else {}
            return in_one_transaction(
                state, lambda: handler(request=request.state.protobuf_request, state=state, **extra)
            )

        return authorize

    calls = runtime_calls("SuperLink")
    pull = calls["/v1/runtime/pull-messages"]
    calls["/v1/runtime/pull-messages"] = Call(pull.request_type, pull.authorize, pull_as_serverapp)
    fleet = "/v1/fleet"
    pull_object = Call(message_pb2.PullObjectRequest, as_node("pull_object"), fetch_as_node)
    push = Call(message_pb2.PushObjectRequest, as_node("push_object"), push_object)
    return {
        **calls,
        "/v1/runtime/acquire-task": Call(
            runtime_pb2.AcquireTaskRequest, as_executor("SuperLink"), acquire_when(lambda: True)
        ),
        f"{fleet}/pull-messages": Call(
            fleet_pb2.PullMessagesRequest, as_node("pull_messages", store=True), pull_as_node
        ),
        f"{fleet}/push-messages": Call(fleet_pb2.PushMessagesRequest, as_node("push_messages"), push_reply),
        f"{fleet}/pull-object": pull_object,
        f"{fleet}/push-object": push,
        f"{fleet}/pull-object-batch": batched(pull_object, PullRequests, PullAnswers, get_linkstate),
        f"{fleet}/push-object-batch": batched(push, PushRequests, PushAnswers, get_linkstate),
        f"{fleet}/confirm-message-received": Call(
            message_pb2.ConfirmMessageReceivedRequest,
            as_node("confirm_message_received", store=True),
            fetch_as_node,
        ),
    }


def supernode_calls(may_hand_out_tasks: Callable[[], bool]) -> dict[str, Call]:
    """Return the calls of a SuperNode that its executor and tasks make.

    Parameters
    ----------
    may_hand_out_tasks : callable
        Says whether a task may be handed out; false while its message is still arriving.
    """

    return {
        **runtime_calls("SuperNode"),
        "/v1/runtime/acquire-task": Call(
            runtime_pb2.AcquireTaskRequest, as_executor("SuperNode"), acquire_when(may_hand_out_tasks)
        ),
    }
