"""Runs that go on from a checkpoint: the model is that of a run that nobody has interrupted."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from coldframe.controller.records import gather
from coldframe.controller.results import client_rows, round_rows, summarise
from coldframe.recording import checkpoint, state
from coldframe.recording.checkpoint import CheckpointError, newest, read, rounds_of
from coldframe.recording.journal import read_journal
from coldframe.recording.rounds import sha256_of
from coldframe.recording.state import Blobs
from fl import data, server_app, strategy
from tests.unit.fl_runs import LocalGrid, Start, of, sha, starter

ROUNDS = 6
# Name, and the run's settings: every strategy of Flower that our app offers and that keeps something, and more.
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
    "server-adaptive": '{"noise_multiplier": 0.01, "initial_clipping_norm": 2.0, "clipped_count_stddev": 0.1}',
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    data.prepare("synthetic", root)
    return root


@pytest.fixture
def start(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    return starter(root, tmp_path, monkeypatch)


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
    return str(of(journal, "run_started")[-1]["run_id"])


def resume(start: Start, tmp_path: Path, earlier: str, **config: Any) -> list[dict[str, Any]]:
    """Go on with a run, as `coldframe.server.control` has it: the next run of `start` is the new one."""
    found = newest(tmp_path / "runs" / earlier)
    assert found is not None
    later = str(int(earlier) + 1)
    checkpoint.hand_over(tmp_path / "runs", earlier, later, found)
    journal, _ = start(note={"settings": {"resumed_from": earlier}}, **config)
    assert run_id(journal) == later
    return journal


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
