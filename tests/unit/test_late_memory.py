"""What is kept for late clients does not grow with the rounds: neither with the ServerApp nor the SuperLink.

The SuperLink is Flower's own state and object store, asked by Flower's own handlers in this process, without
the connection between them.
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from coldframe.recording import grid as recording_grid
from coldframe.recording import policy as policies
from coldframe.recording import server as recording
from coldframe.recording import settings
from coldframe.recording.journal import read_journal
from tests.unit.fl_runs import of
from tests.unit.flower import wait_until

ROUNDS, BEFORE = 50, 15
SIZE = 1 << 18  # numbers of the model: a megabyte
MODEL = 4 * SIZE  # bytes
GOOD = 2  # clients that reply at once, and end a round
# What may be under way as well at one of two looks: of each client that is late what it was sent and what it
# has trained, and copies of both while they are handed over.
UNDER_WAY = 6 * MODEL
ALLOWED = {"objects": 20, "Message": 10, "Array": 8, "ArrayRecord": 8}  # of other things 4
CALLS = ("PushMessages", "PullMessages", "PushObject", "PullObject", "ConfirmMessageReceived", "GetNodes")
HANDLERS = (
    *("push_messages", "pull_messages", "push_object", "pull_object"),
    *("confirm_message_received", "get_nodes"),
)


class Link(HttpGrid):
    """Flower's grid, with the handlers of a SuperLink in the place of its connection."""

    def __init__(self) -> None:
        super().__init__(token="none")
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        self.link: Any = factory.state()
        self.nodes = [self.link.create_node("", "", bytes([i]), 30.0) for i in range(GOOD + 2)]
        for node in self.nodes:
            assert self.link.activate_node(node, 3600.0)
        about = ("app", "1.0", "hash", {}, "@none/default", None, None, TaskType.SERVER_APP)
        self.run_id = self.link.create_run(*about)
        (run,) = self.link.get_run_info(run_ids=[self.run_id])
        assert self.link.claim_task(run.primary_task_id) and self.link.activate_task(run.primary_task_id)
        task = SimpleNamespace(run_id=self.run_id, type=TaskType.SERVER_APP)

        def asks(handler: Any) -> Callable[[Any], Any]:
            return lambda request: handler(request, self.link, task)

        handlers = [asks(getattr(runtime_handlers, name)) for name in HANDLERS]
        self.calls: Any = SimpleNamespace(**dict(zip(CALLS, handlers, strict=True)))
        self.set_run(run)
        self.at_work: list[tuple[int, Message]] = []  # of the client that is late
        self.unanswered: list[Message] = []  # of the one that never replies

    @property
    def _runtime_client(self) -> Any:
        return self.calls

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages. The good clients reply at once; one that is late does when the next ones are sent;
        of the last one the message expires then. Both are asked again once that has been fetched."""
        *good, slow, gone = self.nodes
        for node, message in self.at_work:
            self.answer(node, message)
        self.at_work.clear()
        for message in self.unanswered:
            self.link.message_ins_store[message.metadata.message_id].metadata.created_at -= 1e6  # it expires
        self.unanswered.clear()
        self.wait_for_fetched()
        message_ids = list(super().push_messages(messages))
        for node in (*good, slow, gone):
            message = self.fetch(node)
            if message is not None and node == slow:
                self.at_work.append((node, message))
            elif message is not None and node == gone:
                self.unanswered.append(message)
            elif message is not None:
                self.answer(node, message)
        return message_ids

    def fetch(self, node_id: int) -> Message | None:
        """Do as a SuperNode does that fetches a message and its objects."""
        node, link = Node(node_id=node_id), self.link
        found = fleet_handlers.pull_messages(
            fleet_pb2.PullMessagesRequest(node=node), link, link.object_store
        )
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            key = proto.metadata.message_id
            needed = [part.object_id for part in iterate_object_tree(tree)]
            objects = {name: link.get_object(self.run_id, name) for name in needed}
            message = inflate_object_from_contents(key, objects)
            message.metadata.__dict__["_message_id"] = key
            link.object_store.delete(key)
            assert isinstance(message, Message)
            return message
        return None

    def answer(self, node_id: int, message: Message) -> None:
        """Reply with a model: a step further than what was sent."""
        arrays = {key: Array(array.numpy() + 1) for key, array in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        request = fleet_pb2.PushMessagesRequest(
            node=Node(node_id=node_id),
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
        )
        told = fleet_handlers.push_messages(request, self.link)
        objects = get_all_nested_objects(reply)
        for name in told.objects_to_push:  # none where the message has expired
            assert self.link.store_object(self.run_id, told.session_id, name, objects[name].deflate())

    def wait_for_fetched(self) -> None:
        """Wait until a thread of the grid has fetched what was late, and what has expired."""
        wait_until(lambda: not self.link.message_ins_store, 30, "late replies are not fetched", pause=0.002)

    def kept(self) -> dict[str, int]:
        """Count what the SuperLink keeps."""
        link = self.link
        stores = {"sent": link.message_ins_store, "replies": link.message_res_store}
        return {**{key: len(store) for key, store in stores.items()}, "objects": len(link.object_store)}


@dataclass
class Look:
    """What is there as a round begins: bytes of the process, and the numbers of things."""

    size: int
    counts: dict[str, int]


class Looking(FedAvg):
    """Looks at what is kept, by the SuperLink and by the grid beneath the app."""

    def __init__(self, link: Link) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.link = link
        self.looks: dict[int, Look] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Look before the two rounds."""
        if server_round in (BEFORE, ROUNDS):
            assert isinstance(grid, recording_grid.RecordingGrid) and grid._policy is not None
            gc.collect()
            found = [item for item in gc.get_objects() if isinstance(item, Message | ArrayRecord | Array)]
            kinds = Counter(type(item).__name__ for item in found)
            del found
            keepers = (grid, grid._recorder, grid._left_behind, grid._policy, grid._policy.late_work)
            ours = {
                f"{type(keeper).__name__}.{name}": len(value)
                for keeper in keepers
                for name, value in vars(keeper).items()
                if isinstance(value, dict | list | set | deque)
            }
            size, _ = tracemalloc.get_traced_memory()
            self.looks[server_round] = Look(size, {**kinds, **ours, **self.link.kept()})
        return super().configure_train(server_round, arrays, config, grid)


