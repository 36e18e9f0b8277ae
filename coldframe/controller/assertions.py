"""What a scenario asserts of its run: read before it, judged by its results.

assert:
  - accuracy >= 0.95
  - round_seconds.p95 <= 30
  - failures{reason=timeout} <= 2
  - limits_verified
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

from coldframe.controller.records import Event, named
from coldframe.controller.settings import Finding, nearest

FAILED = 3  # exit status of a verb, and of the results' command, where an assertion failed
NUMBERS = ("accuracy", "loss", "rounds", "clients", "wall_seconds")  # of summary.json
SERIES = ("round_seconds", "lateness")  # of a series a statistic is compared
COUNTS = ("failures",)
FLAGS = ("limits_verified",)
FIGURES = (*NUMBERS, *SERIES, *COUNTS, *FLAGS)
WHERE = ("client", "phase", "reason", "round")
STATISTICS = ("min", "max", "mean", "median", "p95")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(
    r"(?P<figure>\w+)(?:\.(?P<statistic>\w+))?(?:\{(?P<where>[^{}]*)\})?"
    r"(?:\s*(?P<sign>>=|<=|==|!=|>|<)\s*(?P<number>[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?))?"
)
EXAMPLES = "accuracy >= 0.95, round_seconds.p95 <= 30, failures{reason=timeout} <= 2 or limits_verified"


@dataclass(frozen=True)
class Assertion:
    """One line: a figure, of a series its statistic, of a count which are counted, and the comparison."""

    text: str
    figure: str
    statistic: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    sign: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What became of an assertion, and what was found instead."""

    text: str
    passed: bool
    found: str


def parse(text: str) -> Assertion:
    """Read one line.

    Raises
    ------
    ValueError
        If it is none; the message is "PROBLEM: REMEDY".
    """
    match = FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no assertion: write {EXAMPLES}")
    figure, statistic, sign = match["figure"], match["statistic"] or "", match["sign"] or ""
    if figure not in FIGURES:
        near = nearest(figure, FIGURES)
        raise ValueError(
            f"{text!r}: {figure} is not known: " + (f"did you mean {near}?" if near else f"write {EXAMPLES}")
        )
    if figure in FLAGS:
        if statistic or sign or match["where"] is not None:
            raise ValueError(f"{text!r}: {figure} holds or does not: write {figure} alone")
        return Assertion(text, figure)
    if not sign:
        raise ValueError(f"{text!r} compares nothing: write {EXAMPLES}")
    if figure in SERIES and statistic not in STATISTICS:
        raise ValueError(f"{text!r}: {figure} is a series: write {figure}.p95 (or {', '.join(STATISTICS)})")
    if figure not in SERIES and statistic:
        raise ValueError(f"{text!r}: {figure} is one number: leave .{statistic} out")
    if figure not in COUNTS and match["where"] is not None:
        raise ValueError(f"{text!r}: {figure} counts nothing: leave {{{match['where']}}} out")
    where = {}
    for part in filter(None, (match["where"] or "").split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in WHERE or not value:
            raise ValueError(
                f"{text!r}: {part.strip()!r} chooses nothing: write {', '.join(WHERE)} and = a value"
            )
        where[key] = value
    return Assertion(text, figure, statistic, where, sign, float(match["number"]))


def read(place: str, value: Any) -> tuple[list[Assertion], list[Finding]]:
    """Read the list of a file: the assertions, and all findings about them."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return [], [
            Finding(f"{place}: assert is not a list of lines", f"write assert: and lines like {EXAMPLES}")
        ]
    found, findings = [], []
    for text in value:
        try:
            found.append(parse(text))
        except ValueError as error:
            problem, _, remedy = str(error).rpartition(": ")
            findings.append(Finding(f"{place}: assert: {problem}", remedy))
    return found, findings


def judge(assertion: Assertion, summary: Mapping[str, Any], events: Sequence[Event]) -> Verdict:
    """Judge an assertion by a run's results; what is not known does not hold.

    Parameters
    ----------
    summary : mapping
        The content of `summary.json`.
    events : sequence
        The agents' events of the run's time.
    """
    if assertion.figure == "limits_verified":
        wrong = {str(event["client"]) for event in events if event.get("holds") is False}
        return Verdict(assertion.text, not wrong, f"not for {named(wrong)}" if wrong else "all hold")
    value = figure_of(assertion, summary)
    if value is None:
        return Verdict(assertion.text, False, "not known")
    passed = OPERATORS[assertion.sign](value, assertion.number)
    return Verdict(assertion.text, passed, f"{value:.6g}")


def figure_of(assertion: Assertion, summary: Mapping[str, Any]) -> float | None:
    """Return the figure that an assertion is about."""
    name = assertion.figure
    if name in COUNTS:
        return sum(matches(failure, assertion.where) for failure in summary["failures"])
    if name in NUMBERS:
        value = summary.get(name)
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    if name == "lateness":
        entries = (summary.get("scenario") or {}).get("entries", [])
        series = [entry["lateness"] for entry in entries if entry["lateness"] is not None]
    else:
        series = summary[name]
    return statistic_of(assertion.statistic, sorted(series)) if series else None


def matches(failure: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Whether a failure is meant: its client by a pattern, its reason by words of it, the rest as it is."""
    for key, wanted in where.items():
        value = str(failure.get(key))
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


def lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say it in the closing words: how many hold, and which do not."""
    if not verdicts:
        return []
    failed = [item for item in verdicts if not item["passed"]]
    told = [f"{len(verdicts) - len(failed)} of {len(verdicts)} hold"]
    told += [f"FAILED: {item['text']} (found: {item['found']})" for item in failed]
    return [f"  {'assertions' if place == 0 else '':<11} {line}" for place, line in enumerate(told)]


def junit(name: str, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts as JUnit's XML, which CI systems show."""
    failed = sum(not item["passed"] for item in verdicts)
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(verdicts)), failures=str(failed))
    for item in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=item["text"])
        if not item["passed"]:
            ElementTree.SubElement(case, "failure", message=f"found: {item['found']}")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
