"""The objects of a message in one request: flwr makes one for each, a dozen per task and message.

`Batch` is what travels: flwr's own requests or answers, one after the other, each with its size in front
as in flwr's streams. `pull_objects` and `push_contents` stand in for flwr's functions of that kind. They
call the same functions for each object as flwr does, so that all which these do (retries, errors, the
meaning of an answer) stays theirs; only the last step, the client's call, is shared: `pull` and `push`
stand in for the clients' `PullObject` and `PushObject`, and ask for, or send, all objects of a batch at once.

A peer that knows no batches (flwr's own) answers 404, and is then sent one request per object.
"""

from __future__ import annotations

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
SIZE_BYTES = 4
MOST = 1 << 12  # messages in a batch: an empty one is four bytes, and a hundred when it has been read
LONG_BYTES = 1 << 16
CONTENT = "object_content"
VARINT, LENGTH = 0, 2  # how protobuf writes a field: a number; a length, then so many bytes
MOST_DIGITS = 10  # bytes of a number
MOST_FIELDS = 8  # before a long content; flwr's messages have five


@dataclass(slots=True)
class Long:
    """A request or answer with a long content, which it keeps beside the protobuf message.

    Protobuf copies such a field when it reads it, and again each time that it is asked for: 2 to 4 ms for
    5 MB in a process whose memory is new.
    """

    rest: Any
    object_content: bytes

    def __getattr__(self, name: str) -> Any:
        """Return another field of the message."""
        return getattr(self.rest, name)


class Batch(list[Any]):
    """Messages of one type as one body; has the two methods of a protobuf message that flwr's client uses."""

    item_type: ClassVar[type[Message]]

    def SerializeToString(self, deterministic: bool = True) -> bytes:
        """Return the body."""
        del deterministic  # these messages have no maps, whose order is all that it is about
        parts: list[bytes] = []
        for item in self:
            body = _serialize(item)
            parts += (sum(map(len, body)).to_bytes(SIZE_BYTES, "big"), *body)
        return b"".join(parts)

    def ParseFromString(self, body: bytes) -> None:
        """Read a body.

        Raises
        ------
        DecodeError
            If it is something else.
        """
        view, place = memoryview(body), 0
        while place < len(view):
            start = place + SIZE_BYTES
            place = start + int.from_bytes(view[start - SIZE_BYTES : start], "big")
            if place > len(view):
                raise DecodeError("truncated batch")
            if len(self) == MOST:
                raise DecodeError(f"more than {MOST} messages in a batch")
            self.append(_parse(self.item_type, view[start:place]))


def _parse(item_type: type[Message], body: memoryview) -> Any:
    """Read a message, one with a long content without protobuf's copies of it."""
    field = item_type.DESCRIPTOR.fields_by_name.get(CONTENT)
    if field and len(body) >= LONG_BYTES and (place := _find(body, field.number)):
        begin, start, end = place
        rest = item_type.FromString(bytes(body[:begin]) + bytes(body[end:]))
        if not getattr(rest, CONTENT):  # else it stands there twice
            return Long(rest, bytes(body[start:end]))
    return item_type.FromString(bytes(body))


def _find(body: memoryview, number: int) -> tuple[int, int, int] | None:
    """Return where a field begins, where its content does, and where both end; None leaves it to protobuf.

    No more than a few fields are looked at: the body is read before its sender is known, and a million of
    them would keep a server from everything else.
    """
    place = 0
    try:
        for _ in range(MOST_FIELDS):
            begin = place
            key, place = _read_varint(body, place)
            size, start = _read_varint(body, place)
            place = start if key & 7 == VARINT else start + size
            if key & 7 not in (VARINT, LENGTH) or place > len(body):
                return None
            if key == number << 3 | LENGTH:
                return begin, start, place
    except IndexError:
        pass
    return None


def _read_varint(body: memoryview, place: int) -> tuple[int, int]:
    """Return a number and the place after it; IndexError if the body ends, or the number does not."""
    number = 0
    for shift, byte in enumerate(body[place : place + MOST_DIGITS]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, place + shift + 1
    raise IndexError


def _serialize(item: Any) -> list[bytes]:
    """Return the parts of a serialized message, without protobuf's detour for a long field.

    It writes such a field into a buffer that it doubles until it fits: 3.6 ms for 5 MB, this 0.4.
    """
    content = getattr(item, CONTENT, b"")
    if len(content) < LONG_BYTES:
        return [item.SerializeToString()]
    fields = item.DESCRIPTOR.fields_by_name
    rest = (
        item.rest
        if isinstance(item, Long)
        else type(item)(**{name: getattr(item, name) for name in fields if name != CONTENT})
    )
    key = fields[CONTENT].number << 3 | LENGTH
    return [rest.SerializeToString(), _varint(key), _varint(len(content)), content]


def _varint(number: int) -> bytes:
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


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

    Where the first of a batch has come to `push`, flwr's function is given no long content that it would copy
    into its request: `push` puts it back.
    """
    for batch in _batches(object_contents):
        batch.sort(key=lambda item: -len(item[1]))  # the last is the first
        _local.kept = []
        try:
            while batch:
                name, content = batch.pop()
                _local.keep = bool(batch)
                beside = bool(_local.kept) and len(content) >= LONG_BYTES
                _local.content = content if beside else b""
                push_object_fn(name, b"" if beside else content)  # the last, and with it those that were kept
        finally:
            _local.kept, _local.content = None, b""


def _batches(contents: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for name, content in contents:
        if batch and (size + len(content) > BATCH_BYTES or len(batch) == MOST):
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
            for wanted in _local.wanted[:MOST]
        )
        if answers := _ask(client, "pull-objects", "PullObjects", items, PullAnswers):
            _local.pulled = dict(zip(_local.wanted, answers, strict=False))
            return _local.pulled.pop(name)
    return single(client, request)


def push(
    client: Any, single: Callable[[Any, PushObjectRequest], PushObjectResponse], request: PushObjectRequest
) -> PushObjectResponse:
    """Keep an object that a client's `PushObject` got, or send it with those kept before it."""
    kept, item = _local.kept, Long(request, _local.content) if _local.content else request
    if kept is not None and _local.keep:
        kept.append(item)
        return PushObjectResponse(stored=True)  # if it is not, that is found out with the last of the batch
    if not kept:
        return single(client, request)
    items = PushRequests([*kept, item])
    answers = _ask(client, "push-objects", "PushObjects", items, PushAnswers)
    if answers is None:
        answers = [single(client, _whole(item)) for item in items]
    for item, answer in zip(items[:-1], answers[:-1], strict=True):
        if not answer.stored:
            raise ObjectPushError(item.object_id, item.run_id, item.session_id)
    return answers[-1]


def _whole(item: Any) -> Any:
    """Return an item as the protobuf message that it stands for."""
    if not isinstance(item, Long):
        return item
    whole = type(item.rest)(object_content=item.object_content)
    whole.MergeFrom(item.rest)
    return whole


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
