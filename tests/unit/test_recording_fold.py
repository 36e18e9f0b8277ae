"""Late work that is folded into a later round: its arithmetic against plain numpy, and runs of our app."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from coldframe.controller import report, results
from coldframe.controller.records import gather, jain
from coldframe.controller.round_policy import FOLDING
from coldframe.recording import fold, replies
from coldframe.recording import grid as recording_grid
from coldframe.recording import policy as policies
from coldframe.recording.fold import LateWork, rebased, staleness_weight, why_not
from coldframe.recording.replies import BadReply
from coldframe.recording.rounds import Exchange, Pending
from fl import strategy
from tests.unit.fl_runs import (
    SLOW,
    LocalGrid,
    Start,
    Straggler,
    asked,
    assert_nothing_lost,
    changed,
    dispatched,
    evaluating,
    never,
    of,
    outcomes,
    sha,
    starter,
    with_metrics,
)


@pytest.fixture
def start(synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(policies, "PAUSE", 0.01)
    settle = LateWork.settle

    def settle_and_say(work: LateWork, *args: Any) -> list[fold.Expected]:
        found = settle(work, *args)
        SETTLED.set()
        return found

    monkeypatch.setattr(LateWork, "settle", settle_and_say)
    return starter(synthetic, tmp_path, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def in_a_serverapp() -> Any:
    """Flower sets these in a ServerApp's process, and demands them of who makes a message."""
    with pytest.MonkeyPatch.context() as patch:
        for key in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, key, 1)
        patch.setattr(logging.getLogger("flwr"), "disabled", True)
        yield


# The arithmetic.

CLIENTS, SIZE = 4, 3
# By round and client: in how many rounds it replies (0: in time), examples, seed of what it learns.
histories = st.lists(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 500), st.integers(0, 2**31)),
        min_size=CLIENTS,
        max_size=CLIENTS,
    ),
    min_size=1,
    max_size=8,
)


def learnt(seed: int, sent: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE) - 0.1 * sent


def reference(history: list[list[tuple[int, int, int]]], momentum: float) -> tuple[np.ndarray, int]:
    """FedBuff's step with FedAvg's weights, at the end of each round (arXiv 2106.06639, Algorithm 1); with
    the momentum of FedAvgM (arXiv 1909.06335). Of the late ones of a client the newest counts."""
    model, velocity = np.zeros(SIZE), np.zeros(SIZE)
    arriving: dict[int, list[tuple[Any, int, int, int, np.ndarray]]] = {}
    busy_until = [0] * CLIENTS
    folded = version = 0
    for now, plan in enumerate(history):
        in_time = False
        for client, (delay, examples, seed) in enumerate(plan):
            if busy_until[client] <= now:
                in_time |= delay == 0
                who = client if delay else (now, client)
                entry = (who, now, version, examples, learnt(seed, model))
                arriving.setdefault(now + delay, []).append(entry)
                busy_until[client] = now + delay + 1
        buffer = arriving.pop(now, [])
        if not in_time:  # the phase is void
            arriving.setdefault(now + 1, []).extend(buffer)
            continue
        step, total = np.zeros(SIZE), 0
        newest = {entry[0]: entry for entry in sorted(buffer, key=lambda entry: entry[1])}
        for _, _, begun, examples, delta in newest.values():
            folded += begun < version
            step += examples * (1 + version - begun) ** -0.5 * delta
            total += examples
        velocity = momentum * velocity + step / total
        model, version = model + velocity, version + 1
    return model, folded


def message(arrays: np.ndarray, metrics: dict[str, float] | None = None, node: int = 1) -> Message:
    records: dict[str, Any] = {"arrays": ArrayRecord({"w": Array(arrays)})}
    if metrics:
        records["metrics"] = MetricRecord(dict(metrics))
    return Message(RecordDict(records), node, "train")


