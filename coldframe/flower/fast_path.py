"""A short way through the HTTP server of a SuperLink or SuperNode for the calls that a round is made of.

flwr takes every request through ten nested middleware layers, dependency injection and several thread hops, 4
to 5 ms of CPU; with the waiting gone that is what a round is made of. `LeanPath` is one ASGI middleware in
front of all that: for the calls it knows it runs flwr's own checks (version, node signature, task token,
SuperExec signature), in flwr's order, then flwr's own handler, in one thread hop, and turns errors into
responses with flwr's own translator. Whatever it does not know goes the way it always went.

Whoever calls the Fleet API has to be a registered node before a byte of the body is read, whatever the call;
bodies, batches and what a node stores for a run have an end.

Requests for something that is not there yet are held until it is, instead of being asked again and again; and
a message counts as there when all its objects have arrived, so that nobody pulls objects in vain.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from fastapi import HTTPException, Request
from fastapi.responses import Response
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto import fleet_pb2, log_pb2, message_pb2, runtime_pb2
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.runtime import get_runtime_handlers, get_runtime_state
from flwr.supercore.dependencies.superexec import authenticate_superexec_request
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.servicer.runtime import runtime_handlers as core_handlers
from google.protobuf.message import Message
from starlette.types import ASGIApp, Receive, Scope, Send

from coldframe.flower.object_batches import (
    BATCH_BYTES,
    Batch,
    PullAnswers,
    PullRequests,
    PushAnswers,
    PushRequests,
)
from coldframe.supervise import give_back_memory

# How long a request for something that is not there yet is held. Whoever asks has a time limit of 30 s.
HOLD_SECONDS = 5.0
# A ServerApp looks at its own clock between its requests, so it is not kept from that for long.
SERVERAPP_HOLD_SECONDS = 2.0
# A message whose sender has stopped pushing its objects is handed out as it is, as flwr does.
STALLED_SECONDS = 60.0

# A SuperLink through which no object has gone for so long gives back the memory that they took.
REST_SECONDS = 30.0

FLEET = "/v1/fleet/"
BODY_BYTES = 4 << 20  # of a Fleet call; a message's tree has some 70 bytes per object
OBJECTS_BODY_BYTES = 128 << 20  # of one that brings objects: flwr cuts arrays into pieces of 20 MB
NODE_BYTES = 2 << 30  # of objects that a node stores for a run, from one message that it gets to the next

T = TypeVar("T")
Answer: TypeAlias = "Message | Batch"
Handle = Callable[[], Answer]
StateOf = Callable[[Request], Any]
Authorize = Callable[[Request], Handle]


@dataclass(frozen=True)
class Call:
    """One call of an API: its request, the checks that lead to its handler, and what it does to the mail."""

    request_type: type[Message] | type[Batch]
    authorize: Authorize
    run: Callable[[LeanPath, Request, Handle], Awaitable[Answer]] | None = None


@dataclass
class Parcel:
    """A message some of whose objects have not arrived yet."""

    receiver: Hashable
    reply_to: str
    missing: set[str]
    moved: float


@dataclass
class Mail:
    """Which messages are still arriving, and who waits for what; used in the server's event loop only."""

    parcels: dict[str, Parcel] = field(default_factory=dict)
    waiting: dict[Hashable, set[asyncio.Future[None]]] = field(default_factory=lambda: defaultdict(set))
    # Bytes of objects by run and node, since the node was last given a message of that run.
    stored: Counter[tuple[int, int]] = field(default_factory=Counter)
    # What a node was sent and has not begun to fetch: sent once more if it asks again, for the answer to a
    # held request can get lost with the connection.
    unclaimed: dict[int, Message] = field(default_factory=dict)

    def ring(self, receiver: Hashable) -> None:
        """Wake the requests that are held for a receiver."""
        for future in self.waiting.pop(receiver, ()):
            if not future.done():
                future.set_result(None)

    def expect(self, message: Any, tree: Any, receiver: Hashable) -> None:
        """Note that a message is about to be stored without its objects."""
        missing = {node.object_id for node in iterate_object_tree(tree)}
        metadata = message.metadata
        self.parcels[metadata.message_id] = Parcel(
            receiver, metadata.reply_to_message_id, missing, time.monotonic()
        )

    def narrow(self, message_ids: Iterable[str], to_push: set[str]) -> None:
        """Note which objects of messages are to be pushed; the others are there."""
        for message_id in message_ids:
            if parcel := self.parcels.get(message_id):
                parcel.missing &= to_push
                self._deliver_if_complete(message_id)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Note that messages were refused."""
        for message_id in message_ids:
            self.parcels.pop(message_id, None)

    def arrived(self, object_id: str) -> None:
        """Note that an object has been stored."""
        for message_id, parcel in list(self.parcels.items()):
            if object_id in parcel.missing:
                parcel.missing.discard(object_id)
                parcel.moved = time.monotonic()
                self._deliver_if_complete(message_id)

    def arriving(self, receiver: Hashable) -> set[str]:
        """Return the messages that a receiver is not to get yet, those they reply to included."""
        names: set[str] = set()
        for message_id, parcel in list(self.parcels.items()):
            if time.monotonic() - parcel.moved > STALLED_SECONDS:
                del self.parcels[message_id]
            elif parcel.receiver == receiver:
                names |= {message_id, parcel.reply_to}
        return names

    def _deliver_if_complete(self, message_id: str) -> None:
        if not self.parcels[message_id].missing:
            self.ring(self.parcels.pop(message_id).receiver)


class LeanPath:
    """ASGI middleware that answers the calls it knows by itself.

    Parameters
    ----------
    app : ASGIApp
        flwr's application, for all other calls.
    calls : dict
        The known calls by path.
    """

    def __init__(self, app: ASGIApp, calls: dict[str, Call]) -> None:
        self.app = app
        self.calls = calls
        self.mail = Mail()
        # One at a time: the interpreter runs one at a time anyway, and SQLite would make writers wait.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="lean-path")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.worked: float | None = None  # when an object was stored; None since memory was given back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a known call, hand on any other."""
        self.loop = asyncio.get_running_loop()
        post = scope["type"] == "http" and scope["method"] == "POST"
        call = self.calls.get(scope["path"]) if post else None
        fleet = post and scope["path"].startswith(FLEET)
        if call is None:
            if fleet:
                await self._hand_on(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return

        async def answer(request: Request) -> Response:
            ProtobufTranslationMiddleware._check_request_media_type(request)
            body = await (self._fleet_body(request) if fleet else request.body())
            request.state.protobuf_request = ProtobufTranslationMiddleware._parse_request(
                body, call.request_type
            )
            if call.run is None:
                result = await self.work(lambda: call.authorize(request)())
            else:
                handle = await self.work(lambda: call.authorize(request))
                result = await call.run(self, request, handle)
            return Response(result.SerializeToString(), media_type=PROTOBUF_MEDIA_TYPE)

        response = await http_error_translator(Request(scope, receive), answer)
        await response(scope, receive, send)

    async def _fleet_body(self, request: Request) -> bytes:
        """Read the body of a registered node; `request.state.sender` is then the node's id."""
        await self.work(lambda: identify(request))
        objects = request.url.path in (f"{FLEET}push-object", f"{FLEET}push-objects")
        limit, parts, size = OBJECTS_BODY_BYTES if objects else BODY_BYTES, [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"A body has at most {limit} bytes.")
            parts.append(part)
        return b"".join(parts)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give flwr a Fleet call that this knows nothing of, once it is known who calls."""
        body: list[bytes] = []

        async def read(request: Request) -> Response:
            body.append(await self._fleet_body(request))
            if scope["path"] == f"{FLEET}activate-node":
                # It has started anew: what the process before was given died with it, and its run knows.
                self.mail.unclaimed.pop(request.state.sender, None)
            return Response()

        refusal = await http_error_translator(Request(dict(scope), receive), read)
        if not body:
            await refusal(scope, receive, send)
            return

        async def replay() -> Any:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await receive()

        await self.app(scope, replay, send)

    async def work(self, function: Callable[[], T]) -> T:
        """Run a function in the worker thread, away from the event loop."""
        assert self.loop is not None
        return await self.loop.run_in_executor(self.worker, function)

    async def rest(self) -> None:
        """Give back what malloc keeps of a run that has ended."""
        if self.worked is not None and time.monotonic() - self.worked > REST_SECONDS:
            self.worked = None
            await self.work(give_back_memory)

    def ring_from_thread(self, receiver: Hashable) -> None:
        """Wake the requests that are held for a receiver, from outside the event loop."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.mail.ring, receiver)

    async def hold(
        self,
        request: Request,
        receiver: Hashable,
        seconds: float,
        attempt: Callable[[], Awaitable[Answer]],
        found: Callable[[Any], bool],
    ) -> Answer:
        """Repeat an attempt when the receiver's bell rings, until it finds something or the time is over."""
        deadline = time.monotonic() + seconds
        gone = asyncio.ensure_future(request.receive())
        try:
            while True:
                bell = asyncio.get_running_loop().create_future()
                self.mail.waiting[receiver].add(bell)
                result = await attempt()
                remaining = deadline - time.monotonic()
                if found(result) or remaining <= 0:
                    return result
                await asyncio.wait({bell, gone}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
                self.mail.waiting[receiver].discard(bell)
                # What is handed to somebody who has left would be lost.
                if gone.done():
                    return result
        finally:
            gone.cancel()
            self.mail.waiting[receiver].discard(bell)
            if not self.mail.waiting[receiver]:
                del self.mail.waiting[receiver]


# What a batch, which is one transaction, has read of runs already.
run_statuses: ContextVar[dict[frozenset[int], Any] | None] = ContextVar("run_statuses", default=None)


def together(single: Call, request_type: type[Batch], answer_type: type[Batch], state_of: StateOf) -> Call:
    """Return the call that does a call for each request of a batch.

    The checks are those of the single call, on the first request. All others have to come from the same node,
    for the same run, so that they would pass them too.
    """

    def authorize(request: Request) -> Handle:
        items = request.state.protobuf_request
        if not items or any((i.node, i.run_id) != (items[0].node, items[0].run_id) for i in items):
            raise HTTPException(400, "A batch is of one node and one run.")
        request.state.batch, request.state.protobuf_request = items, items[0]
        handle = single.authorize(request)

        def handle_all() -> Batch:
            answers, size = answer_type(), 0
            token = run_statuses.set({})
            try:
                for item in items:
                    request.state.protobuf_request = item
                    answers.append(handle())
                    size += len(getattr(answers[-1], "object_content", b""))
                    if size >= BATCH_BYTES:
                        break  # the rest is asked for again
            finally:
                run_statuses.reset(token)
            return answers

        return in_one_transaction(state_of(request), handle_all)

    return Call(
        request_type, authorize, single.run and (push_objects if single.run is push_object else claim)
    )


class Sender:
    """Stands for the node id of a request whose body is not read yet.

    flwr's check compares it with the id of the node that the key belongs to, and so tells it.
    """

    def __init__(self) -> None:
        self.node_id = self
        self.found: int | None = None
        self.signed = False

    def __ne__(self, found: object) -> bool:
        """Keep the id; only a key that belongs to no node is another than expected."""
        self.signed = True
        self.found = found if isinstance(found, int) else None
        return found is None


def identify(request: Request) -> None:
    """Run flwr's check of a node's key and signature, which stand in the headers."""
    from flwr.superlink.routers.fleet.node_auth import authenticate_node

    sender = Sender()
    if request.url.path == f"{FLEET}register-node" and not request.app.state.enable_supernode_auth:
        return  # it brings the key that is to be registered
    request.state.protobuf_request = sender
    try:
        authenticate_node(request)
    except HTTPException:
        if sender.signed and request.url.path == f"{FLEET}activate-node":
            # The words that a SuperNode shows whose key nobody has registered.
            raise FlowerError(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "an unknown key") from None
        raise
    request.state.sender = sender.found


async def push_objects(path: LeanPath, request: Request, handle: Handle) -> Answer:
    """Store objects."""
    charge(path, request, request.state.batch)
    answers: Any = await path.work(handle)
    path.worked = time.monotonic()
    for item, answer in zip(request.state.batch, answers, strict=True):
        if answer.stored:
            path.mail.arrived(item.object_id)
    return answers


def in_one_transaction(state: Any, handle: Handle) -> Handle:
    """Have a handler that uses a database write once, not once for each of its half a dozen steps.

    flwr's sessions are made to be nested: the outermost owns the transaction. An error that flwr raises on
    purpose leaves what was written before it, as it does without us; any other takes it back.
    """
    if not hasattr(state, "session"):
        return handle

    def call() -> Answer:
        refused: FlowerError | None = None
        with state.session():
            try:
                return handle()
            except FlowerError as error:
                refused = error
        raise refused

    return call


async def push_messages(path: LeanPath, request: Request, handle: Handle) -> Answer:
    """Store messages; whoever waits for one is told when its last object is there."""
    message = request.state.protobuf_request
    known: list[str] = []
    for item, tree in zip(message.messages_list, message.message_object_trees, strict=False):
        metadata = item.metadata
        receiver = (
            ("run", metadata.run_id) if metadata.reply_to_message_id else ("node", metadata.dst_node_id)
        )
        path.mail.expect(item, tree, receiver)
        known.append(metadata.message_id)
    try:
        response: Any = await path.work(handle)
    except BaseException:
        path.mail.forget(known)
        raise
    path.mail.narrow(known, set(response.objects_to_push))
    return response


def charge(path: LeanPath, request: Request, items: Iterable[Any]) -> None:
    """Count what a node brings, and refuse what is more than its share."""
    sender = getattr(request.state, "sender", None)
    if sender is None:
        return  # a ServerApp
    for item in items:
        stored = path.mail.stored
        stored[item.run_id, sender] += len(item.object_content)
        if stored[item.run_id, sender] > NODE_BYTES:
            raise HTTPException(413, f"A reply has at most {NODE_BYTES} bytes.")


async def push_reply(path: LeanPath, request: Request, handle: Handle) -> Answer:
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


async def push_object(path: LeanPath, request: Request, handle: Handle) -> Answer:
    """Store an object."""
    charge(path, request, [request.state.protobuf_request])
    response: Any = await path.work(handle)
    path.worked = time.monotonic()
    if response.stored:
        path.mail.arrived(request.state.protobuf_request.object_id)
    return response


async def claim(path: LeanPath, request: Request, handle: Handle) -> Answer:
    """Fetch what belongs to a message: the node has it."""
    path.mail.unclaimed.pop(request.state.protobuf_request.node.node_id, None)
    return await path.work(handle)


async def pull_as_node(path: LeanPath, request: Request, handle: Handle) -> Answer:
    """Give a node its next message as soon as it is complete."""
    node_id = request.state.protobuf_request.node.node_id
    if (lost := path.mail.unclaimed.pop(node_id, None)) is not None:
        return lost
    receiver = ("node", node_id)

    async def attempt() -> Answer:
        if path.mail.arriving(receiver):
            return fleet_pb2.PullMessagesResponse()
        return await path.work(handle)

    response: Any = await path.hold(
        request, receiver, HOLD_SECONDS, attempt, lambda found: bool(found.messages_list)
    )
    if response.messages_list:
        path.mail.unclaimed[node_id] = response
        path.mail.stored.pop((response.messages_list[0].metadata.run_id, node_id), None)
    else:
        await path.rest()
    return response


async def pull_as_serverapp(path: LeanPath, request: Request, handle: Handle) -> Answer:
    """Give a ServerApp the replies that are complete, as soon as there is one."""
    message = request.state.protobuf_request
    wanted = list(message.message_ids)
    if not wanted:
        return await path.work(handle)
    receiver = ("run", request.state.task.run_id)

    async def attempt() -> Answer:
        arriving = path.mail.arriving(receiver)
        del message.message_ids[:]
        message.message_ids.extend(item for item in wanted if item not in arriving)
        if not message.message_ids:
            return runtime_pb2.PullAppMessagesResponse()
        return await path.work(handle)

    return await path.hold(
        request, receiver, SERVERAPP_HOLD_SECONDS, attempt, lambda found: bool(found.messages_list)
    )


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
        f"{prefix}/pull-objects": together(pull, PullRequests, PullAnswers, get_runtime_state),
        f"{prefix}/push-objects": together(push, PushRequests, PushAnswers, get_runtime_state),
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
    pull_object = Call(message_pb2.PullObjectRequest, as_node("pull_object"), claim)
    push = Call(message_pb2.PushObjectRequest, as_node("push_object"), push_object)
    return {
        **calls,
        # An idle server's executor asks five times a second: no need to hold it, only to answer quickly.
        "/v1/runtime/acquire-task": Call(runtime_pb2.AcquireTaskRequest, as_executor("SuperLink")),
        f"{fleet}/pull-messages": Call(
            fleet_pb2.PullMessagesRequest, as_node("pull_messages", store=True), pull_as_node
        ),
        f"{fleet}/push-messages": Call(fleet_pb2.PushMessagesRequest, as_node("push_messages"), push_reply),
        f"{fleet}/pull-object": pull_object,
        f"{fleet}/push-object": push,
        f"{fleet}/pull-objects": together(pull_object, PullRequests, PullAnswers, get_linkstate),
        f"{fleet}/push-objects": together(push, PushRequests, PushAnswers, get_linkstate),
        f"{fleet}/confirm-message-received": Call(
            message_pb2.ConfirmMessageReceivedRequest, as_node("confirm_message_received", store=True), claim
        ),
    }


def supernode_calls(open_for_tasks: Callable[[], bool]) -> dict[str, Call]:
    """Return the calls of a SuperNode that its executor and tasks make.

    Parameters
    ----------
    open_for_tasks : callable
        Says whether a task may be handed out; false while its message is still arriving.
    """

    async def acquire_task(path: LeanPath, request: Request, handle: Handle) -> Answer:
        async def attempt() -> Answer:
            return await path.work(handle) if open_for_tasks() else runtime_pb2.AcquireTaskResponse()

        seconds = HOLD_SECONDS if request.state.protobuf_request.supported_task_types else 0.0
        return await path.hold(request, "tasks", seconds, attempt, lambda found: bool(found.token))

    return {
        **runtime_calls("SuperNode"),
        "/v1/runtime/acquire-task": Call(
            runtime_pb2.AcquireTaskRequest, as_executor("SuperNode"), acquire_task
        ),
    }
