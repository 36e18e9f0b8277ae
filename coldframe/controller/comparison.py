"""Runs by point, with what each took: read from their folders, averaged over seeds, compared by seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from coldframe.controller import experiment_runs, intervals
from coldframe.controller.experiment import called, label
from coldframe.controller.experiment_runs import RUNS
from coldframe.controller.records import Event, Run, duration, gather
from coldframe.limits import LIMITS
from coldframe.recording.journal import reaches, read_journal

UNVARIED = ("seed", "run_name")  # settings that make no other point
OVERSUBSCRIBED = "oversubscribed"


class ComparisonError(ValueError):
    """What was asked for cannot be compared."""


@dataclass(frozen=True)
class Metric:
    """A figure of a run.

    Attributes
    ----------
    key : str
        The column of runs.csv.
    shown : callable
        Writes a value, or a difference of two.
    """

    key: str
    label: str
    shown: Callable[[float], str]


def seconds_text(value: float) -> str:
    """Write a time that may be a difference.

    >>> seconds_text(-75.0), seconds_text(3.25)
    ('-1 min 15 s', '3.2 s')
    """
    return f"{'-' if round(value, 1) < 0 else ''}{duration(abs(value))}"


def bytes_text(value: float) -> str:
    """Write an amount of traffic.

    >>> bytes_text(12_345_678)
    '12.3 MB'
    """
    return f"{round(value / 1e6, 1) + 0.0:.1f} MB"  # no -0.0


METRICS = (
    Metric("accuracy", "Final accuracy", "{:.4f}".format),
    Metric("loss", "Final loss", "{:.4f}".format),
    Metric("wall_seconds", "Wall time", seconds_text),
    Metric("round_seconds_mean", "Time per round", seconds_text),
    Metric("traffic_bytes", "Traffic", bytes_text),
    Metric("client_cpu_seconds", "Clients' CPU time", seconds_text),
)
TO_TARGET = (
    Metric("target_seconds", "Time to target", seconds_text),
    Metric("target_round", "Rounds to target", "{:.0f}".format),
    Metric("target_bytes", "Traffic to target", bytes_text),
    Metric("target_cpu_seconds", "CPU time to target", seconds_text),
)


@dataclass
class RunData:
    """A run's folder, read.

    Attributes
    ----------
    point : str
        The id of its point.
    left_out : str
        Why it does not count; empty where it does.
    """

    folder: Path
    summary: dict[str, Any]
    run: Run
    point: str
    seed: int
    repeat: int
    left_out: str = ""

    @property
    def ids(self) -> dict[str, Any]:
        """The columns that tell its rows from those of other runs."""
        return {
            "point": self.point,
            "seed": self.seed,
            "repeat": self.repeat,
            "run_id": self.summary["run_id"],
        }

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """Its rounds, round 0 included, each with what the run had taken until its end."""
        first = self.run.first or 0.0
        events = [*self.run.replies, *self.run.failures, *self.run.late]
        known = [item for item in events if item.get("round") is not None]
        by_round: dict[int, list[Event]] = {}
        for item in known:
            by_round.setdefault(int(item["round"]), []).append(item)
        rows: list[dict[str, Any]] = []
        taken, cpu, waiting = 0, None, sorted(by_round)
        for number, event in sorted(self.run.rounds.items()):
            while waiting and waiting[0] <= number:
                these = by_round[waiting.pop(0)]
                taken += traffic(these)
                if (more := cpu_seconds(these)) is not None:
                    cpu = (cpu or 0.0) + more
            rows.append(
                {
                    "round": number,
                    "elapsed_seconds": event["time"] - first,
                    "round_seconds": event.get("seconds"),
                    **{key: event.get(key) for key in ("accuracy", "loss", "client_accuracy", "client_loss")},
                    "traffic_bytes": taken if known else None,
                    "client_cpu_seconds": cpu,
                    "clients": event.get("clients"),
                    "failures": event.get("failures"),
                    "late": event.get("late"),
                    "folded": event.get("folded"),
                }
            )
        return rows

    def to_target(self, target: Mapping[str, float]) -> dict[str, float | None]:
        """What it took until a round of training reached the target; None where none did."""
        reached = (row for row in self.rounds if row["round"] > 0 and reaches(row, target))
        found: dict[str, Any] = next(reached, {})
        return {
            "target_round": found.get("round"),
            "target_seconds": found.get("elapsed_seconds"),
            "target_bytes": found.get("traffic_bytes"),
            "target_cpu_seconds": found.get("client_cpu_seconds"),
        }


def traffic(events: Sequence[Event]) -> int:
    """Bytes of messages and replies, as they were sent."""
    return sum((item.get("bytes_down") or 0) + (item.get("bytes_up") or 0) for item in events)


def cpu_seconds(events: Sequence[Event]) -> float | None:
    """CPU time of the clients' tasks; None where no client told any."""
    found = [(item.get("system") or {}).get("cpu_seconds") for item in events]
    told = [value for value in found if value is not None]
    return sum(told) if told else None


