"""Runs that go on from a checkpoint: the model is that of a run that nobody has interrupted."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from coldframe.controller.records import gather
from coldframe.controller.results import client_rows, round_rows, summarise
from coldframe.recording import checkpoint
from coldframe.recording.checkpoint import CheckpointError, Checkpoints, newest, read, rounds_of
from coldframe.recording.journal import Journal, read_journal
from coldframe.recording.probes import Probes
from coldframe.recording.rounds import Recorder, innermost
from coldframe.server import control
from fl import strategy, work
from tests.unit.fl_runs import NODES, Killed, LocalGrid, Start, killed, of, resume, sha

ROUNDS = 6
# Settings of a run: every strategy of Flower that our app offers and that keeps something, and others.
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"fraction_train": 0.7},  # who trains is drawn
    "fedprox": {"strategy_args": '{"proximal_mu": 0.1}'},
    "fedavgm": {"strategy_args": '{"server_learning_rate": 0.9, "server_momentum": 0.9}'},
    "fedadam": {"strategy_args": '{"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99}'},
    "fedyogi": {"strategy_args": '{"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99}'},
    "fedadagrad": {"strategy_args": '{"eta": 0.01}'},
    "fedmedian": {},
    "qfedavg": {},
    "server-fixed": {"strategy": "fedavgm", "strategy_args": '{"server_momentum": 0.9}'},
    "server-adaptive": {"strategy": "fedadam", "strategy_args": '{"beta_1": 0.9, "beta_2": 0.99}'},
}
PRIVACY = {
    "server-fixed": '{"noise_multiplier": 0.01, "clipping_norm": 5.0}',
    "server-adaptive": '{"noise_multiplier": 0.01, "initial_clipping_norm": 2.0, "clip_norm_lr": 0.3}',
}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a ServerApp's process, as Flower has it."""
    for key in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, key, 1)
    nodes = {str(n): {"name": f"lab-{i}", "partition_id": i, "machine": "lab"} for i, n in enumerate(NODES)}
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))


@pytest.mark.parametrize("name", STRATEGIES)
def test_three_rounds_a_kill_and_three_rounds_give_the_model_of_six(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"strategy": name, "num_server_rounds": ROUNDS, "seed": 7, **STRATEGIES[name]}
    if name in PRIVACY:
        config |= {"dp": name, "dp_args": PRIVACY[name]}
    straight, _ = start(**config)
    with monkeypatch.context() as patch:
        killed(patch, 4)
        with pytest.raises(Killed):
            start(**config)
    assert rounds_of(tmp_path / "runs" / "1") == [3, 2]
    journal = resume(start, tmp_path, "1", **config)
    assert sha(journal) == sha(straight)
    figures = [
        [event[key] for key in ("round", "accuracy", "loss", "train_loss")] for event in of(journal, "round")
    ]
    assert figures == [
        [event[key] for key in ("round", "accuracy", "loss", "train_loss")] for event in of(straight, "round")
    ]


def test_the_journal_of_a_resumed_run_is_that_of_the_whole(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"num_server_rounds": 5, "strategy": "fedadam"}
    with monkeypatch.context() as patch:
        killed(patch, 3)
        with pytest.raises(Killed):
            start(**config)
    cut = gather(read_journal(tmp_path / "runs" / "0" / "journal.jsonl"))
    assert [reply["round"] for reply in cut.replies if reply["round"] == 3], "the third round had begun"
    journal = resume(start, tmp_path, "0", **config)
    found = gather(journal)
    assert sorted(found.rounds) == [0, 1, 2, 3, 4, 5] and len(of(journal, "round")) == 6
    asked = [(e["round"], e["phase"], name) for e in of(journal, "phase_started") for name in e["clients"]]
    answered = [(e["round"], e["phase"], e["client"]) for e in of(journal, "reply")]
    assert sorted(asked) == sorted(answered) and len(set(asked)) == len(asked) == 30
    assert [event["round"] for event in of(journal, "checkpoint")] == [1, 3, 4]
    (again,) = of(journal, "resume")
    assert (again["run_id"], again["resumed_from"], again["round"], again["resumed"]) == ("1", "0", 2, 1)
    assert journal[-1]["status"] == "completed"
    summary = summarise(found, run_id="1", status="completed")
    told = [summary[key] for key in ("run_id", "rounds", "resumed", "resumed_from", "status", "failures")]
    assert told == ["1", 5, 1, "0", "completed", []]
    assert summary["wall_seconds"] == pytest.approx(found.last - found.first - summary["interrupted_seconds"])
    assert [row["round"] for row in round_rows(found)] == [0, 1, 2, 3, 4, 5]
    assert len(client_rows(found)) == 30
    assert not list(tmp_path.glob("runs/*/checkpoints")), "of a run that has completed nobody needs them"


