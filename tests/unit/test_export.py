"""Results reach other tools whole: a crate that describes itself, TensorBoard's files, runs of MLflow."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import comparison, export
from tests.unit.test_comparison import ROUNDS, make_run, with_settings


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs of an experiment, and one alone."""
    folder = tmp_path / "experiments" / "study"
    for seed in range(2):
        note = {"name": "study", "key": f"p-s{seed}", "point": "p", "seed": seed, "repeat": 0}
        note |= {"factors": {"rate": "0.1"}, "until": {}}
        with_settings(make_run(folder / "runs", f"run-{seed}", note=note, seed=seed))
    (folder / "runs" / "latest").symlink_to("run-1")
    about = {"name": "study", "points": {"p": {"rate": "0.1"}}, "baseline": "p", "target": {}}
    (folder / "experiment.json").write_text(json.dumps(about))
    with_settings(
        make_run(tmp_path, "alone", status="failed"), learning_rate=0.5, partitioner_args={"alpha": 1}
    )
    return tmp_path


def crate_of(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "ro-crate-metadata.json").read_text())
    assert content["@context"] == "https://w3id.org/ro/crate/1.1/context"
    graph = {item["@id"]: item for item in content["@graph"]}
    assert len(graph) == len(content["@graph"]), "each thing is described once"
    return graph


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in references(item)]
    if isinstance(value, dict):
        own = [value["@id"]] if set(value) == {"@id"} else []
        return own + [name for item in value.values() for name in references(item)]
    return []


def test_a_crate_describes_every_file_of_a_run(results: Path) -> None:
    folder = Path(export.export("alone", "rocrate", results))
    assert folder == results / "exports" / "alone-rocrate"
    graph = crate_of(folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    described = {name for name, item in graph.items() if item["@type"] == "File"}
    assert described == files - {"ro-crate-metadata.json"}
    assert {part["@id"] for part in graph["./"]["hasPart"]} == described
    for name in described:
        content = (folder / name).read_bytes()
        assert graph[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert graph[name]["contentSize"] == str(len(content))
    outside = {"https://w3id.org/ro/crate/1.1"}
    assert set(references(list(graph.values()))) <= graph.keys() | outside
    action = graph["#run-alone"]
    assert action["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert {item["@id"] for item in action["object"]} == {"config.yml", "inventory.json"}
    assert "journal.jsonl" in references(action["result"])
    assert graph["#coldframe"]["softwareVersion"] == "abc"
    told = (folder / "README.md").read_text()
    assert "ansible-playbook run.yml -e learning_rate=0.5 -e" in told and '{"partitioner_args"' in told
    assert "rounds=4" in told and "commit abc" in told


def test_a_crate_of_an_experiment_has_an_action_per_run(results: Path) -> None:
    folder = Path(export.export("study", "rocrate", results))
    graph = crate_of(folder)
    actions = [item for item in graph.values() if item["@type"] == "CreateAction"]
    assert [item["@id"] for item in actions] == ["#run-run-0", "#run-run-1"]
    assert {item["actionStatus"].rpartition("/")[2] for item in actions} == {"CompletedActionStatus"}
    assert "runs/run-1/journal.jsonl" in references(actions[1]["result"])
    assert not (folder / "runs" / "latest").exists()
    again = Path(export.export("study", "rocrate", results))
    assert again == folder and crate_of(again).keys() == graph.keys()


def test_tensorboard_reads_the_curves(results: Path) -> None:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # the second time replaces the first one's
        folder = Path(export.export("study", "tensorboard", results))
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"rate 0.1, seed {n} (run-{n})" for n in (0, 1)
    ]
    (run, _) = export.runs_of(results / "experiments" / "study")
    read = accumulator.EventAccumulator(str(folder / "rate 0.1, seed 0 (run-0)")).Reload()
    told = [(item.step, item.wall_time, item.value) for item in read.Scalars("accuracy")]
    rows = [(row["round"], row["elapsed_seconds"] + run.run.first, row["accuracy"]) for row in run.rounds]
    assert len(told) == ROUNDS
    for got, expected in zip(told, rows, strict=True):
        assert got == pytest.approx(expected, rel=1e-6)


def test_mlflow_reads_runs_and_no_run_is_there_twice(results: Path) -> None:
    tracking = importlib.import_module("mlflow.tracking")
    for _ in range(2):
        uri = export.export("study", "mlflow", results)
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("study").experiment_id
    runs = {run.data.tags["run_id"]: run for run in client.search_runs([experiment])}
    assert sorted(runs) == ["run-0", "run-1"]
    assert (
        runs["run-0"].info.run_name == "rate 0.1, seed 0 (run-0)" and runs["run-0"].info.status == "FINISHED"
    )
    assert runs["run-0"].data.params["learning_rate"] == "0.1"
    history = client.get_metric_history(runs["run-0"].info.run_id, "accuracy")
    (run, _) = export.runs_of(results / "experiments" / "study")
    assert sorted((item.step, item.value) for item in history) == [
        (row["round"], row["accuracy"]) for row in run.rounds
    ]
    assert {item.path for item in client.list_artifacts(runs["run-0"].info.run_id)} >= {"summary.json"}


def test_what_cannot_be_exported_says_what_to_type(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export.main(["nowhere", "--to", "rocrate", "--results", str(results)]) == 1
    assert "no run nowhere" in capsys.readouterr().err
    with pytest.raises(comparison.ComparisonError, match="no run"):
        export.export("", "rocrate", results)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith(("tensorboard", "mlflow")):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(export.importlib, "import_module", without)
    assert export.main(["alone", "--to", "mlflow", "--results", str(results)]) == 1
    told = capsys.readouterr().err
    assert "to=mlflow needs the package mlflow-skinny" in told and "pip install mlflow-skinny" in told


def test_the_command_says_where_and_how_to_look(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["alone", "--to", "rocrate", "--results", str(results)]) == 0
    assert capsys.readouterr().out == f"Exported to {results}/exports/alone-rocrate\n"
