"""The objects of a message in one request: flwr makes one for each, a dozen per task and message.

A `Batch` is what travels: flwr's own requests or answers, one after the other, each with its sizes in front.
`pull_objects` and `push_contents` replace flwr's functions of that kind. They call the same functions for
each object as flwr does, so that retries, errors and the meaning of an answer stay flwr's. Only the last
step, the client's call, is shared: `pull` and `push` replace the clients' `PullObject` and `PushObject`, and
ask for, or send, all objects of a batch at once.

A server that knows no batches (flwr's own) answers 404, and is then sent one request per object.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, ObjectUnavailableError
from google.protobuf.message import DecodeError, Message

# What one request or answer carries, and at most one object more: both sides hold it in memory.
BATCH_BYTES = 8 << 20
SIZES = struct.Struct("!II")  # in front of each item: bytes of its message, and of its content beside that
MAX_ITEMS = 1 << 12  # in a batch: the smallest is eight bytes, and a hundred when it has been read
BESIDE_BYTES = 1 << 16  # a content of this size or more travels beside its message
CONTENT = "object_content"


@dataclass(slots=True)
class Item:
    """A request or answer whose content is beside its protobuf message.

    Protobuf copies a content when it is set, written, read, and each time that it is asked for: 2 to 4 ms for
    5 MB in a process whose memory is new.
    """

    message: Any
    object_content: bytes

    def __getattr__(self, name: str) -> Any:
        """Return another field of the message."""
        return getattr(self.message, name)


class Batch(list[Any]):
    """Messages of one type as one body; has the two methods of a protobuf message that flwr's client uses."""

    item_type: ClassVar[type[Message]]

    def SerializeToString(self, deterministic: bool = True) -> bytes:
        """Return the body."""
        del deterministic  # these messages have no maps, whose order is all that it is about
        parts: list[bytes] = []
        for item in self:
            message, content = _split(item)
            parts += (SIZES.pack(len(message), len(content)), message, content)
        return b"".join(parts)

    def ParseFromString(self, body: bytes) -> None:
        """Read a body.

        Raises
        ------
        DecodeError
            If it is something else.
        """
        view, place = memoryview(body), 0
        has_content = CONTENT in self.item_type.DESCRIPTOR.fields_by_name
        while place < len(view):
            start = place + SIZES.size
            if start > len(view):
                raise DecodeError("truncated batch")
            size, beside = SIZES.unpack_from(view, place)
            middle, place = start + size, start + size + beside
            if place > len(view):
                raise DecodeError("truncated batch")
            if len(self) == MAX_ITEMS:
                raise DecodeError(f"more than {MAX_ITEMS} messages in a batch")
            message = self.item_type.FromString(bytes(view[start:middle]))
            if beside and not has_content:
                raise DecodeError("a content beside a message that has none")
            self.append(Item(message, bytes(view[middle:place])) if beside else message)


def _split(item: Any) -> tuple[bytes, bytes]:
    """Return an item's message, serialized, and the content beside it."""
    if isinstance(item, Item):
        return item.message.SerializeToString(), item.object_content
    content = getattr(item, CONTENT, b"")
    if len(content) < BESIDE_BYTES:
        return item.SerializeToString(), b""
    others = (name for name in item.DESCRIPTOR.fields_by_name if name != CONTENT)
    return type(item)(**{name: getattr(item, name) for name in others}).SerializeToString(), content


class PullRequests(Batch):
    """Asks for objects; the answers are in the same order and may stop early."""

    item_type = PullObjectRequest


class PullAnswers(Batch):
    """The objects that were asked for, or what is known of them."""

    item_type = PullObjectResponse


class PushRequests(Batch):
    """Objects."""

    item_type = PushObjectRequest


class PushAnswers(Batch):
    """Whether objects were stored, in the order of the requests."""

    item_type = PushObjectResponse


class _Local(threading.local):
    """What this thread is pulling or pushing."""

    def __init__(self) -> None:
        self.wanted: tuple[str, ...] = ()
        self.pulled: dict[str, PullObjectResponse] = {}
        self.kept: list[Any] | None = None
        self.keep = False
        self.content = b""  # of the request that is being made, if it does not hold it


_local = _Local()

PullFunction = Callable[[str], bytes]
PushFunction = Callable[[str, bytes], None]


