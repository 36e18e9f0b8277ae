"""The grid beneath an app: what it records of messages, and the replies that it makes up for lost clients."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import DEFAULT_TTL, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.server import server as legacy_server
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import create_engine, insert

from coldframe.recording import grid as recording
from coldframe.recording import rounds, server
from coldframe.recording.app_errors import AppError
from coldframe.recording.flower import SYSTEM_RECORD
from coldframe.recording.journal import Journal, read_journal
from coldframe.recording.probes import Probes, least
from coldframe.recording.replies import Rules
from coldframe.recording.rounds import Recorder
from coldframe.recording.settings import Settings


class FakeGrid:
    """Keeps what is pushed; answers what it is told to."""

    def __init__(self) -> None:
        self.activated = {7: "first", 9: "first"}
        self.refused: set[int] = set()
        self.silent: set[int] = set()
        self.replies: dict[str, Message] = {}

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at=when) for node, when in self.activated.items()]

    def get_node_ids(self) -> list[int]:
        return list(self.activated)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            node, message_id = message.metadata.dst_node_id, message.metadata.message_id
            if node in self.refused:
                continue  # as flwr's grid in memory does: fewer ids than messages
            ids.append(message_id)
            if node not in self.silent:
                metrics = MetricRecord({"num-examples": 3, "loss": float(node)})
                system = ConfigRecord({"threads": 2, "train_seconds": "long", "other": 1.0})
                content = RecordDict({"metrics": metrics, SYSTEM_RECORD: system})
                self.replies[message_id] = Message(content, reply_to=message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recording grid over a fake one, of two clients: 7 is b, 9 is a."""
    for key in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, key, 1)
    monkeypatch.setattr(recording, "RESTART_CHECK", 0.0)
    monkeypatch.setattr(recording, "FRESH_SECONDS", 0.0)
    roster = {"7": {"name": "b", "partition_id": 1}, "9": {"name": "a", "partition_id": 0}}
    (tmp_path / "nodes.json").write_text(json.dumps(roster))
    journal = Journal(tmp_path / "journal.jsonl")
    recorder = Recorder(journal, tmp_path / "nodes.json")
    fake = FakeGrid()
    grid = recording.RecordingGrid(fake, recorder)  # type: ignore[arg-type]
    yield SimpleNamespace(grid=grid, fake=fake, recorder=recorder, folder=tmp_path)
    journal.close()


def messages(kind: str = "train", group: str | None = None) -> list[Message]:
    return [Message(RecordDict(), node, kind, group_id=group) for node in (7, 9)]


def events(made: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(made.folder / "journal.jsonl") if event["event"] == kind]


def test_nodes_and_replies_are_in_the_order_of_partitions_and_bear_no_foreign_record(made: Any) -> None:
    assert made.grid.get_node_ids() == [node.node_id for node in made.grid.get_nodes()] == [9, 7]
    replies = made.grid.send_and_receive(messages())
    assert [reply.content["metrics"]["loss"] for reply in replies] == [9.0, 7.0]
    assert all(list(reply.content) == ["metrics"] for reply in replies)
    found = events(made, "reply")
    assert [event["system"] for event in found] == [{"threads": 2}] * 2, "figures that are numbers, no others"
    assert [event["examples"] for event in found] == [3, 3]


def test_clients_that_nobody_has_named_bear_the_numbers_of_their_nodes(made: Any) -> None:
    (made.folder / "nobody.json").write_text("{}")
    recorder = Recorder(made.recorder.journal, made.folder / "nobody.json")
    recording.RecordingGrid(made.fake, recorder).send_and_receive(messages())
    (phase,) = events(made, "phase_started")
    assert phase["clients"] == ["node-7", "node-9"]