@dataclass
class Comparison:
    """Runs by point.

    Attributes
    ----------
    points : mapping
        Id of a point -> its factors, in the order in which they are shown.
    baseline : str
        The point that the others are compared with.
    target : mapping
        ``accuracy`` or ``loss`` -> value; empty where none was asked for.
    missing : int
        Runs that were planned and have to be run, or run again.
    """

    name: str
    points: Mapping[str, Mapping[str, str]]
    runs: Sequence[RunData]
    baseline: str
    target: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    missing: int = 0
    _rows: dict[Path, dict[str, Any]] = field(default_factory=dict, repr=False)

    def of(self, point: str) -> list[RunData]:
        """The runs of a point that count."""
        return [run for run in self.runs if run.point == point and not run.left_out]

    def label(self, point: str) -> str:
        """A point's name for people."""
        return label(self.points[point])

    def values(self, point: str, key: str, repeat: int | None = None) -> dict[int, float]:
        """A figure of a point's runs by seed, the mean of its repetitions or of one of them."""
        return intervals.by_seed(
            [
                (run.seed, row[key])
                for run in self.of(point)
                if repeat is None or run.repeat == repeat
                for row in [self.row(run)]
            ]
        )

    def interval(self, point: str, key: str) -> intervals.Interval | None:
        """Mean and interval of a figure over a point's seeds."""
        return intervals.interval(list(self.values(point, key).values()))

    def difference(self, point: str, key: str) -> intervals.Interval | None:
        """Mean and interval of the differences to the baseline, seed by seed."""
        base = self.values(self.baseline, key)
        return intervals.interval(intervals.paired(self.values(point, key), base))

    def noise(self, key: str) -> intervals.Interval | None:
        """The baseline against itself: its second repetition less its first one, seed by seed."""
        return intervals.interval(
            intervals.paired(self.values(self.baseline, key, 1), self.values(self.baseline, key, 0))
        )

    def row(self, run: RunData) -> dict[str, Any]:
        """The row of runs.csv; it is made once."""
        if run.folder not in self._rows:
            self._rows[run.folder] = self._make_row(run)
        return self._rows[run.folder]

    def _make_row(self, run: RunData) -> dict[str, Any]:
        summary, seconds = run.summary, run.summary.get("round_seconds") or []
        events = [*run.run.replies, *run.run.failures]
        return {
            "point": run.point,
            **{f"factor_{key}": value for key, value in self.points[run.point].items()},
            "seed": run.seed,
            "repeat": run.repeat,
            "run_id": summary["run_id"],
            "status": summary["status"],
            "left_out": run.left_out or None,
            "oversubscribed": summary.get("oversubscribed"),
            "accuracy": summary.get("accuracy"),
            "loss": summary.get("loss"),
            "rounds": summary.get("rounds"),
            "clients": summary.get("clients"),
            "failures": len(summary.get("failures") or []),
            "late": summary.get("late"),
            "folded": summary.get("folded"),
            "updates_jain": summary.get("updates_jain"),
            "wall_seconds": summary.get("wall_seconds"),
            "round_seconds_mean": fmean(seconds) if seconds else None,
            "traffic_bytes": traffic(events) if events else None,
            "client_cpu_seconds": cpu_seconds(events),
            **(run.to_target(self.target) if self.target else {}),
            "model_sha256": summary.get("model_sha256"),
            "commit": (summary.get("versions") or {}).get("commit"),
            "started": summary.get("started"),
            "folder": run.folder.name,
        }


def read_run(folder: Path, point: str, seed: int, repeat: int, oversubscribed_too: bool) -> RunData:
    """Read a run's folder, and decide whether the run counts."""
    summary = experiment_runs.read(folder / "summary.json")
    if not summary:
        raise ComparisonError(f"{folder} holds no summary.json: name the folder of a run's results")
    run = gather(read_journal(folder / "journal.jsonl"))
    why = experiment_runs.spoilt(folder, summary)
    if not why and summary.get("oversubscribed") and not oversubscribed_too:
        why = OVERSUBSCRIBED
    return RunData(folder, summary, run, point, seed, repeat, why)


