"""The file of an experiment: what it varies, the runs that follow from it, and what is wrong with it.

    name: alpha                       # default: the file's name
    base: {rounds: 10, max_samples: 6000}
    grid:
      partitioner_args: [{alpha: 0.1}, {alpha: 1.0}]
      policy:                         # no variable: each value is a set of variables
        - {name: plain}
        - {name: proximal, fl_strategy: fedprox, strategy_args: {proximal_mu: 0.1}}
      limits: [none, {clients: 'c1-*', cpu: 0.2}]
    seeds: [0, 1, 2]
    target: {accuracy: 0.9}

A *factor* is a key of the grid, a *point* one combination of its values, and a *run* a point with a seed and
the number of its repetition.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coldframe.controller import scenario
from coldframe.controller.settings import RUN, RUN_CONFIG_KEYS, RUN_NAME, Finding, cast, nearest
from coldframe.limits import LIMITS

MOST_RUNS = 1000
MOST_NUMBER = 1e12
ORDERS = ("blocked", "by_point")
TARGETS = ("accuracy", "loss")
KEYS = (
    "name",
    "description",
    "base",
    "grid",
    "points",
    "seeds",
    "repeats",
    "order",
    "retries",
    "target",
    "stop_at_target",
    "max_seconds",
    "seed_key",
    "baseline",
    "baseline_repeats",
)
# The same for all runs: they are sent to the machines once, before the first one.
ONLY_BASE = ("app", "app_data", "dataset")
# What the experiment decides by itself.
OWN = {
    "seed": "list the seeds below seeds:",
    "run_name": "the runs are named by their points",
    "wait": "an experiment follows its runs",
    "concurrent": "its runs come one after another",
    "interrupt": "its runs come one after another",
    "collect": "the runs of an experiment are collected",
    "stop": "type ansible-playbook run.yml -e stop=RUN_ID",
    "follow": "type ansible-playbook run.yml -e follow=RUN_ID",
    "resume": "type ansible-playbook experiment.yml again: it repeats what has failed",
    "resume_changed": "type ansible-playbook experiment.yml again: it repeats what has failed",
    "replay": "type ansible-playbook run.yml -e replay=RUN_ID",
}
LIMIT_KEYS = (*LIMITS, "profile", "clients", "fraction", "seed")
NO_LIMITS = "none"


@dataclass(frozen=True)
class Point:
    """One combination of what an experiment varies.

    Attributes
    ----------
    factors : mapping
        Factor -> what its value is called.
    values : mapping
        All variables of run.yml, typed.
    limits : sequence of mapping
        The limits of clients while the point's runs train, as throttle.yml takes them; all others keep those
        that they were deployed with.
    until : mapping
        What ends a run early: ``accuracy`` or ``loss`` that a round reaches, ``seconds``.
    scenario : str
        The hash of what its scenario says, wherever the file lies; empty where there is none.
    """

    factors: Mapping[str, str]
    values: Mapping[str, Any]
    limits: Sequence[Mapping[str, Any]] = ()
    until: Mapping[str, float] = field(default_factory=dict)
    scenario: str = ""

    @property
    def id(self) -> str:
        """A hash over what the point is; a default that is written down does not change it."""
        varied = {
            name: self.values[name]
            for name, variable in RUN.items()
            if name not in (*OWN, "scenario") and self.values[name] != variable.default
        }
        what = [varied, list(self.limits), dict(self.until), *([self.scenario] if self.scenario else [])]
        text = json.dumps(what, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """What tells it from the others, for people."""
        return label(self.factors)


def label(factors: Mapping[str, str]) -> str:
    """Name a point by its factors.

    >>> label({"rounds": "5", "limits": "slow"}), label({})
    ('rounds 5, limits slow', 'base')
    """
    return ", ".join(f"{key} {value}" for key, value in factors.items()) or "base"


@dataclass(frozen=True)
class PlannedRun:
    """A point with a seed, and the number of its repetition, from 0."""

    point: Point
    seed: int
    repeat: int

    @property
    def key(self) -> str:
        """What tells it from all other runs of any experiment of that name."""
        return f"{self.point.id}-s{self.seed}-r{self.repeat}"


@dataclass(frozen=True)
class Experiment:
    """An experiment that has been read.

    Attributes
    ----------
    order : str
        ``blocked``: one seed of every point before the next seed, so that a drift of the machines reaches all
        points alike; ``by_point``: all runs of a point before the next point.
    retries : int
        How often a failed run is tried again.
    target : mapping
        ``accuracy`` or ``loss`` -> value whose first round is looked for.
    baseline : int
        The point that all others are compared with.
    baseline_repeats : int
        Runs of the baseline per seed: from two on they show the noise between equal runs.
    seed_key : str
        The key of another app's run config that takes the seed; empty where our own app runs.
    """

    name: str
    points: Sequence[Point] = ()
    seeds: Sequence[int] = (0,)
    repeats: int = 1
    order: str = "blocked"
    retries: int = 1
    target: Mapping[str, float] = field(default_factory=dict)
    baseline: int = 0
    baseline_repeats: int = 1
    seed_key: str = ""
    description: str = ""

    def runs(self) -> list[PlannedRun]:
        """All runs, in their order."""

        def of(place: int) -> Iterator[tuple[Point, int]]:
            count = max(self.repeats, self.baseline_repeats if place == self.baseline else 1)
            return ((self.points[place], repeat) for repeat in range(count))

        places = range(len(self.points))
        if self.order == "blocked":
            most = max(self.repeats, self.baseline_repeats)
            return [
                PlannedRun(point, seed, repeat)
                for seed in self.seeds
                for turn in range(most)
                for place in places
                for point, repeat in of(place)
                if repeat == turn
            ]
        return [
            PlannedRun(point, seed, repeat)
            for place in places
            for seed in self.seeds
            for point, repeat in of(place)
        ]


def read(path: Path, typed: str = "") -> tuple[Experiment | None, list[Finding]]:
    """Read the file of an experiment; the experiment if it is one, and all findings about it.

    ``typed`` is what the file was called with ``-e``.
    """
    shown = typed or path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(content)  # as it travels
    except OSError as error:
        return None, [
            Finding(f"file={shown} cannot be read ({error.strerror})", "type -e file=FILE with another")
        ]
    except TypeError as error:  # a date, or such a key
        remedy = "put quotes around what looks like a date, and write keys as text"
        return None, [
            Finding(f"{shown} holds a value that is no text, number, list or set ({error})", remedy)
        ]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return None, [Finding(f"{shown} is not YAML ({' '.join(str(error).split())})", "correct it there")]
    if not isinstance(content, Mapping) or not content:
        remedy = "write base:, grid: and seeds: as docs/experiments.md shows"
        return None, [Finding(f"{shown} is not the description of an experiment", remedy)]
    return build(content, path.stem)


def build(content: Mapping[Any, Any], name: str) -> tuple[Experiment | None, list[Finding]]:
    """Make an experiment of a file's content; ``name`` is the default of its name."""
    findings = [
        _unknown(f"unknown key {key!r} of the experiment", key, KEYS) for key in content if key not in KEYS
    ]
    name = str(content.get("name") or name)
    if not re.fullmatch(RUN_NAME, name):
        remedy = "write letters, digits, dots, - and _"
        findings.append(Finding(f"name: {name!r} cannot be a folder's name", remedy))
    base = content.get("base") or {}
    if not isinstance(base, Mapping):
        return None, [*findings, Finding("base: is not a set of variables", "write base: {rounds: 10}")]
    combinations, found = _combinations(content)
    findings += found
    seeds, found = _seeds(content.get("seeds", [0]))
    findings += found
    counts, found = _counts(content)
    findings += found
    order = content.get("order", "blocked")
    if order not in ORDERS:
        findings.append(Finding(f"order: {order!r} is not known", f"write order: {ORDERS[0]} or {ORDERS[1]}"))
    target, until, found = _target(content)
    findings += found
    findings += _check_seed_key(content, base, seeds)
    # The product may be huge: it is counted before it is made.
    again = max(0, counts["baseline_repeats"] - counts["repeats"])
    count = (combinations.count * counts["repeats"] + again) * len(seeds)
    if count > MOST_RUNS:
        remedy = "vary less, or write several experiments"
        findings.append(Finding(f"the experiment has {count} runs, and {MOST_RUNS} are the most", remedy))
        return None, findings
    points, found = _points(base, combinations, until)
    findings += found
    baseline, found = _baseline(content.get("baseline"), points)
    findings += found
    if findings:
        return None, findings
    return (
        Experiment(
            name=name,
            points=points,
            seeds=seeds,
            order=order,
            target=target,
            baseline=baseline,
            seed_key=str(content.get("seed_key") or ""),
            description=str(content.get("description") or ""),
            **counts,
        ),
        [],
    )


