"""A scenario's file: everything that is wrong with it is found at once, and what each agent gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import assertions, scenario, scenario_outcome
from coldframe.controller.checks import Machine
from coldframe.controller.settings import RUN, Finding

ROOT = Path(__file__).parents[2]
ROSTER = [{"name": f"{machine}-{k}", "machine": machine} for machine in ("c1", "c2") for k in range(2)]
PROFILES = {"raspberry-pi-4": {"cpu": 1.0, "memory": "4g"}}
GOOD = """
timeline:
  - {at: 20s, do: throttle, clients: 'c1-*', cpu: 0.1, down: 10mbit, for: 60s}
  - {round: 3, do: partition, clients: {fraction: 0.5, seed: 1}, for: 90s}
  - {round: 4, phase: evaluate, do: kill, clients: [c1-0, c2-0]}
  - {round: 5, do: leave, clients: c2-0}
  - {round: 7, do: join, clients: c2-0}
"""


def machine(name: str, speed: float = 20.0) -> Machine:
    return Machine(
        name, frozenset({"fl_clients"}), facts={"cpus": 2, "calibration": {"steps_per_second": speed}}
    )


def judge(
    tmp_path: Path, text: str, rounds: int | None = 9
) -> tuple[dict[str, list[dict[str, Any]]], list[Finding]]:
    """What the agents get, and all findings."""
    path = tmp_path / "x.yml"
    path.write_text(text)
    found, findings = scenario.read(path, "x.yml", rounds)
    if found is None:
        return {}, findings
    machines = [machine("c1"), machine("c2", 5.0)]
    requests, findings, _ = scenario.plan(found, ROSTER, machines, PROFILES, reference=10.0)
    return requests, findings


def test_each_machine_gets_what_is_about_its_clients(tmp_path: Path) -> None:
    requests, findings = judge(tmp_path, GOOD)
    assert findings == []
    first = {"number": 1, "do": "throttle", "at": 20.0, "clients": ["c1-0", "c1-1"], "seconds": 60.0}
    limits = {"cpu": 0.1, "down": 10_000_000}
    assert requests["c1"][0] == {
        **first,
        "limits": {"c1-0": limits, "c1-1": limits},
        "force": False,
    }
    partitioned = [
        name
        for entries in requests.values()
        for item in entries
        if item["number"] == 2
        for name in item["clients"]
    ]
    assert len(partitioned) == 2
    kill = {"number": 3, "do": "kill", "round": 4, "phase": "evaluate", "seconds": None}
    assert {**kill, "clients": ["c1-0"]} in requests["c1"] and {**kill, "clients": ["c2-0"]} in requests["c2"]
    assert [item["do"] for item in requests["c2"]][-2:] == ["leave", "join"]


def test_a_share_is_drawn_with_its_seed(tmp_path: Path) -> None:
    def drawn(seed: int) -> set[str]:
        text = f"timeline: [{{at: 1s, do: pause, clients: {{fraction: 0.5, seed: {seed}}}}}]"
        return {name for items in judge(tmp_path, text)[0].values() for name in items[0]["clients"]}

    assert drawn(1) == drawn(1) and len({frozenset(drawn(seed)) for seed in range(8)}) > 1


def test_a_profile_is_what_it_is_on_each_machine(tmp_path: Path) -> None:
    text = "timeline: [{at: 0s, do: throttle, clients: '*', profile: raspberry-pi-4}]"
    requests, _ = judge(tmp_path, text)
    assert requests["c1"][0]["limits"]["c1-0"]["cpu"] == 0.5
    assert requests["c2"][0]["limits"]["c2-0"]["cpu"] == 2.0


@pytest.mark.parametrize(
    ("entry", "problem", "remedy"),
    [
        ("{at: 1s, do: throtle, clients: '*', cpu: 1}", "do: 'throtle' is not known", "do: throttle?"),
        ("{at: 1s, clients: '*'}", "it does nothing", "throttle, partition, pause"),
        ("{at: 1s, do: [kill], clients: '*'}", "do: ['kill'] is not known", "do: kill?"),
        ("{at: 1s, do: pause, clients: '*', forr: 2s}", "unknown key 'forr'", "'for'"),
        ("{at: 1s, do: pause, clients: '*', cpu: 1}", "unknown key 'cpu'", "it can have"),
        ("{at: -1s, do: pause, clients: '*'}", "at=-1s is not a duration", "write at: 20s"),
        ("{at: 1s, do: pause, clients: '*', for: 0s}", "for=0s is not a duration", "write for: 60s"),
        ("{at: 1s, do: kill, clients: '*', for: 3s}", "kill lasts no time", "leave for: out"),
        ("{do: pause, clients: '*'}", "has no trigger", "at: 20s, round: 3 or after: 2 rounds"),
        (
            "{at: 1s, round: 2, do: pause, clients: '*'}",
            "2 triggers, at and round",
            "at: 20s, round: 3 or after",
        ),
        ("{round: 10, do: pause, clients: '*'}", "round 10 is beyond the run's 9 rounds", "round: 9"),
        ("{round: 0, do: pause, clients: '*'}", "round=0 is not a whole number ≥ 1", "write round: 3"),
        ("{round: 1, phase: tain, do: kill, clients: '*'}", "phase 'tain'", "train or evaluate"),
        ("{at: 1s, phase: train, do: kill, clients: '*'}", "phase is for a round", "leave it out"),
        ("{at: 1s, do: pause}", "has no clients", "clients: 'c1-*'"),
        ("{at: 1s, do: pause, clients: 7}", "has clients: 7", "clients: 'c1-*'"),
        ("{at: 1s, do: pause, clients: 'c9-*'}", "clients=c9-* matches none of c1-0", "write clients: "),
        ("{at: 1s, do: pause, clients: {fraction: 2}}", "fraction=2 is not", "write fraction: 0.5"),
        ("{at: 1s, do: pause, clients: {share: 1}}", "unknown key 'share'", "fraction"),
        ("{at: 1s, do: throttle, clients: '*'}", "has no limit", "add one of cpu"),
        ("{at: 1s, do: throttle, clients: '*', cpu: x}", "cpu=x is not a number", "write cpu: 0.5"),
        (
            "{at: 1s, do: throttle, clients: 'c1-*', cpu: 3}",
            "more than the machine's 2 cores",
            "write cpu: 2",
        ),
        ("{at: 1s, do: throttle, clients: '*', profile: pi}", "profile=pi is not known", "known are"),
        ("{at: 1s, do: join, clients: c1-0}", "c1-0 joins, and has not left", "do: leave for c1-0"),
    ],
)
def test_what_is_wrong_is_one_finding_with_what_to_write(
    tmp_path: Path, entry: str, problem: str, remedy: str
) -> None:
    _, [finding] = judge(tmp_path, f"timeline:\n  - {entry}\n")
    assert problem in finding.problem, finding
    assert remedy in finding.remedy, finding


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("timeline: [", "is not YAML"),
        ("", "is not a scenario"),
        ("[1]", "is not a scenario"),
        ("timeline: {at: 1s}", "timeline is not a list of entries"),
        ("timeline: [pause]", "timeline is not a list of entries"),
        ("timeline: []", "has no timeline"),
        ("timelin: []", "unknown key 'timelin'"),
        ("assert: [accurracy >= 0.9]", "assert: 'accurracy >= 0.9': accurracy is not known"),
        ("assert: accuracy >= 0.9", "assert is not a list of lines"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    _, [finding] = judge(tmp_path, text)
    assert problem in finding.problem


def triggers(tmp_path: Path, *entries: str, rounds: int | None = 9) -> list[dict[str, Any]]:
    """The triggers of a timeline without findings, each as an agent gets it."""
    text = "".join(f"  - {{{entry}, do: kill, clients: '*'}}\n" for entry in entries)
    requests, findings = judge(tmp_path, f"timeline:\n{text}", rounds)
    assert findings == []
    keys = ("number", "do", "clients", "seconds")
    return [{key: value for key, value in item.items() if key not in keys} for item in requests["c1"]]


@pytest.mark.parametrize(
    ("entries", "last"),
    [
        (("at: 20s", "after: 1m"), {"at": 80.0}),
        (("at: 20s", "after: 1m", "after: 5"), {"at": 85.0}),
        (("round: 3", "after: 2 rounds"), {"round": 5, "phase": "train"}),
        (("round: 3, phase: evaluate", "after: 1 round"), {"round": 4, "phase": "evaluate"}),
        (("round: 3", "after: 2 rounds, phase: evaluate"), {"round": 5, "phase": "evaluate"}),
        (("round: 3", "after: 20s"), {"base": 1, "delay": 20.0}),
        (("round: 3", "after: 20s", "after: 0s"), {"base": 1, "delay": 20.0}),
        (("at: 5s", "after: 2 rounds"), {"base": 1, "rounds": 2, "phase": "train"}),
        (("at: 5s", "after: 2 rounds", "after: 1 rounds"), {"base": 1, "rounds": 3, "phase": "train"}),
        (("round: 1", "after: 9s", "after: 8rounds"), {"base": 2, "rounds": 8, "phase": "train"}),
        (("at: 5s", "round: 3", "after: 1s"), {"base": 2, "delay": 1.0}),
    ],
)
def test_after_counts_from_the_entry_before(
    tmp_path: Path, entries: tuple[str, ...], last: dict[str, Any]
) -> None:
    assert triggers(tmp_path, *entries)[-1] == last


@pytest.mark.parametrize(
    ("entries", "problem", "remedy"),
    [
        (("after: 20s",), "timeline entry 1: after: there is no entry before it", "at: 20s or round: 3"),
        (("at: 1s", "after: soon"), "after=soon is not a duration", "after: 20s or after: 2 rounds"),
        (("at: 1s", "after: two rounds"), "after=two rounds is not a whole number", "write after: 2 rounds"),
        (("at: 1s", "after: rounds"), "after=rounds is not a whole number", "write after: 2 rounds"),
        (("at: 1s", "after: 2.5 rounds"), "after=2.5 rounds is not a whole number", "write after: 2 rounds"),
        (("at: 1s", "after: 0 rounds"), "after=0 rounds is not a whole number ≥ 1", "write after: 2 rounds"),
        (("at: 1s", "after: -1s"), "after=-1s is not a duration", "write after: 20s"),
        (("at: 1s", "after: 2s, round: 3"), "has 2 triggers, round and after", "write one: "),
        (("at: 1s", "after: 2s, phase: train"), "phase is for a round", "after: 2 rounds"),
        (("round: 1", "after: 2 rounds, phase: x"), "phase 'x' is not known", "train or evaluate"),
        (("round: 3", "after: 7 rounds"), "entry 2: round 10 is beyond the run's 9 rounds", "less time"),
        (("at: 1s", "after: 9 rounds"), "9 rounds after entry 1 is beyond the run's 9 rounds", "less time"),
        (("round: 6", "after: 9s", "after: 4 rounds"), "4 rounds after entry 2 is beyond", "less time"),
    ],
)
def test_what_is_wrong_with_after_is_one_finding(
    tmp_path: Path, entries: tuple[str, ...], problem: str, remedy: str
) -> None:
    text = "".join(f"  - {{{entry}, do: kill, clients: '*'}}\n" for entry in entries)
    _, [finding] = judge(tmp_path, f"timeline:\n{text}")
    assert problem in finding.problem and remedy in finding.remedy, finding


@pytest.mark.parametrize(
    ("trigger", "remedy"),
    [("after", "write after: 20s or after: 2 rounds"), ("at", "write at: 20s"), ("round", "write round: 3")],
)
def test_a_trigger_that_is_empty_is_not_to_be_left_out(tmp_path: Path, trigger: str, remedy: str) -> None:
    """An entry needs one."""
    entries = f"{{at: 1s, do: kill, clients: '*'}}, {{{trigger}: , do: kill, clients: '*'}}"
    _, [finding] = judge(tmp_path, f"timeline: [{entries}]")
    assert finding.problem == f"timeline entry 2: {trigger} is empty" and finding.remedy == remedy


def test_what_follows_on_a_wrong_entry_is_not_wrong_for_it(tmp_path: Path) -> None:
    entries = "{at: x, do: kill, clients: '*'}, {after: 2 rounds, do: kill, clients: '*'}"
    _, [finding] = judge(tmp_path, f"timeline: [{entries}]")
    assert "entry 1: at=x" in finding.problem


def test_a_machine_gets_the_entries_of_others_that_its_own_count_from(tmp_path: Path) -> None:
    text = """
