"""What a scenario asserts of its run: read before it; `verdicts` judges it by the run's records.

assert:
  - accuracy >= 0.95
  - round_seconds.p95 <= 30
  - failures{reason=timeout} <= 2
  - restarts == {c1-0: 1}
  - recovery(partition) <= 1 rounds
  - no_lost_update
  - limits_verified
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from xml.etree import ElementTree

from coldframe.controller.records import named
from coldframe.controller.settings import Finding, nearest

FAILED = 3  # exit status of a verb, and of the results' command, where an assertion failed
NUMBERS = ("accuracy", "loss", "rounds", "clients", "wall_seconds")  # of summary.json
SERIES = ("round_seconds", "lateness")  # of a series a statistic is compared
RESTARTS, RECOVERY = "restarts", "recovery"
# What is counted, and by what of it is chosen what counts.
COUNTS: dict[str, tuple[str, ...]] = {
    "failures": ("client", "phase", "round", "reason"),
    "late": ("client", "phase", "round", "reason"),
    "folded": ("client", "phase", "round"),
    "discarded": ("client", "phase", "round", "reason"),
    RESTARTS: ("client",),
}
FLAGS = ("limits_verified", "no_lost_update")
FIGURES = (*NUMBERS, *SERIES, *COUNTS, RECOVERY, *FLAGS)
STATISTICS = ("min", "max", "mean", "median", "p95")
HURTING = ("throttle", "partition", "pause", "kill", "leave")  # actions that clients recover from
UNITS = {"round": "rounds", "rounds": "rounds", "second": "seconds", "seconds": "seconds", "s": "seconds"}
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(
    r"(?P<figure>\w+)(?:\((?P<kind>[^(){}]*)\))?(?:\.(?P<statistic>\w+))?(?:\{(?P<where>[^{}]*)\})?"
    r"(?:\s*(?P<sign>>=|<=|==|!=|>|<)\s*(?:\{(?P<exactly>[^{}]*)\}"
    r"|(?P<number>[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)(?:\s*(?P<unit>[A-Za-z]+))?))?"
)
EXAMPLES = "accuracy >= 0.95, round_seconds.p95 <= 30, failures{reason=timeout} <= 2 or limits_verified"
OF_RESTARTS = "restarts == {c1-0: 1}, restarts == {} or restarts{client=c1-*} <= 1"
QUOTE = "write a line with ': ' in it in quotes: 'restarts == {c1-0: 1, c1-1: 2}'"
OF_RECOVERY = "recovery(partition) <= 1 rounds"


@dataclass(frozen=True)
class Assertion:
    """One line: a figure and a comparison.

    Attributes
    ----------
    statistic : str
        Of a series.
    kind : str
        Of `recovery`, the action of the timeline that clients recover from.
    where : mapping
        Of a count, which are counted.
    unit : str
        Of `recovery`: ``rounds`` or ``seconds``.
    exactly : mapping, optional
        Of `restarts`, how often by client; all others never.
    """

    text: str
    figure: str
    statistic: str = ""
    kind: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    sign: str = ""
    number: float = 0.0
    unit: str = ""
    exactly: Mapping[str, int] | None = None


class Malformed(ValueError):
    """A line that is no assertion: why, and what to write instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem, self.remedy = problem, remedy


def parse(text: str) -> Assertion:
    """Read one line.

    Raises
    ------
    Malformed
        If it is no assertion.
    """
    match = FORM.fullmatch(text.strip())
    if match is None:
        raise Malformed(f"{text!r} is no assertion", f"write {EXAMPLES}")
    figure, sign = match["figure"], match["sign"] or ""
    if figure not in FIGURES:
        near = nearest(figure, FIGURES)
        raise Malformed(
            f"{text!r}: {figure} is not known", f"did you mean {near}?" if near else f"write {EXAMPLES}"
        )
    if figure in FLAGS:
        if text.strip() != figure:
            raise Malformed(f"{text!r}: {figure} holds or does not", f"write {figure} alone")
        return Assertion(text, figure)
    if not sign:
        raise Malformed(f"{text!r} compares nothing", f"write {_example(figure)}")
    _check_form(text, match)
    exactly = None if match["exactly"] is None else _exactly(text, match["exactly"])
    return Assertion(
        text,
        figure,
        match["statistic"] or "",
        match["kind"] or "",
        _where(text, figure, match["where"] or ""),
        sign,
        float(match["number"] or 0),
        UNITS[match["unit"].lower()] if figure == RECOVERY else "",
        exactly,
    )


def _example(figure: str) -> str:
    return {RESTARTS: OF_RESTARTS, RECOVERY: OF_RECOVERY}.get(figure, EXAMPLES)


def _check_form(text: str, match: re.Match[str]) -> None:
    """Refuse what a figure does not have, and what it lacks."""
    figure, statistic, kind, unit = (match[name] for name in ("figure", "statistic", "kind", "unit"))
    if figure in SERIES and statistic not in STATISTICS:
        raise Malformed(f"{text!r}: {figure} is a series", f"write {figure}.p95 (or {', '.join(STATISTICS)})")
    if figure not in SERIES and statistic:
        raise Malformed(f"{text!r}: {figure} is one number", f"leave .{statistic} out")
    if figure not in COUNTS and match["where"] is not None:
        raise Malformed(f"{text!r}: {figure} counts nothing", f"leave {{{match['where']}}} out")
    if match["exactly"] is not None and (figure != RESTARTS or match["sign"] != "==" or match["where"]):
        remedy = f"write {OF_RESTARTS}" if figure == RESTARTS else "write a number"
        raise Malformed(f"{text!r} compares with {{{match['exactly']}}}", remedy)
    if figure == RECOVERY:
        if kind not in HURTING:
            what = f"{kind!r} is nothing to recover from" if kind else "it does not say from what"
            raise Malformed(f"{text!r}: {what}", f"write {OF_RECOVERY} (or {', '.join(HURTING)})")
        if (unit or "").lower() not in UNITS:
            what = f"{unit} is no unit" if unit else "it has no unit"
            raise Malformed(f"{text!r}: {what}", f"write {OF_RECOVERY} (or seconds)")
        return
    if kind is not None:
        raise Malformed(f"{text!r}: {figure} is of the whole run", f"leave ({kind}) out")
    if unit:
        raise Malformed(f"{text!r}: {figure} has no unit", f"leave {unit} out")