def pull_objects(
    flwr_pull_objects: Callable[..., dict[str, bytes]],
    object_ids: Iterable[str],
    pull_object_fn: PullFunction,
    **limits: Any,
) -> dict[str, bytes]:
    """Pull objects; those that are not there yet are left to flwr's function, which asks again and again."""
    contents: dict[str, bytes] = {}
    late: list[str] = []
    names = list(object_ids)
    try:
        for place, name in enumerate(names):
            _local.wanted = tuple(names[place:])
            try:
                contents[name] = pull_object_fn(name)
            except ObjectUnavailableError:
                late.append(name)
    finally:
        _local.wanted, _local.pulled = (), {}
    return contents | flwr_pull_objects(late, pull_object_fn, **limits) if late else contents


def push_contents(object_contents: Iterable[tuple[str, bytes]], push_object_fn: PushFunction) -> None:
    """Push objects.

    Where the first of a batch has come to `push`, flwr's function is given no large content that it would
    copy into its request: `push` puts it back.
    """
    for batch in _batches(object_contents):
        batch.sort(key=lambda item: -len(item[1]))  # the last is the first
        _local.kept = []
        try:
            while batch:
                name, content = batch.pop()
                _local.keep = bool(batch)
                beside = bool(_local.kept) and len(content) >= BESIDE_BYTES
                _local.content = content if beside else b""
                push_object_fn(name, b"" if beside else content)  # the last, and with it those that were kept
        finally:
            _local.kept, _local.content = None, b""


def _batches(contents: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for name, content in contents:
        if batch and (size + len(content) > BATCH_BYTES or len(batch) == MAX_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append((name, content))
        size += len(content)
    if batch:
        yield batch


def pull(
    client: Any, single: Callable[[Any, PullObjectRequest], PullObjectResponse], request: PullObjectRequest
) -> PullObjectResponse:
    """Answer a client's `PullObject` from a batch."""
    name = request.object_id
    if name in _local.pulled:
        return _local.pulled.pop(name)
    if len(_local.wanted) > 1 and _local.wanted[0] == name:
        items = PullRequests(
            PullObjectRequest(node=request.node, run_id=request.run_id, object_id=wanted)
            for wanted in _local.wanted[:MAX_ITEMS]
        )
        if answers := _ask(client, "pull-object-batch", "PullObjectBatch", items, PullAnswers):
            _local.pulled = dict(zip(_local.wanted, answers, strict=False))
            return _local.pulled.pop(name)
    return single(client, request)


def push(
    client: Any, single: Callable[[Any, PushObjectRequest], PushObjectResponse], request: PushObjectRequest
) -> PushObjectResponse:
    """Keep an object that a client's `PushObject` got, or send it with those kept before it."""
    kept, item = _local.kept, Item(request, _local.content) if _local.content else request
    if kept is not None and _local.keep:
        kept.append(item)
        return PushObjectResponse(stored=True)  # if it is not, that is found out with the last of the batch
    if not kept:
        return single(client, request)
    items = PushRequests([*kept, item])
    answers = _ask(client, "push-object-batch", "PushObjectBatch", items, PushAnswers)
    if answers is None:
        answers = [single(client, whole(item)) for item in items]
    for item, answer in zip(items[:-1], answers[:-1], strict=True):
        if not answer.stored:
            raise ObjectPushError(item.object_id, item.run_id, item.session_id)
    return answers[-1]


def whole(item: Any) -> Any:
    """Return an item as the protobuf message that it stands for."""
    if not isinstance(item, Item):
        return item
    message = type(item.message)(object_content=item.object_content)
    message.MergeFrom(item.message)
    return message


def _ask(client: Any, path: str, name: str, request: Batch, answer_type: type[Batch]) -> Any:
    """Send a batch over a client of flwr's; None if its server knows no batches."""
    if getattr(client, "knows_no_batches", False):
        return None
    api = type(client).__name__.removesuffix("HttpClient")  # Fleet or Runtime
    try:
        return client._unary_unary(
            path=f"/v1/{api.lower()}/{path}",
            rpc_method=f"/flwr.proto.{api}/{name}",
            request=request,
            response_type=answer_type,
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        client.knows_no_batches = True
        return None
