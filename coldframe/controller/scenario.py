"""A scenario: what happens to clients while a run trains. Read and judged here, carried out by the agents.

    timeline:
      - {at: 20s, do: throttle, clients: 'c1-*', cpu: 0.1, for: 60s}
      - {round: 3, do: partition, clients: {fraction: 0.3, seed: 1}, for: 90s}
      - {round: 5, phase: evaluate, do: kill, clients: c1-0}
      - {after: 2 rounds, do: leave, clients: c2-0}
    assert: [accuracy >= 0.9]

An entry has one trigger, one action, and the clients that it is about. The agents know neither the controller
nor the server: each machine counts `at` from the first task of the run that one of its clients begins, and a
`round` begins there with the first task of that round. `after` counts from when the entry before it was due
on that machine, whichever clients that is about. Rounds after a round, and seconds after seconds, are known
here: such an entry becomes one with `round` or `at`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coldframe.controller import assertions, throttle
from coldframe.controller.checks import Machine
from coldframe.controller.settings import MONTH, VERBS, Finding, Variable, cast, cast_value, nearest
from coldframe.limits import LIMITS

NONE = "none"  # instead of a file
KEYS = ("timeline", "assert")
ACTIONS = ("throttle", "partition", "pause", "kill", "leave", "join", "undo")
LASTING = ("throttle", "partition", "pause", "leave")  # until `for` is over, or they are taken back
TAKES_BACK = {"partition": ("undo",), "pause": ("undo",), "leave": ("join",)}
PHASES = ("train", "evaluate")
TRIGGERS = ("at", "round", "after")
ENTRY_KEYS = (*TRIGGERS, "phase", "do", "clients", "for")
THROTTLE_KEYS = (*LIMITS, "profile", "force")
CHOICE = {name: VERBS["throttle"][name] for name in ("clients", "fraction", "seed")}
AT = Variable("at", "duration", "20s", low=0, most=MONTH)
FOR = Variable("for", "duration", "60s", above=0, most=MONTH)
ROUND = Variable("round", "whole", "3", low=1, most=1_000_000)
AFTER = Variable("after", "duration", "20s", low=0, most=MONTH)
AFTER_ROUNDS = Variable("after", "whole", "2 rounds", low=1, most=1_000_000)
FORM = "write timeline: [{at: 20s, do: throttle, clients: 'c1-*', cpu: 0.1, for: 60s}]"
QUOTE = "correct it; write a line with ': ' in it, as restarts == {c1-0: 1, c1-1: 1}, in quotes"
ANOTHER = "type -e scenario=FILE with another, or scenario=none"


@dataclass(frozen=True)
class Entry:
    """One line of a timeline.

    Attributes
    ----------
    number : int
        Its place in the file, from 1.
    trigger : mapping
        ``at`` in seconds; ``round`` and ``phase``; or, from when the entry ``base`` was due on the machine,
        a ``delay`` in seconds, or ``rounds`` and ``phase``.
    choice : mapping
        ``clients`` (patterns), ``fraction`` and ``seed``, as throttle.yml has them.
    limits : mapping
        Of a throttle: typed variables of throttle.yml.
    seconds : float, optional
        For how long; None: until it is taken back, or the run's end.
    """

    number: int
    do: str
    trigger: Mapping[str, Any]
    choice: Mapping[str, Any]
    limits: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def words(self) -> str:
        """What it is, for people."""
        return f"entry {self.number} ({when(self.trigger)}, {self.do})"


@dataclass(frozen=True)
class Before:
    """The entry before one.

    Attributes
    ----------
    trigger : mapping
        As an entry has it; empty where it is none.
    least : int
        The earliest round in which it can be due.
    """

    number: int
    trigger: Mapping[str, Any]
    least: int


@dataclass(frozen=True)
class Scenario:
    """A file that has been read.

    Attributes
    ----------
    name : str
        The path, as it was given.
    """

    name: str
    text: str
    entries: tuple[Entry, ...]
    asserts: tuple[str, ...] = ()


def when(trigger: Mapping[str, Any]) -> str:
    """Say when something is due.

    >>> when({"at": 20.0}), when({"round": 3, "phase": "evaluate"})
    ('at 20 s', 'round 3, evaluate')
    >>> when({"base": 1, "delay": 20.0}), when({"base": 1, "rounds": 2, "phase": "train"})
    ('20 s after entry 1', '2 rounds after entry 1')
    """
    if "at" in trigger:
        return f"at {trigger['at']:g} s"
    if "delay" in trigger:
        return f"{trigger['delay']:g} s after entry {trigger['base']}"
    said = f"round {trigger['round']}" if "round" in trigger else ""
    if "rounds" in trigger:
        rounds = "1 round" if trigger["rounds"] == 1 else f"{trigger['rounds']} rounds"
        said = f"{rounds} after entry {trigger['base']}"
    return said + (", evaluate" if trigger["phase"] == "evaluate" else "")


def path_of(values: Mapping[str, Any], base: Path) -> Path | None:
    """Return the file that a run's variables name; a relative path starts at `base`."""
    given = values.get("scenario")
    return base / Path(given).expanduser() if given and given != NONE else None


