"""Our own app on real Flower processes: stock ones without Coldframe, and ours that record it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from flwr.proto.control_pb2 import StopRunRequest

from coldframe.recording import task_note
from coldframe.recording.journal import read_journal
from fl import data, model
from tests.unit.flower import ROOT, Federation, federation, tool, wait_until

SMALL = {"dataset": "synthetic", "max-samples": 64, "evaluate-samples": 32}
ALONE = {"min-train-clients": 1, "min-evaluate-clients": 1, "min-available-clients": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data.prepare("synthetic", folder)
    return folder


def flwr(it: Federation, *arguments: str) -> str:
    """Run Flower's command."""
    done = subprocess.run(
        [tool("flwr"), *arguments],
        env={**os.environ, **it.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_runs_on_stock_flower_where_there_is_no_coldframe(tmp_path: Path, root: Path) -> None:
    away = tmp_path / "away" / "coldframe"
    away.mkdir(parents=True)
    (away / "__init__.py").write_text("raise ImportError('nothing of Coldframe is here')\n")
    with federation(tmp_path / "federation", forks=False) as it:
        it.environment |= {"PYTHONPATH": str(away.parent), "COLDFRAME_DATA": str(root)}
        python = [sys.executable, "-c", "import coldframe"]
        environment = {**os.environ, **it.environment}
        absent = subprocess.run(python, env=environment, cwd=it.home, capture_output=True, check=False)
        assert b"nothing of Coldframe is here" in absent.stderr
        it.start_link([tool("flower-superlink")])
        config = "partition-id=0 num-partitions=2"
        it.start_node([tool("flower-supernode"), "--node-config", config], [tool("flower-superexec")])
        settings = {**SMALL, **ALONE, "num-server-rounds": 1, "fraction-evaluate": 1.0}
        words = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        told = flwr(it, "run", str(ROOT), "test", "-c", words, "--format", "json")
        it.ended(str(json.loads(told)["run-id"]), 300)
        assert "finished:completed" in flwr(it, "list", "test", "--format", "json")
        file = it.home / "model.pt"
        state = torch.load(file, weights_only=True)
        initial = model.build("synthetic", 0).state_dict()
        assert state.keys() == initial.keys()
        assert not torch.equal(state["fc2.weight"], initial["fc2.weight"]), "it has learned something"
        assert not list(it.home.glob("**/journal.jsonl"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Federation]:
    """A SuperLink and two clients with all that Coldframe puts beneath an app."""
    home = tmp_path_factory.mktemp("recorded")
    with federation(home / "federation") as it, TemporaryDirectory(prefix="cf") as scratch:
        it.environment |= {"COLDFRAME_STATE": str(home / "state"), "COLDFRAME_DATA": str(root)}
        it.start_recorded_link()
        it.scratch = Path(scratch)
        it.start_clients(2, it.scratch)
        yield it


def begun(it: Federation, **config: Any) -> Path:
    """Start a short run of our app and return its folder, when it has one."""
    run_id = it.submit(ROOT, **SMALL, **config)
    folder = Path(it.environment["COLDFRAME_STATE"]) / "runs" / run_id
    wait_until((folder / "journal.jsonl").exists, 40, f"no run; see the logs in {it.home}")
    return folder


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(folder / "journal.jsonl") if event["event"] == kind]


def test_all_that_is_known_of_a_run_of_it_is_learned_beneath_it(recorded: Federation) -> None:
    folder = begun(recorded, **{"num-server-rounds": 1, "fraction-evaluate": 1.0})
    wait_until(lambda: events(folder, "run_finished"), 60, f"the run has not ended: {folder}")
    assert events(folder, "run_finished")[0]["status"] == "completed"
    assert [event["round"] for event in events(folder, "round")] == [0, 1]
    replies = events(folder, "reply")
    assert [event["phase"] for event in replies] == ["train", "train", "evaluate", "evaluate"]
    for event in replies:
        assert {"threads", "cpu_seconds", "task_seconds", "samples_per_second"} <= set(event["system"])
    notes = [task_note.parse((recorded.scratch / part / task_note.NAME).read_bytes()) for part in "01"]
    assert notes == [task_note.Note(folder.name, 1, "evaluate")] * 2, "of the last task, for a scenario"
    assert [sum(event["class_counts"]) for event in events(folder, "partition")] == [32, 32]
    (saved,) = events(folder, "model_saved")
    state = torch.load(folder / "app" / "files" / "model.pt", weights_only=True)
    with np.load(saved["path"]) as found:
        assert found.files == list(state)
        assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in state.items())


def test_a_run_that_is_stopped_is_recorded_as_stopped_and_its_model_is_kept(recorded: Federation) -> None:
    folder = begun(recorded, **{"num-server-rounds": 500, "fraction-evaluate": 0.0})
    wait_until(lambda: len(events(folder, "round")) > 1, 60, f"no round: {folder}")
    recorded.control.StopRun(StopRunRequest(run_id=int(folder.name)))  # as `flwr stop` does
    wait_until(lambda: events(folder, "run_finished"), 60, f"the run has not ended: {folder}")
    assert events(folder, "run_finished")[0]["status"] == "stopped"
    assert events(folder, "model_saved") and (folder / "model.npz").exists()
