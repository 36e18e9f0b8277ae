"""What an experiment does on the federation that stands: judged before its first run, and told as a plan.

The filters say during the experiment what is left to do, and how far it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from coldframe.controller import experiment, experiment_runs, scenario, throttle, training_set
from coldframe.controller.checks import Machine
from coldframe.controller.experiment import Experiment, PlannedRun, Point
from coldframe.controller.records import duration, named
from coldframe.controller.roster import run_config
from coldframe.controller.round_policy import check_policy
from coldframe.controller.settings import Finding, check_clients
from coldframe.controller.settings import cast as cast_values
from coldframe.limits import LIMITS, differences

BAR = 20  # characters
SHOWN = 12  # points of the plan
HISTORY = 5  # runs from before that an estimate is made of


class Judged(Protocol):
    """What is needed of `coldframe.controller.preflight.Preflight`."""

    call: Any
    experiment: Experiment | None
    findings: list[Finding]
    warnings: list[str]
    values: dict[str, Any]
    requests: dict[str, Any]
    roster: list[dict[str, Any]]
    clients: int | None
    packed: dict[str, Any]
    scenarios: dict[str, Any]

    @property
    def answered(self) -> list[Machine]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def variable(self, name: str) -> Any: ...


def read(it: Judged) -> None:
    """Read the file; the run's variables are then those of the first point."""
    given = it.values.get("file")
    if not given:
        remedy = "type -e file=experiments/stragglers.yml, or the path of your own"
        it.findings.append(Finding("experiment.yml was given no file", remedy))
        it.values = {**cast_values("run", {})[0], **it.values}
        return
    it.experiment, found = experiment.read(it.call.base / given, given)
    it.findings += found
    if it.experiment is None:
        it.values = {**cast_values("run", {})[0], **it.values}
        return
    points = it.experiment.points
    # An app's manifest judges all of its keys at once.
    keys = {key: value for point in points for key, value in point.values["run_config"].items()}
    keys |= {it.experiment.seed_key: it.experiment.seeds[0]} if it.experiment.seed_key else {}
    it.values = {**points[0].values, "run_config": keys, **it.values}


def check_points(it: Judged, prepared: Path) -> None:
    """Check what each point needs of clients and data, with every seed, and note the limits of each.

    A finding is made once, however many points have its cause.
    """
    if it.experiment is None:
        return
    folder = training_set.data_folder(it.settings, it.call.base)
    divided = set()
    for point in it.experiment.points:
        it.requests[point.id] = limit_requests(it, point)
        found = plan_scenario(it, point.id, point.values)
        found += check_clients(point.values, it.clients) + check_policy(point.values, it.clients)
        for seed in it.experiment.seeds:
            values = {**point.values, "seed": seed}
            names = ("dataset", "partitioner", "partitioner_args", "max_samples", "seed")
            what = json.dumps([values[name] for name in names], sort_keys=True)
            if what not in divided:
                divided.add(what)
                found += training_set.check_training_set(values, folder, len(it.roster), prepared)
        for finding in found:
            it.findings += [] if finding in it.findings else [finding]


def plan_scenario(it: Judged, key: str, values: Mapping[str, Any]) -> list[Finding]:
    """Note by `key` what becomes of the scenario that a run's variables name; the findings about it."""
    table, reference = it.variable("coldframe_profiles"), it.variable("coldframe_reference_speed")
    it.scenarios[key], findings, warned = scenario.for_run(
        values, it.call.base, it.roster, it.answered, table, reference
    )
    it.warnings += [warning for warning in warned if warning not in it.warnings]
    return findings


def limit_requests(it: Judged, point: Point) -> dict[str, dict[str, dict[str, Any]]]:
    """The limits that a point's runs have: by machine and client. What is wrong with them is a finding."""
    wanted: dict[str, dict[str, dict[str, Any]]] = {}
    table, reference = it.variable("coldframe_profiles"), it.variable("coldframe_reference_speed")
    for entry in point.limits:
        values = {**cast_values("throttle", {})[0], **entry}
        requests, found, warned = throttle.plan(
            values, it.roster, it.answered, table, reference, it.call.base
        )
        for finding in found:
            told = experiment.reworded(finding, f"limits of {point.name}")
            it.findings += [] if told in it.findings else [told]
        it.warnings += [warning for warning in warned if warning not in it.warnings]
        for machine, request in requests.items():
            for client, limits in request.get("limits", {}).items():
                of_client = wanted.setdefault(machine, {}).setdefault(client, {})
                of_client |= limits
    return wanted


