"""Our own app on real Flower processes: stock ones without Coldframe, and ours that record it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coldframe.recording.journal import read_journal
from fl import data, model
from tests.unit.flower import ROOT, Federation, federation, tool, wait_until
from tests.unit.nursery import ADAPTED, EXECUTOR

SMALL = "dataset='synthetic' max-samples=64 evaluate-samples=32 num-server-rounds={} fraction-evaluate={}"
ALONE = " min-train-clients=1 min-evaluate-clients=1 min-available-clients=1"


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


def submit(it: Federation, rounds: int, evaluate: float = 0.0, more: str = "") -> None:
    """Start a short run of our app."""
    flwr(it, "run", str(ROOT), "test", "-c", SMALL.format(rounds, evaluate) + more)


def test_it_runs_on_stock_flower_where_there_is_no_coldframe(tmp_path: Path, root: Path) -> None:
    away = tmp_path / "away" / "coldframe"
    away.mkdir(parents=True)
    (away / "__init__.py").write_text("raise ImportError('nothing of Coldframe is here')\n")
    with federation(tmp_path / "federation") as it:
        it.environment |= {"PYTHONPATH": str(away.parent), "COLDFRAME_DATA": str(root)}
        python = [sys.executable, "-c", "import coldframe"]
        environment = {**os.environ, **it.environment}
        absent = subprocess.run(python, env=environment, cwd=it.home, capture_output=True, check=False)
        assert b"nothing of Coldframe is here" in absent.stderr
        it.start_link([tool("flower-superlink")])
        config = "partition-id=0 num-partitions=2"
        it.start_node([tool("flower-supernode"), "--node-config", config], [tool("flower-superexec")])
        submit(it, rounds=1, evaluate=1.0, more=ALONE)
        file = it.home / "model.pt"
        wait_until(file.exists, 240, f"no model; see the logs in {it.home}")
        wait_until(lambda: "finished:completed" in flwr(it, "list", "test", "--format", "json"), 60, "no end")
        state = torch.load(file, weights_only=True)
        initial = model.build("synthetic", 0).state_dict()
        assert state.keys() == initial.keys()
        assert not torch.equal(state["fc2.weight"], initial["fc2.weight"]), "it has learned something"
        assert not list(it.home.glob("**/journal.jsonl"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Federation]:
    """A SuperLink and two clients with all that Coldframe puts beneath an app."""
    home = tmp_path_factory.mktemp("recorded")
    with federation(home / "federation") as it:
        it.environment |= {"COLDFRAME_STATE": str(home / "state"), "COLDFRAME_DATA": str(root)}
        secret = it.home / "link-secret"
        secret.write_bytes(secrets.token_bytes(32))
        auth = ["--superexec-auth-secret-file", str(secret)]
        it.start_link([*ADAPTED, "superlink"], "--isolation", "process", *auth)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{it.link_port}"]
        it.start("superexec", [*ADAPTED, "serverapp-superexec", *address, *auth])
        for partition in (0, 1):
            node = ["--node-config", f"partition-id={partition} num-partitions=2"]
            scratch = str(home / f"scratch-{partition}")
            it.start_node([*ADAPTED, "supernode", *node], EXECUTOR, COLDFRAME_SCRATCH=scratch)
        yield it


def begun(it: Federation, **settings: Any) -> Path:
    """Start a run of our app and return its folder, when it has one."""
    runs = Path(it.environment["COLDFRAME_STATE"]) / "runs"
    before = set(runs.glob("*/journal.jsonl"))
    submit(it, **settings)
    wait_until(lambda: set(runs.glob("*/journal.jsonl")) - before, 40, f"no run; see the logs in {it.home}")
    return (set(runs.glob("*/journal.jsonl")) - before).pop().parent


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(folder / "journal.jsonl") if event["event"] == kind]


def test_all_that_is_known_of_a_run_of_it_is_learned_beneath_it(recorded: Federation) -> None:
    folder = begun(recorded, rounds=1, evaluate=1.0)
    wait_until(lambda: events(folder, "run_finished"), 60, f"the run has not ended: {folder}")
    assert events(folder, "run_finished")[0]["status"] == "completed"
    assert [event["round"] for event in events(folder, "round")] == [0, 1]
    replies = events(folder, "reply")
    assert [event["phase"] for event in replies] == ["train", "train", "evaluate", "evaluate"]
    for event in replies:
        assert {"threads", "cpu_seconds", "task_seconds", "samples_per_second"} <= set(event["system"])
    assert [sum(event["class_counts"]) for event in events(folder, "partition")] == [32, 32]
    (saved,) = events(folder, "model_saved")
    state = torch.load(folder / "app" / "files" / "model.pt", weights_only=True)
    with np.load(saved["path"]) as found:
        assert found.files == list(state)
        assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in state.items())


def test_a_run_that_is_stopped_is_recorded_as_stopped_and_its_model_is_kept(recorded: Federation) -> None:
    folder = begun(recorded, rounds=500)
    wait_until(lambda: len(events(folder, "round")) > 1, 60, f"no round: {folder}")
    flwr(recorded, "stop", folder.name, "test")
    wait_until(lambda: events(folder, "run_finished"), 60, f"the run has not ended: {folder}")
    assert events(folder, "run_finished")[0]["status"] == "stopped"
    assert events(folder, "model_saved") and (folder / "model.npz").exists()
