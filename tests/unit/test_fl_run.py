"""Whole runs of our ServerApp and ClientApp: what is recorded, that a seed gives one model, how runs end."""

import ast
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import get_fab_config
from torch import Tensor, nn

from coldframe.controller.records import gather
from coldframe.controller.results import summarise
from coldframe.recording import grid as recording_grid
from coldframe.recording.grid import RecordingGrid
from coldframe.recording.journal import Journal
from coldframe.recording.rounds import Recorder, sha256_of
from fl import model, strategy, training
from tests.unit.fl_runs import (
    NODES,
    REPOSITORY,
    LocalGrid,
    Start,
    changed,
    of,
    sha,
    with_metrics,
)


def test_the_journal_tells_a_whole_run(start: Start) -> None:
    note = {"settings": {"run_name": "first", "oversubscribed": True}}
    journal, _ = start(note=note, partitioner="dirichlet", partitioner_args='{"alpha": 0.5}', seed=3)
    (started,) = of(journal, "run_started")
    told = [started[key] for key in ("strategy", "dataset", "partitioner")]
    assert told == ["fedavg", "synthetic", "dirichlet"]
    assert (started["seed"], started["strategy_args"], started["oversubscribed"]) == (3, {}, True)
    assert of(journal, "plan") == []  # all of it is known before
    assert (started["run_id"], started["run_name"], started["rounds"]) == ("0", "first", 2)
    assert [client["name"] for client in started["clients"]] == ["lab-0", "lab-1", "lab-2"]
    assert started["partitioner_args"] == {"alpha": 0.5}
    assert set(started["versions"]) == {"flwr", "torch", "numpy", "python", "coldframe"}
    histogram = gather(journal).started["histogram"]
    assert set(histogram) == {"0", "1", "2"} and np.sum(list(histogram.values())) == 300
    assert len(of(journal, "partition")) == 3, "once, not in each round"
    phases = [(e["round"], e["phase"], e["clients"]) for e in of(journal, "phase_started")]
    everybody = ["lab-0", "lab-1", "lab-2"]
    assert phases == [(n, phase, everybody) for n in (1, 2) for phase in ("train", "evaluate")]
    assert len(of(journal, "reply")) == 12
    assert of(journal, "failure") == []
    assert [e["round"] for e in of(journal, "round")] == [0, 1, 2]
    assert journal[-1] | {"time": 0} == {
        "time": 0,
        "event": "run_finished",
        "status": "completed",
        "error": None,
    }


def test_a_reply_carries_what_the_client_did_and_on_what(start: Start) -> None:
    journal, _ = start()
    reply = of(journal, "reply", phase="train", client="lab-1")[0]
    assert (reply["partition_id"], reply["node_id"], reply["examples"]) == (1, "17", 100)
    assert set(reply["metrics"]) == {"train_loss", "train_accuracy"}
    assert set(reply["system"]) == {
        *("cpu_limit", "memory_limit", "threads", "train_seconds", "throttled_share", "memory_peak"),
        *("samples_per_second", "cpu_seconds", "cpu_pressure", "task_seconds"),
    }
    assert reply["system"]["task_seconds"] > reply["system"]["train_seconds"]
    assert reply["system"]["samples_per_second"] == 100 / reply["system"]["train_seconds"]
    assert all(4 * 7850 < reply[key] < 4 * 7850 + 1000 for key in ("bytes_down", "bytes_up"))
    evaluated = of(journal, "reply", phase="evaluate", round=1)
    assert sum(e["examples"] for e in evaluated) == 600
    assert set(evaluated[0]["metrics"]) == {"loss", "accuracy"}


