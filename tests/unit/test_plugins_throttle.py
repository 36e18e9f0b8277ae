"""throttle.yml: whom it means, what it asks for, what it refuses, and how it shows the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller import throttle
from coldframe.controller.checks import Machine
from coldframe.controller.profiles import profile_limits
from coldframe.controller.settings import Finding, cast, check_names
from coldframe.controller.throttle_text import (
    coldframe_events,
    coldframe_proof_text,
    coldframe_silent,
    coldframe_speeds,
    coldframe_throttle_text,
    text_of,
)
from coldframe.machine.agent_request import build, difference, refusal

ROSTER = [{"name": f"{machine}-{k}", "machine": machine} for machine in ("c1", "c2") for k in range(4)]
PROFILES = {"raspberry-pi-4": {"cpu": 1.0, "memory": "4g"}, "lte": {"down": "20mbit", "delay": "50ms"}}


def machine(name: str, cores: int = 2, speed: float | None = 20.0) -> Machine:
    """A machine that has answered."""
    calibration = {"steps_per_second": speed} if speed else {}
    return Machine(name, frozenset({"fl_clients"}), facts={"cpus": cores, "calibration": calibration})


MACHINES = [machine("c1"), machine("c2")]


def plan(
    machines: list[Machine] = MACHINES, **given: Any
) -> tuple[dict[str, dict[str, Any]], list[Finding], list[str]]:
    """The plan for variables as they are typed."""
    values, findings = cast("throttle", given)
    assert findings == []
    return throttle.plan(values, ROSTER, machines, PROFILES, reference=10.0, base=Path(__file__).parent)


def test_limits_go_to_every_client_by_machine() -> None:
    requests, findings, _ = plan(cpu="0.5", memory="512m", down="10mbit")
    assert findings == []
    assert list(requests) == ["c1", "c2"]
    assert requests["c1"]["limits"]["c1-3"] == {"cpu": 0.5, "memory": 512 << 20, "down": 10_000_000}
    assert requests["c1"]["action"] == "set"


def test_pattern_chooses() -> None:
    requests, _, _ = plan(cpu="0.5", clients="c1-0, c2-*")
    assert requests["c1"]["clients"] == ["c1-0"]
    assert len(requests["c2"]["clients"]) == 4
    assert list(plan(cpu="0.5", clients="c2-1")[0]) == ["c2"]


def test_fraction_is_drawn_by_the_seed() -> None:
    def drawn(**given: Any) -> set[str]:
        return {name for request in plan(cpu="0.5", **given)[0].values() for name in request["clients"]}

    assert len(drawn(fraction="0.5")) == 4
    assert len(drawn(fraction="0.01")) == 1
    assert drawn(fraction="0.5", seed="1") == drawn(fraction="0.5", seed="1")
    assert len({frozenset(drawn(fraction="0.5", seed=str(seed))) for seed in range(5)}) > 1


def test_undo_and_proof_name_the_clients() -> None:
    assert plan(undo="true")[0]["c1"] == {"action": "undo", "clients": [f"c1-{k}" for k in range(4)]}
    assert plan(prove="10s")[0]["c1"]["action"] == ""


def test_profile_counts_reference_cores() -> None:
    requests, _, warnings = plan(
        [machine("c1", speed=20.0), machine("c2", speed=5.0)], profile="raspberry-pi-4"
    )
    assert warnings == []
    assert requests["c1"]["limits"]["c1-0"] == {
        "cpu": 0.5,
        "memory": 4 << 30,
    }  # twice as fast: half the cores
    assert requests["c2"]["limits"]["c2-0"]["cpu"] == 2.0


def test_profile_without_calibration_warns() -> None:
    requests, _, warnings = plan([machine("c1", speed=None)], profile="raspberry-pi-4")
    assert requests["c1"]["limits"]["c1-0"]["cpu"] == 1.0
    assert "calibrate.yml" in warnings[0]


def test_profiles_add_up_and_a_given_value_beats_them() -> None:
    limits = plan(profile="raspberry-pi-4,lte", cpu="0.3")[0]["c1"]["limits"]["c1-0"]
    assert limits == {"cpu": 0.3, "memory": 4 << 30, "down": 20_000_000, "delay": 0.05}


@pytest.mark.parametrize(
    ("given", "problem", "remedy"),
    [
        ({}, "nothing to do", "-e cpu=0.5"),
        ({"cpu": "3"}, "cpu=3 is more than the machine's 2 cores", "-e cpu=2"),
        ({"memory": "10m"}, "memory=10m is below the 384 MB", "-e memory=384m"),
        ({"cpu": "1", "clients": "c9-*"}, "clients=c9-* matches none of c1-0", "-e clients="),
        ({"profile": "raspbery-pi4"}, "profile=raspbery-pi4 is not known", "did you mean raspberry-pi-4?"),
        ({"undo": "true", "cpu": "1"}, "undo and cpu are both given", "leave cpu out"),
        ({"trace": "no.csv"}, "no.csv cannot be read", "give the path of a CSV file"),
        ({"jitter": "5ms"}, "jitter is given without a delay", "-e delay=50ms"),
        ({"duration": "5s", "undo": "true"}, "duration is given without a limit", "leave it out"),
    ],
)
def test_bad_input_is_one_finding_with_what_to_type(given: dict[str, Any], problem: str, remedy: str) -> None:
    _, [finding], _ = plan(MACHINES[:1], **given)
    assert problem in finding.problem
    assert remedy in finding.remedy


def test_profile_that_a_machine_is_too_slow_for_is_refused() -> None:
    _, [finding], _ = plan([machine("c1", speed=1.0)], profile="raspberry-pi-4")
    assert "cpu=10 (profile raspberry-pi-4 on this machine)" in finding.problem


def test_force_goes_below_the_floor() -> None:
    assert plan(memory="100m", force="true")[1] == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cpu", "0", "cpu=0 is not a number ≥ 0.05"),
        ("memory", "lots", "memory=lots is not a size"),
        ("down", "fast", "down=fast is not a rate"),
        ("loss", "101%", "loss=101% is not a percentage from 0 to 100"),
        ("duration", "-1s", "duration=-1s is not a duration"),
    ],
)
def test_values_that_are_none_are_named(name: str, value: str, words: str) -> None:
    _, [finding] = cast("throttle", {name: value})
    assert words in str(finding)


def test_what_others_call_bandwidth_is_known() -> None:
    [finding] = check_names("throttle", ["bandwidth"])
    assert "-e down=10mbit and -e up=10mbit" in finding.remedy


def test_table_shows_before_asked_and_kernel() -> None:
    answer = {
        "before": {"cpu": 0.4, "memory": 1 << 30},
        "desired": {"cpu": 0.1, "memory": 1 << 30},
        "verified": {"cpu": 0.1, "memory": 1 << 30},
        **{"running": True, "holds": True, "revert_at": None},
    }
    requests = {"c1": {"action": "set", "limits": {"c1-0": {"cpu": 0.1}}}}
    hostvars = {"c1": {"coldframe_throttled": {"clients": {"c1-0": answer}}}}
    lines = coldframe_throttle_text(requests, hostvars)
    assert lines[1].split() == ["c1-0", "cpu", "0.4", "0.1", "0.1", "holds"]
    answer |= {"holds": False, "verified": {"cpu": 0.4}}
    assert "DOES NOT HOLD" in coldframe_throttle_text(requests, hostvars)[1]
    answer |= {"running": False, "before": None, "verified": None}
    assert coldframe_throttle_text(requests, hostvars)[1].endswith("holds from its start")
    undone = coldframe_throttle_text({"c1": {"action": "undo"}}, hostvars)
    assert undone == ["Every client has its baseline already."]
    assert coldframe_throttle_text({"c1": {"action": ""}}, hostvars) == []


def test_trace_is_announced_unless_something_later_has_won() -> None:
    trace = {"name": "walk.csv", "start": 0, "length": 120.0, "speed": 10.0, "loop": True}
    requests = {"c1": {"action": "trace", "trace": trace}}
    answer = {"superseded": False}
    hostvars = {"c1": {"coldframe_throttled": {"clients": {"c1-0": answer}}}}
    assert "for 12.0 s, again and again" in coldframe_throttle_text(requests, hostvars)[0]
    assert "Nothing was changed" in coldframe_throttle_text(requests, hostvars, True)[0]
    answer["superseded"] = True
    assert coldframe_throttle_text(requests, hostvars) == [
        "A later trace or undo won: walk.csv is not replayed for c1-0."
    ]


@pytest.mark.parametrize(
    ("cpu", "down", "verdicts"),
    [(0.1, 9.8e6, ["proven", "proven"]), (0.02, 1e3, ["not reached"] * 2), (0.2, 2e7, ["EXCEEDED"] * 2)],
)
def test_proof_tells_a_limit_that_bites_from_one_that_was_not_reached(
    cpu: float, down: float, verdicts: list[str]
) -> None:
    desired = {"cpu": 0.1, "down": 1e7, "up": None}
    proof = {"cpu": cpu, "throttled_share": 0.9, "down": down, "up": 0.0, "desired": desired}
    hostvars = {"c1": {"coldframe_proof": {"clients": {"c1-0": proof}}}}
    text = "\n".join(coldframe_proof_text(["c1"], hostvars, {"prove": 10.0, "load": False}))
    offered = "ansible-playbook throttle.yml -e prove=10s -e load=true" in text
    assert offered == (verdicts[0] == "not reached")
    assert "load=true" not in "\n".join(coldframe_proof_text(["c1"], hostvars, {"prove": 10.0, "load": True}))
    for word in verdicts:
        assert text.count(word) == verdicts.count(word)
    assert "no limit" in text


def test_proof_names_who_could_not_be_measured() -> None:
    desired = {"cpu": 0.1, "down": 1e7, "up": None}
    proof = {"cpu": 0.1, "throttled_share": 0.9, "down": 1e7, "up": 0.0, "desired": desired}
    lost = {"problem": "restarted meanwhile", "desired": desired}
    hostvars = {"c1": {"coldframe_proof": {"clients": {"c1-0": lost, "c1-1": proof}}}}
    text = coldframe_proof_text(["c1"], hostvars, {"prove": 10.0, "load": False})
    assert any("c1-0" in line and "restarted meanwhile" in line for line in text)
    assert any("c1-1" in line and "proven" in line for line in text)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("down", 10_000_000, "10 mbit"),
        ("up", 1_500, "1.5 kbit"),
        ("memory", 1 << 30, "1 GB"),
        ("delay", 0.05, "50 ms"),
        ("loss", 1.0, "1 %"),
        ("cpu", 0.25, "0.25"),
        ("up", None, "none"),
        ("online", False, "no"),
    ],
)
def test_limits_for_people(key: str, value: Any, text: str) -> None:
    assert text_of(key, value) == text


def test_module_asks_for_what_it_is_told() -> None:
    params = {
        **{"action": "set", "limits": {"a": {"cpu": 1}}, "clients": [], "stamp": 5.0, "duration": 3.0},
        **{"seconds": None, "load": True, "trace": {}, "force": False},
    }
    assert build(params, check=True) == {
        **{
            "do": "set",
            "stamp": 5.0,
            "check": True,
            "limits": {"a": {"cpu": 1}},
            "duration": 3.0,
            "force": False,
        }
    }
    assert build({**params, "action": "status"}, check=False) == {"do": "status"}
    proof = build({**params, "action": "prove", "clients": ["a"], "seconds": 2.0}, check=False)
    assert proof == {"do": "prove", "clients": ["a"], "seconds": 2.0, "load": True}


def test_one_reason_is_said_once() -> None:
    text = refusal({"a": ["too much"], "b": ["too much", "netem"]})
    assert text.splitlines() == ["- a, b: too much", "- b: netem", "", "Nothing was changed."]


def test_diff_shows_what_differs() -> None:
    answer = {"before": {"cpu": 0.4, "pids": 5}, "desired": {"cpu": 0.1, "pids": 5, "down": 1}}
    assert difference({"a": answer}) == {"before": "a: cpu=0.4\n", "after": "a: cpu=0.1\n"}


def test_events_of_all_machines_are_in_the_order_of_time() -> None:
    answers = {
        "c1": {"events": [{"time": 1, "client": "c1-0"}, {"time": 3, "client": "c1-0"}]},
        "c2": {"events": [{"time": 2, "client": "c2-0"}]},
        "c3": {"msg": "no agent answers"},
    }
    hostvars = {name: {"coldframe_events": answer} for name, answer in answers.items()} | {"c4": {}}
    lines = [json.loads(line) for line in coldframe_events(hostvars, hostvars).splitlines()]
    assert [(line["time"], line["machine"]) for line in lines] == [(1, "c1"), (2, "c2"), (3, "c1")]
    # Who has not told any is known: an agent that did not answer is not one to which nothing has happened.
    hostvars["c5"] = {"coldframe_events": {"events": []}}
    assert coldframe_silent(hostvars, hostvars) == "c3,c4"
    assert coldframe_silent(hostvars, hostvars, ["c1"]) == "c1,c3,c4"


def test_speeds_are_shown_in_reference_cores() -> None:
    machines = [
        {"inventory_hostname": "c1", "coldframe_calibration": {"stdout_lines": ['{"steps_per_second": 8.6}']}}
    ]
    assert coldframe_speeds(machines, 17.2) == [
        {"machine": "c1", "steps_per_second": 8.6, "reference_cores": 0.5}
    ]


def test_every_profile_can_be_given_to_a_client() -> None:
    path = Path(__file__).parents[2] / "group_vars" / "all" / "profiles.yml"
    profiles = yaml.safe_load(path.read_text())["coldframe_profiles"]
    assert len(profiles) == 14
    for name in profiles:
        limits = profile_limits(name, profiles)
        assert limits.get("cpu", 1) >= 0.05
        assert limits.get("memory", 1 << 40) >= throttle.MEMORY_FLOOR
