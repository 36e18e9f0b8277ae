"""A short path through the HTTP server of a SuperLink or SuperNode for the requests that a round consists of.

flwr takes every request through ten nested middleware layers, dependency injection and several thread hops, 4
to 5 ms of CPU; without its pauses a round consists of that. `FastPath` is one ASGI middleware in front of it:
for the calls it knows (`fast_path_calls`) it runs flwr's own checks (version, node signature, task token,
SuperExec signature), in flwr's order, then flwr's own handler, in one thread hop, and turns errors into
responses with flwr's own translator. All other calls are passed on.

A caller of the Fleet API has to be a registered node before a byte of the body is read, whatever the call.
Bodies, batches and what a node stores for a run have a maximum size.

A request for something that is not there yet is held until it is, instead of being repeated; and a message is
handed out when all its objects have arrived, so that nobody pulls objects that are missing.
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
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from google.protobuf.message import Message
from starlette.types import ASGIApp, Receive, Scope, Send

from coldframe.flower.object_batches import BATCH_BYTES, Batch
from coldframe.supervise import give_back_memory

# How long a request for something that is not there yet is held. The caller's time limit is 30 s.
HOLD_SECONDS = 5.0
# A message whose sender has stopped pushing its objects is handed out as it is, as flwr does.
STALLED_SECONDS = 60.0
# A SuperLink that has stored no object for so long gives back the memory that objects took.
REST_SECONDS = 30.0

FLEET = "/v1/fleet/"
TASKS = "tasks"  # the receiver that an executor's request is held for
BODY_BYTES = 4 << 20  # of a Fleet call; a message's tree has some 70 bytes per object
OBJECTS_BODY_BYTES = 128 << 20  # of one that brings objects: flwr cuts arrays into pieces of 20 MB

T = TypeVar("T")
Answer: TypeAlias = "Message | Batch"
Handle = Callable[[], Answer]
Authorize = Callable[[Request], Handle]
Run = Callable[["FastPath", Request, Handle], Awaitable[Answer]]


@dataclass(frozen=True)
class Call:
    """One call of an API: its request, the checks that lead to its handler, and how the handler is run."""

    request_type: type[Message] | type[Batch]
    authorize: Authorize
    run: Run | None = None


@dataclass
class PendingMessage:
    """A message some of whose objects have not arrived yet."""

    receiver: Hashable
    reply_to: str
    missing: set[str]
    last_arrival: float


@dataclass
class PendingMessages:
    """The messages that are incomplete, and the requests that wait; used in the server's event loop only."""

    messages: dict[str, PendingMessage] = field(default_factory=dict)
    waiting: dict[Hashable, set[asyncio.Future[None]]] = field(default_factory=lambda: defaultdict(set))
    # Bytes of objects by run and node, since the node was last given a message of that run.
    stored_bytes: Counter[tuple[int, int]] = field(default_factory=Counter)
    # The last answer with a message to each node that has not begun to fetch its objects: sent once more if
    # the node asks again, for the answer to a held request can get lost with the connection.
    unconfirmed: dict[int, Message] = field(default_factory=dict)

    def notify(self, receiver: Hashable) -> None:
        """Wake the requests that are held for a receiver."""
        for future in self.waiting.pop(receiver, ()):
            if not future.done():
                future.set_result(None)

    def add(self, message: Any, tree: Any, receiver: Hashable) -> None:
        """Note that a message is about to be stored without its objects."""
        missing = {node.object_id for node in iterate_object_tree(tree)}
        metadata = message.metadata
        self.messages[metadata.message_id] = PendingMessage(
            receiver, metadata.reply_to_message_id, missing, time.monotonic()
        )

    def expect_only(self, message_ids: Iterable[str], to_push: set[str]) -> None:
        """Note which objects of messages will be pushed; the others are there."""
        for message_id in message_ids:
            if pending := self.messages.get(message_id):
                pending.missing &= to_push
                self._notify_if_complete(message_id)

    def discard(self, message_ids: Iterable[str]) -> None:
        """Note that messages were refused."""
        for message_id in message_ids:
            self.messages.pop(message_id, None)

    def object_stored(self, object_id: str) -> None:
        """Note that an object has arrived."""
        for message_id, pending in list(self.messages.items()):
            if object_id in pending.missing:
                pending.missing.discard(object_id)
                pending.last_arrival = time.monotonic()
                self._notify_if_complete(message_id)

    def incomplete_for(self, receiver: Hashable) -> set[str]:
        """Return the messages that a receiver is not to get yet, and those that they reply to."""
        names: set[str] = set()
        for message_id, pending in list(self.messages.items()):
            if time.monotonic() - pending.last_arrival > STALLED_SECONDS:
                del self.messages[message_id]
            elif pending.receiver == receiver:
                names |= {message_id, pending.reply_to}
        return names

    def _notify_if_complete(self, message_id: str) -> None:
        if not self.messages[message_id].missing:
            self.notify(self.messages.pop(message_id).receiver)


