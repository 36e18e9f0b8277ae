"""Objects in batches: what travels, what a server refuses, and what the sender makes of the answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from flwr.proto import message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink import main as superlink
from flwr.supernode import main as supernode
from flwr.supernode.nodestate import NodeStateFactory
from google.protobuf.message import DecodeError

from coldframe.flower import fast_path, fast_path_calls, object_batches
from tests.unit.test_adapters import ask, refused_by_superlink

NODE = Node(node_id=(1 << 64) - 5)


def test_a_batch_comes_out_as_it_went_in() -> None:
    item = message_pb2.PushObjectRequest(node=NODE, run_id=3, object_id="a", session_id="s")
    large = message_pb2.PushObjectRequest(
        object_content=secrets.token_bytes(object_batches.BESIDE_BYTES), **fields(item)
    )
    sent, received = object_batches.PushRequests([item, large, item]), object_batches.PushRequests()
    received.ParseFromString(sent.SerializeToString())
    assert [type(each) is object_batches.Item for each in received] == [False, True, False]
    assert [object_batches.whole(each) for each in received] == list(sent)
    assert received.SerializeToString() == sent.SerializeToString()


def fields(item: Any) -> dict[str, Any]:
    """Return the fields of a message that are set."""
    return {field.name: value for field, value in item.ListFields()}


def item_of(message: bytes, content: bytes = b"", sizes: tuple[int, int] | None = None) -> bytes:
    """Return one item of a batch, with the right sizes or others."""
    return object_batches.SIZES.pack(*(sizes or (len(message), len(content)))) + message + content


STORED = message_pb2.PushObjectResponse(stored=True).SerializeToString()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (object_batches.PushRequests, b"\0\0\0"),
        (object_batches.PushRequests, item_of(b"abc", sizes=(5, 0))),
        (object_batches.PushRequests, item_of(b"", b"abc", sizes=(0, 4))),
        (object_batches.PushRequests, item_of(b"", sizes=(2**32 - 1, 2**32 - 1))),
        (object_batches.PushRequests, item_of(b"\xff\xff")),
        (object_batches.PushRequests, item_of(b"") * (object_batches.MAX_ITEMS + 1)),
        (object_batches.PushAnswers, item_of(STORED, b"content")),
    ],
    ids=["half a size", "truncated", "truncated content", "huge", "no message", "a flood", "no content"],
)
def test_what_is_no_batch_is_refused(kind: type[object_batches.Batch], body: bytes) -> None:
    with pytest.raises(DecodeError):
        kind().ParseFromString(body)


def fast_superlink() -> Any:
    """Return flwr's application of a SuperLink behind the fast path."""
    app = superlink.create_app()
    app.add_middleware(fast_path.FastPath, calls=fast_path_calls.superlink_calls())
    return app


def fast_supernode() -> Any:
    """Return flwr's application of a SuperNode behind the fast path."""
    app = supernode.create_app(NodeStateFactory(ObjectStoreFactory()), secrets.token_bytes(32))
    app.add_middleware(fast_path.FastPath, calls=fast_path_calls.supernode_calls(lambda: True))
    return app


REFUSED = {
    name: (path, headers)
    for name, (path, _, headers) in refused_by_superlink().items()
    if path.endswith("-object") or name in ("no token", "incompatible", "wrong type")
}