def digest(path: Path | None) -> str:
    """Return a hash of what a scenario says, whatever its path and its comments; empty where there is none,
    and where it cannot be read."""
    if path is None:
        return ""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read(path: Path, shown: str, rounds: int | None = None) -> tuple[Scenario | None, list[Finding]]:
    """Read a scenario: it, if it is one, and all findings about it.

    Parameters
    ----------
    shown : str
        The path as it was given.
    rounds : int, optional
        How many rounds the run has, where that is known.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        return None, [Finding(f"scenario={shown} cannot be read ({error.strerror})", ANOTHER)]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        remedy = QUOTE if "mapping values" in str(error) else "correct it"
        return None, [Finding(f"scenario={shown} is not YAML ({' '.join(str(error).split())})", remedy)]
    if not isinstance(content, Mapping) or not content:
        return None, [Finding(f"scenario={shown} is not a scenario", FORM)]
    findings = unknown(f"scenario={shown}", content, KEYS)
    timeline = content.get("timeline", [])
    if not isinstance(timeline, list) or not all(isinstance(item, Mapping) for item in timeline):
        return None, [*findings, Finding(f"scenario={shown}: timeline is not a list of entries", FORM)]
    entries, actions = [], [str(item.get("do")) for item in timeline]
    before: Before | None = None
    for number, item in enumerate(timeline, start=1):
        trigger, least, found = _trigger(f"timeline entry {number}", item, rounds, before)
        before = Before(number, {} if found else trigger, least)
        entry, others = _entry(number, item, trigger)
        findings += others + found if entry else others
        entries += [entry] if entry else []
    asserts, found = assertions.read(f"scenario={shown}", content.get("assert", []))
    findings += found
    if not timeline and not asserts and not findings:
        findings.append(Finding(f"scenario={shown} has no timeline", FORM))
    findings += assertions.unfit(f"scenario={shown}", asserts, actions)
    told = tuple(item.text for item in asserts)
    return (None if findings else Scenario(shown, text, tuple(entries), told)), findings


def unknown(place: str, given: Iterable[Any], known: Sequence[str]) -> list[Finding]:
    """Return a finding for each key that is not known."""
    findings = []
    for key in given:
        if key not in known:
            near = nearest(str(key), known)
            remedy = f"did you mean {near!r}?" if near else f"it can have {', '.join(known)}"
            findings.append(Finding(f"{place} has the unknown key {key!r}", remedy))
    return findings


def _entry(
    number: int, item: Mapping[Any, Any], trigger: Mapping[str, Any]
) -> tuple[Entry | None, list[Finding]]:
    place = f"timeline entry {number}"
    do = item.get("do")
    if do not in ACTIONS:
        near = nearest(str(do), ACTIONS) if do else ""
        what = f"do: {do!r} is not known" if "do" in item else "it does nothing"
        remedy = f"did you mean do: {near}?" if near else f"write do: and one of {', '.join(ACTIONS)}"
        return None, [Finding(f"{place}: {what}", remedy)]
    known = (*ENTRY_KEYS, *THROTTLE_KEYS) if do == "throttle" else ENTRY_KEYS
    findings = unknown(f"{place} (do: {do})", item, known)
    choice, found = _choice(place, item.get("clients"))
    findings += found
    seconds, found = _value(place, FOR, item["for"]) if "for" in item else (None, [])
    findings += found
    if "for" in item and do not in LASTING:
        findings.append(Finding(f"{place}: {do} lasts no time", "leave for: out"))
    limits: dict[str, Any] = {}
    if do == "throttle":
        limits, found = _limits(place, item)
        findings += found
    return Entry(number, do, trigger, choice, limits, seconds), findings


def _value(place: str, variable: Variable, value: Any, written: Any = None) -> tuple[Any, list[Finding]]:
    """Read a value; a finding shows what was `written`, where that is more."""
    try:
        return cast_value(variable, value), []
    except ValueError as error:
        problem, _, remedy = str(error).partition(": ")
        shown = "" if value is None else f"={value if written is None else written}"
        if variable.name in TRIGGERS:  # an entry needs one
            remedy = remedy.removesuffix(", or leave it out")
        return None, [Finding(f"{place}: {variable.name}{shown} {problem}", _written(remedy))]


def _trigger(
    place: str, item: Mapping[Any, Any], rounds: int | None, before: Before | None
) -> tuple[dict[str, Any], int, list[Finding]]:
    """The trigger of an entry, the earliest round in which it can be due, and all findings about it."""
    given = [key for key in TRIGGERS if key in item]
    if len(given) != 1:
        how = "has no trigger" if not given else f"has {len(given)} triggers, {' and '.join(given)}"
        return {}, 1, [Finding(f"{place} {how}", "write one: at: 20s, round: 3 or after: 2 rounds")]
    found: dict[str, Any]
    if given == ["at"]:
        seconds, findings = _value(place, AT, item["at"])
        found, least = {"at": seconds}, 1
    elif given == ["round"]:
        number, findings = _value(place, ROUND, item["round"])
        found, least = {"round": number, "phase": item.get("phase", "train")}, number or 1
    else:
        found, least, findings = _after(place, item, before)
    if "phase" in item and ("at" in found or "delay" in found):
        remedy = "leave it out, or write round: 3 or after: 2 rounds"
        findings.append(Finding(f"{place}: phase is for a round", remedy))
    elif "phase" in found and found["phase"] not in PHASES:
        problem = f"{place}: phase {found['phase']!r} is not known"
        findings.append(Finding(problem, f"write {' or '.join(PHASES)}"))
    if rounds is not None and least > rounds:
        what = f"round {least}" if "round" in found else when(found)
        remedy = f"write round: {rounds}" if given == ["round"] else "let less time pass, or leave it out"
        findings.append(Finding(f"{place}: {what} is beyond the run's {rounds} rounds", remedy))
    return found, least, findings


def _after(
    place: str, item: Mapping[Any, Any], before: Before | None
) -> tuple[dict[str, Any], int, list[Finding]]:
    """The trigger of an entry that follows on the one before it."""
    if before is None:
        return {}, 1, [Finding(f"{place}: after: there is no entry before it", "write at: 20s or round: 3")]
    by_rounds = re.fullmatch(r"\s*(.*?)\s*rounds?\s*", str(item["after"]))
    if by_rounds:
        count, findings = _value(place, AFTER_ROUNDS, by_rounds[1], item["after"])
    else:
        count, findings = _value(place, AFTER, item["after"])
        findings = [Finding(it.problem, f"{it.remedy} or after: 2 rounds") for it in findings]
    base = before.trigger
    if findings or not base:
        return {}, 1, findings
    if not by_rounds:
        known = next((key for key in ("at", "delay") if key in base), None)
        found = {**base, known: base[known] + count} if known else {"base": before.number, "delay": count}
        return found, before.least, []
    phase = item.get("phase", base.get("phase", "train"))
    known = next((key for key in ("round", "rounds") if key in base), None)
    found = {**base, known: base[known] + count} if known else {"base": before.number, "rounds": count}
    return {**found, "phase": phase}, before.least + count, []


def _choice(place: str, value: Any) -> tuple[dict[str, Any], list[Finding]]:
    """The clients that are meant, as throttle.yml names them."""
    if isinstance(value, str):
        value = {"clients": value}
    elif isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        value = {"clients": ",".join(value)}
    if not isinstance(value, Mapping) or not value:
        remedy = "write clients: 'c1-*' (or '*'), or clients: {fraction: 0.3, seed: 1}"
        what = "no clients" if value in (None, "", {}, []) else f"clients: {value!r}"
        return {}, [Finding(f"{place} has {what}", remedy)]
    findings = unknown(f"{place}: clients", value, tuple(CHOICE))
    chosen = {name: variable.default for name, variable in CHOICE.items()}
    for name, given in value.items():
        if name in CHOICE:
            chosen[name], found = _value(f"{place}: clients", CHOICE[name], given)
            findings += found
    return chosen, findings


def _limits(place: str, item: Mapping[Any, Any]) -> tuple[dict[str, Any], list[Finding]]:
    given = {key: value for key, value in item.items() if key in THROTTLE_KEYS}
    if not set(given) - {"force"}:
        return {}, [Finding(f"{place} has no limit", f"add one of {', '.join(LIMITS)}, profile")]
    values, found = cast("throttle", given)
    return {key: values[key] for key in THROTTLE_KEYS if values[key] is not None}, [
        Finding(f"{place}: {it.problem}", _written(it.remedy)) for it in found
    ]


def _written(remedy: str) -> str:
    """What to type, for somebody who writes it into a file."""
    return re.sub(r"type -e (\w+)=", r"write \1: ", remedy)


def plan(
    scenario: Scenario,
    roster: Sequence[Mapping[str, Any]],
    machines: Iterable[Machine],
    profiles: Mapping[str, Any],
    reference: float,
) -> tuple[dict[str, list[dict[str, Any]]], list[Finding], list[str]]:
    """What each machine's agent gets: the entries about its clients.

    Parameters
    ----------
    profiles, reference
        As `throttle.plan` takes them.

    Returns
    -------
    requests : dict
        By machine, its entries: ``number``, ``do``, the trigger, ``clients``, ``seconds``, and of a throttle
        ``limits`` by client and ``force``; without clients those whose time another one counts from.
    findings, warnings : lists
    """
    machines = list(machines)
    requests: dict[str, list[dict[str, Any]]] = {}
    findings: list[Finding] = []
    warnings: list[str] = []
    resolved: list[tuple[Entry, list[str]]] = []
    for entry in scenario.entries:
        chosen, found = throttle.choose(entry.choice, roster)
        if found:
            findings += [_of(entry, finding) for finding in found]
            continue
        resolved.append((entry, [client["name"] for client in chosen]))
        if entry.do == "throttle":
            values = {**cast("throttle", {})[0], **entry.limits, **entry.choice}
            asked, found, warned = throttle.plan(values, roster, machines, profiles, reference, Path())
            findings += [_of(entry, finding) for finding in found]
            warnings += [warning for warning in warned if warning not in warnings]
        for machine in machines:
            names = [client["name"] for client in chosen if client["machine"] == machine.name]
            if not names:
                continue
            item = {"number": entry.number, "do": entry.do, **entry.trigger, "clients": names}
            item["seconds"] = entry.seconds
            if entry.do == "throttle":
                item["limits"] = asked.get(machine.name, {}).get("limits", {})
                item["force"] = entry.limits["force"]
            requests.setdefault(machine.name, []).append(item)
    for items in requests.values():
        _add_bases(items, {entry.number: entry for entry in scenario.entries})
    return requests, findings + overlaps(resolved), warnings


def _add_bases(items: list[dict[str, Any]], entries: Mapping[int, Entry]) -> None:
    """Add to a machine's entries those of other machines whose time theirs count from."""
    wanted = [item["base"] for item in items if "base" in item]
    while wanted:
        entry = entries[wanted.pop()]
        if all(item["number"] != entry.number for item in items):
            bare = {"number": entry.number, "do": entry.do, **entry.trigger, "clients": [], "seconds": None}
            items.append(bare)
            wanted += [entry.trigger["base"]] if "base" in entry.trigger else []
    items.sort(key=lambda item: int(item["number"]))


