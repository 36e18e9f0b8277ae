"""Asynchronous runs that go on from a checkpoint: with an order, to the model of a whole run."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coldframe.controller.records import gather
from coldframe.controller.results import client_rows, summarise
from coldframe.recording import checkpoint
from coldframe.recording.checkpoint import CheckpointError, ancestors, newest
from coldframe.recording.journal import ABSENT, Journal, read_journal
from coldframe.strategies import FedAsync, FedBuff, asynchronous
from coldframe.strategies.asynchronous import Order, Planned
from tests.unit.fl_runs import Killed, LocalGrid, Start, killed, of, resume, run_id, sha, starter, straggler

ROUNDS = 6
ARGS: dict[str, dict[str, Any]] = {
    "sgd": {"strategy": "fedbuff", "strategy_args": '{"buffer_size": 3}'},
    "momentum": {"strategy": "fedbuff", "strategy_args": '{"buffer_size": 3, "server_momentum": 0.9}'},
    "adam": {
        "strategy": "fedbuff",
        "strategy_args": '{"buffer_size": 3, "server_optimizer": "adam", "server_learning_rate": 0.01}',
    },
    "fedasync": {"strategy": "fedasync", "strategy_args": '{"updates_per_round": 3}'},
}


@pytest.fixture
def start(synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(asynchronous, "PAUSE", 0.01)
    return starter(synthetic, tmp_path, monkeypatch)


def last_first(grid: LocalGrid) -> None:
    """Have the clients' replies come in another order."""
    grid.last_first = True


def cut(start: Start, monkeypatch: pytest.MonkeyPatch, number: int, **options: Any) -> None:
    """Run until the middle of a round's aggregation."""
    with monkeypatch.context() as patch:
        killed(patch, number)
        with pytest.raises(Killed):
            start(**options)


