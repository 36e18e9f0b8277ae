"""Whole runs of our app with strategies that wait for no client: the model, and what is written down."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict

from coldframe.controller import results
from coldframe.controller.records import gather
from coldframe.recording import server as recording
from coldframe.recording import settings
from coldframe.recording.journal import read_journal
from coldframe.recording.policy import WAITS_FOR_NONE
from coldframe.recording.replay import ReplayError
from coldframe.recording.replies import BAD_REPLY
from coldframe.server import control
from coldframe.strategies import asynchronous
from coldframe.strategies.aggregation import Buffer
from fl.strategy import ELSEWHERE, StrategyError, build
from tests.unit.fl_runs import (
    SLOW,
    LocalGrid,
    Start,
    assert_nothing_lost,
    changed,
    of,
    sha,
    starter,
    straggler,
    with_metrics,
)

BUFFER = {"strategy": "fedbuff", "strategy_args": '{"buffer_size": 4}', "num_server_rounds": 4}
MIXTURE = {"strategy": "fedasync", "strategy_args": '{"updates_per_round": 4}', "num_server_rounds": 4}


@pytest.fixture
def start(synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(asynchronous, "PAUSE", 0.01)
    monkeypatch.setattr(asynchronous, "EXPIRY_MARGIN", 0.0)
    return starter(synthetic, tmp_path, monkeypatch)


def outcomes(journal: list[dict[str, Any]]) -> Counter[str]:
    """Count the outcomes of messages, by client."""
    found = Counter(e["client"] for e in journal if e["event"] in ("reply", "failure", "late"))
    found.update(client for event in of(journal, "unanswered") for client in event["clients"])
    return found


def dispatched(grid: LocalGrid) -> Counter[str]:
    names = {905: "lab-0", 17: "lab-1", 333: "lab-2"}
    return Counter(names[message.metadata.dst_node_id] for message in grid.sent)


@pytest.mark.parametrize("config", [BUFFER, MIXTURE], ids=["fedbuff", "fedasync"])
def test_the_model_is_trained_and_every_message_has_one_outcome(start: Start, config: dict[str, Any]) -> None:
    journal, grid = start(prepare=straggler(6), **config)
    assert journal[-1]["status"] == "completed"
    before, *rounds = of(journal, "round")
    assert [event["round"] for event in rounds] == [1, 2, 3, 4]
    assert rounds[-1]["loss"] < before["loss"]
    assert outcomes(journal) == dispatched(grid)
    assert_nothing_lost(journal)
    assert {event["phase"] for event in of(journal, "phase_started")} == {"train"}
    for event in rounds:
        assert (event["updates"], event["discarded"]) == (4, 0)
        assert event["clients"] in (2, 3) and event["train_loss"] is not None and event["derived"] == []
        assert sum(event["phases"].values()) == pytest.approx(event["seconds"], abs=0.01)
    assert {a.dtype for m in grid.sent for r in m.content.array_records.values() for a in r.values()} == {
        "float32"
    }


@pytest.mark.parametrize("config", [BUFFER, MIXTURE], ids=["fedbuff", "fedasync"])
def test_each_update_is_written_down_with_its_staleness(start: Start, config: dict[str, Any]) -> None:
    journal, _ = start(prepare=straggler(6), **config)
    updates = of(journal, "update")
    assert len(updates) == 16 and len({event["dispatch"] for event in updates}) == 16
    assert all(event["staleness"] == event["version"] - event["base"] for event in updates)
    slow = of(journal, "update", client="lab-0")
    assert slow and all(event["staleness"] >= 1 for event in slow)
    assert all(event["weight"] < 1 and event["reason"] is None for event in slow)
    replies = Counter(event["client"] for event in of(journal, "reply"))
    assert all(Counter(event["client"] for event in updates)[client] <= n for client, n in replies.items())
    versions = [event["version"] for event in updates]
    assert versions == sorted(versions)
    for event in of(journal, "round")[1:]:
        used = [update["staleness"] for update in of(journal, "update", round=event["round"])]
        assert event["staleness"] == pytest.approx(np.mean(used), abs=1e-3)
        assert event["max_staleness"] == max(used)


def test_the_saved_model_has_the_names_of_the_layers(start: Start) -> None:
    journal, _ = start(**BUFFER)
    arrays = dict(np.load(of(journal, "model_saved")[0]["path"]))
    assert list(arrays) == ["layers.2.weight", "layers.2.bias"]
    state = torch.load("model.pt")
    assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in state.items())


def test_a_client_that_trains_twice_in_a_round_does_not_do_the_same_twice(start: Start) -> None:
    models: list[bytes] = []

    def answer(node: int, message: Message, reply: Message) -> Message:
        if node == SLOW and message.content.config_records["config"]["server-round"] == 1:
            models.append(b"".join(a.data for a in reply.content.array_records["arrays"].values()))
        return reply

    start(answer, strategy="fedbuff", strategy_args='{"buffer_size": 9}', num_server_rounds=1)
    assert len(models) >= 3 and len(set(models)) == len(models)


def test_clients_of_fedasync_stay_near_the_model_that_they_were_sent(start: Start) -> None:
    def distance(mu: float) -> float:
        moved: list[float] = []

        def answer(_node: int, message: Message, reply: Message) -> Message:
            sent, back = (
                np.concatenate([a.numpy() for a in content.array_records["arrays"].values()])
                for content in (message.content, reply.content)
            )
            moved.append(float(np.square(sent - back).sum()))
            return reply

        start(answer, strategy="fedasync", strategy_args=json.dumps({"proximal_mu": mu}), num_server_rounds=1)
        return moved[0]

    assert distance(10.0) < 0.9 * distance(0.0)


@pytest.mark.parametrize("config", [BUFFER, MIXTURE], ids=["fedbuff", "fedasync"])
def test_a_failure_and_a_reply_that_cannot_be_used_are_failures(start: Start, config: dict[str, Any]) -> None:
    def answer(node: int, message: Message, reply: Message) -> Message:
        number = message.content.config_records["config"]["dispatch"]
        if number == 0:
            return Message(Error(code=2, reason="no memory"), reply_to=message)
        if number == 1:
            return changed(reply, message, metrics=with_metrics(reply, train_loss=float("nan")))
        if number == 2:
            short = {key: Array(a.numpy()[:-1]) for key, a in reply.content.array_records["arrays"].items()}
            return changed(reply, message, arrays=ArrayRecord(short))
        return reply

    journal, grid = start(answer, **config)
    assert journal[-1]["status"] == "completed"
    found = [(event["code"], event["reason"].split(" of ")[0]) for event in of(journal, "failure")]
    assert found[0] == (2, "no memory")
    assert [code for code, _ in found[1:]] == [BAD_REPLY, BAD_REPLY]
    assert "is nan" in found[1][1] and "was sent" in found[2][1]
    assert outcomes(journal) == dispatched(grid)
    assert_nothing_lost(journal)
    assert of(journal, "round")[1]["failures"] == 3 and len(of(journal, "not_aggregated")) == 1


def test_a_failure_counts_in_the_round_in_which_it_comes(start: Start) -> None:
    """Though the message is of an earlier one."""
    late = straggler(6)

    def prepare(grid: LocalGrid) -> None:
        late(grid)
        inner = grid.answer

        def answer(node: int, message: Message, reply: Message) -> Message | None:
            if node == SLOW:
                reply = Message(Error(code=2, reason="no memory"), reply_to=message)
            return inner(node, message, reply)

        grid.answer = answer

    journal, _ = start(prepare=prepare, **BUFFER)
    failures, rounds = of(journal, "failure"), of(journal, "round")
    assert failures and failures[0]["round"] == 1
    assert sum(event["failures"] for event in rounds) == len(failures) and rounds[1]["failures"] == 0


def test_a_run_whose_clients_all_fail_says_so(start: Start) -> None:
    def fails(_node: int, message: Message, _reply: Message) -> Message:
        return Message(Error(code=2, reason="no"), reply_to=message)

    journal, grid = start(fails, raises="no round of 4 trained the model", **BUFFER)
    assert len(grid.sent) == 12 and len(of(journal, "not_aggregated")) == 4
    assert journal[-1]["status"] == "failed"


def test_a_run_whose_clients_all_diverge_ends(start: Start) -> None:
    def answer(_node: int, message: Message, reply: Message) -> Message:
        if int(str(message.content.config_records["config"]["server-round"])) < 3:
            return reply
        return changed(reply, message, metrics=with_metrics(reply, train_loss=float("nan")))

    journal, _ = start(answer, raises="in round 3 what all clients trained is NaN or infinite", **BUFFER)
    assert journal[-1]["status"] == "diverged"


def test_a_model_that_is_not_finite_ends_the_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Buffer.apply

    def apply(self: Buffer) -> None:
        inner(self)
        self.weights = {name: np.full_like(array, np.inf) for name, array in self.weights.items()}

    monkeypatch.setattr(Buffer, "apply", apply)
    journal, _ = start(raises="the aggregated model is NaN or infinite", **BUFFER)
    assert journal[-1]["status"] == "diverged"


def test_too_few_clients_end_the_run_with_their_names(start: Start) -> None:
    note = {"settings": {"wait_timeout": 0.2}}
    journal, _ = start(nodes=[17], note=note, raises="Missing: lab-0, lab-2", **BUFFER)
    assert journal[-1]["status"] == "failed"


def test_a_client_that_never_replies_is_left_behind(start: Start) -> None:
    def answer(node: int, _message: Message, reply: Message) -> Message | None:
        return None if node == SLOW else reply

    journal, grid = start(answer, round_timeout=0.3, **BUFFER)
    assert journal[-1]["status"] == "completed"
    assert {event["client"] for event in of(journal, "update")} == {"lab-1", "lab-2"}
    assert outcomes(journal) == dispatched(grid)
    assert_nothing_lost(journal)


def test_a_deadline_is_not_applied_and_the_journal_says_so(start: Start) -> None:
    journal, _ = start(note={"settings": {"round_deadline": 5.0}}, **BUFFER)
    assert [(event["applied"], event["reason"]) for event in of(journal, "policy")] == [
        (False, WAITS_FOR_NONE)
    ]
    assert journal[-1]["status"] == "completed" and of(journal, "late") == []


def test_updates_are_in_every_record(start: Start, tmp_path: Path) -> None:
    args = '{"buffer_size": 2, "max_staleness": 0}'
    journal, _ = start(
        prepare=straggler(6), note={}, strategy="fedbuff", strategy_args=args, num_server_rounds=6
    )
    follower = control.Follower(Path("none"))
    lines = [line for event in journal for line in follower.describe(event)]
    assert any(line.startswith("round 1/6") and line.endswith("2 updates") for line in lines)
    (tmp_path / "runs" / "0" / "submitted.json").unlink()  # it lacks what the controller notes of clients
    out = tmp_path / "out"
    assert results.main([str(tmp_path / "runs/0"), "--results", str(out), "--status", "completed"]) == 0
    summary = json.loads((out / "latest" / "summary.json").read_text())
    told = summary["updates"]
    assert told["used"] == 12 and told["discarded"] == len(of(journal, "update")) - 12 >= 1
    assert told["by_client"]["lab-0"] == 0 and sum(told["by_client"].values()) == 12
    assert told["staleness"] == {"0": 12} and told["mean_staleness"] == 0
    assert 1 / 3 < summary["updates_jain"] <= 2 / 3 + 1e-9
    run = gather(journal)
    assert "  updates     12 used, " in results.closing_words(summary, run, out)
    rows = results.round_rows(run)
    assert sum(row["discarded"] or 0 for row in rows) == told["discarded"]
    clients = results.client_rows(run)
    discarded = [row for row in clients if row["status"] == "discarded"]
    assert {row["client"] for row in discarded} == {"lab-0"} and len(discarded) == told["discarded"]
    assert all("max_staleness 0" in row["reason"] and row["weight"] == 0 for row in discarded)
    used = [row for row in clients if row["status"] == "ok" and row["dispatch"] is not None]
    assert len(used) == 12 and all(row["staleness"] == 0 and row["weight"] == 1 for row in used)


def test_a_synchronous_run_has_none_of_it(start: Start) -> None:
    journal, _ = start(num_server_rounds=1)
    run = gather(journal)
    assert of(journal, "update") == [] and results.summarise(run, run_id="0")["updates"] is None
    columns = {*results.round_rows(run)[0], *results.client_rows(run)[0]}
    assert not {"updates", "discarded", "dispatch", "weight"} & columns


COMMON: dict[str, Any] = {
    **{"fraction_train": 1.0, "fraction_evaluate": 1.0, "min_train": 2, "min_evaluate": 2},
    **{"min_available": 2, "learning_rate": 0.1, "clients": 3},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_asynchronous_strategies_refuse_privacy_that_counts_on_rounds(name: str) -> None:
    fixed = {"noise_multiplier": 0.1, "clipping_norm": 1.0}
    with pytest.raises(StrategyError, match="counts on rounds of a fixed number of clients"):
        build(name, {}, dp="server-fixed", dp_args=fixed, **COMMON)


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ELSEWHERE, "fedbuff", "no_such_package.strategies:FedBuff")
    with pytest.raises(StrategyError, match="install no_such_package where the ServerApp runs"):
        build("fedbuff", {}, **COMMON)


def test_the_seed_gives_one_model_where_replies_come_in_one_order(start: Start) -> None:
    """Each client of this grid replies at once, so that the order is that of partition ids."""
    assert sha(start(**BUFFER)[0]) == sha(start(**BUFFER)[0]) != sha(start(seed=1, **BUFFER)[0])


def replaying(run: str) -> dict[str, Any]:
    return {"settings": {"replay": run}}


@pytest.mark.parametrize("config", [BUFFER, MIXTURE], ids=["fedbuff", "fedasync"])
def test_a_replay_makes_the_same_model_whoever_is_slow(start: Start, config: dict[str, Any]) -> None:
    wanted, _ = start(prepare=straggler(6), **config)

    def last_is_slow(grid: LocalGrid) -> None:
        grid.last_first = True

    again, _ = start(note=replaying("0"), prepare=last_is_slow, evaluate_every=2, **config)
    free, _ = start(prepare=last_is_slow, **config)
    assert sha(again) == sha(wanted) != sha(free)
    keys = ("dispatch", "client", "base", "version", "weight")
    assert [[e[key] for key in keys] for e in of(again, "update")] == [
        [e[key] for key in keys] for e in of(wanted, "update")
    ]
    assert again[0]["replay"] == "0" and "replay" not in wanted[0]


@pytest.mark.parametrize(
    ("run", "config", "message"),
    [
        ("77", BUFFER, "replay=77: the server keeps no journal of that run"),
        ("1", BUFFER, "replay=1: that run used no updates of an asynchronous strategy"),
        ("0", {**BUFFER, "seed": 5}, r"that run had other settings: seed=0 \(here 5\). Type the same ones"),
        ("0", {"num_server_rounds": 1}, "with any other strategy the same seed makes the same model"),
    ],
)
def test_what_cannot_be_replayed_is_said(
    start: Start, run: str, config: dict[str, Any], message: str
) -> None:
    start(**BUFFER)
    start(num_server_rounds=1)
    journal, grid = start(note=replaying(run), raises=message, **config)
    assert journal[-1]["status"] == "failed" and grid.sent == []


def test_an_app_to_which_no_order_can_be_given_is_told_so(start: Start, tmp_path: Path) -> None:
    start(**BUFFER)
    note = json.dumps(replaying("0"))
    with settings.submitting(tmp_path):
        settings.write(tmp_path, "50", note)
    context = Context(50, 0, {}, RecordDict(), {})
    with pytest.raises(ReplayError, match="replay is for strategies that use updates as they arrive"):
        recording.record(lambda grid: context, LocalGrid([SLOW], {}), context, tmp_path)
    journal = read_journal(tmp_path / "runs/50/journal.jsonl")
    assert journal[-1]["status"] == "failed"