def _of(entry: Entry, finding: Finding) -> Finding:
    return Finding(
        f"timeline entry {entry.number}: {finding.problem}", _written(finding.remedy), finding.machine
    )


@dataclass(frozen=True)
class Placed:
    """An entry where it lies among others: seconds and 0, or a round and its phase."""

    position: tuple[float, float]
    entry: Entry
    names: Sequence[str]


def _comparable(resolved: Sequence[tuple[Entry, Sequence[str]]]) -> list[tuple[bool, list[Placed]]]:
    """Return the entries whose order is known: those by time, those by round, and of each entry that others
    follow on it and these; each in their order, and whether it is by time."""
    groups: dict[tuple[int, bool], list[Placed]] = {}
    by_number = {entry.number: (entry, names) for entry, names in resolved}
    for entry, names in resolved:
        trigger = entry.trigger
        base, timed = trigger.get("base", 0), "at" in trigger or "delay" in trigger
        if timed:
            position = (trigger["delay"] if base else trigger["at"], 0.0)
        else:
            position = (trigger["rounds"] if base else trigger["round"], PHASES.index(trigger["phase"]))
        group = groups.setdefault((base, timed), [])
        if base in by_number and not group:
            group.append(Placed((0, -1), *by_number[base]))
        group.append(Placed(position, entry, names))
    for group in groups.values():
        group.sort(key=lambda it: (it.position, it.entry.number))
    return [(timed, group) for (_, timed), group in groups.items()]