def test_a_run_is_resumed_twice(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"num_server_rounds": 5, "strategy": "fedadagrad"}
    straight, _ = start(**config)
    for number in (3, 4):
        with monkeypatch.context() as patch:
            killed(patch, number)
            with pytest.raises(Killed):
                resume(start, tmp_path, "1", **config) if number == 4 else start(**config)
    assert rounds_of(tmp_path / "runs" / "2") == [3, 2]
    journal = resume(start, tmp_path, "2", **config)
    assert sha(journal) == sha(straight)
    summary = summarise(gather(journal), run_id="3")
    assert (summary["resumed"], summary["resumed_from"], summary["rounds"]) == (2, "2", 5)
    assert checkpoint.ancestors(tmp_path / "runs" / "3") == ["1", "2"]


def test_a_file_that_is_not_whole_is_not_taken(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, 4)
    with pytest.raises(Killed):
        start(num_server_rounds=6)
    run = tmp_path / "runs" / "0"
    assert rounds_of(run) == [3, 2] and not list(run.glob("checkpoints/*.part"))
    path = checkpoint.path_of(run, 3)
    whole = path.read_bytes()
    torn = [whole[: len(whole) // 2], b"", whole[:5000] + b"\xff" + whole[5001:], b"x" * len(whole)]
    for content in torn:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"round-3\.zip is not whole"):
            read(path)
        found = newest(run)
        assert found is not None and found.round == 2
    assert "the one before it is taken" in "".join(capsys.readouterr())
    path.write_bytes(whole)
    checkpoint.path_of(run, 2).write_bytes(b"")
    assert (found := newest(run)) is not None and found.round == 3
    path.unlink()
    assert newest(run) is None


def test_while_a_checkpoint_is_written_it_has_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.write(tmp_path, 1, {"format": 1, "round": 1}, {"0.bin": b"old"})

    def full(_descriptor: int) -> None:
        assert rounds_of(tmp_path) == [1], "it has no name before all of it is on the disk"
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    (tmp_path / "checkpoints" / "round-9.part").write_bytes(b"of a process that was killed")
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(tmp_path, 2, {"format": 1, "round": 2}, {"0.bin": b"new"})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-1.zip"]
    assert (found := newest(tmp_path)) is not None and found.blobs == {"0.bin": b"old"}


def test_a_disk_that_is_full_costs_the_checkpoints_and_not_the_run(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    journal, _ = start(num_server_rounds=3)
    assert journal[-1]["status"] == "completed" and of(journal, "checkpoint") == []
    assert "no checkpoint of round 1" in "".join(capsys.readouterr())
    failed = of(journal, "checkpoint_failed")
    assert [event["round"] for event in failed] == [1, 2]
    assert failed[0]["reason"] == "OSError: [Errno 28] No space left on device"
    lines = control.Follower(Path("none")).describe(failed[0])
    assert lines == ["no checkpoint of round 1: OSError: [Errno 28] No space left on device"]
    assert gather(journal).unwritten == failed


def test_none_is_taken_where_none_is_wanted(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, 3)
    with pytest.raises(Killed):
        start(note={"settings": {"checkpoint": False}}, num_server_rounds=3)
    assert newest(tmp_path / "runs" / "0") is None and not (tmp_path / "runs" / "0" / "checkpoints").exists()


def test_what_the_serverapp_has_written_goes_along(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, 3)
    with pytest.raises(Killed):
        start(num_server_rounds=3)
    written = tmp_path / "runs" / "0" / "app" / "files"
    (written / "best").mkdir(parents=True)
    (written / "best" / "log.csv").write_text("1,2\n")
    (written / "secret").symlink_to("/etc/passwd")
    os.mkfifo(written / "pipe")
    found = newest(tmp_path / "runs" / "0")
    assert found is not None
    checkpoint.hand_over(tmp_path / "runs", "0", "1", found)
    there = tmp_path / "runs" / "1" / "app" / "files"
    assert sorted(path.name for path in there.rglob("*")) == ["best", "log.csv"]
    monkeypatch.setattr(checkpoint.files, "LIMIT", 3)
    checkpoint.hand_over(tmp_path / "runs", "0", "2", found)
    assert not (tmp_path / "runs" / "2" / "app").exists()


# --- another's app: a strategy and a `start` of its own


class Own(FedAvg):
    """Keeps what strategies keep: numbers, arrays, generators, a module; changes its config in place."""

    def __init__(self, step: float = 0.5) -> None:
        super().__init__(fraction_train=0.5, min_train_nodes=2)
        self.step = step
        self.best = 0.0
        self.history: list[tuple[int, float]] = []
        self.counts: Counter[str] = Counter()
        self.recent: deque[float] = deque(maxlen=2)
        self.generator = np.random.default_rng(3)
        self.python = random.Random(4)
        self.torch = torch.Generator().manual_seed(5)
        self.layer = torch.nn.Linear(3, 2)
        self.offset: np.ndarray | None = None
        self.session = threading.Lock()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Lower the learning rate, as in Flower's advanced-pytorch."""
        config["lr"] = float(config.get("lr", 1.0)) * 0.5  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add noise from each source, and what was added before."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        drawn = self.generator.random() + self.python.random() + random.random() + np.random.random()
        drawn += float(torch.rand(1)) + float(torch.rand(1, generator=self.torch))
        with torch.no_grad():
            self.layer.weight += drawn
        self.recent.append(drawn)
        self.counts["rounds"] += 1
        self.best = max(self.best, drawn)
        self.history.append((server_round, drawn))
        self.offset = np.full(2, drawn) if self.offset is None else self.offset + drawn
        extra = float(self.layer.weight.sum()) + self.counts["rounds"] + sum(self.recent) + self.best
        made = {
            key: Array(array.numpy() + self.step * extra + self.offset[0]) for key, array in arrays.items()
        }
        return ArrayRecord(made), metrics

    def start(self, grid: Grid, initial_arrays: ArrayRecord, **kwargs: Any) -> Any:
        """A loop of its own, without Flower's."""
        arrays, config, seen = initial_arrays, kwargs["train_config"], []
        for number in range(1, kwargs["num_rounds"] + 1):
            replies = grid.send_and_receive(self.configure_train(number, arrays, config, grid), timeout=9)
            made, metrics = self.aggregate_train(number, replies)
            arrays = made or arrays
            seen.append((number, metrics and dict(metrics), kwargs["evaluate_fn"](number, arrays)))
        return seen, config["lr"], arrays


def own_run(
    tmp_path: Path, run_id: str, rounds: int, dies: int = 0, resumed: bool = False, **settings: Any
) -> tuple[Any, list[Message], Own]:
    """Run an app with that strategy; each reply is what was sent plus what the client and the rate are."""
    folder = tmp_path / "runs" / run_id
    journal = Journal(folder / "journal.jsonl")
    recorder = Recorder(journal, tmp_path / "nodes.json")
    recorder.known = {"config": {}, "versions": {}}
    sent: list[Message] = []

    class Replies(LocalGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            replies = []
            for message in messages:
                message.metadata.__dict__["_message_id"] = f"m{len(sent)}"
                sent.append(message)
                node, rate = message.metadata.dst_node_id, message.content["config"]["lr"]
                arrays = message.content["arrays"].items()
                made = {key: Array(array.numpy() + node * rate) for key, array in arrays}
                content = {
                    "arrays": ArrayRecord(made),
                    "metrics": MetricRecord({"num-examples": node, "at": rate}),
                }
                replies.append(Message(RecordDict(content), reply_to=message))
            return replies

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number == dies:
            raise Killed
        return MetricRecord({"sum": float(arrays["w"].numpy().sum()), "parts": [1.0, 2.0]})

    checkpoints = Checkpoints(recorder, folder, True, newest(folder) if resumed else None)
    probes = Probes(recorder, checkpoints=checkpoints)
    probes.install()
    torch.manual_seed(6)
    random.seed(1 if not resumed else 999)
    np.random.seed(2 if not resumed else 998)
    chosen = Own(**settings)
    first = ArrayRecord({"w": Array(np.full(4, 1.0 if not resumed else 77.0))})
    try:
        found = chosen.start(
            Replies(NODES, {}), first, num_rounds=rounds, train_config=ConfigRecord(), evaluate_fn=evaluate
        )
    finally:
        probes.remove()
        checkpoints.close()
        journal.close()
    return found, sent, chosen


def test_an_app_with_a_strategy_and_a_loop_of_its_own_goes_on(tmp_path: Path, task: None) -> None:
    (seen, rate, arrays), sent, strategy_then = own_run(tmp_path, "1", 6)
    with pytest.raises(Killed):
        own_run(tmp_path, "2", 6, dies=4)
    found = newest(tmp_path / "runs" / "2")
    assert found is not None and found.round == 3
    assert found.content["unkept"] == ["Own.session (lock)"], "what cannot be kept is said"
    checkpoint.hand_over(tmp_path / "runs", "2", "3", found)
    (again, rate_again, arrays_again), sent_again, strategy_now = own_run(tmp_path, "3", 6, resumed=True)
    assert np.array_equal(arrays["w"].numpy(), arrays_again["w"].numpy())
    assert again == seen, "also the metrics of the rounds that are past"
    assert rate_again == rate == 0.5**6
    assert [m.metadata.dst_node_id for m in sent_again] == [m.metadata.dst_node_id for m in sent[6:]]
    for name in ("best", "history", "counts", "recent"):
        assert getattr(strategy_now, name) == getattr(strategy_then, name)
    assert type(strategy_now.counts) is Counter and strategy_now.recent.maxlen == 2


def test_a_setting_of_the_strategy_that_was_changed_is_not_set_back(tmp_path: Path, task: None) -> None:
    with pytest.raises(Killed):
        own_run(tmp_path, "2", 6, dies=4)
    found = newest(tmp_path / "runs" / "2")
    assert found is not None
    checkpoint.hand_over(tmp_path / "runs", "2", "3", found)
    _, _, later = own_run(tmp_path, "3", 6, resumed=True, step=0.125)
    assert later.step == 0.125 and len(later.history) == 6


def test_a_second_strategy_of_the_app_is_not_skipped(tmp_path: Path, task: None) -> None:
    """It begins anew, since its rounds are not kept; the first is not trained again."""
    folder = tmp_path / "runs" / "1"
    recorder = Recorder(Journal(folder / "journal.jsonl"), tmp_path / "nodes.json")
    taken = Checkpoints(recorder, folder)
    first, second = FedAvg(), FedAvg()
    arrays, config = ArrayRecord({"w": Array(np.ones(2))}), ConfigRecord()
    for number in (1, 2, 3):
        taken.configuring("train", first, number, (number, arrays, config), {})
    taken.end_strategy()
    for number in (1, 2, 3, 4, 5):
        taken.configuring("train", second, number, (number, arrays, config), {})
    taken.close()
    assert rounds_of(folder) == [2, 1]
    found = newest(folder)
    assert found is not None
    later = Checkpoints(recorder, folder, True, found)
    assert later.is_past(first, 2) and not later.is_past(first, 3)
    later.configuring("train", first, 3, (3, arrays, config), {})
    later.end_strategy()
    assert not later.is_past(second, 1)


def direct(tmp_path: Path, resumed: checkpoint.Checkpoint | None = None) -> Checkpoints:
    """Return what takes the checkpoints of run 1."""
    folder = tmp_path / "runs" / "1"
    recorder = Recorder(Journal(folder / "journal.jsonl"), tmp_path / "nodes.json")
    return Checkpoints(recorder, folder, True, resumed)


def configure(taken: Checkpoints, chosen: Any, number: int, **configs: ConfigRecord) -> None:
    """Begin the phases of a round."""
    arrays = ArrayRecord({"w": Array(np.ones(2))})
    for phase in ("train", "evaluate"):
        config = configs.get(phase, ConfigRecord())
        taken.configuring(phase, chosen, number, (number, arrays, config), {})


def kept_of(tmp_path: Path) -> checkpoint.Checkpoint:
    found = newest(tmp_path / "runs" / "1")
    assert found is not None
    return found


def test_of_an_asynchronous_strategy_that_does_not_tell_its_state_none_is_taken_and_none_goes_on(
    tmp_path: Path, task: None
) -> None:
    class Another(FedAvg):
        def note_update(self, node_id: int, update: Any) -> None:
            """As asynchronous strategies have it."""

    for chosen in (Another(), strategy.Reproducible(Another(), 1)):
        taken = direct(tmp_path)
        for number in (1, 2, 3):
            configure(taken, chosen, number)
        taken.close()
        assert newest(tmp_path / "runs" / "1") is None
    taken, other = direct(tmp_path), FedAvg()
    for number in (1, 2, 3):
        configure(taken, other, number)
    taken.close()
    later = direct(tmp_path, kept_of(tmp_path))
    with pytest.raises(
        CheckpointError, match="Another waits for no client, has no state_dict, and cannot be"
    ):
        later.is_past(chosen, 1)


class Telling(FedAvg):
    """Has a `state_dict` of its own, which needs what is there only after so many rounds."""

    def __init__(self, works_from: int) -> None:
        super().__init__()
        self.works_from, self.rounds = works_from, 0
        self.loaded: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        if self.rounds < self.works_from:
            raise AttributeError("no round has been")
        return {"rounds": self.rounds}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        self.loaded.append(found)


class TellingUpdates(Telling):
    def note_update(self, node_id: int, update: Any) -> None:
        """As asynchronous strategies have it."""


def go_through(taken: Checkpoints, chosen: Any, rounds: Iterable[int]) -> None:
    """Begin so many rounds; `chosen` counts them, or what it wraps."""
    for number in rounds:
        configure(taken, chosen, number)
        innermost(chosen).rounds += 1
    taken.close()


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: strategy.Reproducible(it, 1)])
def test_a_state_dict_that_fails_ends_no_run(wrap: Any, tmp_path: Path, task: None) -> None:
    """Attributes take its place, as long as it fails."""
    go_through(direct(tmp_path), wrap(Telling(9)), (1, 2, 3))
    again = Telling(9)
    go_through(direct(tmp_path, kept_of(tmp_path)), wrap(again), (3,))
    assert again.rounds == 3 and again.loaded == []
    shutil.rmtree(tmp_path / "runs")
    go_through(direct(tmp_path), wrap(Telling(1)), (1, 2, 3))
    again = Telling(1)
    go_through(direct(tmp_path, kept_of(tmp_path)), wrap(again), (3,))
    assert again.loaded == [{"rounds": 2}]


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: strategy.Reproducible(it, 1)])
def test_of_an_asynchronous_strategy_attributes_do_not_take_its_place(
    wrap: Any, tmp_path: Path, task: None
) -> None:
    go_through(direct(tmp_path), wrap(TellingUpdates(9)), (1, 2, 3))
    assert newest(tmp_path / "runs" / "1") is None
    events = read_journal(tmp_path / "runs" / "1" / "journal.jsonl")
    assert [event["round"] for event in of(events, "checkpoint_failed")] == [1, 2]
    wanted = "Untold: TellingUpdates's state_dict cannot be used: AttributeError: no round has been"
    assert {event["reason"] for event in of(events, "checkpoint_failed")} == {wanted}
    go_through(direct(tmp_path), wrap(TellingUpdates(1)), (1, 2, 3))
    again = TellingUpdates(1)
    go_through(direct(tmp_path, kept_of(tmp_path)), wrap(again), (3,))
    assert again.loaded == [{"rounds": 2}], "that it fails before the first round costs nothing"