def throttled_now(it: Judged) -> list[str]:
    """The clients whose limits are not those that they were deployed with, as their agents have read them."""
    return [
        name
        for machine in it.answered
        for name, found in (((machine.facts or {}).get("agent") or {}).get("clients") or {}).items()
        if found.get("verified") and differences(found["state"]["baseline"], found["desired"])
    ]


def plan(it: Judged, results: Path) -> dict[str, Any]:
    """Return what the playbook does, and the lines that tell it.

    Parameters
    ----------
    results : Path
        The folder that holds a folder per run.
    """
    assert it.experiment is not None
    folder = results / experiment_runs.FOLDER / it.experiment.name
    world = world_of(it)
    done = experiment_runs.done(folder / experiment_runs.RUNS, world)
    runs = it.experiment.runs()
    left = [run for run in runs if run.key not in done]
    seconds = estimate(left, done, results)
    throttled = throttled_now(it)
    if throttled:
        it.warnings.append(
            f"{named(throttled)}: throttled now; before each run all limits but those in the file are undone"
        )
    return {
        "name": it.experiment.name,
        "folder": str(folder),
        "text": (it.call.base / it.values["file"]).read_text(encoding="utf-8"),
        "limits": [wanted for wanted in it.requests.values() if wanted],
        "retries": it.experiment.retries,
        "runs": [
            planned(it.experiment, run, it.requests[run.point.id], world)
            | {"scenario": it.scenarios.get(run.point.id, {})}
            for run in left
        ],
        "lines": lines(it.experiment, runs, left, seconds),
        "seconds": seconds,
        "count": len(runs),
        "about": {  # what the comparison has to know, beside the runs
            "name": it.experiment.name,
            "description": it.experiment.description,
            "file": str(it.values["file"]),
            "points": {point.id: dict(point.factors) for point in it.experiment.points},
            "baseline": it.experiment.points[it.experiment.baseline].id,
            "target": dict(it.experiment.target),
            "keys": [run.key for run in runs],
            "world": world,
        },
    }


def world_of(it: Judged) -> str:
    """A hash of what all runs share and the file does not say: federation, clients, their limits, the app."""
    clients = [
        {key: client.get(key) for key in ("name", "machine", "profile", *LIMITS)} for client in it.roster
    ]
    shared = [it.settings.get("fl_federation"), clients, Path(it.packed.get("path", "")).name]
    return hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:8]


def planned(of: Experiment, run: PlannedRun, limits: Mapping[str, Any], world: str) -> dict[str, Any]:
    """One run, as the playbook takes it."""
    values = {**run.point.values, "seed": run.seed, "run_name": run.key}
    if of.seed_key:
        values["run_config"] = {**values["run_config"], of.seed_key: run.seed}
    note = {
        "name": of.name,
        "key": run.key,
        "point": run.point.id,
        "factors": dict(run.point.factors),
        "seed": run.seed,
        "repeat": run.repeat,
        "until": dict(run.point.until),
        "limits": limits,
        "world": world,
    }
    return {
        "key": run.key,
        "title": experiment_runs.title(note),
        "run": values,
        "run_config": run_config(values),
        "limits": limits,
        "until": dict(run.point.until),
        "note": note,
    }


def estimate(
    left: Sequence[PlannedRun], done: Mapping[str, experiment_runs.Record], results: Path
) -> float | None:
    """Seconds that the runs will take, by those of the experiment that are there, or else by the newest runs
    of the same data set; None where there are neither."""
    own = [record.seconds / max(record.rounds, 1) for record in done.values() if record.seconds]
    if not own and left:
        dataset = left[0].point.values["dataset"]
        own = experiment_runs.seconds_per_round(results, dataset, HISTORY)
    if not own:
        return None
    return median(own) * sum(run.point.values["rounds"] for run in left)


