"""An app's aggregate does not depend on who replies first: sums of floating-point numbers do."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters
from flwr.proto.node_pb2 import NodeInfo
from flwr.server import server
from flwr.server.compat import app as compat
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from coldframe.recording.grid import RecordingGrid
from coldframe.recording.journal import Journal
from coldframe.recording.probes import Probes
from coldframe.recording.rounds import Recorder

NODES = [70, 50, 90, 60, 80]  # by partition
# What each client trains: too far apart for float32 to add them in any order.
TRAINED = [np.array([value], np.float32) for value in (1e8, 3.0, -1e8, 5.0, 1.5)]
ORDERS = [NODES, NODES[::-1], sorted(NODES)]


class Grid:
    """Replies of all clients, who finish in some order: one by one, or all at once."""

    def __init__(self, arrival: list[int], at_once: bool) -> None:
        self.arrival, self.at_once = arrival, at_once
        self.replies: dict[int, Message] = {}

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at="before") for node in self.arrival]

    def get_node_ids(self) -> list[int]:
        return list(self.arrival)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            node = message.metadata.dst_node_id
            content = {
                "arrays": ArrayRecord([TRAINED[NODES.index(node)]]),
                "metrics": MetricRecord({"num-examples": 1}),
            }
            self.replies[node] = Message(RecordDict(content), reply_to=message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        found = [self.replies[node] for node in self.arrival if node in self.replies]
        found = [reply for reply in found if reply.metadata.reply_to_message_id in wanted]
        found = found if self.at_once else found[:1]
        for reply in found:
            del self.replies[reply.metadata.src_node_id]
        return found


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for key in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, key, 1)
    roster = {str(node): {"name": f"c{place}", "partition_id": place} for place, node in enumerate(NODES)}
    (tmp_path / "nodes.json").write_text(json.dumps(roster))
    journal = Journal(tmp_path / "journal.jsonl")
    yield Recorder(journal, tmp_path / "nodes.json")
    journal.close()


def digest(arrays: Iterable[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def of_message_api(replies: list[Message]) -> str:
    arrays, _ = FedAvg().aggregate_train(1, replies)
    assert arrays is not None
    return digest(arrays.to_numpy_ndarrays())


def ask(grid: Any) -> list[Message]:
    """Return messages for the nodes of a grid, as an app would make them."""
    return [Message(RecordDict({"c": ConfigRecord()}), node, "train") for node in grid.get_node_ids()]


def test_the_sum_of_these_updates_depends_on_their_order(recorder: Recorder) -> None:
    """Else the other tests of this module would prove nothing."""
    found = set()
    for order in ORDERS:
        grid = Grid(order, at_once=True)
        found.add(of_message_api(grid.pull_messages(grid.push_messages(ask(grid)))))
    assert len(found) > 1


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
def test_replies_of_send_and_receive(recorder: Recorder, at_once: bool) -> None:
    grids = [RecordingGrid(Grid(order, at_once), recorder) for order in ORDERS]  # type: ignore[arg-type]
    assert len({of_message_api(grid.send_and_receive(ask(grid))) for grid in grids}) == 1


def test_replies_of_one_look(recorder: Recorder) -> None:
    grids = [RecordingGrid(Grid(order, True), recorder) for order in ORDERS]  # type: ignore[arg-type]
    found = {of_message_api(grid.pull_messages(grid.push_messages(ask(grid)))) for grid in grids}
    assert len(found) == 1


def test_results_of_the_threads_of_a_legacy_server(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((server, "fit_clients"), (server, "evaluate_clients"), (compat, "run_fl")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    monkeypatch.setattr(DefaultWorkflow, "__call__", DefaultWorkflow.__call__)
    Probes(recorder)._watch_legacy_servers()
    strategy = LegacyFedAvg()
    found = set()
    for order in ORDERS:
        results, failures = server.fit_clients(
            [(Proxy(node, order), FitIns(Parameters([], ""), {})) for node in NODES],  # type: ignore[misc]
            max_workers=None,
            timeout=None,
            group_id=1,
        )
        assert failures == []
        parameters, _ = strategy.aggregate_fit(1, results, [])
        assert parameters is not None
        found.add(hashlib.sha256(parameters.tensors[0]).hexdigest())
    assert len(found) == 1


class Proxy(SimpleNamespace):
    """A client of the legacy API that finishes in its turn."""

    def __init__(self, node: int, order: list[int]) -> None:
        super().__init__(node_id=node, turn=order.index(node))

    def fit(self, _ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        time.sleep(0.02 * self.turn)
        parameters = ndarrays_to_parameters([TRAINED[NODES.index(self.node_id)]])
        return FitRes(Status(Code.OK, ""), parameters, 1, {})