@pytest.mark.parametrize("late", ["drop", "fold"])
def test_fifty_rounds_with_late_clients_keep_no_more_than_fifteen(
    late: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client is late for most of its rounds, and the messages of another one expire."""
    monkeypatch.setattr(policies, "PAUSE", 0.01)
    link = Link()
    for key, value in (("_run_id", link.run_id), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, key, value)
    roster = {str(node): {"name": f"c-{i}", "partition_id": i} for i, node in enumerate(link.nodes)}
    (tmp_path / "nodes.json").write_text(json.dumps(roster))
    asked = {"round_deadline": 60.0, "round_goal": GOOD, "round_late": late}
    with settings.submitting(tmp_path):
        settings.write(tmp_path, str(link.run_id), json.dumps({"settings": asked}))
    strategy = Looking(link)

    def app(grid: Grid) -> Context:
        first = ArrayRecord({"w": Array(np.zeros(SIZE, np.float32))})
        strategy.start(grid, first, num_rounds=ROUNDS, timeout=600.0)
        return context

    context = Context(link.run_id, 1, {}, RecordDict(), {})
    tracemalloc.start(1)
    try:
        recording.record(app, link, context, tmp_path)
    finally:
        tracemalloc.stop()
    journal = read_journal(tmp_path / "runs" / str(link.run_id) / "journal.jsonl")
    assert journal[-1]["status"] == "completed" and of(journal, "round")[-1]["round"] == ROUNDS
    came = of(journal, "late_reply")
    assert len(came) >= 10 and {event["client"] for event in came} == {"c-2"}
    assert len(of(journal, "late")) > len(came), "and some never came"
    assert len(of(journal, "folded")) >= (10 if late == "fold" else 0)
    before, after = strategy.looks[BEFORE], strategy.looks[ROUNDS]
    more = {name: count - before.counts.get(name, 0) for name, count in after.counts.items()}
    assert {name: count for name, count in more.items() if count > ALLOWED.get(name, 4)} == {}, more
    assert after.size - before.size < UNDER_WAY, f"{(after.size - before.size) / MODEL:.1f} models more"