class FastPath:
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
        self.pending = PendingMessages()
        # One at a time: the interpreter runs one at a time anyway, and SQLite would make writers wait.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="fast-path")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.worked: float | None = None  # when an object was stored; None since memory was given back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a known call, pass on any other."""
        self.loop = asyncio.get_running_loop()
        post = scope["type"] == "http" and scope["method"] == "POST"
        call = self.calls.get(scope["path"]) if post else None
        fleet = post and scope["path"].startswith(FLEET)
        if call is None:
            if fleet:
                await self._pass_on(scope, receive, send)
            else:
                await self.app(scope, receive, send)
                self.pending.notify(TASKS)  # it may have started a run, which is a task for the executor
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
        objects = request.url.path in (f"{FLEET}push-object", f"{FLEET}push-object-batch")
        limit, parts, size = OBJECTS_BODY_BYTES if objects else BODY_BYTES, [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"A body has at most {limit} bytes.")
            parts.append(part)
        return b"".join(parts)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give flwr an unknown Fleet call, once the caller is identified."""
        body: list[bytes] = []

        async def read(request: Request) -> Response:
            body.append(await self._fleet_body(request))
            if scope["path"] == f"{FLEET}activate-node":
                # It has started anew: what the process before was given died with it, and its run knows.
                self.pending.unconfirmed.pop(request.state.sender, None)
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

    def notify_from_thread(self, receiver: Hashable) -> None:
        """Wake the requests that are held for a receiver, from outside the event loop."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.pending.notify, receiver)

    async def hold(
        self,
        request: Request,
        receiver: Hashable,
        seconds: float,
        attempt: Callable[[], Awaitable[Answer]],
        found: Callable[[Any], bool],
    ) -> Answer:
        """Repeat an attempt whenever the receiver is notified, until it finds something or time is up."""
        deadline = time.monotonic() + seconds
        disconnected = asyncio.ensure_future(request.receive())
        try:
            while True:
                notified = asyncio.get_running_loop().create_future()
                self.pending.waiting[receiver].add(notified)
                result = await attempt()
                remaining = deadline - time.monotonic()
                if found(result) or remaining <= 0:
                    return result
                await asyncio.wait(
                    {notified, disconnected}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED
                )
                self.pending.waiting[receiver].discard(notified)
                # What is handed to a caller that has disconnected would be lost.
                if disconnected.done():
                    return result
        finally:
            disconnected.cancel()
            self.pending.waiting[receiver].discard(notified)
            if not self.pending.waiting[receiver]:
                del self.pending.waiting[receiver]


# What a batch, which is one transaction, has read of runs already.
run_statuses: ContextVar[dict[frozenset[int], Any] | None] = ContextVar("run_statuses", default=None)


def batched(
    single: Call, request_type: type[Batch], answer_type: type[Batch], state_of: Callable[[Request], Any]
) -> Call:
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

    return Call(request_type, authorize, single.run)


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


class Sender:
    """Stands for the node id of a request whose body is not read yet.

    flwr's check compares it with the id of the node that the key belongs to, and thereby reveals that id.
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
    """Run flwr's check of a node's key and signature, which are in the headers."""
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
