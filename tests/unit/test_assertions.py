"""What a scenario asserts of its run: what is refused before it, and what is judged after it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

import pytest

from coldframe.controller import assertions

FAILURES = [
    {"client": "c1-0", "phase": "train", "round": 2, "reason": "no reply within the timeout"},
    {"client": "c1-1", "phase": "train", "round": 3, "reason": "Timeout"},
    {"client": "c2-0", "phase": "evaluate", "round": 3, "reason": "its process was killed"},
]
SUMMARY: dict[str, Any] = {
    **{"accuracy": 0.95, "loss": None, "rounds": 5, "clients": 4, "wall_seconds": 61.5},
    **{"round_seconds": [10.0, 4.0, 2.0, 3.0, 1.0], "failures": FAILURES},
    "scenario": {"entries": [{"lateness": 0.05}, {"lateness": None}, {"lateness": 0.4}]},
}


@pytest.mark.parametrize(
    ("text", "passed", "found"),
    [
        ("accuracy >= 0.95", True, "0.95"),
        ("accuracy > 0.95", False, "0.95"),
        ("loss < 1", False, "not known"),
        ("rounds == 5", True, "5"),
        ("rounds != 5", False, "5"),
        ("wall_seconds<=6e1", False, "61.5"),
        ("round_seconds.median <= 3", True, "3"),
        ("round_seconds.p95 <= 8", False, "8.8"),
        ("round_seconds.mean == 4", True, "4"),
        ("round_seconds.min > 1", False, "1"),
        ("lateness.max <= 0.5", True, "0.4"),
        ("failures <= 2", False, "3"),
        ("failures{reason=timeout} <= 2", True, "2"),
        ("failures{client=c1-*, round=3} == 1", True, "1"),
        ("failures{phase=evaluate} < 1", False, "1"),
    ],
)
def test_figures_are_compared(text: str, passed: bool, found: str) -> None:
    verdict = assertions.judge(assertions.parse(text), SUMMARY, [])
    assert (verdict.passed, verdict.found) == (passed, found)


def test_a_series_of_nothing_is_not_known() -> None:
    empty = {**SUMMARY, "round_seconds": [], "scenario": None}
    for text in ("round_seconds.max <= 1", "lateness.max <= 1"):
        assert assertions.judge(assertions.parse(text), empty, []).found == "not known"


def test_limits_are_verified_where_all_events_hold() -> None:
    events = [{"client": "a", "holds": True}, {"client": "a", "cause": "oom"}]
    verified = assertions.parse("limits_verified")
    assert assertions.judge(verified, SUMMARY, events).passed
    verdict = assertions.judge(verified, SUMMARY, [*events, {"client": "b", "holds": False}])
    assert (verdict.passed, verdict.found) == (False, "not for b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("accurracy >= 0.9", "accurracy is not known: did you mean accuracy?"),
        ("accuracy", "compares nothing"),
        ("accuracy => 0.9", "is no assertion"),
        ("accuracy >= high", "is no assertion"),
        ("accuracy.p95 >= 1", "leave .p95 out"),
        ("accuracy{round=3} >= 1", "leave {round=3} out"),
        ("round_seconds <= 3", "write round_seconds.p95"),
        ("round_seconds.p96 <= 3", "write round_seconds.p95"),
        ("failures{why=x} <= 3", "'why=x' chooses nothing"),
        ("failures{reason} <= 3", "'reason' chooses nothing"),
        ("limits_verified >= 1", "write limits_verified alone"),
        ("__import__('os')", "is no assertion"),
    ],
)
def test_what_is_no_assertion_is_refused(text: str, problem: str) -> None:
    [kept], [finding] = assertions.read("x.yml", ["rounds == 5", text])
    assert problem in str(finding) and kept.text == "rounds == 5"


def test_the_list_is_one_of_lines() -> None:
    assert "not a list of lines" in assertions.read("x.yml", "accuracy >= 1")[1][0].problem
    assert "not a list of lines" in assertions.read("x.yml", [{"accuracy": 1}])[1][0].problem


def test_verdicts_are_said_and_written_for_ci() -> None:
    texts = ["accuracy >= 0.9", "loss < 1"]
    verdicts = [asdict(assertions.judge(assertions.parse(text), SUMMARY, [])) for text in texts]
    assert assertions.lines(verdicts) == [
        "  assertions  1 of 2 hold",
        "              FAILED: loss < 1 (found: not known)",
    ]
    assert assertions.lines([]) == []
    suite = ElementTree.fromstring(assertions.junit("coldframe.x", verdicts))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [(case.get("name"), len(case)) for case in suite] == [("accuracy >= 0.9", 0), ("loss < 1", 1)]