@pytest.mark.parametrize("action", ["pull", "push"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_batch_is_refused_as_a_single_object_is(name: str, action: str) -> None:
    path, headers = REFUSED[name]
    path = f"{path.rpartition('/')[0]}/{action}-object"
    kind: Any = message_pb2.PullObjectRequest if action == "pull" else message_pb2.PushObjectRequest
    item = kind(node=Node(node_id=1), run_id=1, object_id="0" * 64)
    many: Any = object_batches.PullRequests if action == "pull" else object_batches.PushRequests
    expected = ask(superlink.create_app(), path, item.SerializeToString(), headers)
    assert expected[0] in (401, 412, 415)
    assert ask(fast_superlink(), f"{path}-batch", many([item, item]).SerializeToString(), headers) == expected
    if path.startswith("/v1/runtime"):
        status, _ = ask(fast_supernode(), f"{path}-batch", many([item]).SerializeToString(), headers)
        assert status == expected[0]


@pytest.mark.parametrize("path", ["/v1/fleet/pull-object-batch", "/v1/runtime/push-object-batch"])
def test_a_server_without_batches_says_that_there_are_none(path: str) -> None:
    """The sender takes a 404, and no other error, for a reason to send objects one by one."""
    for app in (
        superlink.create_app(),
        supernode.create_app(NodeStateFactory(ObjectStoreFactory()), secrets.token_bytes(32)),
    ):
        assert ask(app, path, b"", {})[0] == 404


@pytest.mark.parametrize(
    "other",
    [{"node": Node(node_id=2), "run_id": 1}, {"node": Node(node_id=1), "run_id": 2}, None],
    ids=["another node", "another run", "empty"],
)
def test_a_batch_of_two_nodes_or_runs_is_refused_before_anybody_is_asked(
    other: dict[str, Any] | None,
) -> None:
    """The checks look at the first request only: the others must not be of somebody else."""
    asked: list[Any] = []

    def authorize(request: Any) -> Callable[[], Any]:
        asked.append(request)
        return lambda: message_pb2.PullObjectResponse()

    single = fast_path.Call(message_pb2.PullObjectRequest, authorize)
    call = fast_path.batched(single, object_batches.PullRequests, object_batches.PullAnswers, lambda _: None)
    app = superlink.create_app()
    app.add_middleware(fast_path.FastPath, calls={"/v1/runtime/pull-object-batch": call})
    items = object_batches.PullRequests(
        message_pb2.PullObjectRequest(object_id="a", **which)
        for which in ([{"node": Node(node_id=1), "run_id": 1}, other] if other else [])
    )
    status, _ = ask(app, "/v1/runtime/pull-object-batch", items.SerializeToString(), {})
    assert (status, asked) == (400, [])


class FleetHttpClient:
    """Stands in for flwr's client: objects that a server holds, what it was asked, and how it answers."""

    def __init__(self, knows_batches: bool = True, room: int = 1 << 30) -> None:
        self.objects: dict[str, bytes] = {}
        self.lost: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.knows_batches, self.room = knows_batches, room

    def _unary_unary(self, *, path: str, request: object_batches.Batch, response_type: Any, **_: Any) -> Any:
        self.asked.append((path.rpartition("/")[2], len(request)))
        if not self.knows_batches:
            response = httpx.Response(404, request=httpx.Request("POST", "http://server"))
            raise httpx.HTTPStatusError("unknown", request=response.request, response=response)
        single = self.pull if "pull" in path else self.push
        answers, size = response_type(), 0
        for item in request:
            answers.append(single(item))
            size += len(getattr(answers[-1], "object_content", b""))
            if size >= self.room:
                break
        return answers

    def pull(self, request: Any) -> Any:
        content = self.objects.get(request.object_id)
        return message_pb2.PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    def push(self, request: Any) -> Any:
        if stored := request.object_id not in self.lost:
            self.objects[request.object_id] = request.object_content
        return message_pb2.PushObjectResponse(stored=stored)

    def single(self, name: str) -> Callable[[Any, Any], Any]:
        def call(_client: Any, request: Any) -> Any:
            self.asked.append((f"{name}-object", 1))
            return getattr(self, name)(request)

        return call

    def pull_function(self) -> Callable[[str], bytes]:
        """Return what flwr makes of a client to pull an object."""
        return make_pull_object_fn_protobuf(
            lambda request: object_batches.pull(self, self.single("pull"), request), NODE, 1
        )

    def push_function(self) -> Callable[[str, bytes], None]:
        """Return what flwr makes of a client to push an object."""
        return make_push_object_fn_protobuf(
            lambda request: object_batches.push(self, self.single("push"), request), NODE, 1, "session"
        )


OBJECTS = {str(number): bytes([number]) * 100 for number in range(1, 6)}


@pytest.mark.parametrize(
    ("knows", "asked"),
    [(True, [("push-object-batch", 5)]), (False, [("push-object-batch", 5), *[("push-object", 1)] * 5])],
)
def test_objects_are_pushed_in_one_request_where_the_server_takes_it(
    knows: bool, asked: list[tuple[str, int]]
) -> None:
    client = FleetHttpClient(knows)
    object_batches.push_contents(iter(OBJECTS.items()), client.push_function())
    assert client.objects == OBJECTS
    assert client.asked == asked
    client.asked.clear()
    object_batches.push_contents(iter(OBJECTS.items()), client.push_function())
    assert len(client.asked) == (1 if knows else 5), "it is not asked a second time"


def test_no_batch_has_more_objects_than_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_batches, "MAX_ITEMS", 2)
    client = FleetHttpClient()
    object_batches.push_contents(iter(OBJECTS.items()), client.push_function())
    assert client.asked == [("push-object-batch", 2), ("push-object-batch", 2), ("push-object", 1)]
    client.asked.clear()
    assert object_batches.pull_objects(pytest.fail, OBJECTS, client.pull_function()) == OBJECTS  # type: ignore[arg-type]
    assert client.asked == [("pull-object-batch", 2), ("pull-object-batch", 2), ("pull-object", 1)]


@pytest.mark.parametrize("knows", [True, False])
def test_large_objects_arrive_whole(knows: bool) -> None:
    """flwr's function gets none of theirs but the first's, and the server's single calls get all of it."""
    client = FleetHttpClient(knows)
    contents = {str(number): secrets.token_bytes(object_batches.BESIDE_BYTES + number) for number in range(3)}
    contents["short"] = b"short"
    object_batches.push_contents(iter(contents.items()), client.push_function())
    assert client.objects == contents
    client.objects.clear()
    object_batches.push_contents(iter({"1": contents["1"]}.items()), client.push_function())
    assert client.objects == {"1": contents["1"]}


def test_a_function_that_does_not_come_to_push_gets_all_of_a_large_object() -> None:
    stored: dict[str, bytes] = {}
    contents = {str(number): secrets.token_bytes(object_batches.BESIDE_BYTES) for number in range(3)}
    object_batches.push_contents(iter(contents.items()), stored.__setitem__)
    assert stored == contents


@pytest.mark.parametrize("lost", ["2", "5"])
def test_an_object_that_was_not_stored_is_the_error_that_flwr_raises(lost: str) -> None:
    client = FleetHttpClient()
    client.lost = {lost}
    with pytest.raises(ObjectPushError, match=f"ID '{lost}'"):
        object_batches.push_contents(iter(OBJECTS.items()), client.push_function())


def test_large_objects_are_pushed_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_batches, "BATCH_BYTES", 250)
    client = FleetHttpClient()
    object_batches.push_contents(iter(OBJECTS.items()), client.push_function())
    assert client.asked == [("push-object-batch", 2), ("push-object-batch", 2), ("push-object", 1)]
    assert client.objects == OBJECTS