def overlaps(resolved: Sequence[tuple[Entry, Sequence[str]]]) -> list[Finding]:
    """Findings about partitions, pauses and departures of one client that overlap, and about a return of one
    that has not left. Of entries by time and entries by round nobody knows beforehand which comes first: only
    those are judged whose order is known."""
    findings: list[Finding] = []
    for timed, group in _comparable(resolved):
        inside = {it.entry.number for it in group}
        elsewhere = {
            (entry.do, name) for entry, names in resolved if entry.number not in inside for name in names
        }
        for do, undoing in TAKES_BACK.items():
            lasting: dict[str, Placed] = {}
            for it in group:
                for name in it.names:
                    if it.entry.do in undoing:
                        never = lasting.pop(name, None) is None and do == "leave"
                        if never and (do, name) not in elsewhere:
                            findings.append(_never_left(it.entry, name))
                    elif it.entry.do == do:
                        before = lasting.get(name)
                        taken_back = any((other, name) in elsewhere for other in undoing)
                        if before and _lasts(before, it, timed, taken_back):
                            findings.append(_overlap(before.entry, it.entry, name))
                        lasting[name] = it
    return [finding for place, finding in enumerate(findings) if finding not in findings[:place]]


def _lasts(before: Placed, it: Placed, timed: bool, taken_back: bool) -> bool:
    """Whether an entry goes on when a later one of its kind is due; of rounds, how long they take is not
    known."""
    seconds = before.entry.seconds
    if seconds is None:
        return not taken_back
    if timed:
        return it.position[0] < before.position[0] + seconds
    return it.position == before.position