def test_what_the_recording_does_not_expect_is_no_failure_of_the_app(
    made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = RecordDict({"answer": ConfigRecord({"found": []})})
    made.grid.push_messages([Message(empty, 7, "query")])
    assert rounds.size_of(Message(empty, 7, "query")) == 0, "flwr itself raises"
    monkeypatch.setattr(rounds, "metrics_of", lambda *_: 1 / 0)
    assert len(made.grid.send_and_receive(messages())) == 2
    assert "missed something (replied): ZeroDivisionError" in capsys.readouterr().err


def test_a_refused_message_is_a_failure_of_its_client(made: Any) -> None:
    made.fake.refused = {7}
    assert len(made.grid.send_and_receive(messages())) == 1
    (failure,) = events(made, "failure")
    assert (failure["client"], failure["reason"]) == ("b", "the message could not be sent")
    assert [event["client"] for event in events(made, "reply")] == ["a"]


def test_a_client_that_restarts_is_an_error_reply_and_is_not_waited_for(made: Any) -> None:
    made.fake.silent = {7}
    ids = made.grid.push_messages(messages())
    assert len(made.grid.pull_messages(ids)) == 1
    assert made.grid.pull_messages(ids) == [], "it may still reply"
    made.fake.activated[7] = "again"
    (lost,) = made.grid.pull_messages(ids)
    assert lost.error.code == ErrorCode.NODE_UNAVAILABLE
    assert made.grid.pull_messages(ids) == [], "once"
    assert [event["client"] for event in events(made, "failure")] == ["b"]
    made.fake.silent = set()
    assert len(made.grid.send_and_receive(messages())) == 2, "the next message is not held against it"


@pytest.mark.parametrize(
    ("fetched", "lost"),
    [("2026-11-30T10:00:00+00:00", True), ("", False), ("2026-11-30T10:00:09+00:00", False), (None, True)],
    ids=["before it restarted", "not yet", "after it restarted", "nobody knows"],
)
def test_a_client_that_restarts_is_lost_only_with_a_message_that_it_had_fetched(
    made: Any, fetched: str | None, lost: bool
) -> None:
    """By Flower's own table of messages. What it had not fetched it fetches now, and not in vain."""
    path = made.folder / "superlink.db"
    LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory()).state()  # makes the tables
    database = create_engine(f"sqlite:///{path}")
    made.fake.silent, made.fake.activated[7] = {7}, "2026-11-30T09:00:00+00:00"
    ids = made.grid.push_messages(messages())
    if fetched is not None:
        with database.begin() as connection:
            for name in ids:
                connection.execute(insert(MessageIns).values(message_id=name, delivered_at=fetched))
    made.grid.pull_messages(ids)
    made.fake.activated[7] = "2026-11-30T10:00:05+00:00"
    assert [reply.has_error() for reply in made.grid.pull_messages(ids)] == [True] * lost
    assert [event["client"] for event in events(made, "failure")] == ["b"] * lost


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_exceptions_that_lead_back_to_themselves_are_looked_at_once(link: str) -> None:
    """In a daemon thread: without an end it must not hold up the tests."""
    first, second, found = ValueError("a"), KeyError("b"), []
    setattr(first, link, second)
    setattr(second, link, first)
    seeker = threading.Thread(target=lambda: found.append(server.is_refused(first)), daemon=True)
    seeker.start()
    seeker.join(10)
    assert found == [False]
    setattr(second, link, ObjectPushError("gone", 7, "s"))
    assert server.is_refused(first)


def test_a_client_that_vanishes_between_two_phases_is_a_failure_once(made: Any) -> None:
    def train() -> None:
        nodes = made.grid.get_node_ids()
        made.grid.send_and_receive([Message(RecordDict(), node, "train") for node in nodes])

    train()
    assert events(made, "failure") == []
    del made.fake.activated[7]
    train()
    train()
    made.fake.activated[7] = "again"
    train()
    del made.fake.activated[7]
    train()
    failures = events(made, "failure")
    assert [(event["round"], event["client"], event["phase"]) for event in failures] == [
        (2, "b", "train"),
        (5, "b", "train"),
    ]
    assert {event["code"] for event in failures} == {ErrorCode.NODE_UNAVAILABLE}
    assert failures[0]["reason"] == "the client was not connected when the phase train began"


def test_who_is_too_late_is_a_failure_of_this_client(made: Any) -> None:
    made.fake.silent = {9}
    assert len(made.grid.send_and_receive(messages(), timeout=0.1)) == 1
    (failure,) = events(made, "failure")
    assert (failure["client"], failure["code"]) == ("a", -1)