@pytest.mark.parametrize("name", ARGS)
def test_a_replay_that_is_cut_off_goes_on_to_the_model_of_the_whole_run(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what was on its way is trained again, from the models that it was sent with."""
    config = {**ARGS[name], "num_server_rounds": ROUNDS}
    order = {"replay": "0"}
    wanted, _ = start(prepare=straggler(5), **config)
    cut(start, monkeypatch, 4, note={"settings": order}, prepare=last_first, **config)
    found = newest(tmp_path / "runs" / "1")
    assert found is not None and found.round == 3 and found.content["unkept"] == []
    kept = found.value("strategy", "state", "strategy", "strategy", "", "state")
    assert kept["lost"] and kept["updates"] and sum(kept["updates"].values()) == 9
    assert set(kept["state"]["bases"]) == set(kept["state"]["sent"].values())
    assert min(kept["state"]["bases"]) < kept["state"]["version"], "a model is needed that is not the newest"
    journal = resume(start, tmp_path, "1", order, prepare=straggler(4), **config)
    assert sha(journal) == sha(wanted)
    keys = ("dispatch", "client", "base", "version", "weight", "round")
    assert [[event[key] for key in keys] for event in of(journal, "update")] == [
        [event[key] for key in keys] for event in of(wanted, "update")
    ]
    losses = [[event["round"], event["loss"]] for event in of(wanted, "round")]
    assert [[event["round"], event["loss"]] for event in of(journal, "round")] == losses
    assert journal[-1]["status"] == "completed" and not list(tmp_path.glob("runs/*/checkpoints"))


@pytest.mark.parametrize("name", ["adam", "fedasync"])
def test_a_run_that_goes_on_dispatches_anew_and_can_itself_be_replayed(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**ARGS[name], "num_server_rounds": ROUNDS}
    cut(start, monkeypatch, 4, prepare=straggler(5), **config)
    found = newest(tmp_path / "runs" / "0")
    assert found is not None
    kept = found.value("strategy", "state", "strategy", "strategy", "", "state")
    assert kept["lost"] and kept["state"]["bases"] == kept["state"]["sent"] == {}
    journal = resume(start, tmp_path, "0", prepare=straggler(5), **config)
    assert journal[-1]["status"] == "completed"
    updates = of(journal, "update")
    assert len(updates) == 3 * ROUNDS and len({event["dispatch"] for event in updates}) == len(updates)
    again = [event for event in updates if event["round"] > 3]
    assert min(event["dispatch"] for event in again) >= kept["numbers"], "numbers go on"
    assert min(event["base"] for event in again) >= kept["state"]["version"], "with the newest model"
    versions = [event["version"] for event in updates]
    assert versions == sorted(versions) and versions[-1] == (17 if name == "fedasync" else 5)
    (given_up,) = [set(event["clients"]) for event in of(journal, "unanswered")][:1]
    assert given_up and outcomes(journal) == dispatched(journal)
    rows = [
        row for row in client_rows(gather(journal)) if row["status"] == "ok" and row["dispatch"] is not None
    ]
    assert sorted(row["dispatch"] for row in rows) == sorted(event["dispatch"] for event in updates)
    replayed, _ = start(note={"settings": {"replay": run_id(journal)}}, prepare=last_first, **config)
    assert sha(replayed) == sha(journal)


def test_the_interruption_begins_at_the_last_event_that_was_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run, too, that was resumed and broke off before it had a checkpoint of its own."""
    config = {**ARGS["sgd"], "num_server_rounds": ROUNDS}
    cut(start, monkeypatch, 4, prepare=straggler(5), **config)
    found = newest(tmp_path / "runs" / "0")
    assert found is not None
    before = (tmp_path / "runs" / "0" / "journal.jsonl").read_bytes()[: found.content["journal"]]
    last = json.loads(before.splitlines()[-1])["time"]
    with monkeypatch.context() as patch:
        killed(patch, 4)
        with pytest.raises(Killed):
            resume(start, tmp_path, "0", prepare=straggler(5), **config)
    cut_again = read_journal(tmp_path / "runs" / "1" / "journal.jsonl")
    (resumed,) = of(cut_again, "resume")
    given_up = cut_again[cut_again.index(resumed) + 1]
    assert given_up["event"] == "unanswered"
    assert gather(cut_again).gaps == [(last, resumed["time"])]

    journal = resume(start, tmp_path, "1", prepare=straggler(5), **config)
    assert journal[-1]["status"] == "completed" and outcomes(journal) == dispatched(journal)
    first, second = of(journal, "resume")
    assert (first, second["resumed"]) == (resumed, 2) and given_up in journal
    assert ancestors(tmp_path / "runs" / "2") == ["0", "1"]
    run = gather(journal)
    assert run.gaps == [(last, first["time"]), (given_up["time"], second["time"])]
    summary = summarise(run, run_id="2")
    assert (summary["resumed"], summary["resumed_from"]) == (2, "1")
    assert summary["interrupted_seconds"] == pytest.approx(second["time"] - last, abs=0.05)


def test_what_a_run_has_given_up_at_its_end_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("phase_started", round=1, phase="train", clients=["a"])
    size = journal.size()
    journal.append("unanswered", round=1, phase="train", clients=["a"])
    journal.close()
    assert checkpoint._up_to(path, size) == path.read_bytes()[:size]


def test_a_client_that_was_not_connected_leaves_its_open_message_open() -> None:
    about = {"event": "failure", "round": 2, "phase": "train", "client": "a", "code": 1}
    asked = {"event": "phase_started", "round": 2, "phase": "train", "clients": ["a", "b"]}
    gone, away = "the client restarted", f"{ABSENT} train began"
    open_ = {(2, "train"): ["a", "b"]}
    assert checkpoint._on_their_way([asked, {**about, "reason": away}]) == open_
    assert checkpoint._on_their_way([asked, {**about, "reason": gone}]) == {(2, "train"): ["b"]}


def outcomes(journal: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    found = [(e["round"], e["client"]) for e in journal if e["event"] in ("reply", "failure")]
    found += [(event["round"], name) for event in of(journal, "unanswered") for name in event["clients"]]
    return Counter(found)


def dispatched(journal: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    events = [event for event in journal if event["event"] in ("phase_started", "phase_extended")]
    return Counter((event["round"], name) for event in events for name in event["clients"])


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        ("sgd", "adam", "Adam"),
        ("adam", "momentum", "Sgd"),
        ("fedasync", "momentum", "Buffer, Sgd"),
        ("adam", "fedasync", "Mixture"),
        ("adam", "fedavg", "FedAvg"),
        ("fedavg", "adam", ""),
        ("momentum", "sgd", ""),
    ],
)
def test_another_strategy_or_optimiser_goes_on_with_the_model_and_begins_anew(
    before: str,
    after: str,
    anew: str,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = {**ARGS, "fedavg": {"strategy": "fedavg"}}
    cut(start, monkeypatch, 4, num_server_rounds=ROUNDS, **configs[before])
    caplog.clear()
    journal = resume(start, tmp_path, "0", num_server_rounds=ROUNDS, **configs[after])
    assert journal[-1]["status"] == "completed"
    told = re.findall("egins anew, since the checkpoint has .*: (.*)", caplog.text + capsys.readouterr().err)
    assert told == ([anew] if anew else [])
    losses = [event["loss"] for event in of(journal, "round")]
    assert len(losses) == ROUNDS + 1 and losses[4] < losses[0], "it is the model that was trained"
    versions = [event["version"] for event in of(journal, "update")]
    assert versions == sorted(versions), "they go on"


def test_an_optimiser_takes_nothing_of_another_one() -> None:
    weights = {"w": np.ones(2)}
    settings = ({"server_optimizer": "adam"}, {"server_momentum": 0.5})
    for one, other in (settings, settings[::-1]):
        states = [FedBuff(buffer_size=1, **kind).make_state(weights) for kind in (one, other, other)]
        states[0].send(0)
        states[0].add(0, {"w": np.full(2, 0.5)})
        states[0].apply()
        kind = type(states[1].optimizer).__name__
        assert states[1].load_state_dict(states[0].state_dict()) == [kind] and states[1].version == 1
        for state in states[1:]:
            state.send(1)
            state.add(1, {"w": np.full(2, 0.25)})
            state.apply()
        assert np.array_equal(states[1].weights["w"], states[2].weights["w"]), "as one that is new"


def test_a_buffer_takes_nothing_of_another_strategy() -> None:
    weights = {"w": np.ones(2)}
    mixture, buffer = FedAsync().make_state(weights), FedBuff().make_state(weights)
    mixture.send(0)
    mixture.add(0, {"w": np.zeros(2)})
    assert mixture.due == 1
    assert buffer.load_state_dict(mixture.state_dict()) == ["Buffer", "Sgd"]
    assert (buffer.due, buffer.version) == (0, 1)


def test_an_order_cannot_begin_in_the_middle_of_a_run(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**ARGS["sgd"], "num_server_rounds": ROUNDS}
    start(**config)
    cut(start, monkeypatch, 4, **config)
    with pytest.raises(CheckpointError, match="FedBuff cannot be resumed: an order has to be given from"):
        resume(start, tmp_path, "1", {"replay": "0"}, **config)


def test_what_is_in_the_buffer_is_kept() -> None:
    weights = {"w": np.ones(2), "n": np.array([3])}
    one, other = (FedBuff(buffer_size=3, server_momentum=0.5).make_state(weights) for _ in range(2))
    for state in (one, other):
        for dispatch in range(3):
            state.send(dispatch)
    for dispatch in (0, 1):
        one.add(dispatch, {"w": np.full(2, 0.5), "n": np.array([9])})
    assert one.due == 2 and other.due == 0
    other.load_state_dict(one.state_dict(), with_sent=True)
    for state in (one, other):
        state.add(2, {"w": np.full(2, 0.25), "n": np.array([4])})
        state.apply()
    assert other.version == one.version == 1 and other.bases == one.bases == 0
    assert all(np.array_equal(one.weights[key], other.weights[key]) for key in weights)


def test_an_order_that_goes_on_sends_what_was_lost_whatever_the_version() -> None:
    """Of two dispatches of one client the second waits until it is free; what is used is not sent again."""
    plans = [Planned(0, 1, 0, 1), Planned(1, 2, 0, 1), Planned(2, 1, 1, 2), Planned(3, 1, 2, 2)]
    order = Order(plans)
    order.go_on(1, {1: 1, 2: 1, 7: 1})
    assert order.unused == 3 and order.sent_in(1) == 1 and order.sent_in(3) is None
    assert [plan.dispatch for plan in order.next_dispatches(2, busy=[])] == [1, 2]
    assert [plan.dispatch for plan in order.next_dispatches(2, busy=[1, 2])] == []
    assert [plan.dispatch for plan in order.next_dispatches(2, busy=[2])] == [3]
    assert [order.next_update([1, 2, 3], 2) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("kind", [FedBuff, FedAsync])
def test_before_the_first_round_there_is_nothing_to_go_on_with(kind: Any) -> None:
    found = kind().state_dict()
    assert found["state"] is None and found["numbers"] == 0 and found["lost"] == {}


def test_a_reply_that_waited_when_the_run_was_cut_off_has_no_update() -> None:
    about = {"round": 1, "phase": "train", "client": "a", "partition_id": 0, "node_id": "1"}
    update = {"dispatch": 4, "base": 0, "version": 0, "staleness": 0, "weight": 1.0, "reason": None}
    resumed = {"resumed_from": "0", "run_id": "1", "round": 1, "resumed": 1}
    run = gather(
        [
            {"time": 2.0, "event": "reply", **about, "seconds": 1.0},
            {"time": 5.0, "event": "resume", **resumed},
            {"time": 7.0, "event": "reply", **about, "seconds": 2.0},
            {"time": 8.0, "event": "update", **about, **update},
        ]
    )
    assert [reply.get("update", {}).get("dispatch") for reply in run.replies] == [None, 4]