def _overlap(before: Entry, entry: Entry, name: str) -> Finding:
    undoing = TAKES_BACK[entry.do][0]
    problem = f"timeline entries {before.number} and {entry.number} overlap: both {entry.do} {name}"
    return Finding(
        problem, f"leave one out, give the first a shorter for:, or write do: {undoing} between them"
    )


def _never_left(entry: Entry, name: str) -> Finding:
    """The finding about a return where no entry at all has the client leave before."""
    problem = f"timeline entry {entry.number}: {name} joins, and has not left before"
    return Finding(problem, f"write do: leave for {name} before it")


def for_run(
    values: Mapping[str, Any],
    base: Path,
    roster: Sequence[Mapping[str, Any]],
    machines: Sequence[Machine],
    profiles: Mapping[str, Any],
    reference: float,
) -> tuple[dict[str, Any], list[Finding], list[str]]:
    """What becomes of the scenario that a run's variables name.

    Parameters
    ----------
    values : mapping
        All variables of run.yml, typed.
    base : Path
        Where relative paths start.

    Returns
    -------
    planned : dict
        ``name``, ``text``, ``entries`` (what each is, for people, by its number), ``asserts``, and
        ``machines``: what each agent gets. Empty where there is no scenario.
    findings, warnings : lists
    """
    path = path_of(values, base)
    if path is None:
        return {}, [], []
    known = None if values["app"] else int(values["rounds"])
    found, findings = read(path, str(values["scenario"]), known)
    if found is None:
        return {}, findings, []
    requests, findings, warnings = plan(found, roster, machines, profiles, reference)
    asserts = [assertions.parse(text) for text in found.asserts]
    names = [client["name"] for client in roster]
    findings += assertions.unfit(f"scenario={found.name}", asserts, [it.do for it in found.entries], names)
    # A phase ends by its time-out: without a task for longer than that of two, the run is over.
    common = {
        "name": found.name,
        "rounds": known,
        "quiet": values["wait_timeout"] + 2 * values["round_timeout"],
    }
    planned = {
        "name": found.name,
        "text": found.text,
        "entries": {str(entry.number): entry.words for entry in found.entries},
        "asserts": list(found.asserts),
        "machines": {machine: {**common, "entries": entries} for machine, entries in requests.items()},
    }
    return planned, findings, warnings