def play(history: list[list[tuple[int, int, int]]], chosen: flower.FedAvg) -> tuple[np.ndarray, int]:
    """The same by Flower's strategy and what is beneath it."""
    model, late_work, folded = np.zeros(SIZE), LateWork(), 0
    arriving: dict[int, list[tuple[str, Message]]] = {}
    busy_until = [0] * CLIENTS
    for now, plan in enumerate(history):
        sent = message(model)
        if isinstance(chosen, flower.FedAvgM) and chosen.current_arrays is None:
            chosen.current_arrays = sent.content.array_records["arrays"]
        in_time = []
        for client, (delay, examples, seed) in enumerate(plan):
            if busy_until[client] > now:
                continue
            reply = message(model + learnt(seed, model), {"num-examples": examples})
            busy_until[client] = now + delay + 1
            if delay == 0:
                in_time.append(reply)
                continue
            name = f"{now} {client}"
            own = message(model, node=client + 1)
            late_work.expect(name, Pending(own, Exchange(now, "train", set()), float(now), 0), own)
            arriving.setdefault(now + delay, []).append((name, reply))
        for name, reply in arriving.pop(now, []):
            late_work.settle(name, reply, 1.0)
        if not in_time:
            continue
        like = replies.form(in_time[0].content)
        late = [late_work.fold(item, sent, like, replies.Rules()) for item in late_work.take()]
        folded += sum(item.staleness > 0 for item in late)
        arrays, _ = chosen.aggregate_train(now + 1, [*in_time, *(item.reply for item in late)])
        assert arrays is not None
        model = arrays["w"].numpy()
        late_work.version += 1
    return model, folded


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@given(history=histories)
@hypothesis_settings(max_examples=150, deadline=None)
def test_folding_is_the_step_of_fedbuff_with_the_weights_of_fedavg(
    momentum: float, history: list[list[tuple[int, int, int]]]
) -> None:
    chosen = flower.FedAvgM(server_momentum=momentum) if momentum else flower.FedAvg()
    model, folded = play(history, chosen)
    expected, count = reference(history, momentum)
    assert folded == count
    np.testing.assert_allclose(model, expected, rtol=0, atol=1e-6)


def test_a_stale_model_does_not_take_back_what_others_have_learnt() -> None:
    """As the average of models would: one that has learnt nothing leaves the present model where it is."""
    (begun, present) = (np.zeros(2, np.float32), np.full(2, 8.0, np.float32))
    records = [{"arrays": {"w": Array(array)}} for array in (begun, begun, present)]
    found = rebased(*records, staleness_weight(3))
    assert found["arrays"]["w"].numpy().tolist() == [8.0, 8.0]
    assert found["arrays"]["w"].dtype == "float32"


def test_whole_numbers_and_running_statistics_stay_as_they_are_now() -> None:
    """A difference of variances could make one negative."""

    def arrays(weight: float, variance: float, count: int) -> dict[str, dict[str, Array]]:
        state = {"w": weight, "norm.running_var": variance}
        record = {key: Array(np.array([value], np.float32)) for key, value in state.items()}
        return {"arrays": {**record, "count": Array(np.array([count]))}}

    found = rebased(arrays(3.0, 0.1, 9), arrays(1.0, 2.0, 4), arrays(10.0, 0.5, 7), 0.5)["arrays"]
    assert [float(found[key].numpy()[0]) for key in found] == [11.0, 0.5, 7.0]
    assert found["count"].dtype == "int64"


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"other": {"w": np.zeros(2)}}, "ArrayRecords are not those"),
        ({"arrays": {"v": np.zeros(2)}}, "other keys"),
        ({"arrays": {"w": np.zeros(3)}}, "another shape or dtype"),
        ({"arrays": {"w": np.zeros(2, np.float32)}}, "another shape or dtype"),
        ({"arrays": {"w": np.full(2, np.inf)}}, "not finite"),
    ],
)
def test_work_that_does_not_fit_the_present_model_is_refused(arrays: Any, reason: str) -> None:
    local = {name: {key: Array(value) for key, value in record.items()} for name, record in arrays.items()}
    model = {"arrays": {"w": Array(np.zeros(2))}}
    with pytest.raises(BadReply, match=reason):
        rebased(local, model, model, 1.0)


def test_preflight_and_the_run_agree_on_who_takes_late_work() -> None:
    class Sampling(flower.FedAvg):
        def configure_train(self, *args: Any) -> Any:
            return super().configure_train(*args)

    class Saving(flower.FedAvg):
        def aggregate_train(self, *args: Any) -> Any:
            return super().aggregate_train(*args)

    made = {name: kind.__new__(kind) for name, kind in strategy.STRATEGIES.items()}
    assert {name for name, it in made.items() if why_not(it) is None} == set(FOLDING)
    assert why_not(strategy.Reproducible(flower.FedAvg(), 0)) is None
    assert why_not(strategy.Reproducible(flower.FedMedian(), 0)) is not None
    assert why_not(Sampling()) is None
    assert str(why_not(Saving())).startswith("Saving aggregates in a way of its own")
    assert why_not(flower.FedXgbBagging()) is not None


# Whole runs.


SETTLED = threading.Event()  # a late reply has been taken from the server


