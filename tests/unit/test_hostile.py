"""Hostile parties at the SuperLink: a stranger costs next to nothing, a registered node hurts nobody else."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink import main as superlink
from flwr.superlink.grid import http_grid
from google.protobuf.message import DecodeError

from coldframe.flower import fast_path, fast_path_calls, object_batches
from coldframe.recording import reading
from coldframe.recording.replies import BAD_REPLY
from tests.unit.test_adapters import PROTOBUF, node_headers

KEY, OTHER, UNKNOWN = (generate_key_pairs()[0] for _ in range(3))
PART = 1 << 20
FLEET_CALLS = (
    *("pull-messages", "push-messages", "pull-object", "push-object"),
    *("pull-object-batch", "push-object-batch"),
    *("confirm-message-received", "activate-node", "deactivate-node", "send-node-heartbeat", "get-run"),
    *("get-fab", "unregister-node"),
)


class Link:
    """A SuperLink's application with two registered nodes, asked without a network."""

    def __init__(self) -> None:
        self.app = superlink.create_app()
        self.app.add_middleware(fast_path.FastPath, calls=fast_path_calls.superlink_calls())
        state = self.app.state.linkstate_factory.state()
        self.node, self.other = (
            state.create_node("owner", "owner", public_key_to_bytes(key.public_key()), 30.0)
            for key in (KEY, OTHER)
        )
        self.parts_read = 0

    def ask(self, call: str, key: Any, body: Callable[[int], bytes | None]) -> tuple[int, bytes]:
        """Send a request whose body is made as it is read; return status and answer."""
        headers = {**PROTOBUF, **(node_headers(key, now()) if key else {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": f"/v1/fleet/{call}",
            "raw_path": f"/v1/fleet/{call}".encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("192.0.2.1", 1),
            "server": ("flower", 80),
        }
        answer: list[dict[str, Any]] = []
        self.parts_read = 0

        async def receive() -> dict[str, Any]:
            part = body(self.parts_read)
            if part is None:
                await asyncio.Event().wait()
            self.parts_read += 1
            more = body(self.parts_read) is not None
            return {"type": "http.request", "body": part, "more_body": more}

        async def send(event: Any) -> None:
            answer.append(event)

        async def story() -> None:
            await asyncio.wait_for(self.app(scope, receive, send), 20)

        asyncio.run(story())
        return answer[0]["status"], b"".join(event.get("body", b"") for event in answer[1:])


@pytest.fixture(scope="module")
def link() -> Link:
    return Link()


def whole(body: bytes) -> Callable[[int], bytes | None]:
    return lambda place: body if place == 0 else None


def endless(_place: int) -> bytes:
    return bytes(PART)


@pytest.mark.parametrize("call", FLEET_CALLS)
@pytest.mark.parametrize("key", [None, UNKNOWN], ids=["no key", "an unknown key"])
def test_a_strangers_body_is_never_read(link: Link, call: str, key: Any) -> None:
    status, body = link.ask(call, key, endless)
    if key is UNKNOWN and call == "activate-node":  # flwr's own answer, which its SuperNode shows
        assert (status, link.parts_read) == (412, 0)
        assert b"Failed to activate SuperNode" in body
    else:
        assert (status, link.parts_read) == (401, 0)


@pytest.mark.parametrize("call", FLEET_CALLS)
def test_a_registered_nodes_body_has_an_end(link: Link, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path, "OBJECTS_BODY_BYTES", 8 * PART)
    status, _ = link.ask(call, KEY, endless)
    assert status == 413
    assert link.parts_read == (9 if call in ("push-object", "push-object-batch") else 5)


def test_a_batch_of_nothing_is_refused_before_it_is_long(link: Link) -> None:
    with pytest.raises(DecodeError, match="more than 4096"):
        object_batches.PushRequests().ParseFromString(bytes(1 << 18))
    assert link.ask("push-object-batch", KEY, whole(bytes(1 << 18)))[0] == 400


def test_calls_that_are_flwrs_own_still_arrive(link: Link) -> None:
    beat = heartbeat_pb2.SendNodeHeartbeatRequest(node=Node(node_id=link.node), heartbeat_interval=30.0)
    status, body = link.ask("send-node-heartbeat", KEY, whole(beat.SerializeToString()))
    assert status == 200
    assert heartbeat_pb2.SendNodeHeartbeatResponse.FromString(body) is not None
    assert link.ask("send-node-heartbeat", OTHER, whole(beat.SerializeToString()))[0] == 401


def test_a_node_speaks_for_itself_alone(link: Link) -> None:
    pull = fleet_pb2.PullMessagesRequest(node=Node(node_id=link.other)).SerializeToString()
    assert link.ask("pull-messages", KEY, whole(pull))[0] == 401


def push(link: Link, count: int = 1, **metadata: Any) -> bytes:
    """Return a request with replies of a node, but for what is given."""
    request = fleet_pb2.PushMessagesRequest(node=Node(node_id=link.node))
    for number in range(count):
        item = request.messages_list.add()
        fields = {
            "run_id": 5,
            "message_id": f"{number:064x}",
            "src_node_id": link.node,
            "dst_node_id": SUPERLINK_NODE_ID,
            "reply_to_message_id": "f" * 64,
        }
        for name, value in (fields | metadata).items():
            setattr(item.metadata, name, value)
        request.message_object_trees.append(message_pb2.ObjectTree(object_id=f"{number:064x}"))
    return request.SerializeToString()


FORGED = {
    "two at a time": {"count": 2},
    "none": {"count": 0},
    "for another node": {"src_node_id": 4711},
    "in the server's name": {"src_node_id": SUPERLINK_NODE_ID},
    "to another node": {"dst_node_id": 4711},
    "an order, not a reply": {"reply_to_message_id": ""},
    "a tree of another message": {"message_id": "e" * 64},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_message_that_is_no_reply_of_its_sender_is_refused_and_holds_nobody_up(
    link: Link, name: str
) -> None:
    status, body = link.ask("push-messages", KEY, whole(push(link, **FORGED[name])))
    assert status == 400, body


def test_what_a_node_stores_for_a_run_has_an_end(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path_calls, "NODE_BYTES", 4 * PART)
    statuses = []
    for number in range(6):
        item = message_pb2.PushObjectRequest(
            node=Node(node_id=link.node), run_id=9, object_id=f"{number:064x}", object_content=bytes(PART)
        )
        statuses.append(link.ask("push-object", KEY, whole(item.SerializeToString()))[0])
    assert 413 not in statuses[:4] and statuses[4:] == [413, 413]
    theirs = message_pb2.PushObjectRequest(
        node=Node(node_id=link.other), run_id=9, object_id="a" * 64, object_content=bytes(PART)
    )
    assert link.ask("push-object", OTHER, whole(theirs.SerializeToString()))[0] != 413, (
        "each has its own share"
    )


def test_a_hundred_strangers_cost_little(link: Link) -> None:
    """The bound that the documentation states: no memory to speak of, a few milliseconds each."""
    link.ask("push-object-batch", UNKNOWN, endless)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(100):
        assert link.ask("push-object-batch", UNKNOWN, endless)[0] == 401
    seconds = time.process_time() - begin
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"100 strangers: {seconds:.2f} CPU-s, {grown} KiB")
    assert grown < 4096
    assert seconds < 5


def reply_object(**metadata: Any) -> tuple[str, dict[str, bytes]]:
    """Return the id and the objects of a reply as a node could have made them."""
    fields: dict[str, Any] = {
        "run_id": 5,
        "message_id": "",
        "src_node_id": 7,
        "dst_node_id": SUPERLINK_NODE_ID,
        "reply_to_message_id": "f" * 64,
        "group_id": "",
        "created_at": 1.0,
        "ttl": 60.0,
        "message_type": "train",
    }
    reply = make_message(metadata=Metadata(**fields | metadata), content=RecordDict({"m": MetricRecord()}))
    found = get_all_nested_objects(reply)
    return reply.object_id, {name: item.deflate() for name, item in found.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, objects: objects, None),
        (lambda name, objects: objects | {name: b"nothing"}, "cannot be read"),
        (lambda name, objects: {name: objects[name]}, "cannot be read"),
        (lambda name, objects: dict.fromkeys(objects, b""), "cannot be read"),
        (lambda name, objects: reply_object(reply_to_message_id="e" * 64), "another message"),
        (lambda name, objects: reply_object(src_node_id=8), "another message"),
    ],
    ids=["honest", "no object", "half of it", "empty", "an answer to another's message", "in another's name"],
)
def test_a_reply_that_is_none_is_its_senders_failure(
    monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], reason: str | None
) -> None:
    name, objects = reply_object()
    changed = change(name, objects)
    if isinstance(changed, tuple):
        name, objects = changed
    else:
        objects = changed
    said = fleet_pb2.PullMessagesResponse().messages_list.add()
    for field, value in {"run_id": 5, "message_id": name, "src_node_id": 7}.items():
        setattr(said.metadata, field, value)
    said.metadata.dst_node_id, said.metadata.reply_to_message_id = SUPERLINK_NODE_ID, "f" * 64
    answer = SimpleNamespace(messages_list=[said])
    monkeypatch.setattr(RuntimeHttpClient, "PullMessages", lambda _client, _request: answer)
    monkeypatch.setattr(http_grid, "inflate_object_from_contents", http_grid.inflate_object_from_contents)
    reading.install()
    RuntimeHttpClient.PullMessages(None, None)  # type: ignore[arg-type]
    message = http_grid.inflate_object_from_contents(name, objects)
    assert isinstance(message, Message)
    assert message.metadata.reply_to_message_id == "f" * 64
    assert message.has_error() == (reason is not None)
    if reason:
        assert (message.error.code, reason in message.error.reason) == (BAD_REPLY, True)


def test_a_node_that_starts_anew_is_not_given_again_what_its_run_has_given_up(link: Link) -> None:
    """What a node was sent and has not begun to fetch is sent again, unless its process has died with it."""
    path = link.app.middleware_stack
    while not isinstance(path, fast_path.FastPath):
        path = path.app
    sent = fleet_pb2.PullMessagesResponse()
    sent.messages_list.add().metadata.message_id = "f" * 64
    for node in (link.node, link.other):
        path.pending.unconfirmed[node] = sent
    link.app.state.linkstate_factory.state().deactivate_node(link.node)
    start = fleet_pb2.ActivateNodeRequest(
        public_key=public_key_to_bytes(KEY.public_key()), heartbeat_interval=30.0
    )
    assert link.ask("activate-node", KEY, whole(start.SerializeToString()))[0] == 200
    assert set(path.pending.unconfirmed) == {link.other}
    pull = fleet_pb2.PullMessagesRequest(node=Node(node_id=link.other)).SerializeToString()
    status, body = link.ask("pull-messages", OTHER, whole(pull))
    assert (status, fleet_pb2.PullMessagesResponse.FromString(body)) == (200, sent)
