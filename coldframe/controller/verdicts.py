"""Judges what a scenario asserts by the records of its run, and names the lines that speak against it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any

from coldframe.controller import deliveries
from coldframe.controller.assertions import COUNTS, NUMBERS, OPERATORS, RECOVERY, RESTARTS, Assertion
from coldframe.controller.records import Event, Line, Run, happened, named

JOURNAL, EVENTS = "journal.jsonl", "events.jsonl"
MOST = 5  # lines that are named
OF_AGENTS = ("limits_verified", "lateness", RECOVERY, RESTARTS)  # figures that the agents' events decide
RESTARTED = "container restarted"  # cause of an agent's event
Place = tuple[str, int]  # a file of the results folder, and a line of it, from 1


@dataclass(frozen=True)
class Records:
    """What a run is judged by.

    Attributes
    ----------
    summary : mapping
        The content of `summary.json`.
    run : Run
        Gathered from the very events of `journal`.
    journal : sequence of (int, dict)
        The events of `journal.jsonl`, each with the number of its line, from 1.
    events : sequence of dict, optional
        The agents' events of the run's time, in the order of the lines of `events.jsonl`; None where nobody
        asked the agents.
    silent : mapping
        The machines whose agents did not answer, each with its clients.
    """

    summary: Mapping[str, Any]
    run: Run
    journal: Sequence[Line]
    events: Sequence[Event] | None
    silent: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def lines(self, *kinds: str) -> list[Line]:
        """Return the journal's events of some kinds."""
        return [(number, event) for number, event in self.journal if event["event"] in kinds]


@dataclass(frozen=True)
class Verdict:
    """What became of an assertion.

    Attributes
    ----------
    found : str
        What was found.
    against : tuple of str
        Of one that does not hold, the first lines of the records that speak against it: ``journal.jsonl:7``.
    more : int
        How many there are besides.
    """

    text: str
    passed: bool
    found: str
    against: tuple[str, ...] = ()
    more: int = 0


def judge(assertion: Assertion, records: Records) -> Verdict:
    """Judge an assertion by a run's records; what is not known does not hold."""
    if assertion.figure == "limits_verified":
        passed, found, places = _limits(records)
    elif assertion.figure == "no_lost_update":
        passed, found, numbers = deliveries.judge(records.journal, records.run, records.summary["status"])
        places = in_journal(numbers)
    elif assertion.figure == RECOVERY:
        passed, found, places = _recovery(assertion, records)
    elif assertion.exactly is not None:
        passed, found, places = _exactly(assertion.exactly, records)
    else:
        value, places = _figure(assertion, records)
        passed = value is not None and OPERATORS[assertion.sign](value, assertion.number)
        found = "not known" if value is None else f"{value:.6g}"
    if passed and (unknown := _unknown(assertion, records)):
        passed, found, places = False, f"not known for {named(unknown)}", []
    if passed:
        return Verdict(assertion.text, True, found)
    against = sorted(set(places), key=lambda place: (place[0] != JOURNAL, place))
    shown = tuple(f"{file}:{number}" for file, number in against[:MOST])
    return Verdict(assertion.text, False, found, shown, len(against) - len(shown))


def _unknown(assertion: Assertion, records: Records) -> list[str]:
    """Return the machines with clients that an assertion is about, and whose agents did not answer."""
    if assertion.figure not in OF_AGENTS:
        return []
    return [
        machine
        for machine, clients in records.silent.items()
        if any(matches({"client": client}, assertion.where) for client in clients)
    ]


def in_journal(numbers: Iterable[int]) -> list[Place]:
    """Return the places of lines of the journal."""
    return [(JOURNAL, number) for number in numbers]


def _limits(records: Records) -> tuple[bool, str, list[Place]]:
    if records.events is None:
        return False, "not known", []
    wrong = [(number, event) for number, event in enumerate(records.events, 1) if event.get("holds") is False]
    names = {str(event["client"]) for _, event in wrong}
    found = f"not for {named(names)}" if wrong else "all hold"
    return not wrong, found, [(EVENTS, number) for number, _ in wrong]