class Late(Straggler):
    """A straggler whose late reply has been taken when the evaluation of the first round begins."""

    def __init__(self, grid: LocalGrid) -> None:
        super().__init__(grid, evaluating)
        SETTLED.clear()

    def __call__(self, node: int, sent: Message, reply: Message) -> Message | None:
        waits = self.kept is not None and evaluating(node, sent)
        answer = super().__call__(node, sent, reply)
        assert not waits or SETTLED.wait(60)
        return answer


def folding(**settings: Any) -> dict[str, Any]:
    return asked(round_late="fold", **settings)


def test_a_late_reply_is_in_the_model_of_a_later_round_once(start: Start) -> None:
    dropped, _ = start(note=asked(), prepare=Late, num_server_rounds=4)
    journal, grid = start(note=folding(), prepare=Late, num_server_rounds=4)
    assert journal[-1]["status"] == "completed"
    (late,), (came,), (folded,) = (of(journal, kind) for kind in ("late", "late_reply", "folded"))
    assert {(e["round"], e["phase"], e["client"]) for e in (late, came, folded)} == {(1, "train", "lab-0")}
    assert (folded["into"], folded["staleness"], folded["weight"]) == (2, 1, 0.707107)
    assert folded["seconds"] == came["seconds"] and folded["examples"] > 0
    assert folded["bytes_up"] > 0 and folded["system"]["threads"] >= 1
    assert outcomes(journal) == dispatched(journal), "each message has one outcome"
    assert_nothing_lost(journal)
    assert of(journal, "failure") == of(journal, "not_folded") == []
    rounds = {event["round"]: event for event in of(journal, "round")}
    assert [rounds[number]["folded"] for number in range(1, 5)] == [0, 1, 0, 0]
    assert grid.inbox == {}, "nothing is left with the server"
    assert sha(journal) != sha(dropped)
    assert of(dropped, "folded") == []
    (told,) = of(journal, "policy")
    assert (told["applied"], told["late"], told["late_reason"]) == (True, "fold", None)
    expiries = {message.metadata.message_type: message.metadata.ttl for message in grid.sent}
    assert expiries == {"train": 605.0, "evaluate": 5.3}, "a late reply is waited for as long as any"
    check_records(journal)


def check_records(journal: list[dict[str, Any]]) -> None:
    run = gather(journal)
    assert run.contributions() == {"lab-0": 4, "lab-1": 4, "lab-2": 4}, "three in time, and the late one"
    (row,) = [row for row in results.client_rows(run) if row["folded_into"]]
    assert (row["status"], row["round"], row["client"]) == ("late", 1, "lab-0")
    assert (row["staleness"], row["folded_into"]) == (1, 2) and row["examples"]
    assert sum(row["folded"] for row in results.round_rows(run)) == 1
    summary = results.summarise(run, run_id="1")
    assert (summary["late"], summary["folded"], summary["round_late"]) == (1, 1, "fold")
    assert summary["updates_jain"] == 1.0
    words = results.closing_words(summary, run, Path("out"))
    assert "  late        lab-0: 1 replies in all, 1 folded into later rounds" in words


def test_the_report_says_how_evenly_clients_took_part_where_they_did_not_alike() -> None:
    for jain_index, words in ((1.0, "iid"), (None, "iid"), (0.844, "iid, evenness 0.84")):
        assert report.client_words({"partitioner": "iid", "updates_jain": jain_index}) == words
    assert jain([4, 4, 4, 0]) == 0.75 and jain([0, 0]) is None


def test_a_void_round_takes_no_late_work_and_makes_none_old(start: Start) -> None:
    journal, _ = start(note=folding(round_minimum=3), prepare=Late, num_server_rounds=3)
    assert [event["round"] for event in of(journal, "round_void")] == [1]
    (folded,) = of(journal, "folded")
    told = (folded["into"], folded["staleness"], folded["weight"])
    assert told == (2, 0, 1.0), "the model is that with which it began"


def test_late_work_that_cannot_be_used_is_left_out_and_said(start: Start) -> None:
    class Odd(Late):
        def __call__(self, node: int, sent: Message, reply: Message) -> Message | None:
            if node == SLOW and not self.begun:
                reply = changed(reply, sent, metrics=with_metrics(reply, more=1.0))
            return super().__call__(node, sent, reply)

    journal, _ = start(note=folding(), prepare=Odd, num_server_rounds=3)
    assert journal[-1]["status"] == "completed" and of(journal, "folded") == []
    (refused,) = of(journal, "not_folded")
    assert refused["client"] == "lab-0" and "not those of the replies in time" in refused["reason"]
    assert outcomes(journal) == dispatched(journal)
    assert_nothing_lost(journal)