def test_messages_that_have_expired_are_not_kept(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made.fake.silent = {7, 9}
    grid = recording.RecordingGrid(made.fake, made.recorder, Rules())
    batch = messages()
    for message in batch:
        message.metadata.ttl = 100.0
    grid.push_messages(batch)
    assert len(grid._sent) == len(made.recorder.pending) == 2
    later = time.time() + 100.0 + recording.FORGET_MARGIN
    monkeypatch.setattr(recording.time, "time", lambda: later - 5.0)
    grid.push_messages([])
    assert len(grid._sent) == 2, "there may be a reply"
    monkeypatch.setattr(recording.time, "time", lambda: later + 5.0)
    grid.push_messages([])
    assert grid._sent == made.recorder.pending == {}
    assert {(e["client"], e["code"]) for e in events(made, "failure")} == {("a", -1), ("b", -1)}


@pytest.mark.parametrize(
    ("groups", "expected"), [(["1", "2"], [1, 2]), ([None, None], [1, 2]), (["a", "a"], [1, 2])]
)
def test_rounds_of_a_loop(made: Any, groups: list[str | None], expected: list[int]) -> None:
    """By the group's number; else a message that goes out again opens a round."""
    for group in groups:
        made.grid.send_and_receive(messages("train", group))
    made.recorder.finish("completed", None, made.folder)
    found = events(made, "round")
    assert [event["round"] for event in found] == expected
    assert [event["train_loss"] for event in found] == [8.0, 8.0], "our mean of the replies"
    assert found[0]["derived"] == ["train_loss"]


def test_a_round_that_was_cut_off_is_not_counted(made: Any) -> None:
    made.fake.silent = {7, 9}
    made.grid.push_messages(messages())
    made.recorder.finish("failed", "why", made.folder)
    assert events(made, "round") == []
    assert events(made, "unanswered")[0]["clients"] == ["a", "b"]


def test_methods_of_strategies_stay_one_function_and_abstract_ones_abstract(made: Any) -> None:
    """The accounting of differential privacy compares them; of an override that calls super() one counts."""

    class Base(ABC):
        @abstractmethod
        def aggregate_train(self, server_round: int, replies: list[Any]) -> Any: ...

    class First(Base):
        def aggregate_train(self, server_round: int, replies: list[Any]) -> Any:
            return None, MetricRecord({"train_loss": 1.0})

    calls: list[str] = []

    def hook(method: Any, strategy: Any, args: Any, kwargs: Any) -> Any:
        calls.append(type(strategy).__name__)
        return method(strategy, *args, **kwargs)

    Probes(made.recorder)._watch(Base, {"aggregate_train": hook})

    class Second(First):
        pass

    class Third(First):
        def aggregate_train(self, server_round: int, replies: list[Any]) -> Any:
            return super().aggregate_train(server_round, replies)

    assert Second.aggregate_train is First.aggregate_train
    with pytest.raises(TypeError, match="abstract"):
        type("Bare", (Base,), {})()
    Second().aggregate_train(1, [])
    Third().aggregate_train(1, [])
    assert calls == ["Second", "Third"]


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"accuracy": 0.5, "top5_accuracy": 0.9}, ("accuracy", 0.5)),
        ({"eval_acc": 1}, ("eval_acc", 1.0)),
        ({"acc_a": 0.1, "acc_b": 0.2}, None),
        ({"accuracy": [0.1]}, None),
        ({}, None),
    ],
)
def test_a_metric_is_taken_by_its_name_or_where_only_one_matches(
    metrics: dict[str, Any], found: tuple[str, float] | None
) -> None:
    assert rounds.pick(metrics, "accuracy", "acc") == found


def test_a_run_that_flower_stops_is_stopped_and_one_that_exits_has_failed() -> None:
    namespace: dict[str, Any] = {"__name__": "flwr.supercore.exit.exit"}
    exec("def flwr_exit():\n raise SystemExit(0)", namespace)
    ends = {}
    for name, function in (
        ("stopped", namespace["flwr_exit"]),
        ("failed", lambda: exec("raise SystemExit(3)")),
    ):
        try:
            function()
        except SystemExit as error:
            ends[name] = server.ending(error)
    assert ends["stopped"][0] == "stopped"
    assert ends["failed"] == ("failed", "the ServerApp ended itself by sys.exit(3)")