def _figure(assertion: Assertion, records: Records) -> tuple[float | None, list[Place]]:
    """Return the figure that an assertion is about, and the lines that it comes from."""
    name = assertion.figure
    if name in COUNTS:
        return _count(assertion, records)
    if name in NUMBERS:
        value = records.summary.get(name)
        known = isinstance(value, int | float) and math.isfinite(value)
        return value if known else None, _source(name, records)
    if name == "lateness":
        # Of an entry the latest of its clients counts.
        entries = (records.summary.get("scenario") or {}).get("entries", [])
        values = [entry["lateness"] for entry in entries if entry["lateness"] is not None]
        own = [
            ((EVENTS, number), float(event["lateness"]))
            for number, event in enumerate(records.events or (), 1)
            if event["cause"] == "scenario"
        ]
    else:
        values = list(records.summary[name])
        own = [
            ((JOURNAL, number), float(event["seconds"]))
            for number, event in records.lines("round")
            if event["round"] > 0
        ]
    if not values:
        return None, []
    compare = OPERATORS[assertion.sign]
    wrong = [place for place, value in own if not compare(value, assertion.number)]
    return statistic_of(assertion.statistic, sorted(values)), wrong or [place for place, _ in own]


def _source(name: str, records: Records) -> list[Place]:
    """Return the line of the journal that decides a number of the summary."""
    rounds = records.lines("round")
    if name in ("accuracy", "loss"):
        decides = [line for line in rounds if line[1].get("accuracy") is not None] or rounds
    elif name == "clients":
        decides = records.lines("run_started")
    else:
        decides = list(records.journal)
    return in_journal(number for number, _ in decides[-1:])


def _count(assertion: Assertion, records: Records) -> tuple[float | None, list[Place]]:
    name, summary = assertion.figure, records.summary
    if name == RESTARTS:
        found = restarts(records)
        if found is None:
            return None, []
        places = [(EVENTS, number) for number, event in found if matches(event, assertion.where)]
        return len(places), places
    if name == "discarded":
        known = summary.get("updates") is not None
        lines = [line for line in records.lines("update") if line[1]["reason"]]
    else:
        known = name == "failures" or summary.get(name) is not None
        lines = records.lines({"failures": "failure"}.get(name, name))
    if not known:
        return None, []
    numbers = [number for number, event in lines if matches(event, assertion.where)]
    return len(numbers), in_journal(numbers)