def _unknown(problem: str, name: Any, known: Collection[str]) -> Finding:
    near = nearest(str(name), known)
    return Finding(problem, f"did you mean {near!r}?" if near else f"there are {', '.join(known)}")


def _counts(content: Mapping[Any, Any]) -> tuple[dict[str, int], list[Finding]]:
    """The numbers of repetitions and retries."""
    counts, findings = {}, []
    for key, least in (("repeats", 1), ("baseline_repeats", 1), ("retries", 0)):
        value = content.get(key, 1)
        fits = _is_whole(value) and least <= value <= MOST_RUNS
        counts[key] = value if fits else 1
        if not fits:
            problem = f"{key}: {value!r} is not a whole number from {least} to {MOST_RUNS}"
            findings.append(Finding(problem, f"write {key}: 1"))
    return counts, findings


def _check_seed_key(
    content: Mapping[Any, Any], base: Mapping[Any, Any], seeds: Sequence[int]
) -> list[Finding]:
    """Findings about seeds of another app, which has no variable of ours for them."""
    key = content.get("seed_key")
    if key is not None and (not isinstance(key, str) or not key):
        return [Finding(f"seed_key: {key!r} is no key of a run config", "write seed_key: seed")]
    if key and not base.get("app"):
        return [Finding("seed_key is there, and no app in base:", "leave it out: our app takes the seeds")]
    if base.get("app") and not key and len(seeds) > 1:
        remedy = "write seed_key: KEY with the key of its run_config, or repeats: 3 in place of seeds"
        return [Finding("seeds: another app does not get them", remedy)]
    return []


