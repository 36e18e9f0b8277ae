"""Gives results to other tools.

    python -m coldframe.controller.export RUN --to rocrate|tensorboard|mlflow --results results

RUN is a run, as for compare.yml, or the name of an experiment. A crate needs nothing else; TensorBoard's
files are written by its own package, and MLflow's by its client: each is an extra of the controller.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coldframe.controller import comparison, crate, experiment_runs
from coldframe.controller.experiment_runs import FOLDER, title

EXPORTS = "exports"  # below the results
TO = ("rocrate", "tensorboard", "mlflow")
BATCH, BATCH_PARAMS = 1000, 100  # of MLflow's API: no batch may be larger
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}
# Columns of a round that are curves.
CURVES = (
    "accuracy",
    "loss",
    "client_accuracy",
    "client_loss",
    "round_seconds",
    "elapsed_seconds",
    "traffic_bytes",
    "client_cpu_seconds",
    "clients",
    "failures",
)


class ExportError(ValueError):
    """What was asked for cannot be exported."""


def package(to: str, module: str) -> Any:
    """Import a module of an extra.

    Raises
    ------
    ExportError
        If its package is not installed, with what to type.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pip = Path(sys.executable).with_name("pip")
        raise ExportError(
            f"to={to} needs the package {PACKAGES[to]} ({error}): type {pip} install {PACKAGES[to]}"
        ) from None


def runs_of(folder: Path) -> Iterator[comparison.RunData]:
    """Read the runs of a folder, which is one or holds those of an experiment."""
    if (folder / "experiment.json").exists():
        yield from comparison.of_experiment(folder, oversubscribed_too=True).runs
    else:
        yield comparison.read_run(folder, "", 0, 0, True)


def label(run: comparison.RunData) -> str:
    """Name a run: by its point and seed where it is one of an experiment."""
    if note := experiment_runs.note_of(run.summary):
        return f"{title(note)} ({run.summary['run_id']})"  # of several attempts each is one
    return str(run.summary.get("run_name") or run.summary["run_id"])


def points(run: comparison.RunData) -> Iterator[tuple[int, float, str, float]]:
    """Give round, unix time, name and value of each point of each curve."""
    first = run.run.first or 0.0
    for row in run.rounds:
        for name in CURVES:
            if row.get(name) is not None:
                yield row["round"], first + row["elapsed_seconds"], name, float(row[name])


def to_tensorboard(folder: Path, out: Path) -> Path:
    """Write an event file per run, in a folder of its name."""
    writer = package("tensorboard", "tensorboard.summary.writer.event_file_writer")
    event = package("tensorboard", "tensorboard.compat.proto.event_pb2")
    summary = package("tensorboard", "tensorboard.compat.proto.summary_pb2")
    for run in runs_of(folder):
        target = out / label(run).replace("/", "_")  # one name, one run
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        file = writer.EventFileWriter(str(target))
        for number, moment, name, value in points(run):
            told = summary.Summary(value=[summary.Summary.Value(tag=name, simple_value=value)])
            file.add_event(event.Event(wall_time=moment, step=number, summary=told))
        file.close()
    return out


def to_mlflow(folder: Path, uri: str, artifacts: Path) -> str:
    """Write a run of MLflow for each run, in an experiment of the folder's name; known ones are left.

    Files go where the server has it, or below `artifacts` where MLflow is a database beside the results.
    """
    tracking = package("mlflow", "mlflow.tracking")
    entities = package("mlflow", "mlflow.entities")
    problem = package("mlflow", "mlflow.exceptions").MlflowException
    client = tracking.MlflowClient(tracking_uri=uri)
    many = (folder / "experiment.json").exists()
    name = folder.name if many else "coldframe"
    try:
        known = client.get_experiment_by_name(name)
        place = {"artifact_location": artifacts.as_uri()} if uri.startswith("sqlite:") else {}
        experiment = known.experiment_id if known else client.create_experiment(name, **place)
        for run in runs_of(folder):
            log_run(client, entities, experiment, run)
    except problem as error:
        raise ExportError(f"MLflow at {uri} refuses: {error}") from None
    return uri


def log_run(client: Any, entities: Any, experiment: str, run: comparison.RunData) -> None:
    """Write one run; one that was written whole before is left, one that was not is written again."""
    ours = run.summary["run_id"]
    for found in client.search_runs([experiment], f"tags.run_id = '{ours}'"):
        if found.info.status in ("FINISHED", "FAILED"):
            return
        client.delete_run(found.info.run_id)
    begin, end = ((moment and round(moment * 1000)) for moment in (run.run.first, run.run.last))
    made = client.create_run(experiment, start_time=begin, run_name=label(run), tags={"run_id": ours})
    params = [
        entities.Param(key, value if isinstance(value, str) else json.dumps(value))
        for key, value in comparison.config_of(run.folder).items()
    ]
    metrics = [
        entities.Metric(name, value, round(moment * 1000), number)
        for number, moment, name, value in points(run)
    ]
    client.log_batch(made.info.run_id, params=params[:BATCH_PARAMS])
    for start in range(0, len(metrics), BATCH):
        client.log_batch(made.info.run_id, metrics=metrics[start : start + BATCH])
    for path in sorted(run.folder.iterdir()):
        if path.is_file() and not path.is_symlink():
            client.log_artifact(made.info.run_id, str(path))
    status = "FINISHED" if run.summary["status"] in experiment_runs.GOOD else "FAILED"
    client.set_terminated(made.info.run_id, status=status, end_time=end)


def export(name: str, to: str, results: Path, uri: str = "") -> str:
    """Export a run or an experiment; where it lies now."""
    folder = results / FOLDER / name
    if not name or not (folder / "experiment.json").exists():
        folder = comparison.find(results, name)
    if to == "mlflow":
        here = (results / EXPORTS).resolve()
        here.mkdir(parents=True, exist_ok=True)
        return to_mlflow(folder, uri or f"sqlite:///{here}/mlflow.db", here / "mlartifacts")
    out = results / EXPORTS / f"{folder.name}-{to}"
    if to == "rocrate":
        return str(crate.make(folder, out).parent)
    return str(to_tensorboard(folder, out))


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and say where it is; 1 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m coldframe.controller.export")
    parser.add_argument("run", help="a run's id, name or folder, or an experiment's name")
    parser.add_argument("--to", choices=TO, required=True)
    parser.add_argument("--results", type=Path, required=True, help="folder that holds a folder per run")
    parser.add_argument("--uri", default="", help="of MLflow's server or database")
    arguments = parser.parse_args(argv)
    try:
        place = export(arguments.run, arguments.to, arguments.results, arguments.uri)
    except (ValueError, OSError) as problem:
        print(f"{problem}", file=sys.stderr)
        return 1
    following = {
        "rocrate": "",
        "tensorboard": f"; to see it: tensorboard --logdir {place}",
        "mlflow": f"; to see it: mlflow ui --backend-store-uri {place}",
    }
    print(f"Exported to {place}{following[arguments.to]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