def _where(text: str, figure: str, given: str) -> dict[str, str]:
    """Read what a count is chosen by."""
    where: dict[str, str] = {}
    for part in filter(None, given.split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in COUNTS[figure] or not value:
            known = ", ".join(COUNTS[figure])
            raise Malformed(
                f"{text!r}: {part.strip()!r} chooses nothing of {figure}", f"write {known} and = a value"
            )
        if key in where:
            raise Malformed(f"{text!r}: {key} is in it twice", f"write {key}={where[key]} or {key}={value}")
        if key == "round" and not re.fullmatch("[0-9]+", value):
            raise Malformed(f"{text!r}: round={value} is not a whole number", "write round=3")
        where[key] = str(int(value)) if key == "round" else value
    return where


def _exactly(text: str, given: str) -> dict[str, int]:
    """Read how often which clients restart."""
    wanted: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        found = re.fullmatch(r"([\w.-]+)\s*[:=]\s*(\d+)", part)
        if found is None or found[1] in wanted:
            what = f"{part!r} is no client with a number" if found is None else f"{found[1]} is in it twice"
            raise Malformed(f"{text!r}: {what}", f"write {OF_RESTARTS}")
        wanted[found[1]] = int(found[2])
    return wanted


def read(place: str, value: Any) -> tuple[list[Assertion], list[Finding]]:
    """Read the list of a file: the assertions, and all findings about them."""
    if not isinstance(value, list):
        remedy = f"write assert: and lines like {EXAMPLES}"
        return [], [Finding(f"{place}: assert is not a list of lines", remedy)]
    found, findings = [], []
    for number, item in enumerate(value, start=1):
        text = _line(item)
        if text is None:
            remedy = QUOTE if isinstance(item, Mapping) else f"write {EXAMPLES}"
            findings.append(Finding(f"{place}: assert: item {number}, {item!r}, is not a line", remedy))
            continue
        try:
            found.append(parse(text))
        except Malformed as error:
            findings.append(Finding(f"{place}: assert: {error.problem}", error.remedy))
    return found, findings


def _line(item: Any) -> str | None:
    """Return a line as it was written: of `restarts == {c1-0: 1}` without quotes YAML makes a mapping."""
    if isinstance(item, Mapping) and len(item) == 1:
        [(key, value)] = item.items()
        if isinstance(value, str) and "{" in str(key) and value.endswith("}"):
            return f"{key}: {value}"
    return item if isinstance(item, str) else None


def unfit(
    place: str, found: Iterable[Assertion], actions: Iterable[str], clients: Sequence[str] | None = None
) -> list[Finding]:
    """Findings about assertions that can never hold for their timeline, or for the federation.

    Parameters
    ----------
    actions
        What the timeline does.
    clients
        Names of all clients, where they are known.
    """
    done, findings = set(actions), []
    for it in found:
        if it.kind and it.kind not in done:
            problem = f"{place}: assert: {it.text!r}: the timeline has no {it.kind}"
            findings.append(Finding(problem, f"leave it out, or write an entry with do: {it.kind}"))
        for name in () if clients is None else (*(it.exactly or ()), *_pattern(it)):
            names = clients or ()
            if not any(fnmatchcase(client, name) if it.where else client == name for client in names):
                near = nearest(name, names)
                remedy = f"did you mean {near}?" if near else f"known are {named(names)}"
                problem = f"{place}: assert: {it.text!r}: no client is called {name}"
                findings.append(Finding(problem, remedy))
    return findings


def _pattern(assertion: Assertion) -> list[str]:
    return [value for key, value in assertion.where.items() if key == "client"]


def lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say it in the closing words: how many hold, and which do not."""
    if not verdicts:
        return []
    failed = [item for item in verdicts if not item["passed"]]
    told = [f"{len(verdicts) - len(failed)} of {len(verdicts)} hold"]
    told += [f"FAILED: {item['text']} ({why(item)})" for item in failed]
    return [f"  {'assertions' if place == 0 else '':<11} {line}" for place, line in enumerate(told)]


def why(verdict: Mapping[str, Any]) -> str:
    """Say what was found instead of what was asserted, and which lines of the records say so.

    >>> why({"found": "3", "against": ["journal.jsonl:7", "journal.jsonl:9"], "more": 4})
    'found: 3; see journal.jsonl:7, journal.jsonl:9 and 4 more'
    """
    more = f" and {verdict['more']} more" if verdict["more"] else ""
    see = f"; see {', '.join(verdict['against'])}{more}" if verdict["against"] else ""
    return f"found: {verdict['found']}{see}"


def junit(name: str, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts as JUnit's XML, which CI systems show."""
    failed = sum(not item["passed"] for item in verdicts)
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(verdicts)), failures=str(failed))
    for item in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=item["text"])
        if not item["passed"]:
            ElementTree.SubElement(case, "failure", message=why(item))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