def matches(event: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Whether an event is meant: its client by a pattern, its reason by words of it, the rest as it is."""
    for key, wanted in where.items():
        value = str(event.get(key))
        words = key == "reason"
        if not (wanted.lower() in value.lower() if words else fnmatchcase(value, wanted)):
            return False
    return True


def statistic_of(name: str, values: Sequence[float]) -> float:
    """Return a statistic of sorted values; quantiles are interpolated.

    >>> [statistic_of(name, [1.0, 2.0, 3.0, 10.0]) for name in ("mean", "median", "max")]
    [4.0, 2.5, 10.0]
    """
    if name == "mean":
        return fmean(values)
    share = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}[name]
    place = share * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


def restarts(records: Records) -> list[Line] | None:
    """Return the events of the run's restarts, with their lines; None where nobody knows.

    The start of a client that had left is none: it comes back, as its timeline says. That of one that was
    killed is one, whoever killed it. An agent that died may have told the same start twice. What counts is
    when it was, not when the agent noticed it.
    """
    if records.events is None:
        return None
    found: list[Line] = []
    left: set[str] = set()
    known: set[tuple[str, float]] = set()
    for number, event in sorted(enumerate(records.events, 1), key=lambda line: happened(line[1])):
        client, moment = str(event["client"]), happened(event)
        if moment < (records.run.first or 0.0):
            continue
        if event["cause"] == "scenario" and event.get("do") == "leave" and event.get("holds"):
            left.add(client)
        elif event["cause"] == RESTARTED and (client, moment) not in known:
            known.add((client, moment))
            if client not in left:
                found.append((number, event))
            left.discard(client)
    return found


def _exactly(wanted: Mapping[str, int], records: Records) -> tuple[bool, str, list[Place]]:
    """Judge whether exactly these clients restarted, this often."""
    found = restarts(records)
    if found is None:
        return False, "not known", []
    counts = Counter(str(event["client"]) for _, event in found)
    other = {name for name in {*counts, *wanted} if counts[name] != wanted.get(name, 0)}
    said = ", ".join(f"{name}: {counts[name]}" for name in sorted({*counts, *other}))
    places = [(EVENTS, number) for number, event in found if event["client"] in other]
    return not other, said or "none", places


@dataclass(frozen=True)
class Effect:
    """An entry's effect on a client that is over.

    Attributes
    ----------
    moment : float
        Unix time at which its end began; of a kill, at which it had been done.
    line : int
        Of the event that says so.
    """

    client: str
    entry: int
    moment: float
    line: int


Lines = dict[tuple[str, int], int]  # by client and entry, the line of an event


def effects(kind: str, events: Sequence[Event]) -> tuple[list[Effect], Lines, Lines]:
    """Return the effects of a kind of entries that are over, those that lasted until the end, and those that
    were not done: the agent had refused it, or no process was killed."""
    over: list[Effect] = []
    lasting: Lines = {}
    undone: Lines = {}
    for number, event in enumerate(events, 1):
        client, entry, do = str(event["client"]), event.get("entry"), event.get("do")
        moment = float(event["time"]) - float(event.get("seconds") or 0.0)
        if event["cause"] == "scenario" and do == kind:
            if _was_not_done(event):
                undone[client, int(entry or 0)] = number
            elif kind == "kill":  # the process is surely dead when the event is written, not when it began
                over.append(Effect(client, int(entry or 0), float(event["time"]), number))
            else:
                lasting[client, int(entry or 0)] = number
        elif event["cause"] == "scenario ended" and do == kind:
            ended = [(client, int(entry or 0))]
            over += [Effect(*key, moment, number) for key in ended if lasting.pop(key, None)]
        elif _ends_all(kind, str(event["cause"]), str(do)):
            ended = [key for key in lasting if key[0] == client]
            over += [Effect(*key, moment, number) for key in ended if lasting.pop(key, None)]
    return over, lasting, undone


def _was_not_done(event: Event) -> bool:
    """Whether an entry did nothing; limits of a client that does not run are done: it gets them later."""
    if event["do"] == "kill":
        return event.get("holds") is False and not (event.get("verified") or {}).get("killed")
    return bool(event.get("refused"))


def _ends_all(kind: str, cause: str, do: str) -> bool:
    """Whether an event is about the end of all of a client's effects of a kind."""
    if kind == "leave":
        return (cause, do) in (("scenario", "join"), ("scenario ended", "undo"))
    by_hand = cause == "undo" and kind in ("throttle", "partition")  # throttle.yml -e undo=true
    return by_hand or (cause in ("scenario", "scenario ended") and do == "undo")


def _recovery(assertion: Assertion, records: Records) -> tuple[bool, str, list[Place]]:
    """Judge how long clients took to answer a round again after what was done to them was over."""
    begins: dict[int, float] = {}
    for _, event in records.lines("phase_started"):
        if event["round"] is not None:
            begins.setdefault(event["round"], float(event["time"]))
    if records.events is None or not begins:
        return False, "not known", []
    over, lasting, undone = effects(assertion.kind, records.events)
    if not (over or lasting or undone):
        return False, f"not known: no {assertion.kind} happened", []
    answers: dict[str, list[Line]] = {}
    for number, event in records.lines("reply"):
        if not event.get("refused"):
            answers.setdefault(event["client"], []).append((number, event))
    places = [(EVENTS, number) for number in (*undone.values(), *lasting.values())]
    problems = [f"entry {entry} was not done to {client}" for client, entry in sorted(undone)]
    problems += [
        f"entry {entry} lasted for {client} until the run ended" for client, entry in sorted(lasting)
    ]
    worst: tuple[float, Effect] | None = None
    for effect in over:
        again = next(
            (line for line in answers.get(effect.client, []) if line[1]["time"] > effect.moment), None
        )
        if again is None:
            problems.append(f"{effect.client} has not answered after entry {effect.entry}")
            places.append((EVENTS, effect.line))
            continue
        came = float(again[1]["time"])
        took = came - effect.moment
        if assertion.unit == "rounds":
            took = sum(effect.moment < begin <= came for begin in begins.values())
        if worst is None or took > worst[0]:
            worst = (took, effect)
        if not OPERATORS[assertion.sign](took, assertion.number):
            places += [(EVENTS, effect.line), (JOURNAL, again[0])]
    if problems or worst is None:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return False, problems[0] + more, places
    took, effect = worst
    unit = assertion.unit if took != 1 else assertion.unit.removesuffix("s")
    passed = OPERATORS[assertion.sign](took, assertion.number)
    return passed, f"{took:.4g} {unit}, {effect.client} after entry {effect.entry}", places