def test_a_round_reports_both_evaluations_and_where_its_time_went(start: Start) -> None:
    journal, _ = start()
    first, last = of(journal, "round")[0], of(journal, "round")[-1]
    assert first["client_accuracy"] is None
    assert last["accuracy"] > first["accuracy"]
    # Server and clients evaluate the same samples here, all 600, so the weighted averages must agree.
    assert last["client_accuracy"] == pytest.approx(last["accuracy"])
    assert last["client_loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert set(last["phases"]) == {"configure", "train", "aggregate", "evaluate", "server_evaluate"}
    assert sum(last["phases"].values()) <= last["seconds"] + 0.01
    assert (last["clients"], last["failures"]) == (3, 0)


def test_the_saved_model_is_the_one_that_was_hashed(start: Start) -> None:
    journal, _ = start()
    (saved,) = of(journal, "model_saved")
    path = Path(saved["path"])
    with np.load(path) as recorded:
        assert sha256_of(recorded) == saved["sha256"]
    state = torch.load("model.pt", weights_only=True)  # the app's own file, in its working directory
    assert sha256_of({name: tensor.numpy() for name, tensor in state.items()}) == saved["sha256"]
    assert saved["bytes"] == path.stat().st_size
    assert sorted(f.name for f in path.parent.iterdir()) == ["journal.jsonl", "model.npz"]


def test_one_seed_gives_one_model_whatever_the_order_of_nodes_and_replies(start: Start) -> None:
    def last_first(grid: LocalGrid) -> None:
        grid.last_first = True

    config = {"partitioner": "dirichlet", "seed": 4}
    first, _ = start(nodes=sorted(NODES), **config)
    second, _ = start(nodes=sorted(NODES, reverse=True), prepare=last_first, **config)
    other, _ = start(**(config | {"seed": 5}))
    assert sha(first) == sha(second) != sha(other)


def test_every_client_shuffles_differently_in_every_round_and_the_same_in_every_run(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    original = training.train

    def train(*args: Any, seed: int, **kwargs: Any) -> training.Trained:
        seeds.append(seed)
        return original(*args, seed=seed, **kwargs)

    monkeypatch.setattr(training, "train", train)
    start(seed=1)
    assert len(seeds) == len(set(seeds)) == 6
    start(seed=1)
    assert seeds[:6] == seeds[6:]
    start(seed=2)
    assert not set(seeds[:6]) & set(seeds[12:])


def test_sampling_follows_the_seed(start: Start) -> None:
    def sampled(**config: Any) -> list[list[str]]:
        return [
            e["clients"]
            for e in of(
                start(fraction_train=0.4, num_server_rounds=6, **config)[0], "phase_started", phase="train"
            )
        ]

    first = sampled(seed=1)
    assert first == sampled(seed=1)
    assert first != sampled(seed=2)
    assert {len(clients) for clients in first} == {2}


ALL = [
    *((name, "{}", "", "{}") for name in strategy.STRATEGIES if name != "bulyan"),
    ("fedprox", '{"proximal_mu": 0.1}', "", "{}"),
    ("fedavg", "{}", "server-fixed", '{"noise_multiplier": 0.01, "clipping_norm": 5}'),
    ("fedavg", "{}", "server-adaptive", '{"noise_multiplier": 0.01, "initial_clipping_norm": 5}'),
    ("fedavg", "{}", "client-fixed", '{"noise_multiplier": 0.01, "clipping_norm": 5}'),
    ("fedavg", "{}", "client-adaptive", '{"noise_multiplier": 0.01, "initial_clipping_norm": 5}'),
    ("fedavg", "{}", "local", '{"clipping_norm": 5, "sensitivity": 0.001, "epsilon": 10, "delta": 0.001}'),
]


@pytest.mark.parametrize(("name", "args", "dp", "dp_args"), [*ALL, ("bulyan", "{}", "", "{}")])
def test_every_strategy_and_every_privacy_trains_the_model_twice_the_same(
    start: Start, name: str, args: str, dp: str, dp_args: str
) -> None:
    config = {"strategy": name, "strategy_args": args, "dp": dp, "dp_args": dp_args, "min_train_clients": 3}
    journal, grid = start(**config)
    assert journal[-1]["status"] == "completed"
    assert of(journal, "failure") == of(journal, "not_aggregated") == []
    first, *_, last = of(journal, "round")
    assert last["loss"] < first["loss"]
    # A strategy that computes in float64 must not double what travels.
    assert {a.dtype for m in grid.sent for r in m.content.array_records.values() for a in r.values()} == {
        "float32"
    }
    assert sha(journal) == sha(start(**config)[0])


@pytest.mark.parametrize("name", [name for name in strategy.STRATEGIES if name != "bulyan"])
def test_one_packed_array_trains_the_same_model_as_one_array_per_layer(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    packed, _ = start(strategy=name, min_train_clients=3)

    def pack(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {key: tensor.detach().numpy().copy() for key, tensor in state.items()}

    def unpack(arrays: dict[str, np.ndarray], like: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.tensor(array.astype(np.float32)) for key, array in arrays.items()}

    monkeypatch.setattr(model, "pack", pack)
    monkeypatch.setattr(model, "unpack", unpack)
    layers, grid = start(strategy=name, min_train_clients=3)
    assert len(grid.sent[0].content.array_records["arrays"]) == 2
    one, many = (dict(np.load(of(journal, "model_saved")[0]["path"])) for journal in (packed, layers))
    assert one.keys() == many.keys()
    for key, array in one.items():
        assert np.allclose(array, many[key], atol=1e-6), key


def crash(node: int) -> Callable[[int, Message, Message], Message | None]:
    """Return an answer that makes one node fail the way the SuperLink tells of a dead one."""

    def answer(to: int, message: Message, reply: Message) -> Message | None:
        return Message(Error(code=5, reason="Node Unavailable"), reply_to=message) if to == node else reply

    return answer


def test_the_round_goes_on_with_the_others_and_says_who_failed(start: Start) -> None:
    journal, _ = start(answer=crash(17))
    assert journal[-1]["status"] == "completed"
    failures = of(journal, "failure", round=1)
    assert [(f["client"], f["partition_id"], f["phase"], f["code"]) for f in failures] == [
        ("lab-1", 1, "train", 5),
        ("lab-1", 1, "evaluate", 5),
    ]
    last = of(journal, "round")[-1]
    assert (last["clients"], last["failures"]) == (2, 2)


def test_a_client_that_raises_is_a_failure_with_its_reason(start: Start) -> None:
    def answer(node: int, message: Message, reply: Message) -> Message | None:
        if node != 333:
            return reply
        return Message(Error(code=2, reason="ValueError: no samples"), reply_to=message)

    journal, _ = start(answer=answer, num_server_rounds=1)
    assert {(f["client"], f["reason"]) for f in of(journal, "failure")} == {
        ("lab-2", "ValueError: no samples")
    }


def test_a_reply_to_nobodys_message_is_left_alone(start: Start) -> None:
    def answer(node: int, message: Message, reply: Message) -> Message | None:
        if node == 905:
            reply.metadata.__dict__["_reply_to_message_id"] = "m99"
        return reply

    journal, _ = start(answer=answer, num_server_rounds=1, round_timeout=0.3)
    assert journal[-1]["status"] == "completed"
    assert {(f["client"], f["reason"]) for f in of(journal, "failure")} == {("lab-0", "no reply within 0 s")}


def test_replies_that_count_no_examples_do_not_end_the_run(start: Start) -> None:
    def answer(_node: int, message: Message, reply: Message) -> Message | None:
        return changed(reply, message, metrics=with_metrics(reply, **{"num-examples": 0}))

    journal, _ = start(answer=answer, raises="no round of 2 trained the model")
    assert {f["reason"] for f in of(journal, "failure")} == {"no reply of this phase counts any examples"}


def test_a_model_that_is_no_longer_finite_ends_the_run_as_diverged(start: Start) -> None:
    reason = "in round 1 what all clients trained is NaN or infinite"
    journal, _ = start(learning_rate=3e38, local_epochs=5, raises=reason)
    assert journal[-1]["status"] == "diverged"
    assert "learning_rate" in journal[-1]["error"]
    with np.load(of(journal, "model_saved")[0]["path"]) as state:
        assert all(np.isfinite(array).all() for array in state.values())
    summary = summarise(gather(journal), run_id="0", status="failed", error="ServerApp failed")
    assert (summary["status"], summary["error"]) == ("diverged", journal[-1]["error"])


def test_an_aggregate_that_overflows_ends_the_run_as_diverged(start: Start) -> None:
    """Each reply is finite, and the step that the strategy makes with them is not."""
    huge = ArrayRecord({"float32": Array(np.full(7850, 3e38, np.float32))})
    journal, _ = start(
        answer=lambda _, m, r: changed(r, m, arrays=huge) if m.metadata.message_type == "train" else r,
        strategy="fedavgm",
        strategy_args='{"server_learning_rate": 1000}',
        raises="the aggregated model is NaN",
    )
    assert journal[-1]["status"] == "diverged"


def test_whoever_wants_models_that_are_not_finite_gets_them(start: Start) -> None:
    journal, _ = start(learning_rate=3e38, local_epochs=5, allow_nonfinite=True)
    assert journal[-1]["status"] == "completed"
    assert of(journal, "failure") == []


def test_a_reply_that_never_comes_is_a_failure_when_the_time_is_up(start: Start) -> None:
    journal, _ = start(
        answer=lambda node, _message, reply: None if node == 905 else reply,
        round_timeout=0.3,
        num_server_rounds=1,
    )
    assert journal[-1]["status"] == "completed"
    assert [(f["client"], f["reason"]) for f in of(journal, "failure", phase="train")] == [
        ("lab-0", "no reply within 0 s")
    ]


def test_a_client_that_restarts_in_the_middle_is_not_waited_for(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_grid, "RESTART_CHECK", 0.05)
    monkeypatch.setattr(recording_grid, "FRESH_SECONDS", 0.0)

    def prepare(grid: LocalGrid) -> None:
        def answer(node: int, _message: Message, reply: Message) -> Message | None:
            if node != 17:
                return reply
            grid.activated[17] += "+"  # it was away and is back: the SuperLink has noted a new activation
            return None

        grid.answer = answer

    journal, _ = start(prepare=prepare, num_server_rounds=1, round_timeout=60.0)
    failures = of(journal, "failure")
    assert [(f["client"], f["reason"]) for f in failures] == [
        ("lab-1", "the client restarted while it was to train"),
        ("lab-1", "the client restarted while it was to evaluate"),
    ]
    assert of(journal, "round")[-1]["seconds"] < 30


def test_a_run_in_which_no_round_trained_has_failed(start: Start) -> None:
    def answer(_node: int, message: Message, _reply: Message) -> Message | None:
        return Message(Error(code=2, reason="no"), reply_to=message)

    journal, _ = start(answer=answer, raises="no round of 2 trained the model")
    assert journal[-1]["status"] == "failed"
    assert "no round of 2 trained the model" in journal[-1]["error"]
    assert [(e["clients"], e["failures"]) for e in of(journal, "round")] == [(0, 0), (0, 6), (0, 6)]
    assert [e["round"] for e in of(journal, "not_aggregated")] == [1, 2]
    before, after = of(journal, "round")[0], of(journal, "round")[-1]
    assert before["loss"] == after["loss"]


def test_privacy_that_demands_all_replies_leaves_the_model_and_says_so(start: Start) -> None:
    journal, _ = start(
        answer=crash(17),
        dp="server-fixed",
        dp_args='{"noise_multiplier": 0.01, "clipping_norm": 5}',
        raises="no round",
    )
    assert [(e["messages"], e["replies"]) for e in of(journal, "not_aggregated")] == [(3, 2), (3, 2)]


def test_missing_clients_are_named_when_the_wait_is_over(start: Start) -> None:
    journal, _ = start(
        nodes=[17],
        note={"settings": {"wait_timeout": 0.2}},
        raises=r"1 clients are connected .* Missing: lab-0, lab-2\.",
    )
    assert of(journal, "run_started")
    assert journal[-1]["status"] == "failed"


def test_waiting_is_written_down(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(recording_grid, "time", clock)
    note = {"settings": {"wait_timeout": 12.0}}
    journal, _ = start(nodes=[17, 905], note=note, min_available_clients=3, raises="lab-2")
    assert [e["missing"] for e in of(journal, "waiting")] == [["lab-2"], ["lab-2"]]


def test_too_few_clients_in_the_middle_of_a_run_end_it_with_an_error(start: Start) -> None:
    def prepare(grid: LocalGrid) -> None:
        def answer(_node: int, message: Message, reply: Message) -> Message | None:
            if message.metadata.message_type == "evaluate":
                grid.nodes = [17]
            return reply

        grid.answer = answer

    journal, _ = start(prepare=prepare, note={"settings": {"wait_timeout": 0.2}}, raises="lab-0, lab-2")
    assert [e["round"] for e in of(journal, "round")] == [0, 1]
    assert of(journal, "model_saved")  # what round 1 made is not lost


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": "fedfoo"}, "unknown strategy 'fedfoo'"),
        ({"partitioner": "random"}, "unknown partitioner"),
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'"),
        ({"dataset": "mnist"}, "python -m fl.data prepare mnist"),
        ({"strategy_args": "proximal_mu=1"}, "strategy-args is no JSON"),
        ({"partitioner_args": "[1]"}, "partitioner-args must be a JSON object"),
    ],
)
def test_a_wrong_setting_fails_the_run_before_anybody_trains(
    start: Start, config: dict[str, str], message: str
) -> None:
    journal, grid = start(raises=message, **config)
    assert journal[-1]["status"] == "failed" and message in journal[-1]["error"]
    assert grid.sent == []


def test_nodes_are_listed_by_partition_and_strangers_last(tmp_path: Path) -> None:
    (tmp_path / "nodes.json").write_text(
        json.dumps({"905": {"name": "a", "partition_id": 0}, "17": {"name": "b", "partition_id": 1}})
    )
    recorder = Recorder(Journal(tmp_path / "j.jsonl"), tmp_path / "nodes.json")
    grid = RecordingGrid(LocalGrid([4, 17, 3, 905], {}), recorder)
    assert grid.get_node_ids() == [905, 17, 3, 4]


def test_the_server_evaluates_as_often_and_on_as_much_as_it_is_told(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    original = training.evaluate

    def evaluate(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        seen.append(x.flatten(1).sum(1).tolist())
        return original(net, x, y)

    monkeypatch.setattr(training, "evaluate", evaluate)
    config = {"num_server_rounds": 5, "fraction_evaluate": 0.0, "evaluate_every": 2, "seed": 2}
    journal, _ = start(evaluate_samples=50, **config)
    known = {e["round"]: e["accuracy"] is not None for e in of(journal, "round")}
    assert known == {0: True, 1: False, 2: True, 3: False, 4: True, 5: True}, "and after the last one"
    assert [len(samples) for samples in seen] == [50] * 4 and seen[0] == seen[-1], "the same ones each time"
    assert summarise(gather(journal), run_id="0")["accuracy"] == of(journal, "round")[-1]["accuracy"]
    first = seen[0]
    whole, _ = start(**config)
    assert len(seen[-1]) == 600 and set(first) < set(seen[-1])
    assert sha(whole) == sha(journal), "it does not change the model"


def test_the_app_imports_nothing_of_coldframe() -> None:
    named = set()
    for path in sorted((REPOSITORY / "fl").glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                named.add(str(node.module).partition(".")[0])
    assert {"flwr", "torch", "fl"} <= named and "coldframe" not in named


def test_the_flower_app_carries_the_training_alone() -> None:
    fab = build_fab_from_disk(REPOSITORY)
    assert get_fab_config(fab)["project"]["name"] == "coldframe"
    names = zipfile.ZipFile(io.BytesIO(fab)).namelist()
    assert {name.split("/")[0] for name in names} == {"fl", "pyproject.toml", "LICENSE", ".info"}
    assert "fl/client_app.py" in names