timeline:
  - {round: 2, do: kill, clients: c1-0}
  - {after: 20s, do: throttle, clients: c1-1, cpu: 0.1, for: 9s}
  - {after: 2 rounds, do: leave, clients: c2-0}
  - {at: 9s, do: kill, clients: c1-0}
"""
    requests, findings = judge(tmp_path, text)
    assert findings == []
    first = {"number": 1, "do": "kill", "round": 2, "phase": "train", "clients": [], "seconds": None}
    second = {"number": 2, "do": "throttle", "base": 1, "delay": 20.0, "clients": [], "seconds": None}
    third = {"number": 3, "do": "leave", "base": 2, "rounds": 2, "phase": "train", "clients": ["c2-0"]}
    assert requests["c2"] == [first, second, {**third, "seconds": None}]
    assert [item["number"] for item in requests["c1"]] == [1, 2, 4]


def test_people_read_what_an_entry_counts_from(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    entries = ("round: 2", "after: 20s", "after: 1 round", "after: 2 rounds, phase: evaluate")
    path.write_text("timeline:\n" + "".join(f"  - {{{it}, do: kill, clients: '*'}}\n" for it in entries))
    found, _ = scenario.read(path, "x.yml", 9)
    assert found is not None
    assert [entry.words for entry in found.entries] == [
        "entry 1 (round 2, kill)",
        "entry 2 (20 s after entry 1, kill)",
        "entry 3 (1 round after entry 2, kill)",
        "entry 4 (3 rounds after entry 2, evaluate, kill)",
    ]


def test_everything_is_found_at_once(tmp_path: Path) -> None:
    _, findings = judge(
        tmp_path,
        "timeline:\n  - {at: 1s, do: paus, clients: '*'}\n  - {round: 99, do: kill, clients: '*', for: 2s}\n",
    )
    assert len(findings) == 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    _, [finding] = scenario.read(tmp_path / "no.yml", "no.yml")
    assert "scenario=no.yml cannot be read" in finding.problem and "scenario=none" in finding.remedy


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ("at: 1s, do: pause, for: 10s", "at: 5s, do: pause", True),
        ("at: 1s, do: pause, for: 10s", "at: 11s, do: pause", False),
        ("at: 5s, do: pause", "at: 1s, do: pause, for: 2s", False),  # in the order of time, not of the file
        ("at: 1s, do: pause, for: 10s", "at: 5s, do: partition", False),
        ("at: 1s, do: partition", "at: 5s, do: partition", True),
        ("round: 1, do: pause", "round: 3, do: pause", True),
        ("round: 1, do: pause, for: 5s", "round: 3, do: pause", False),
        ("round: 1, do: pause, for: 5s", "round: 1, do: pause", True),
        ("round: 1, do: pause, for: 5s", "round: 1, phase: evaluate, do: pause", False),
        ("round: 1, do: leave", "round: 2, do: leave", True),
        ("at: 1s, do: pause", "round: 2, do: pause", False),  # nobody knows which comes first
    ],
)
def test_what_overlaps_for_a_client_is_found(tmp_path: Path, first: str, second: str, overlap: bool) -> None:
    text = f"timeline:\n  - {{{first}, clients: 'c1-*'}}\n  - {{{second}, clients: 'c*-1'}}\n"
    _, findings = judge(tmp_path, text)
    assert [("overlap" in item.problem and "c1-1" in item.problem) for item in findings] == [True] * overlap


@pytest.mark.parametrize(
    ("entries", "overlap"),
    [
        (("at: 1s, do: pause, for: 10s", "after: 5s, do: pause"), True),
        (("at: 1s, do: pause, for: 10s", "after: 10s, do: pause"), False),
        (("round: 1, do: pause, for: 10s", "after: 5s, do: pause"), True),
        (("round: 1, do: pause, for: 10s", "after: 10s, do: pause"), False),
        (("round: 1, do: kill", "after: 5s, do: pause, for: 9s", "after: 5s, do: pause"), True),
        (("at: 1s, do: leave", "after: 2 rounds, do: leave"), True),
        (("at: 1s, do: leave", "after: 2 rounds, do: join", "after: 1 rounds, do: leave"), False),
        (("round: 1, do: pause", "after: 5s, do: undo", "round: 4, do: pause"), False),  # as far as is known
        (("at: 1s, do: pause, for: 5s", "after: 1 rounds, do: pause"), False),  # nobody knows
        (("round: 1, do: leave", "after: 5s, do: join"), False),
        (("round: 1, do: kill", "after: 5s, do: join"), None),
    ],
)
def test_what_follows_on_an_entry_is_compared_with_it(
    tmp_path: Path, entries: tuple[str, ...], overlap: bool | None
) -> None:
    text = "".join(f"  - {{{entry}, clients: c1-1}}\n" for entry in entries)
    _, findings = judge(tmp_path, f"timeline:\n{text}")
    wanted = {True: ["overlap"], False: [], None: ["joins, and has not left"]}[overlap]
    assert len(findings) == len(wanted) and all(
        words in it.problem for words, it in zip(wanted, findings, strict=True)
    )


def test_between_two_of_a_kind_it_can_be_taken_back(tmp_path: Path) -> None:
    entries = [
        f"{{round: {k}, do: {do}, clients: '*'}}" for k, do in enumerate(("pause", "undo", "pause"), 1)
    ]
    text = f"timeline: [{', '.join(entries)}]"
    assert judge(tmp_path, text)[1] == []


def test_whoever_leaves_by_time_may_join_by_round(tmp_path: Path) -> None:
    text = "timeline: [{at: 9s, do: leave, clients: c1-0}, {round: 2, do: join, clients: c1-0}]"
    assert judge(tmp_path, text)[1] == []


def test_a_file_may_only_assert(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("assert:\n  - accuracy >= 0.9\n  - failures{reason=timeout} <= 2\n")
    values = {"scenario": "x.yml", "app": "", "rounds": 3, "wait_timeout": 300.0, "round_timeout": 60.0}
    planned, findings, _ = scenario.for_run(values, tmp_path, ROSTER, [machine("c1")], PROFILES, 10.0)
    assert findings == [] and planned["machines"] == {}
    assert planned["asserts"] == ["accuracy >= 0.9", "failures{reason=timeout} <= 2"]


def test_rounds_of_another_app_are_not_known(tmp_path: Path) -> None:
    assert judge(tmp_path, "timeline: [{round: 999, do: kill, clients: '*'}]", rounds=None)[1] == []


def test_a_scenario_is_what_it_says(tmp_path: Path) -> None:
    """Not its path, nor a comment."""
    texts = {"a": GOOD, "b": f"# again\n{GOOD}", "c": GOOD.replace("60s", "61s")}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    a, b, c = (scenario.digest(tmp_path / name) for name in texts)
    assert a == b != c
    assert scenario.digest(None) == scenario.digest(tmp_path / "no") == ""
    assert scenario.path_of({"scenario": "none"}, tmp_path) is None
    assert scenario.path_of({"scenario": "a"}, tmp_path) == tmp_path / "a"


def test_an_agent_is_asked_what_is_its_own() -> None:
    """To stage its part; to end what an earlier run has left; nothing, where there is nothing to do."""
    mine = {"name": "x.yml", "entries": [{"number": 1}]}
    plan: dict[str, Any] = {"scenario": {"machines": {"c1": mine}}, "staged": {"c2": "5"}}
    plan["run"] = {"concurrent": False}
    ask, end = scenario.coldframe_scenario, scenario.coldframe_scenario_end
    assert ask(plan, "c1", "7") == {**mine, "run": "7"} and ask(plan, "c1")["run"] == ""
    assert ask(plan, "c2", "7") == {"run": "5", "entries": []}
    assert ask(plan, "c2") == ask(plan, "c2", "5") == ask(plan, "c3", "7") == {}
    assert ask({**plan, "run": {"concurrent": True}}, "c2", "7") == {}
    assert end(plan, "c1", "7") == {"run": "7", "entries": []} and end(plan, "c2", "5")["run"] == "5"
    assert end(plan, "c2", "7") == end(plan, "c3", "7") == end(plan, "c1", "") == {}


def test_what_a_run_that_is_over_has_staged_ends_before_one_is_resumed() -> None:
    plan: dict[str, Any] = {"staged": {"c1": "5", "c2": "6"}, "going": ["6"]}
    left = scenario.coldframe_scenario_left
    assert left(plan, "c1") == {"run": "5", "entries": []}
    assert left(plan, "c2") == left(plan, "c3") == {}


def test_what_became_of_it_is_in_the_summary_and_the_closing_words() -> None:
    entries = {"1": "entry 1 (at 5 s, pause)", "2": "entry 2 (round 9, kill)", "3": "entry 3 (at 9 s, leave)"}
    noted = {"scenario": {"name": "x.yml", "entries": entries, "text": ""}}

    def event(client: str, entry: int, holds: bool, cause: str = "scenario") -> dict[str, Any]:
        return {"cause": cause, "client": client, "entry": entry, "holds": holds, "lateness": entry / 10}

    events = [
        event("a", 1, True),
        event("b", 1, False),
        event("a", 1, True, "scenario ended"),
        event("a", 3, True),
    ]
    found = scenario_outcome.outcome(noted, [*events, {"cause": "oom", "client": "a", "kills": 1}])
    assert found is not None
    assert found["entries"][0] == {
        **{"number": 1, "what": entries["1"], "clients": ["a", "b"], "not_hold": ["b"], "lateness": 0.1}
    }
    assert found["entries"][1]["lateness"] is None
    assert scenario_outcome.lines(found) == [
        "  scenario    x.yml: 2 of 3 entries done, at most 0.30 s late",
        "              entry 2 (round 9, kill) was never due",
        "              entry 1 (at 5 s, pause) does not hold for b",
    ]
    assert scenario_outcome.outcome({}, events) is None and scenario_outcome.lines(None) == []


def test_the_examples_of_the_document_are_a_scenario(tmp_path: Path) -> None:
    """And they have each figure that can be asserted."""
    blocks = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8").split("```text\n")[1:]
    texts = {text.partition(":")[0]: text.partition("```")[0] for text in blocks}
    path = tmp_path / "x.yml"
    path.write_text(texts["timeline"] + texts["assert"])
    found, findings = scenario.read(path, "x.yml", 9)
    assert findings == [] and found is not None
    asserted = {assertions.parse(text).figure for text in found.asserts}
    assert asserted == set(assertions.FIGURES)


def test_names_of_clients_in_an_assertion_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("assert:\n  - 'restarts == {c1-0: 1, c1-7: 2}'\n  - recovery(kill) <= 1 rounds\n")
    values = {"scenario": "x.yml", "app": "", "rounds": 3, "wait_timeout": 300.0, "round_timeout": 60.0}
    judged = scenario.for_run(values, tmp_path, ROSTER, [machine("c1")], PROFILES, 10.0)
    assert [it.problem for it in judged[1]] == [
        "scenario=x.yml: assert: 'recovery(kill) <= 1 rounds': the timeline has no kill"
    ]
    path.write_text("assert:\n  - 'restarts == {c1-0: 1, c1-7: 2}'\n")
    judged = scenario.for_run(values, tmp_path, ROSTER, [machine("c1")], PROFILES, 10.0)
    assert ["no client is called c1-7" in it.problem for it in judged[1]] == [True]


def test_a_line_that_needs_quotes_says_so(tmp_path: Path) -> None:
    _, [finding] = judge(tmp_path, "assert:\n  - restarts == {c1-0: 1, c1-1: 2}\n")
    assert "is not YAML" in finding.problem and "in quotes" in finding.remedy


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yml")), ids=lambda path: path.name)
def test_scenarios_that_ship_fit_the_default_run(path: Path) -> None:
    found, findings = scenario.read(path, path.name, RUN["rounds"].default)
    assert findings == [] and found is not None
    _, findings, _ = scenario.plan(found, ROSTER, [machine("c1"), machine("c2")], PROFILES, reference=10.0)
    assert findings == []