@pytest.mark.parametrize(
    ("stopped", "error", "status"),
    [
        (True, ObjectPushError("an object", 7, "s"), "stopped"),
        (True, ValueError("the app's own"), "failed"),
        (False, ObjectPushError("an object", 7, "s"), "failed"),
    ],
    ids=["stopped in the middle of a message", "an error of the app", "refused for another reason"],
)
def test_a_run_that_is_stopped_while_it_sends_is_stopped(
    stopped: bool, error: Exception, status: str, tmp_path: Path
) -> None:
    """Its SuperLink refuses the rest of the message before flwr knows of the stop."""
    namespace: dict[str, Any] = {"__name__": "flwr.supercore.exit.exit"}
    exec("def flwr_exit():\n raise SystemExit(0)", namespace)
    (tmp_path / "nodes.json").write_text("{}")
    fake: Any = SimpleNamespace(get_node_ids=namespace["flwr_exit"] if stopped else list)

    def run(grid: Any) -> Context:
        raise AppError("explained") from error

    context = Context(run_id=7, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises((AppError, SystemExit)):
        server.record(run, fake, context, tmp_path)
    assert read_journal(tmp_path / "runs" / "7" / "journal.jsonl")[-1]["status"] == status


def test_the_hash_sees_names_shapes_and_values() -> None:
    base = {"a": np.zeros((2, 3))}
    others = [
        {"b": np.zeros((2, 3))},
        {"a": np.zeros((3, 2))},
        {"a": np.zeros((2, 3), np.float32)},
        {"a": np.full((2, 3), 1e-45)},
    ]
    assert len({rounds.sha256_of(arrays) for arrays in [base, *others]}) == 5


def test_a_strategy_gets_the_same_nodes_while_it_chooses_and_waits_for_those_that_it_needs(made: Any) -> None:
    grid, fake, recorder = made.grid, made.fake, made.recorder
    recorder.configuring = rounds.Configuring(required=2)
    assert grid.get_node_ids() == [9, 7]
    del fake.activated[7]
    assert grid.get_node_ids() == [9, 7], "it has computed how many to sample"
    recorder.configuring = None
    assert grid.get_node_ids() == [9], "a loop of an app sees what is there"
    recorder.configuring = rounds.Configuring(required=2)
    grid._wait_timeout = 0.0
    with pytest.raises(recording.ClientsMissing, match=r"1 clients .* 2 are needed. Missing: b. Look"):
        grid.get_node_ids()


def test_an_evaluation_needs_the_clients_of_an_evaluation() -> None:
    """Not those that training needs: half of them may have gone since."""
    strategy = FedAvg(min_train_nodes=5, min_evaluate_nodes=2, min_available_nodes=3)
    assert [least(strategy, phase) for phase in ("train", "evaluate")] == [5, 3]
    assert least(object(), "train") == 0


def test_the_first_question_waits_for_all_that_are_registered(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "UNHELD_SECONDS", 0.05)
    monkeypatch.setattr(recording, "GRACE", 0.3)
    del made.fake.activated[7]
    start = time.monotonic()
    assert made.grid.get_node_ids() == [9]
    assert 0.3 <= time.monotonic() - start < 2
    assert made.grid.get_node_ids() == [9]
    assert time.monotonic() - start < 2, "no other one does"


def test_messages_expire_soon_after_their_time_out_unless_the_app_says_when(made: Any) -> None:
    mine, theirs = messages()
    theirs.metadata.ttl = 7.0
    made.grid.send_and_receive([mine, theirs], timeout=20.0)
    assert (mine.metadata.ttl, theirs.metadata.ttl) == (25.0, 7.0)
    (other, _) = messages()
    made.grid.send_and_receive([other])
    assert other.metadata.ttl == DEFAULT_TTL


def test_speed_counts_each_pass_over_the_examples(made: Any) -> None:
    assert "samples_per_second" not in made.recorder._figures({}, "train", 10)
    made.recorder.epochs = 3
    figures = {
        phase: made.recorder._figures({"train_seconds": 2.0}, phase, 10) for phase in ("train", "evaluate")
    }
    assert [figures[phase]["samples_per_second"] for phase in figures] == [15.0, 5.0]


def test_classes_of_a_partition_are_noted_once_and_nonsense_never(made: Any) -> None:
    def tell(counts: Any) -> None:
        made.recorder._note_classes(9, RecordDict({"partition": ConfigRecord({"class-counts": counts})}))

    for counts in ([3, 4], [3, 4], [-1, 2], [0.5], "12", [True], [1] * 5000):
        tell(counts)
    assert [(event["client"], event["class_counts"]) for event in events(made, "partition")] == [
        ("a", [3, 4])
    ]


def test_what_the_probes_have_replaced_is_put_back(made: Any) -> None:
    before = dict(vars(FedAvg)), dict(vars(Strategy)), vars(legacy_server)["fit_clients"]
    probes = Probes(made.recorder)
    probes.install()
    assert vars(FedAvg)["aggregate_train"] is not before[0]["aggregate_train"]
    late = type("Late", (FedAvg,), {"aggregate_train": lambda self, server_round, replies: (None, None)})
    probes.remove()
    assert dict(vars(FedAvg)) == before[0] and dict(vars(Strategy)) == before[1]
    assert vars(legacy_server)["fit_clients"] is before[2]
    assert late.aggregate_train.__name__ == "<lambda>"


def test_a_model_that_is_no_number_has_diverged_also_where_the_error_was_explained() -> None:
    def ended(cause: Exception) -> tuple[str, str]:
        try:
            raise AppError("ServerApp: why") from cause
        except AppError as error:
            return server.ending(error)

    assert ended(FloatingPointError("NaN")) == ("diverged", "NaN")
    assert ended(ValueError("x")) == ("failed", "ServerApp: why")
    assert server.ending(FloatingPointError("NaN")) == ("diverged", "NaN")


def test_a_run_config_tells_what_it_has_and_nothing_else(made: Any) -> None:
    config = {"dataset": "mnist", "strategy": 3, "seed": True, "strategy-args": "[1]", "num_rounds": 4}
    told = server.about(SimpleNamespace(run_id=1, run_config=config), made.recorder, Settings())  # type: ignore[arg-type]
    assert (told["dataset"], told["rounds"]) == ("mnist", 4)
    unknown = ("strategy", "partitioner", "seed", "strategy_args", "partitioner_args", "run_name")
    assert [told[name] for name in unknown] == [None] * len(unknown)