def some(count: int, noun: str) -> str:
    """Count things.

    >>> some(1, "seed"), some(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def lines(
    of: Experiment, runs: Sequence[PlannedRun], left: Sequence[PlannedRun], seconds: float | None
) -> list[str]:
    """Tell the plan."""
    again = f", {len(runs) - len(left)} of them there already" if len(left) < len(runs) else ""
    counted = f"{some(len(of.points), 'point')} x {some(len(of.seeds), 'seed')}"
    told = [f"Experiment {of.name}: {some(len(runs), 'run')} ({counted}){again}"]
    told += [f"  {of.description}"] if of.description else []
    for place, point in enumerate(of.points[:SHOWN]):
        mark = " (baseline)" if place == of.baseline and len(of.points) > 1 else ""
        told.append(f"  {point.id}  {point.name}{mark}")
    told += [f"  … and {len(of.points) - SHOWN} more points"] if len(of.points) > SHOWN else []
    if left:
        about = "known after the first run" if seconds is None else f"about {duration(seconds)}"
        told.append(f"  time: {about}; after an interruption type the same command again")
    return told


def coldframe_in_the_way(plan: Mapping[str, Any], found: Iterable[Mapping[str, Any]]) -> str:
    """Why an experiment cannot go on: a run that is running, and is none of those that it waits for."""
    waited = {item["key"] for item in plan["runs"]}
    for run in found:
        note = run.get("experiment") or {}
        ours = note.get("name") == plan["name"] and note.get("key") in waited
        if run["status"] != "finished" and not (ours and note.get("world") == plan["about"]["world"]):
            return (
                f"Run {run['run_id']} is running on the same clients: wait for its end, or stop it with "
                f"ansible-playbook run.yml -e stop={run['run_id']}"
            )
    return ""


def coldframe_pending(plan: Mapping[str, Any], found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is left to do, from the plan and the runs that the server knows.

    A run that goes on is followed, one that has ended and is not in the folder is collected, and the others
    are run. One that failed, or was stopped by somebody, is collected, and run again.
    """
    known: dict[str, Mapping[str, Any]] = {}
    for run in found:  # newest first
        note = run.get("experiment") or {}
        ours = note.get("name") == plan["name"] and note.get("world") == plan["about"]["world"]
        if ours and not run["pruned"]:
            known.setdefault(str(note["key"]), run)
    first: list[dict[str, Any]] = []
    then: list[dict[str, Any]] = []
    for item in plan["runs"]:
        there = known.get(item["key"])
        if there is None:
            then.append({**item, "do": "run", "found": {}})
        elif there["status"] != "finished":
            first.insert(0, {**item, "do": "follow", "found": there})
        else:
            lost = there["sub_status"] == "failed" or (there["sub_status"] == "stopped" and not item["until"])
            if not (lost and there["collected"]):
                first.append({**item, "do": "collect", "found": there})
            if lost:
                then.append({**item, "do": "run", "found": {}})
    return [*first, *then]


def coldframe_progress(
    pending: Sequence[Mapping[str, Any]], place: int, times: Sequence[float], plan: Mapping[str, Any]
) -> str:
    """The line before a run: a bar over the whole experiment, the time left, and which run it is.

    Parameters
    ----------
    place : int
        Of the run among those that are left, from 0.
    times : sequence of float
        Unix times of the beginnings of the runs before it in this call.
    """
    number = max(1, plan["count"] - len(pending) + place + 1)
    share = (number - 1) / max(plan["count"], 1)
    left = None
    if len(times) > 1:
        left = fmean(b - a for a, b in pairwise(times)) * (len(pending) - place)
    elif plan["seconds"] is not None:
        left = plan["seconds"] * (len(pending) - place) / max(len(pending), 1)
    bar = "=" * round(share * BAR)
    rest = "" if left is None else f"  about {duration(left)} left"
    return f"[{bar:<{BAR}}] run {number} of {plan['count']}: {pending[place]['title']}{rest}"


def coldframe_outcome(ended: Mapping[str, Any], told: Sequence[str], problems: Sequence[str]) -> list[str]:
    """The line about a run that was collected, from the closing words of its results."""
    said: dict[str, str] = {}
    for label in ("accuracy", "wall time", "results"):
        line = next((line for line in told if line.startswith(f"  {label} ")), "")
        said |= {label: line.strip().removeprefix(label).strip()} if line else {}
    folder = said.pop("results", "")
    facts = [f"{label} {value}" for label, value in said.items()]
    facts += [line.strip() for line in told if line.strip().startswith("FAILED: ")]  # what was asserted
    status = ended["sub_status"] or ended["status"]
    why = [str(ended["details"])] if ended.get("details") and status == "failed" else []
    note = ended.get("experiment") or {}
    what = experiment_runs.title(note) if note else f"run {ended['run_id']}"
    words = ", ".join([status, *why, *facts])
    return [f"    {what}: {words}" + (f", in {folder}" if folder else ""), *problems]