def of_experiment(folder: Path, oversubscribed_too: bool = False) -> Comparison:
    """Read an experiment's folder; of several runs with one key the last one that counts is compared."""
    path = folder / "experiment.json"
    if not path.exists():
        raise ComparisonError(
            f"{folder} holds no experiment: type ansible-playbook experiment.yml -e file=FILE"
        )
    about = load(path)
    points, keys = about["points"], about.get("keys", [])
    found: dict[str, RunData] = {}
    spare: list[RunData] = []
    for summary_file in sorted((folder / RUNS).glob("*/summary.json")):
        note = experiment_runs.note_of(experiment_runs.read(summary_file))
        if summary_file.parent.is_symlink() or note.get("point") not in points:
            continue  # the latter of an earlier version of the file
        run = read_run(summary_file.parent, note["point"], note["seed"], note["repeat"], oversubscribed_too)
        if note.get("world") != about.get("world"):
            run.left_out = run.left_out or experiment_runs.OTHER_CLIENTS
        before = found.get(note["key"])
        if before is not None and (run.left_out or not before.left_out):
            run, before = (before, run) if run.left_out else (run, before)
            before.left_out = before.left_out or "repeated"
        if before is not None:
            spare.append(before)
        found[note["key"]] = run
    places = {point: place for place, point in enumerate(points)}
    runs = sorted(
        [*found.values(), *spare], key=lambda run: (places[run.point], run.seed, run.repeat, run.folder.name)
    )
    there = {key for key, run in found.items() if run.left_out in ("", OVERSUBSCRIBED)}
    return Comparison(
        name=about["name"],
        points=points,
        runs=runs,
        baseline=about["baseline"],
        target=about["target"],
        description=about.get("description") or "",
        missing=len(set(keys) - there),
    )


def load(path: Path) -> dict[str, Any]:
    """Read a JSON file of ours.

    Raises
    ------
    ComparisonError
        If it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComparisonError(f"{path} is not JSON ({error}): fetch the run again") from None
    if not isinstance(content, dict):
        raise ComparisonError(f"{path} is not what a run leaves: fetch the run again")
    return content


def find(results: Path, name: str) -> Path:
    """Find a run's folder by its id, its name, the folder's name, or its path."""
    if (results / name / "summary.json").exists():
        return (results / name).resolve()
    if (Path(name) / "summary.json").exists():
        return Path(name)
    candidates = [*results.glob("*/summary.json"), *results.glob("experiments/*/runs/*/summary.json")]
    found = [
        path.parent
        for path in candidates
        if not path.parent.is_symlink()
        and name in (str((it := experiment_runs.read(path)).get("run_id")), it.get("run_name"))
    ]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise ComparisonError(
            f"{what} {name} in {results}: type the run's id, as the first line of its report has it"
        )
    return found[0]


def settings_of(folder: Path) -> dict[str, str]:
    """A run's settings as texts, and the limits that its clients had at its begin, with how many had each."""
    found = {key: called(value) for key, value in config_of(folder).items() if key not in UNVARIED}
    path = folder / "inventory.json"
    clients = load(path).get("clients", []) if path.exists() else []
    found["clients"] = str(len(clients))
    for key in LIMITS:
        values = [client.get(key) for client in clients]
        counts = {value: values.count(value) for value in values if value is not None}
        shown = [f"{value:g} x {count}" for value, count in sorted(counts.items())]
        found[f"clients' {key}"] = ", ".join(shown) or "none"
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """A run's variables.

    Raises
    ------
    ComparisonError
        If the file with them is none of ours.
    """
    path = folder / "config.yml"
    try:
        content = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}
    except yaml.YAMLError as error:
        raise ComparisonError(f"{path} is not YAML ({error}): fetch the run again") from None
    if not isinstance(content, dict):
        raise ComparisonError(f"{path} is not what a run leaves: fetch the run again")
    return content


def of_runs(
    names: Sequence[str], results: Path, baseline: str, target: Mapping[str, float], oversubscribed_too: bool
) -> Comparison:
    """Compare runs that were not planned together: equal settings make a point."""
    folders = list(dict.fromkeys(find(results, name) for name in names))
    if len(folders) < 2:
        raise ComparisonError("there are not two different runs to compare: type -e runs=RUN_ID,RUN_ID")
    settings = [settings_of(folder) for folder in folders]
    keys = dict.fromkeys(key for found in settings for key in found)
    varied = [key for key in keys if len({found.get(key) for found in settings}) > 1]
    points: dict[str, dict[str, str]] = {}
    counted: dict[tuple[str, int], int] = {}
    runs, of_baseline = [], ""
    for folder, found in zip(folders, settings, strict=True):
        factors = {key: found.get(key, "-") for key in varied}
        point = hashlib.sha256(json.dumps(factors).encode()).hexdigest()[:8]
        points.setdefault(point, factors)
        seed = int(experiment_runs.read(folder / "summary.json").get("seed") or 0)
        repeat = counted[point, seed] = counted.get((point, seed), -1) + 1
        runs.append(read_run(folder, point, seed, repeat, oversubscribed_too))
        if baseline and folder == find(results, baseline):
            of_baseline = point
    if baseline and not of_baseline:
        raise ComparisonError(f"baseline={baseline} is none of the runs: type one of {', '.join(names)}")
    return Comparison("Comparison", points, runs, of_baseline or runs[0].point, target)


def interval_text(found: intervals.Interval, metric: Metric) -> str:
    """Write a mean with half its interval, as far as there is one."""
    half = "" if found.half is None else f" ± {metric.shown(found.half)}"
    return f"{metric.shown(found.mean)}{half}"