@pytest.mark.parametrize(
    ("knows", "room", "asked"),
    [
        (True, 1000, [("pull-object-batch", 5)]),
        (True, 200, [("pull-object-batch", 5), ("pull-object-batch", 3), ("pull-object", 1)]),
        (False, 0, [("pull-object-batch", 5), *[("pull-object", 1)] * 5]),
    ],
)
def test_objects_are_pulled_in_as_few_requests_as_the_server_allows(
    knows: bool, room: int, asked: list[tuple[str, int]]
) -> None:
    client = FleetHttpClient(knows, room)
    client.objects = dict(OBJECTS)
    assert object_batches.pull_objects(never, list(OBJECTS), client.pull_function()) == OBJECTS
    assert client.asked == asked


def never(*_: Any, **__: Any) -> dict[str, bytes]:
    """Stand in for flwr's function where it is not needed."""
    raise AssertionError("nothing is late")


def test_objects_that_are_not_there_yet_are_left_to_flwr() -> None:
    client = FleetHttpClient()
    client.objects = {**OBJECTS, "3": b""}

    def wait_for(late: list[str], pull_object_fn: Any, **limits: Any) -> dict[str, bytes]:
        client.objects["3"] = b"now"
        return {name: pull_object_fn(name) for name in late} | {"limits": limits["max_time"]}

    found = object_batches.pull_objects(wait_for, list(OBJECTS), client.pull_function(), max_time=b"7")
    assert found == {**OBJECTS, "3": b"now", "limits": b"7"}


def test_an_object_that_nobody_has_is_the_error_that_flwr_raises() -> None:
    client = FleetHttpClient()
    client.objects = {name: content for name, content in OBJECTS.items() if name != "4"}
    with pytest.raises(ObjectPullError, match="'4'"):
        object_batches.pull_objects(never, list(OBJECTS), client.pull_function())
