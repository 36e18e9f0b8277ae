"""What a scenario asserts of its run: what is refused before it, and how it is said after it."""

from __future__ import annotations

from dataclasses import asdict
from xml.etree import ElementTree

import pytest

from coldframe.controller import assertions
from coldframe.controller.verdicts import Verdict


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("accurracy >= 0.9", "accurracy is not known: did you mean accuracy?"),
        ("accuracy", "compares nothing"),
        ("accuracy => 0.9", "is no assertion"),
        ("accuracy >= high", "is no assertion"),
        ("accuracy.p95 >= 1", "leave .p95 out"),
        ("accuracy{round=3} >= 1", "leave {round=3} out"),
        ("accuracy >= 0.9 rounds", "accuracy has no unit: leave rounds out"),
        ("accuracy(kill) >= 0.9", "accuracy is of the whole run: leave (kill) out"),
        ("accuracy == {c1-0: 1}", "compares with {c1-0: 1}: write a number"),
        ("round_seconds <= 3", "write round_seconds.p95"),
        ("round_seconds.p96 <= 3", "write round_seconds.p95"),
        ("failures{why=x} <= 3", "'why=x' chooses nothing of failures: write client, phase, round, reason"),
        ("failures{reason} <= 3", "'reason' chooses nothing"),
        ("late{reason=} <= 3", "'reason=' chooses nothing of late"),
        ("folded{reason=goal} <= 3", "'reason=goal' chooses nothing of folded: write client, phase, round"),
        ("discarded.max <= 3", "leave .max out"),
        ("late{round=3, round=4} == 0", "round is in it twice: write round=3 or round=4"),
        ("failures{client=a, client=b} == 0", "client is in it twice: write client=a or client=b"),
        ("failures{round=last} == 0", "round=last is not a whole number: write round=3"),
        ("failures{round=1*} == 0", "round=1* is not a whole number"),
        ("restarts{phase=train} == 0", "'phase=train' chooses nothing of restarts: write client"),
        ("restarts", "'restarts' compares nothing: write restarts == {c1-0: 1}"),
        ("restarts <= {c1-0: 1}", "compares with {c1-0: 1}: write restarts == {c1-0: 1}"),
        ("restarts == {c1-0}", "'c1-0' is no client with a number: write restarts == {c1-0: 1}"),
        ("restarts == {c1-0: -1}", "'c1-0: -1' is no client with a number"),
        ("restarts == {a: 1, a: 2}", "a is in it twice"),
        ("recovery <= 1 rounds", "it does not say from what: write recovery(partition) <= 1 rounds"),
        ("recovery(join) <= 1 rounds", "'join' is nothing to recover from"),
        ("recovery(kill) <= 1", "it has no unit: write recovery(partition) <= 1 rounds (or seconds)"),
        ("recovery(kill) <= 1 minutes", "minutes is no unit"),
        ("recovery(kill)", "compares nothing: write recovery(partition) <= 1 rounds"),
        ("limits_verified >= 1", "write limits_verified alone"),
        ("no_lost_update{client=a}", "write no_lost_update alone"),
        ("__import__('os')", "__import__ is not known"),
        ("import os", "is no assertion"),
    ],
)
def test_what_is_no_assertion_is_refused(text: str, problem: str) -> None:
    [kept], [finding] = assertions.read("x.yml", ["rounds == 5", text])
    assert problem in str(finding) and kept.text == "rounds == 5"


def test_all_that_is_wrong_is_found_at_once() -> None:
    kept, findings = assertions.read("x.yml", ["losss < 1", "restarts", "loss < 1", "recovery(x) <= 1 s"])
    assert [it.text for it in kept] == ["loss < 1"] and len(findings) == 3


def test_restarts_by_client_need_no_quotes() -> None:
    """YAML takes the line for a mapping; it is read as it was written."""
    texts = [{"restarts == {c1-0": "1}"}, "restarts == {c1-0=1, c1-1: 2}", "restarts == {}"]
    kept, findings = assertions.read("x.yml", texts)
    assert findings == [] and kept[0].text == "restarts == {c1-0: 1}"
    assert [it.exactly for it in kept] == [{"c1-0": 1}, {"c1-0": 1, "c1-1": 2}, {}]


