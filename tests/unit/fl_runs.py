"""Runs of our app over the recording, joined by a grid in the process, with a net that is quick."""

import functools
import json
import random
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from coldframe.controller import deliveries
from coldframe.controller.records import gather
from coldframe.recording import checkpoint, settings
from coldframe.recording import grid as recording_grid
from coldframe.recording import server as recording
from coldframe.recording.checkpoint import newest
from coldframe.recording.client import Meter
from coldframe.recording.flower import SYSTEM_RECORD
from coldframe.recording.journal import read_journal
from fl import client_app, model, server_app, strategy

REPOSITORY = Path(__file__).parents[2]
MANIFEST = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
NODES = [905, 17, 333]  # node ids in the order of partition ids, which is not their own order
SLOW = NODES[0]  # lab-0, in tests of a client that is late
OUTCOMES = ("reply", "failure", "late")  # of a message


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.log_softmax(self.layers(x), dim=1)


def build_small(_dataset: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Small()


@contextmanager
def elsewhere() -> Iterator[None]:
    """Act as another process, whose random states nobody here knows, and which does not touch ours."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed()
    np.random.seed()
    torch.random.seed()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.random.set_rng_state(states[2])


class LocalGrid(Grid):
    """Runs the real ClientApp for each message; `answer` may replace a reply, or swallow it (None)."""

    def __init__(self, nodes: list[int], config: dict[str, Any]) -> None:
        self.nodes, self.config = nodes, config
        self.answer: Callable[[int, Message, Message], Message | None] = lambda _node, _message, reply: reply
        self.activated = dict.fromkeys(nodes, "2026-01-01")
        self.sent: list[Message] = []
        self.inbox: dict[str, Message] = {}
        self.last_first = False

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at=self.activated[node]) for node in self.nodes]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent.append(message)
            context = Context(
                1,
                node,
                {"partition-id": NODES.index(node), "num-partitions": len(NODES)},
                RecordDict(),
                self.config,
            )
            with elsewhere():
                meter = Meter()  # as `recording.client` has it around an app
                reply = client_app.app(message, context)
                reply.content[SYSTEM_RECORD] = ConfigRecord(dict(meter.figures()))
            answer = self.answer(node, message, reply)
            if answer is not None:
                self.inbox[message.metadata.message_id] = answer
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = sorted(message_ids, reverse=self.last_first)
        return [self.inbox.pop(i) for i in ids if i in self.inbox]


Start = Callable[..., tuple[list[dict[str, Any]], LocalGrid]]


def starter(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that runs a training and returns its journal and the grid."""
    monkeypatch.setenv("COLDFRAME_DATA", str(root))
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    monkeypatch.setattr(model, "build", build_small)
    monkeypatch.setattr(recording_grid, "UNHELD_SECONDS", 0.02)
    monkeypatch.setattr(recording_grid, "GRACE", 0.1)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # a net so small is slower with two
    for key in ("_run_id", "_node_id", "_task_id"):  # Flower sets these in a ServerApp's process
        monkeypatch.setattr(TaskIdentity, key, 1)
    nodes = {str(n): {"name": f"lab-{i}", "partition_id": i, "machine": "lab"} for i, n in enumerate(NODES)}
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    runs = iter(range(100))

    def run(
        answer: Callable[[int, Message, Message], Message | None] | None = None,
        nodes: list[int] | None = None,
        raises: str = "",
        prepare: Callable[[LocalGrid], None] = lambda _grid: None,
        note: dict[str, Any] | None = None,
        **config: Any,
    ) -> tuple[list[dict[str, Any]], LocalGrid]:
        whole = MANIFEST["tool"]["flwr"]["app"]["config"] | {
            "dataset": "synthetic",
            "max-samples": 300,
            "num-server-rounds": 2,
        }
        whole |= {key.replace("_", "-"): value for key, value in config.items()}
        grid = LocalGrid(nodes if nodes is not None else sorted(NODES), whole)
        if answer:
            grid.answer = answer
        prepare(grid)
        number = next(runs)
        context = Context(number, 0, {}, RecordDict(), whole)
        if note is not None:
            with settings.submitting(tmp_path):
                settings.write(tmp_path, str(number), json.dumps(note))
        app = functools.partial(server_app.app, context=context)
        with elsewhere(), pytest.raises(Exception, match=raises) if raises else nullcontext():
            recording.record(app, grid, context, tmp_path)
        return read_journal(tmp_path / f"runs/{number}/journal.jsonl"), grid

    return run


def of(journal: list[dict[str, Any]], event: str, **fields: Any) -> list[dict[str, Any]]:
    return [e for e in journal if e["event"] == event and all(e[k] == v for k, v in fields.items())]


def assert_nothing_lost(journal: list[dict[str, Any]]) -> None:
    """What `no_lost_update` of a scenario says of a run."""
    run = gather(journal)
    passed, found, _ = deliveries.judge(list(enumerate(journal, 1)), run, run.finished["status"])
    assert passed, found


def sha(journal: list[dict[str, Any]]) -> str:
    return str(of(journal, "model_saved")[0]["sha256"])


def changed(reply: Message, message: Message, **records: Any) -> Message:
    """Return a reply with other records in place of its own; None leaves one out."""
    found = {key: value for key, value in {**reply.content, **records}.items() if value is not None}
    return Message(RecordDict(found), reply_to=message)


def with_metrics(reply: Message, **metrics: Any) -> MetricRecord:
    return MetricRecord({**reply.content.metric_records["metrics"], **metrics})


# --- clients that are late


def asked(**settings: Any) -> dict[str, Any]:
    """Return the note of a run with a deadline."""
    return {"settings": {"round_deadline": 0.3, **settings}}


class Straggler:
    """Keeps back what one client replies to its first message, until somebody asks for it."""

    def __init__(self, grid: LocalGrid, released_by: Callable[[int, Message], bool], error: int = 0) -> None:
        self.grid, self.released_by, self.error = grid, released_by, error
        self.kept: tuple[str, Message] | None = None
        self.begun = False
        grid.answer = self

    def __call__(self, node: int, message: Message, reply: Message) -> Message | None:
        if self.kept and self.released_by(node, message):
            identity, late = self.kept
            self.grid.inbox[identity] = late
            self.kept = None
            # Another thread takes it, and a phase can be over before that.
            deadline = time.monotonic() + 30
            while identity in self.grid.inbox and time.monotonic() < deadline:
                time.sleep(0.001)
        if node != SLOW or self.begun:
            return reply
        self.begun = True
        late = Message(Error(self.error, "gone"), reply_to=message) if self.error else reply
        self.kept = (message.metadata.message_id, late)
        return None


def evaluating(_node: int, message: Message) -> bool:
    return message.metadata.message_type == "evaluate"


def never(_node: int, _message: Message) -> bool:
    return False


def dispatched(journal: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(
        (event["round"], event["phase"], client)
        for event in journal
        if event["event"] in ("phase_started", "phase_extended")
        for client in event["clients"]
    )


def outcomes(journal: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    found = [event for event in journal if event["event"] in OUTCOMES]
    return Counter((event["round"], event["phase"], event["client"]) for event in found)


# --- runs that are cut off


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the process runs any more."""


def killed(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have a run end in the middle of the aggregation of a round, as SIGKILL does."""
    inner = strategy.Reproducible.aggregate_train

    def aggregate(self: Any, server_round: int, replies: Iterable[Message]) -> Any:
        if server_round == number:
            inner(self, server_round, replies)  # the state has changed by then
            raise Killed
        return inner(self, server_round, replies)

    monkeypatch.setattr(strategy.Reproducible, "aggregate_train", aggregate)


def run_id(journal: list[dict[str, Any]]) -> str:
    """Return the run whose journal it is: of one that was resumed the last part's."""
    return str(of(journal, "run_started")[-1]["run_id"])


def resume(
    start: Start, tmp_path: Path, earlier: str, also: Mapping[str, Any] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Go on with a run, as `coldframe.server.control` has it: the next run of `start` is the new one."""
    found = newest(tmp_path / "runs" / earlier)
    assert found is not None
    later = str(int(earlier) + 1)
    checkpoint.hand_over(tmp_path / "runs", earlier, later, found)
    journal, _ = start(note={"settings": {"resumed_from": earlier, **(also or {})}}, **options)
    assert run_id(journal) == later
    return journal


def straggler(every: int) -> Callable[[LocalGrid], None]:
    """Have the slow client's replies wait until so many others have been sent messages meanwhile."""

    def prepare(grid: LocalGrid) -> None:
        kept: list[tuple[str, Message]] = []
        sent = 0

        def answer(node: int, message: Message, reply: Message) -> Message | None:
            nonlocal sent
            if node == SLOW:
                kept.append((message.metadata.message_id, reply))
                sent = 0
                return None
            sent += 1
            if kept and sent >= every:
                grid.inbox.update(kept)
                kept.clear()
            return reply

        grid.answer = answer

    return prepare