def coldframe_scenario(plan: Mapping[str, Any], machine: str, run_id: str = "") -> dict[str, Any]:
    """What to ask of a machine's agent when a run is submitted: to stage its part of the run's scenario;
    where it has none, to end one that an earlier run has left; nothing, else.

    Parameters
    ----------
    plan : mapping
        The result of preflight.
    run_id : str
        Empty before the run is submitted: then the agent is only asked whether it can.
    """
    mine = (plan["scenario"].get("machines") or {}).get(machine)
    if mine:
        return {**mine, "run": run_id}
    staged = plan["staged"].get(machine, "")
    over = staged and run_id and staged != run_id and not plan["run"]["concurrent"]
    return {"run": staged, "entries": []} if over else {}


def coldframe_scenario_left(plan: Mapping[str, Any], machine: str) -> dict[str, Any]:
    """What to ask of a machine's agent before a run is resumed: to end what a run that is over has staged.

    A run that still goes on keeps its scenario: the server may refuse to resume the other one.
    """
    staged = plan["staged"].get(machine, "")
    over = staged and staged not in plan["going"]
    return {"run": staged, "entries": []} if over else {}


def coldframe_scenario_end(plan: Mapping[str, Any], machine: str, run_id: str) -> dict[str, Any]:
    """What to ask of a machine's agent when a run has ended: to end its scenario, if it can have one."""
    mine = machine in (plan["scenario"].get("machines") or {}) or plan["staged"].get(machine) == run_id
    return {"run": run_id, "entries": []} if run_id and mine else {}