def test_a_client_that_restarts_while_it_is_late_is_asked_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will reply; and nobody waits for it until its message expires."""
    monkeypatch.setattr(recording_grid, "RESTART_CHECK", 0.0)

    def restarts(grid: LocalGrid) -> None:
        straggler = Straggler(grid, never)
        SETTLED.clear()

        def answer(node: int, sent: Message, reply: Message) -> Message | None:
            if sent.metadata.message_type == "evaluate":
                grid.activated[SLOW] = "2026-01-02"
                assert SETTLED.wait(60)
            return straggler(node, sent, reply)

        grid.answer = answer

    journal, _ = start(note=folding(), prepare=restarts, num_server_rounds=2)
    (came,) = of(journal, "late_reply")
    assert "restarted" in came["error"] and of(journal, "folded") == []
    assert "lab-0" in of(journal, "phase_started", phase="train")[-1]["clients"]


def test_a_strategy_that_takes_no_late_work_has_a_deadline_all_the_same(start: Start) -> None:
    journal, _ = start(
        note=folding(),
        prepare=Late,
        strategy="fedmedian",
        num_server_rounds=2,
    )
    (told,) = of(journal, "policy")
    assert told["applied"] and told["late_reason"].startswith("FedMedian aggregates in a way of its own")
    assert len(of(journal, "late")) == len(of(journal, "late_reply")) == 1 and of(journal, "folded") == []
    summary = results.summarise(gather(journal), run_id="1")
    assert summary["policy"].startswith("applied, but round_late=fold: FedMedian")
    assert "round_deadline was applied, but" in results.closing_words(summary, gather(journal), Path("x"))


@pytest.mark.parametrize("name", sorted(FOLDING))
def test_every_weighted_average_takes_late_work(start: Start, name: str) -> None:
    journal, _ = start(note=folding(), prepare=Late, strategy=name, num_server_rounds=3)
    assert journal[-1]["status"] == "completed" and len(of(journal, "folded")) == 1
    rounds = of(journal, "round")
    assert rounds[-1]["loss"] < rounds[0]["loss"]


def test_nothing_is_kept_of_what_cannot_come_any_more() -> None:
    work = LateWork()
    sent = message(np.zeros(2))
    for name in ("came", "lost", "open"):
        work.expect(name, Pending(sent, Exchange(1, "train", set()), 0.0, 0), sent)
    work.settle("came", message(np.ones(2), {"num-examples": 1}), 1.0)
    work.settle("lost", None, 1.0)
    work.settle("unknown", sent, 1.0)
    assert [item.seconds for item in work.take()] == [1.0]
    assert work.take() == [] and set(work._expected) == {"open"}
    work.close()
    assert work._expected == {}


def test_of_the_late_replies_of_a_client_the_newest_is_kept() -> None:
    work = LateWork()
    for place, (name, node) in enumerate((("old", 1), ("new", 1), ("other", 2), ("open", 1))):
        sent = message(np.zeros(2), node=node)
        work.expect(name, Pending(sent, Exchange(place, "train", set()), float(place), 0), sent)
    reply = message(np.ones(2), {"num-examples": 1})
    assert work.settle("new", reply, 1.0) == work.settle("other", reply, 2.0) == []
    (left_out,) = work.settle("old", reply, 3.0)
    assert left_out.pending.sent == 0.0
    assert [item.seconds for item in work.take()] == [1.0, 2.0] and set(work._expected) == {"open"}


def test_the_model_that_a_client_began_with_is_kept_whatever_the_app_does_with_its_own() -> None:
    work, sent = LateWork(), message(np.zeros(2))
    sent.content["config"] = ConfigRecord({"a": 1})
    work.expect("a", Pending(sent, Exchange(1, "train", set()), 0.0, 0), sent)
    sent.content.array_records["arrays"].clear()
    work.settle("a", message(np.ones(2), {"num-examples": 1}), 1.0)
    (kept,) = work.take()
    assert list(kept.sent.content) == ["arrays"]
    assert kept.sent.content.array_records["arrays"]["w"].numpy().tolist() == [0.0, 0.0]
    work.version = 3
    like = replies.form(message(np.zeros(2), {"num-examples": 1}).content)
    folded = fold.LateWork.fold(work, kept, message(np.full(2, 5.0)), like, None)
    assert folded.reply.content.array_records["arrays"]["w"].numpy().tolist() == [5.5, 5.5]
