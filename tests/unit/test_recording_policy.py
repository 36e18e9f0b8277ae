"""Rounds that end without the clients that are late: whole runs of our app, whose clients reply when told."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

from coldframe.controller import results
from coldframe.controller.closing_words import closing_words
from coldframe.controller.records import gather
from coldframe.recording import policy as policies
from coldframe.recording.fold import LateWork
from coldframe.recording.grid import EXPIRY_MARGIN, RecordingGrid
from coldframe.recording.journal import Journal
from coldframe.recording.policy import (
    LEGACY,
    NOTHING,
    PRIVACY,
    RAW,
    WAITS_FOR_NONE,
    Arrivals,
    LeftBehind,
    Policy,
    Terms,
)
from coldframe.recording.rounds import Pending, Recorder
from coldframe.recording.settings import AUTO, Settings
from coldframe.server import control
from coldframe.strategies import FedBuff
from fl import strategy
from tests.unit.fl_runs import (
    SLOW,
    LocalGrid,
    Start,
    Straggler,
    asked,
    assert_nothing_lost,
    dispatched,
    evaluating,
    never,
    of,
    outcomes,
    sha,
)

Answer = Callable[[int, Message, Message], Message | None]


@pytest.fixture
def start(start: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(policies, "PAUSE", 0.01)
    return start


def test_a_round_ends_at_its_deadline_and_the_late_client_trains_again_later(start: Start) -> None:
    journal, grid = start(note=asked(), prepare=lambda grid: Straggler(grid, evaluating), num_server_rounds=4)
    assert journal[-1]["status"] == "completed"
    (late,) = of(journal, "late")
    assert (late["round"], late["phase"], late["client"], late["partition_id"], late["node_id"]) == (
        *(1, "train", "lab-0", 0),
        str(SLOW),
    )
    assert late["reason"] == "deadline" and late["seconds"] >= 0.3
    assert of(journal, "failure") == [], "it is no failure"
    assert outcomes(journal) == dispatched(journal), "each message has one outcome"
    assert_nothing_lost(journal)
    (came,) = of(journal, "late_reply")
    assert (came["round"], came["client"], came["error"]) == (1, "lab-0", None)
    assert came["seconds"] > late["seconds"]
    phases = {(e["round"], e["phase"]): e["clients"] for e in of(journal, "phase_started")}
    assert phases[1, "evaluate"] == ["lab-1", "lab-2"], "it is busy"
    assert phases[4, "train"] == ["lab-0", "lab-1", "lab-2"]
    first, *_, last = of(journal, "round")[1:]
    assert (first["clients"], first["late"], first["void"]) == (2, 1, False)
    assert (last["clients"], last["late"]) == (3, 0)
    assert grid.inbox == {}, "nothing is left with the server"
    (policy,) = of(journal, "policy")
    told = [policy[key] for key in ("applied", "reason", "deadline", "goal", "minimum")]
    assert told == [True, None, 0.3, None, 2]


def test_the_model_of_a_late_client_is_not_in_the_round_and_in_no_later_one(start: Start) -> None:
    """It is the model of a run in which the client failed in the phases that it missed."""
    journal, _ = start(note=asked(), prepare=lambda grid: Straggler(grid, evaluating), num_server_rounds=1)

    def fails(node: int, message: Message, reply: Message) -> Message | None:
        return Message(Error(code=2, reason="no"), reply_to=message) if node == SLOW else reply

    assert sha(journal) == sha(start(answer=fails, num_server_rounds=1)[0])


def test_a_policy_that_nobody_needs_changes_nothing_and_without_one_nothing_is_told(start: Start) -> None:
    plain, grid = start()
    kept, _ = start(note=asked(round_deadline=60.0, round_goal=1.0, round_minimum=3))
    assert sha(plain) == sha(kept)
    assert not {"policy", "late", "late_reply", "round_void"} & {event["event"] for event in plain}
    assert not {"late", "folded", "void"} & {key for event in of(plain, "round") for key in event}
    assert {message.metadata.ttl for message in grid.sent} == {600.0 + EXPIRY_MARGIN}

    def shape(journal: list[dict[str, Any]]) -> list[list[str]]:
        added = ("late", "folded", "void")
        return [[key for key in event if key not in added] for event in journal if event["event"] != "policy"]

    assert shape(plain) == shape(kept)


@pytest.mark.parametrize("goal", [2, 0.5])
def test_enough_replies_end_a_phase_of_training_and_no_evaluation(start: Start, goal: float) -> None:
    """Half of three is two."""
    journal, grid = start(
        note=asked(round_deadline=60.0, round_goal=goal),
        prepare=lambda grid: Straggler(grid, evaluating),
        num_server_rounds=1,
    )
    assert [(e["client"], e["reason"]) for e in of(journal, "late")] == [("lab-0", "goal")]
    assert of(journal, "round")[-1]["seconds"] < 30
    assert {message.metadata.ttl for message in grid.sent} == {60.0 + EXPIRY_MARGIN}
    assert len(of(journal, "reply", phase="evaluate")) == 2
    assert outcomes(journal) == dispatched(journal)
    assert_nothing_lost(journal)


def test_a_round_with_too_few_replies_is_void_and_the_model_stays(start: Start) -> None:
    journal, _ = start(
        note=asked(round_minimum=3), prepare=lambda grid: Straggler(grid, evaluating), num_server_rounds=3
    )
    (void,) = of(journal, "round_void")
    assert (void["round"], void["replies"], void["minimum"]) == (1, 2, 3)
    before, first, *_, last = of(journal, "round")
    assert first["void"] and first["loss"] == before["loss"], "the model is that of the round before"
    assert not last["void"] and last["loss"] < before["loss"]
    assert of(journal, "not_aggregated") == [], "said once"
    assert journal[-1]["status"] == "completed"


def test_replies_that_are_errors_do_not_count(start: Start) -> None:
    def fails(node: int, message: Message, reply: Message) -> Message | None:
        return Message(Error(code=2, reason="no"), reply_to=message) if node != SLOW else reply

    journal, _ = start(
        note=asked(round_goal=2), answer=fails, num_server_rounds=1, raises="no round of 1 trained"
    )
    assert [(e["replies"], e["minimum"]) for e in of(journal, "round_void")] == [(1, 2)]
    assert of(journal, "late") == []


def test_a_client_is_sampled_although_it_is_busy_where_the_strategy_needs_it(start: Start) -> None:
    journal, _ = start(
        note=asked(),
        prepare=lambda grid: Straggler(grid, evaluating),
        min_train_clients=3,
        num_server_rounds=2,
    )
    phases = {(e["round"], e["phase"]): e["clients"] for e in of(journal, "phase_started")}
    assert [len(phases[number, "train"]) for number in (1, 2)] == [3, 3]
    assert [e["replies"] for e in of(journal, "round_void")] == [2], "by the strategy's own minimum"


def test_a_late_client_is_free_again_when_its_message_has_expired(start: Start) -> None:
    """The SuperLink says so, by an error that is no reply."""
    journal, _ = start(
        note=asked(),
        prepare=lambda grid: Straggler(grid, evaluating, int(ErrorCode.MESSAGE_UNAVAILABLE)),
        num_server_rounds=4,
    )
    assert len(of(journal, "late")) == 1 and of(journal, "late_reply") == []
    assert "lab-0" in of(journal, "phase_started")[-1]["clients"]


def test_a_late_client_that_fails_is_late_and_its_error_is_noted(start: Start) -> None:
    journal, _ = start(note=asked(), prepare=lambda grid: Straggler(grid, evaluating, 2), num_server_rounds=3)
    assert [e["error"] for e in of(journal, "late_reply")] == ["gone"]
    assert outcomes(journal) == dispatched(journal) and of(journal, "failure") == []
    assert_nothing_lost(journal)


@pytest.mark.parametrize("name", [name for name in strategy.STRATEGIES if name != "bulyan"])
def test_every_strategy_trains_on_with_fewer_replies(start: Start, name: str) -> None:
    journal, _ = start(
        note=asked(round_deadline=60.0, round_goal=2),
        prepare=lambda grid: Straggler(grid, never),
        strategy=name,
        num_server_rounds=3,
    )
    assert journal[-1]["status"] == "completed"
    assert len(of(journal, "late")) == 1 and outcomes(journal) == dispatched(journal)
    assert_nothing_lost(journal)
    before, *rounds = of(journal, "round")
    assert all(event["clients"] == 2 and not event["void"] for event in rounds), "it stays busy"
    assert rounds[-1]["loss"] < before["loss"]


def test_a_time_out_that_comes_before_the_deadline_is_a_failure_as_ever(start: Start) -> None:
    journal, _ = start(
        note=asked(round_deadline=60.0),
        prepare=lambda grid: Straggler(grid, never),
        round_timeout=2.0,
        num_server_rounds=1,
    )
    assert [event["client"] for event in of(journal, "failure")] == ["lab-0"]
    assert of(journal, "late") == []


def test_differential_privacy_counts_on_all_replies_so_there_is_no_deadline(start: Start) -> None:
    dp = {"dp": "server-fixed", "dp_args": '{"noise_multiplier": 0.01, "clipping_norm": 5}'}
    journal, _ = start(
        note=asked(round_deadline=0.05), prepare=lambda grid: delayed(grid, 0.2), num_server_rounds=1, **dp
    )
    assert [(e["applied"], e["reason"]) for e in of(journal, "policy")] == [(False, PRIVACY)]
    assert of(journal, "late") == [] and len(of(journal, "reply")) == 6
    assert "round_deadline is not applied: differential privacy" in "\n".join(control_lines(journal))


def delayed(grid: LocalGrid, seconds: float) -> None:
    """Have one client reply so much later, whoever waits."""

    def answer(node: int, message: Message, reply: Message) -> Message | None:
        if node != SLOW:
            return reply
        late = {message.metadata.message_id: reply}
        threading.Timer(seconds, lambda: grid.inbox.update(late)).start()
        return None

    grid.answer = answer


def control_lines(journal: list[dict[str, Any]]) -> list[str]:
    follower = control.Follower(Path("none"))
    return [line for event in journal for line in follower.describe(event)]


def test_what_was_late_is_in_every_record(start: Start, tmp_path: Path) -> None:
    journal, _ = start(
        note=asked(round_goal=0.9), prepare=lambda grid: Straggler(grid, evaluating), num_server_rounds=2
    )
    lines = control_lines(journal)
    assert any(line.startswith("round 1/2") and line.endswith("2 clients  1 late") for line in lines)
    (tmp_path / "runs" / "0" / "submitted.json").unlink()  # it lacks what the controller notes of clients
    out = tmp_path / "out"
    arguments = [str(tmp_path / "runs" / "0"), "--results", str(out), "--status", "completed"]
    assert results.main(arguments) == 0
    summary = json.loads((out / "latest" / "summary.json").read_text())
    keys = ("round_deadline", "round_goal", "round_minimum", "policy", "late")
    assert [summary[key] for key in keys] == [0.3, 0.9, 2, "applied", 1]
    run = gather(journal)
    assert [row["late"] for row in results.round_rows(run)] == [0, 1, 0]
    (row,) = [row for row in results.client_rows(run) if row["status"] == "late"]
    assert (row["round"], row["client"], row["reason"]) == (1, "lab-0", "deadline")
    assert row["seconds"] == of(journal, "late_reply")[0]["seconds"]
    assert "  late        lab-0: 1 replies in all" in closing_words(summary, run, out)
    page = (out / "latest" / "report.html").read_text()
    assert "no failures, 1 late" in page and ">Late</th>" in page


# What is decided, without a run.


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    for key in ("_run_id", "_node_id", "_task_id"):  # Flower sets these in a ServerApp's process
        monkeypatch.setattr(TaskIdentity, key, 1)
    (tmp_path / "nodes.json").write_text("{}")
    return Recorder(Journal(tmp_path / "journal.jsonl"), tmp_path / "nodes.json")


def decisions(recorder: Recorder) -> list[tuple[bool, str | None]]:
    lines = recorder.journal.path.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [(event["applied"], event["reason"]) for event in events if event["event"] == "policy"]


def messages(count: int, kind: str = "train") -> list[Message]:
    return [Message(RecordDict(), node, kind) for node in range(1, count + 1)]


def make(recorder: Recorder, **settings: Any) -> Policy:
    return Policy(recorder, Settings(**{"round_deadline": 10.0, **settings}))


def test_only_what_a_strategy_of_the_message_api_sends_has_a_policy(recorder: Recorder) -> None:
    policy = make(recorder)
    assert policy.begin(messages(3, "query")) == Terms()
    assert decisions(recorder) == [], "a question before the training decides nothing"
    assert policy.begin(messages(3)) == Terms()
    policy.configured(LegacyFedAvg())
    assert policy.begin(messages(3)) == Terms()
    policy.configured(DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 3))
    assert policy.begin(messages(3)) == Terms()
    policy.configured(FedBuff())
    policy.pushed(messages(3))
    policy.configured(FedAvg())
    policy.pushed(messages(3))
    assert policy.begin(messages(3)) == Terms(), "the app has sent them itself"
    policy.configured(FedAvg())
    assert policy.begin(messages(3)) == Terms(True, 10.0, None, 2)
    assert policy.begin(messages(3)) == Terms(), "once"
    reasons = [(False, RAW), (False, LEGACY), (False, PRIVACY), (False, WAITS_FOR_NONE), (True, None)]
    assert decisions(recorder) == reasons


def test_late_replies_of_a_client_that_void_rounds_leave_are_one(
    recorder: Recorder, left: tuple[LeftBehind, Asked]
) -> None:
    _, grid = left
    work = LateWork()
    behind = LeftBehind(grid, recorder, work)  # type: ignore[arg-type]
    for name in ("a", "b"):
        waiting = pending(recorder, 1, name)
        sent = Message(RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2))})}), 1, "train")
        work.expect(name, waiting, sent)
        behind.add({name: (waiting, 600.0)})
        grid.replies[name] = Message(RecordDict(), reply_to=waiting.message)
        until(lambda: behind.without_busy([1], 0) == [1])
    assert [item.pending for item in work.take()] == [waiting]
    assert "a newer reply of the same client has come" in recorder.journal.path.read_text()
    behind.close()


def test_a_run_without_training_says_that_its_policy_was_for_nothing(recorder: Recorder) -> None:
    make(recorder).close()
    assert decisions(recorder) == [(False, NOTHING)]


@pytest.mark.parametrize(
    ("settings", "sent", "goal", "minimum"),
    [
        ({}, 10, None, 2),
        ({"round_goal": 0.75}, 10, 8, 2),
        ({"round_goal": 0.7}, 10, 7, 2),
        ({"round_goal": 1}, 10, 10, 2),
        ({"round_goal": 8}, 10, 8, 2),
        ({"round_goal": 8}, 5, 5, 2),
        ({"round_goal": 0.1}, 10, 2, 2),
        ({"round_goal": 0.1, "round_minimum": 4}, 10, 4, 4),
    ],
)
def test_the_goal_is_a_share_of_what_was_sent_or_a_number_and_never_below_the_minimum(
    recorder: Recorder, settings: dict[str, Any], sent: int, goal: int | None, minimum: int
) -> None:
    policy = make(recorder, **settings)
    policy.configured(FedAvg())
    assert policy.begin(messages(sent)) == Terms(True, 10.0, goal, minimum)
    policy.configured(FedAvg())
    assert policy.begin(messages(sent, "evaluate")) == Terms(True, 10.0)


def test_a_deadline_of_auto_follows_the_replies_of_its_phase(recorder: Recorder) -> None:
    policy = make(recorder, round_deadline=AUTO, round_goal=0.5)

    def deadline(kind: str) -> float | None:
        policy.configured(FedAvg())
        terms = policy.begin(messages(5, kind))
        assert (terms.goal is None) == (terms.deadline is None or kind != "train")
        return terms.deadline

    for seconds in ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0]):
        assert deadline("train") is None, "too few replies are known"
        policy.ended("train", Terms(True), seconds, 0, len(seconds))
    assert deadline("train") is None
    policy.ended("train", Terms(True), [3.0], 4, 1)
    # Ten in time: 1 1 2 2 3 3 3 4 4 5; four late. The median is 3.5, that of the deviations 1.5.
    assert deadline("train") == pytest.approx(3.5 + 3 * 1.5)
    assert deadline("evaluate") is None


def test_arrivals_are_those_of_the_last_rounds_and_of_more_where_these_have_few() -> None:
    known = Arrivals()
    for seconds in (9.0, 1.0, 1.0, 1.0):
        known.add([seconds] * 10)
    assert known.deadline() == 2.0, "one second at least is added to the median"
    few = Arrivals()
    for _ in range(8):
        few.add([4.0, 6.0])
    assert few.deadline() == pytest.approx(5.0 + 3.0)
    assert len(few.phases) == 5, "ten replies"
    few.add([math.inf] * 20)
    assert few.deadline() is None, "more than half were late: nobody knows"
    assert Arrivals(deque([[1.0] * 9])).deadline() is None


def test_a_message_expires_soon_after_the_deadline_unless_the_app_says_when(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make(recorder, round_deadline=0.2)
    grid = LocalGrid([], {})
    monkeypatch.setattr(grid, "push_messages", lambda batch: [f"m{i}" for i, _ in enumerate(batch)])
    recording = RecordingGrid(grid, recorder, policy=policy)
    mine, theirs = messages(2)
    theirs.metadata.ttl = 7.0
    policy.configured(FedAvg())
    recording.send_and_receive([mine, theirs], timeout=20.0)
    assert (mine.metadata.ttl, theirs.metadata.ttl) == (0.2 + EXPIRY_MARGIN, 7.0)
    (other,) = messages(1)
    policy.configured(LegacyFedAvg())
    recording.push_messages([other])
    assert other.metadata.ttl == DEFAULT_TTL


class Asked:
    """A grid that is asked for replies, and has none until it is told."""

    def __init__(self) -> None:
        self.replies: dict[str, Message] = {}
        self.asked: list[list[str]] = []
        self.error: Exception | None = None

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        self.asked.append(list(message_ids))
        if self.error:
            raise self.error
        return [self.replies.pop(key) for key in list(message_ids) if key in self.replies]


def pending(recorder: Recorder, node: int, name: str) -> Pending:
    message = Message(RecordDict(), node, "train")
    message.metadata.__dict__["_message_id"] = name
    (exchange,) = recorder.sending([message])
    recorder.sent(message, exchange, True)
    return recorder.pending.pop(name)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def left(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> tuple[LeftBehind, Asked]:
    monkeypatch.setattr(policies, "PAUSE", 0.01)
    grid = Asked()
    return LeftBehind(grid, recorder), grid  # type: ignore[arg-type]


def test_busy_clients_are_hidden_as_far_as_enough_others_are_there(
    recorder: Recorder, left: tuple[LeftBehind, Asked]
) -> None:
    behind, _ = left
    behind.add({"a": (pending(recorder, 1, "a"), 600.0), "b": (pending(recorder, 2, "b"), 60.0)})
    behind.add({"c": (pending(recorder, 3, "c"), 0.0)})
    assert behind.without_busy([1, 2, 3, 4], 2) == [3, 4], "that of the third has expired"
    assert behind.without_busy([1, 2, 3, 4], 3) == [2, 3, 4], "the one that is free first"
    assert behind.without_busy([1, 2], 2) == [1, 2]
    behind.close()


def test_late_replies_are_collected_until_none_is_left_and_not_after_the_run(
    recorder: Recorder, left: tuple[LeftBehind, Asked]
) -> None:
    behind, grid = left
    waiting = {name: (pending(recorder, node, name), 600.0) for node, name in ((1, "a"), (2, "b"), (3, "c"))}
    behind.add({"a": waiting["a"], "b": waiting["b"]})
    until(lambda: len(grid.asked) > 2)
    grid.replies = {
        name: Message(Error(code, ""), reply_to=waiting[name][0].message)
        for name, code in (("a", int(ErrorCode.MESSAGE_UNAVAILABLE)), ("b", 2))
    }
    until(lambda: behind.without_busy([1, 2], 0) == [1, 2])
    until(lambda: behind._collector is None)
    asked = len(grid.asked)
    behind.add({"c": waiting["c"]})
    until(lambda: len(grid.asked) > asked)
    assert grid.asked[-1] == ["c"]
    behind.close()
    grid.replies = {"c": Message(Error(2, "gone"), reply_to=waiting["c"][0].message)}
    until(lambda: behind._collector is None)
    lines = recorder.journal.path.read_text()
    assert lines.count('"late_reply"') == 1 and '"no reason given"' in lines


def test_a_superlink_that_refuses_ends_the_collection_and_not_the_run(
    recorder: Recorder, left: tuple[LeftBehind, Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    _, grid = left
    grid.error = ConnectionError("refused")
    work, waiting = LateWork(), pending(recorder, 1, "a")
    work.expect("a", waiting, waiting.message)
    behind = LeftBehind(grid, recorder, work)  # type: ignore[arg-type]
    behind.add({"a": (waiting, 600.0)})
    until(lambda: behind._collector is None)
    assert len(grid.asked) == 1
    assert behind.without_busy([1], 0) == [1] and work._expected == {}
    assert "late replies stay with the SuperLink: ConnectionError: refused" in capsys.readouterr().err


def test_aggregation_of_a_void_round_reaches_no_strategy_and_no_array_is_lost(start: Start) -> None:
    """A whole run of void rounds: the app says that nothing was trained, and the model is the first one."""
    journal, _ = start(
        note=asked(round_deadline=60.0, round_minimum=4),
        num_server_rounds=2,
        raises="no round of 2 trained the model",
    )
    assert [event["void"] for event in of(journal, "round")[1:]] == [True, True]
    assert len(of(journal, "model_saved")) == 1