@dataclass(frozen=True)
class _Combinations:
    """The combinations of a file, made one after another: each a list of (factor, place, value)."""

    factors: Mapping[str, Sequence[Any]]
    listed: Sequence[Mapping[str, Any]]

    @property
    def count(self) -> int:
        if self.listed:
            return len(self.listed)
        count = 1
        for values in self.factors.values():
            count *= len(values)
        return count

    def __iter__(self) -> Iterator[list[tuple[str, str, Any]]]:
        if self.listed:
            for place, entry in enumerate(self.listed):
                yield [("point", f"points[{place}]", entry)]
            return
        for places in itertools.product(*(range(len(values)) for values in self.factors.values())):
            yield [
                (factor, f"grid: {factor}[{place}]", self.factors[factor][place])
                for factor, place in zip(self.factors, places, strict=True)
            ]


def _combinations(content: Mapping[Any, Any]) -> tuple[_Combinations, list[Finding]]:
    grid, listed = content.get("grid") or {}, content.get("points") or []
    findings = []
    if grid and listed:
        findings.append(Finding("grid: and points: are both there", "leave one of them out"))
    if not isinstance(grid, Mapping):
        remedy = "write grid: {rounds: [5, 10]}"
        return _Combinations({}, []), [*findings, Finding("grid: is not a set of lists", remedy)]
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        remedy = "write points: [{name: short, rounds: 5}, {name: long, rounds: 10}]"
        return _Combinations({}, []), [
            *findings,
            Finding("points: is not a list of sets of variables", remedy),
        ]
    factors: dict[str, Sequence[Any]] = {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            remedy = f"write grid: {{{key}: [VALUE, VALUE]}}"
            findings.append(Finding(f"grid: {key} is not a list of values", remedy))
        else:
            factors[str(key)] = values
            labels = [label_of(value) for value in values]
            twice = sorted({name for name in labels if labels.count(name) > 1})
            if twice:
                findings.append(Finding(f"grid: {key} has {twice[0]!r} twice", "give each another name"))
    return _Combinations(factors, listed), findings


def _points(
    base: Mapping[str, Any], combinations: _Combinations, until: Mapping[str, float]
) -> tuple[list[Point], list[Finding]]:
    """The points, and each finding once, however many points have its cause."""
    common = {key: value for key, value in base.items() if key != "limits"}
    findings = _check_variables("base", common, in_base=True)
    base_limits, found = _limits("base: limits", base.get("limits"))
    findings += found
    points: list[Point] = []
    foreign = bool(base.get("app"))
    for combination in combinations:
        given, limits, factors = dict(common), base_limits, {}
        for factor, place, value in combination:
            varied, called, found = _varied(factor, place, value)
            findings += [finding for finding in found if finding not in findings]
            if "limits" in varied:
                limits, found = _limits(f"{place}: limits", varied.pop("limits"))
                findings += [finding for finding in found if finding not in findings]
            given |= varied
            factors[factor] = called
        if foreign:
            found = _check_foreign(given)
            findings += [finding for finding in found if finding not in findings]
        values, found = cast("run", given)
        findings += [told for told in map(reworded, found) if told not in findings]
        of_scenario = scenario.digest(scenario.path_of(values, Path.cwd()))
        points.append(Point(factors, values, tuple(limits), until, of_scenario))
    seen: dict[str, Point] = {}
    for point in [] if findings else points:
        if point.id in seen:
            problem = f"the points {seen[point.id].name!r} and {point.name!r} are the same"
            findings.append(Finding(problem, "leave one of them out; repeats: 2 repeats runs"))
        seen[point.id] = point
    return points, findings


def _check_foreign(given: Mapping[str, Any]) -> list[Finding]:
    """Findings about variables of our own training, which another app does not get."""
    return [
        Finding(f"{name} is a variable of our own training", "write it into run_config, under the app's key")
        for name in given
        if name in RUN_CONFIG_KEYS
    ]


def _varied(factor: str, place: str, value: Any) -> tuple[dict[str, Any], str, list[Finding]]:
    """The variables that a value of a factor sets, what it is called, and the findings about it."""
    if factor in RUN or factor == "limits":
        findings = _check_variables(place, {factor: value} if factor != "limits" else {})
        return {factor: _nameless(value) if factor == "limits" else value}, label_of(value), findings
    if not isinstance(value, Mapping):
        near = nearest(factor, RUN)
        meant = f"did you mean {near}? " if near else ""
        problem = f"{factor!r} in grid: is no variable of run.yml, and {value!r} is no set of variables"
        return {}, "", [Finding(problem, f"{meant}Write {factor}: [{{name: plain}}, {{rounds: 10}}]")]
    varied = {key: item for key, item in value.items() if key != "name"}
    findings = _check_variables(place, {key: item for key, item in varied.items() if key != "limits"})
    return varied, label_of(value), findings


def _nameless(value: Any) -> Any:
    return (
        {key: item for key, item in value.items() if key != "name"} if isinstance(value, Mapping) else value
    )


def _check_variables(place: str, given: Mapping[Any, Any], in_base: bool = False) -> list[Finding]:
    """Findings about names; values are judged with all that they are combined with."""
    findings = []
    for name in given:
        if name in OWN:
            findings.append(Finding(f"{place} sets {name}", OWN[name]))
        elif name in ONLY_BASE and not in_base:
            remedy = "write it below base:, or write an experiment for each"
            findings.append(Finding(f"{place} varies {name}, which is the same for all runs", remedy))
        elif name not in RUN:
            known = [other for other in RUN if other not in OWN]
            findings.append(_unknown(f"{place} has the unknown variable {name!r}", name, known))
    return findings


def _limits(place: str, value: Any) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The limits of a point as typed variables of throttle.yml: one set, or a list of sets for several
    groups of clients."""
    if value in (None, "", NO_LIMITS, {}, []):
        return [], []
    entries = value if isinstance(value, list) else [value]
    typed_entries, findings = [], []
    for entry in entries:
        if not isinstance(entry, Mapping):
            remedy = "write limits: {clients: 'c1-*', cpu: 0.2}, or limits: none"
            findings.append(Finding(f"{place}: {entry!r} is no set of limits", remedy))
            continue
        for key in entry:
            if key not in LIMIT_KEYS:
                findings.append(_unknown(f"{place} has the unknown key {key!r}", key, LIMIT_KEYS))
        known = {key: item for key, item in entry.items() if key in LIMIT_KEYS}
        values, found = cast("throttle", known)
        findings += [reworded(finding, place) for finding in found]
        typed_entries.append({key: values[key] for key in LIMIT_KEYS if values[key] is not None})
        if not any(key in known for key in (*LIMITS, "profile")):
            findings.append(Finding(f"{place} has no limit", f"add one of {', '.join(LIMITS)}, profile"))
    return typed_entries, findings


def reworded(finding: Finding, place: str = "") -> Finding:
    """A finding about what is typed, for somebody who writes it into a file.

    >>> reworded(Finding("rounds=x is no number", "type -e rounds=5")).remedy
    'write rounds: 5'
    """
    remedy = re.sub(r"-e '\{\"(\w+)\": (.*?)\}'", r"\1: \2", finding.remedy)
    remedy = re.sub(r"-e (\w+)=", r"\1: ", remedy)
    remedy = re.sub(r"\b([Tt])ype (?=\w+: )", lambda found: "Write " if found[1] == "T" else "write ", remedy)
    return Finding(f"{place}{': ' if place else ''}{finding.problem}", remedy, finding.machine)


def label_of(value: Any) -> str:
    """The name of a value of a factor: its own, or what it is."""
    if isinstance(value, Mapping) and value.get("name") is not None:
        return str(value["name"])
    return called(value)


def called(value: Any) -> str:
    """A value as a label.

    >>> called({"alpha": 0.1, "min_samples": 5}), called([]), called(True)
    ('alpha=0.1 min_samples=5', 'none', 'true')
    """
    if isinstance(value, Mapping):
        return " ".join(f"{key}={called(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return " + ".join(called(item) for item in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return fits and abs(value) < MOST_NUMBER  # neither is NaN


def _seeds(value: Any) -> tuple[list[int], list[Finding]]:
    seeds = value if isinstance(value, list) else [value]
    most = RUN["seed"].high or 0
    wrong = [seed for seed in seeds if not (_is_whole(seed) and 0 <= seed <= most)]
    if wrong or not seeds:
        shown = ", ".join(map(repr, wrong)) or "no seed"
        problem = f"seeds: {shown} is not a whole number from 0 to {most:.0f}"
        return [0], [Finding(problem, "write seeds: [0, 1, 2]")]
    if len(set(seeds)) < len(seeds):
        remedy = "leave it out; repeats: 2 repeats each seed"
        return seeds, [Finding("seeds: the same seed is there twice", remedy)]
    return seeds, []


def _target(content: Mapping[Any, Any]) -> tuple[dict[str, float], dict[str, float], list[Finding]]:
    """The target, what ends a run early, and the findings about both."""
    findings = []
    target = content.get("target") or {}
    fitting = isinstance(target, Mapping) and len(target) <= 1
    if not fitting or any(key not in TARGETS or not _is_number(item) for key, item in target.items()):
        findings.append(Finding(f"target: {target!r} is no target", "write target: {accuracy: 0.9}"))
        target = {}
    elif not 0 <= target.get("accuracy", 0) <= 1:
        problem = f"target: accuracy {target['accuracy']} is not from 0 to 1"
        findings.append(Finding(problem, "write target: {accuracy: 0.9}"))
    stop = content.get("stop_at_target", False)
    if not isinstance(stop, bool):
        findings.append(
            Finding(f"stop_at_target: {stop!r} is not true or false", "write stop_at_target: true")
        )
    elif stop and not target:
        findings.append(
            Finding("stop_at_target is there, and no target", "write target: {accuracy: 0.9} too")
        )
    most = content.get("max_seconds")
    if most is not None and not (_is_number(most) and most > 0):
        findings.append(Finding(f"max_seconds: {most!r} is not a number > 0", "write max_seconds: 600"))
    until = {**(target if stop is True else {}), **({} if most is None else {"seconds": most})}
    return dict(target), until, findings


def _baseline(value: Any, points: Sequence[Point]) -> tuple[int, list[Finding]]:
    """The place of the point that is named: by its factors, or by what one of them is called."""
    if value is None or not points:
        return 0, []
    if isinstance(value, Mapping):
        wanted = {str(key): called(item) for key, item in value.items()}
        found = [
            place
            for place, point in enumerate(points)
            if all(point.factors.get(key) == item for key, item in wanted.items())
        ]
    else:
        found = [place for place, point in enumerate(points) if str(value) in point.factors.values()]
    if found:
        return found[0], []
    first = json.dumps(dict(points[0].factors))
    return 0, [Finding(f"baseline: {value!r} is none of the points", f"write baseline: {first}")]
