"""An experiment on the federation that stands: its runs, their limits, its resumption, the comparison."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.federation import CLIENTS, CPU, FEDERATION
from tests.cluster.lab import Lab, Play

SLOW = 0.16  # cores
FILE: dict[str, Any] = {
    "base": {"rounds": 2, "dataset": "synthetic", "max_samples": 800, "fraction_evaluate": 0},
    "grid": {"limits": ["none", {"name": "slow", "clients": "c1-*", "cpu": SLOW}]},
    "seeds": [0, 1],
    "target": {"accuracy": 0.3},
}
RUNS = 4
SCENARIO = {
    "timeline": [
        {"at": "0s", "do": "pause", "clients": "c1-0", "for": "1s"},
        {"round": 2, "do": "throttle", "clients": "small", "cpu": SLOW},
        {"after": "0s", "do": "pause", "clients": "server-0", "for": "1s"},
    ],
    "assert": [
        "limits_verified",
        "failures == 0",
        "no_lost_update",
        "restarts == {}",
        "recovery(pause) <= 1 rounds",
    ],
}
# What it does, in the order of time, whatever else becomes of a run.
PLAYED = [
    ("c1-0", "scenario", {"paused": True}),
    ("c1-0", "scenario ended", {"paused": False}),
    ("small", "scenario", {"cpu": SLOW}),
    ("small", "scenario ended", {"cpu": CPU}),
    ("server-0", "scenario", {"paused": True}),
    ("server-0", "scenario ended", {"paused": False}),
]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def known(lab: Lab) -> list[dict[str, Any]]:
    """The runs of the experiment that the server knows, oldest first."""
    runs = [run for run in lab.control("runs") if (run["experiment"] or {}).get("name") == "study"]
    return runs[::-1]


def quotas(lab: Lab) -> dict[str, float]:
    """The cores that the kernel gives each client now."""
    found = {
        client: lab.kernel(lab.hosts[machine], f"{FEDERATION}-{client}").cpu
        for client, machine in CLIENTS.items()
    }
    return {client: cores for client, cores in found.items() if cores is not None}


@dataclass
class Study:
    """An experiment whose controller was killed in the middle of its second run, and that was typed again."""

    lab: Lab
    path: Path
    before: list[str]  # the runs' ids when it was killed
    again: Play

    @property
    def folder(self) -> Path:
        """Its results."""
        return self.lab.results / "experiments" / "study"


@pytest.fixture(scope="module")
def study(federation: Lab) -> Study:
    """Hurts the controller."""
    path = federation.directory / "study.yml"
    (federation.directory / "scenario.yml").write_text(yaml.safe_dump(SCENARIO))
    described = {**FILE, "base": {**FILE["base"], "scenario": str(federation.directory / "scenario.yml")}}
    path.write_text(yaml.safe_dump(described))
    plan = federation.must("experiment.yml", "--check", file=str(path))
    assert f"Experiment study: {RUNS} runs (2 points x 2 seeds)" in plan.output
    assert not (federation.results / "experiments").exists() and known(federation) == []

    play, wait = federation.start("experiment.yml", file=str(path))
    federation.wait_for("the second run", lambda: f"run 2 of {RUNS}" in play.output or play.code >= 0, 240)
    federation.wait_for("its submission", lambda: len(known(federation)) == 2 or play.code >= 0, 60)
    staged = f"/var/lib/coldframe/{FEDERATION}/agent/scenario.json"

    def second_is_staged() -> bool:
        return known(federation)[1]["run_id"] in federation.on_machine(f"cat {staged}", check=False)

    federation.wait_for("its scenario", lambda: play.code >= 0 or second_is_staged(), 60)
    assert play.code < 0, play.output
    play.kill()
    wait()
    before = [run["run_id"] for run in known(federation)]
    return Study(federation, path, before, federation.must("experiment.yml", file=str(path)))


def test_experiment_goes_on_where_its_controller_was_killed(study: Study) -> None:
    """No run is repeated and none is missing; typed once more, it compares and runs nothing."""
    runs = known(study.lab)
    assert [run["run_id"] for run in runs[:2]] == study.before and len(runs) == RUNS
    assert len({run["experiment"]["key"] for run in runs}) == RUNS
    assert {run["sub_status"] for run in runs} == {"completed"}
    table = rows(study.folder / "runs.csv")
    assert {row["run_id"] for row in table} == {run["run_id"] for run in runs}
    assert {(row["factor_limits"], row["seed"]) for row in table} == {
        (limits, seed) for limits in ("none", "slow") for seed in "01"
    }
    page = (study.folder / "comparison.html").read_text()
    assert "limits slow" in page and page.count("report.html") == RUNS
    assert "limits none" in study.again.output

    over = study.lab.must("experiment.yml", file=str(study.path), oversubscribed="true")
    assert f"{RUNS} of them there already" in over.output and len(known(study.lab)) == RUNS
    assert "left out" not in over.output


def test_runs_have_the_limits_of_their_points(study: Study) -> None:
    """By what the kernel held when each began; afterwards all clients have their deployed limits again."""
    for row in rows(study.folder / "runs.csv"):
        held = json.loads((study.folder / "runs" / row["folder"] / "inventory.json").read_text())["clients"]
        slow = {client["name"] for client in held if client["cpu"] == SLOW}
        assert slow == ({"c1-0", "c1-1"} if row["factor_limits"] == "slow" else set()), row
        assert {client["cpu"] for client in held} <= {CPU, SLOW}
    assert quotas(study.lab) == pytest.approx(dict.fromkeys(CLIENTS, CPU))


def test_every_run_has_the_same_scenario(study: Study) -> None:
    """Played by the agents of all machines, in time, and read back; also where the controller was killed."""
    for row in rows(study.folder / "runs.csv"):
        folder = study.folder / "runs" / row["folder"]
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        played = [event for event in events if event["cause"].startswith("scenario")]
        told = [(event["client"], event["cause"], event["verified"]) for event in played]
        lasting = [item for item in told if item[0] == "small"]
        assert [item for item in told if item[0] == "c1-0"] == PLAYED[:2], row
        assert [item for item in told if item[0] == "server-0"] == PLAYED[4:], row
        # The last one comes with the end of the run, or right after it.
        assert lasting[:1] == PLAYED[2:3] and lasting in (PLAYED[2:4], PLAYED[2:3]), row
        assert all(event["holds"] for event in played)
        assert all(event["lateness"] <= 0.5 for event in played), played
        summary = json.loads((folder / "summary.json").read_text())
        assert [item for item in summary["assertions"] if not item["passed"]] == []
        assert len(summary["assertions"]) == len(SCENARIO["assert"])
        assert "<testsuite" in (folder / "assertions.xml").read_text()


def test_any_runs_are_compared(study: Study) -> None:
    """And exported; a run that is nowhere is named."""
    table = rows(study.folder / "runs.csv")
    ids = [row["run_id"] for row in table if row["seed"] == "0"]
    play = study.lab.must("compare.yml", runs=",".join(ids), target="0.9", oversubscribed="true")
    count = len(CLIENTS)
    assert f"clients' cpu {CPU:g} x {count}" in play.output
    assert f"clients' cpu {SLOW:g} x 2, {CPU:g} x {count - 2}" in play.output
    (page,) = study.lab.results.glob("comparisons/*/comparison.html")
    assert page.read_text().count("report.html") == 2
    wrong = study.lab.play("compare.yml", runs=f"{ids[0]},12345")
    assert wrong.code != 0 and "no run 12345" in wrong.output
    exported = study.lab.must("export.yml", run=ids[0], to="rocrate")
    (crate,) = study.lab.results.glob("exports/*/ro-crate-metadata.json")
    assert ids[0] in crate.read_text() and str(crate.parent) in exported.output