def test_an_asynchronous_strategy_that_takes_a_state_and_tells_none_has_no_checkpoints(
    tmp_path: Path, task: None
) -> None:
    class Half(FedAvg):
        load_state_dict = Telling.load_state_dict
        note_update = TellingUpdates.note_update
        rounds = 0

    go_through(direct(tmp_path), Half(), (1, 2, 3))
    assert newest(tmp_path / "runs" / "1") is None and checkpoint.is_untold(Half())


def test_several_strategies_in_turn_have_no_checkpoints(
    tmp_path: Path, task: None, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = FedAvg(), FedAvg()
    taken = direct(tmp_path)
    for number in (1, 2, 3):
        configure(taken, first, number)
        configure(taken, second, number)
    taken.close()
    assert newest(tmp_path / "runs" / "1") is None
    assert "no checkpoint is taken any more: the app trains with several" in "".join(capsys.readouterr())
    taken = direct(tmp_path)
    for number in (1, 2, 3):
        configure(taken, first, number)
    taken.close()
    later = direct(tmp_path, kept_of(tmp_path))
    assert later.is_past(first, 1)
    with pytest.raises(CheckpointError, match=r"several strategies .* cannot be resumed"):
        later.is_past(second, 1)


def test_metrics_of_numpy_come_back_as_numbers(tmp_path: Path, task: None) -> None:
    metrics = MetricRecord({"a": np.float64(0.5), "b": [np.float64(1.5)]})
    chosen, taken = FedAvg(), direct(tmp_path)
    configure(taken, chosen, 1)
    taken.told("train", 1, metrics)
    configure(taken, chosen, 2)
    taken.close()
    found = direct(tmp_path, kept_of(tmp_path)).past_metrics("train", 1)
    assert found is not None and dict(found) == {"a": 0.5, "b": [1.5]}
    assert type(found["a"]) is float


def test_the_config_of_evaluation_is_that_after_the_last_round(tmp_path: Path, task: None) -> None:
    chosen, taken, live = FedAvg(), direct(tmp_path), ConfigRecord({"level": 1})
    for number in (1, 2, 3):
        configure(taken, chosen, number, evaluate=live)
        live["level"], live["key"] = number * 10, b"bytes"  # as a strategy changes it
    taken.close()
    later, config = direct(tmp_path, kept_of(tmp_path)), ConfigRecord({"level": 1})
    assert later.is_past(chosen, 2)
    configure(later, chosen, 3, evaluate=config)
    assert dict(config) == {"level": 20, "key": b"bytes"}
    config["level"] = 30
    configure(later, chosen, 4, evaluate=config)
    later.close()
    assert dict(config) == {"level": 30, "key": b"bytes"}, "it is set once"
    assert dict(kept_of(tmp_path).value("configs", "evaluate")) == dict(config)


def test_a_config_that_a_loop_makes_for_each_round_is_not_set_back(tmp_path: Path, task: None) -> None:
    chosen, taken = FedAvg(), direct(tmp_path)
    for number in (1, 2, 3):
        configure(taken, chosen, number, evaluate=ConfigRecord({"round": number}))
    taken.close()
    later, config = direct(tmp_path, kept_of(tmp_path)), ConfigRecord({"round": 3})
    configure(later, chosen, 3, evaluate=config)
    later.close()
    assert dict(config) == {"round": 3}


def test_a_run_whose_checkpoint_cannot_be_read_does_not_train_anew(start: Start, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint of run 5 cannot be read"):
        start(note={"settings": {"resumed_from": "5"}}, num_server_rounds=2)
    journal = read_journal(tmp_path / "runs" / "0" / "journal.jsonl")
    assert (journal[-1]["event"], journal[-1]["status"]) == ("run_finished", "failed")
    assert of(journal, "round") == []


def test_a_slow_disk_costs_neither_the_model_nor_the_journals_end(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, inner = threading.Event(), Recorder.finish

    def finish(self: Recorder, *args: Any) -> None:
        inner(self, *args)
        ended.set()

    def slow(*_args: Any) -> int:
        assert ended.wait(20), "the model waits for the checkpoint"
        return 1

    monkeypatch.setattr(Recorder, "finish", finish)
    monkeypatch.setattr(checkpoint, "write", slow)
    journal, _ = start(num_server_rounds=2)
    assert journal[-1]["event"] == "run_finished" and of(journal, "model_saved")
    assert of(journal, "checkpoint") == []


def test_our_strategy_keeps_no_second_model_but_the_speeds(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, 3)
    with pytest.raises(Killed):
        start(num_server_rounds=3, round_work=5.0)
    found = newest(tmp_path / "runs" / "0")
    assert found is not None and set(found.content["strategy"]["state"]) == {"pace"}
    assert found.content["unkept"] == []
    pace = work.Pace(5.0)
    pace.load_state_dict(found.value("strategy", "state", "pace", "state"))
    assert set(pace.speeds) == set(NODES)
    assert all(speed.steps_per_second > 0 for speed in pace.speeds.values())


def test_a_resumed_run_that_fails_at_once_keeps_the_model_that_was_saved(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed(patch, 3)
        with pytest.raises(Killed):
            start(num_server_rounds=4)
    (saved,) = tmp_path.rglob("model.pt")
    before = saved.read_bytes()
    found = newest(tmp_path / "runs" / "0")
    assert found is not None
    checkpoint.hand_over(tmp_path / "runs", "0", "1", found)
    with monkeypatch.context() as patch:
        killed(patch, 3)
        with pytest.raises(Killed):
            start(note={"settings": {"resumed_from": "0"}}, num_server_rounds=4)
    assert saved.read_bytes() == before