def test_the_list_is_one_of_lines() -> None:
    assert "not a list of lines" in assertions.read("x.yml", "accuracy >= 1")[1][0].problem


def test_an_item_that_is_no_line_is_named_and_the_others_are_read() -> None:
    """YAML makes a mapping of a line with ': ' in it."""
    items = ["loss < 1", {"restarts == {a": "1, b", "c": 2}, 5, "losss < 1", {"accuracy": 1}]
    kept, findings = assertions.read("x.yml", items)
    assert [it.text for it in kept] == ["loss < 1"] and len(findings) == 4
    mapping, number, _, last = findings
    assert "item 2, {'restarts == {a': '1, b', 'c': 2}, is not a line" in mapping.problem
    assert "in quotes: 'restarts == {c1-0: 1, c1-1: 2}'" in mapping.remedy and "item 5" in last.problem
    assert "item 3, 5, is not a line" in number.problem and "accuracy >= 0.95" in number.remedy


@pytest.mark.parametrize(
    ("text", "number"), [("accuracy >= .9", 0.9), ("loss < -.5e-1", -0.05), ("loss < 2", 2.0)]
)
def test_a_number_needs_no_zero_before_its_point(text: str, number: float) -> None:
    assert assertions.parse(text).number == number


def test_what_can_never_hold_is_found_before_the_run() -> None:
    texts = ["recovery(kill) <= 1 rounds", "recovery(pause) <= 20 s", "restarts == {c1-0: 1, c1-9: 1}"]
    found = [assertions.parse(text) for text in texts]
    timeline, client = assertions.unfit("x.yml", found, ["kill"], ["c1-0", "c2-0"])
    assert "the timeline has no pause" in timeline.problem and "do: pause" in timeline.remedy
    assert "no client is called c1-9" in client.problem and "did you mean c1-0?" in client.remedy
    assert assertions.unfit("x.yml", found[2:], []) == []  # nobody knows the clients yet


@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ("client=zz", "known are c1-0, c2-0"),
        ("client=c1-O", "did you mean c1-0?"),
        ("client=a=b", "known are c1-0, c2-0"),
        ("client=c3-*", ""),
        ("client=c2-*", None),
        ("client=c1-0", None),
    ],
)
def test_a_choice_of_no_client_is_found_before_the_run(where: str, remedy: str | None) -> None:
    """It would hold for ever: nothing of nobody is counted."""
    for figure in ("restarts", "failures", "late", "folded", "discarded"):
        found = [assertions.parse(f"{figure}{{{where}}} == 0")]
        findings = assertions.unfit("x.yml", found, [], ["c1-0", "c2-0"])
        assert len(findings) == (remedy is not None)
        if remedy is not None:
            assert f"no client is called {where.removeprefix('client=')}" in findings[0].problem
            assert remedy in findings[0].remedy
        assert assertions.unfit("x.yml", found, []) == []


def test_verdicts_are_said_and_written_for_ci() -> None:
    found = [
        Verdict("accuracy >= 0.9", True, "0.95"),
        Verdict("loss < 1", False, "not known"),
        Verdict("failures == 0", False, "3", ("journal.jsonl:7", "journal.jsonl:9"), 4),
    ]
    verdicts = [asdict(verdict) for verdict in found]
    assert assertions.lines(verdicts) == [
        "  assertions  1 of 3 hold",
        "              FAILED: loss < 1 (found: not known)",
        "              FAILED: failures == 0 (found: 3; see journal.jsonl:7, journal.jsonl:9 and 4 more)",
    ]
    assert assertions.lines([]) == []
    suite = ElementTree.fromstring(assertions.junit("coldframe.x", verdicts))
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [(case.get("name"), len(case)) for case in suite] == [
        ("accuracy >= 0.9", 0),
        ("loss < 1", 1),
        ("failures == 0", 1),
    ]
    assert "journal.jsonl:9 and 4 more" in str(suite[2][0].get("message"))
