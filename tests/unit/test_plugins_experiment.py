"""An experiment is judged whole before its first run, and typed again it does what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import experiment_plan, experiment_runs
from tests.unit.preflights import INVENTORY, judge

ROOT = Path(__file__).parents[2]
GOOD = """
base: {rounds: 2, dataset: synthetic}
grid:
  learning_rate: [0.1, 0.01]
  limits: [none, {clients: one-0, cpu: 0.1}]
seeds: [0, 1]
target: {accuracy: 0.9}
stop_at_target: true
"""
Judge = Callable[..., tuple[bool, str, Any]]


@pytest.fixture
def preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Judge the text of a file: whether it is refused, what is said, and the answer."""
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(text: str, *extra: str, verb: str = "experiment") -> tuple[bool, str, Any]:
        (tmp_path / "study.yml").write_text(text)
        given = ["file=study.yml"] if text else []
        root = [f"coldframe_root={tmp_path}/root", f"fl_results_dir={tmp_path}/results"]
        return judge(inventory, verb, *given, *root, *extra)

    return run


def test_a_good_file_becomes_a_plan(preflight: Judge, tmp_path: Path) -> None:
    refused, said, answer = preflight(GOOD)
    assert not refused, said
    plan = answer["experiment"]
    assert plan["lines"][0] == "Experiment study: 8 runs (4 points x 2 seeds)"
    assert any("learning_rate 0.1, limits none (baseline)" in line for line in plan["lines"])
    assert plan["lines"][-1] == (
        "  time: known after the first run; after an interruption type the same command again"
    )
    assert plan["folder"] == f"{tmp_path}/results/experiments/study"
    assert plan["limits"] == [{"one": {"one-0": {"cpu": 0.1}}}] * 2
    assert len(plan["runs"]) == 8 and [run["note"]["seed"] for run in plan["runs"]] == [0] * 4 + [1] * 4
    run = plan["runs"][1]
    assert run["limits"] == {"one": {"one-0": {"cpu": 0.1}}} and plan["runs"][0]["limits"] == {}
    assert run["run"]["run_name"] == run["key"] and run["run"]["learning_rate"] == 0.1
    assert run["run_config"]["num-server-rounds"] == 2 and run["until"] == {"accuracy": 0.9}
    assert answer["run"]["dataset"] == "synthetic"
    assert plan["about"]["target"] == {"accuracy": 0.9}


def test_everything_that_is_wrong_is_found_at_once_and_nothing_is_changed(
    preflight: Judge, tmp_path: Path
) -> None:
    refused, said, _ = preflight(
        "base: {dataset: synthetic}\ngrid:\n  min_train_clients: [2, 7]\n"
        "  partitioner: [iid, shards]\n  limits: [none, {clients: 'c9-*', cpu: 0.2}]\n",
    )
    assert refused and "Nothing was changed" in said
    assert "min_train_clients=7 is more than the 3 clients" in said and "clients=c9-* matches none" in said
    assert not (tmp_path / "results").exists() and not (tmp_path / "root").exists()


SCENARIO = """
timeline:
  - {round: 2, do: pause, clients: one-1, for: 5s}
  - {at: 1s, do: throttle, clients: one-0, cpu: 0.1}
"""


def test_a_scenario_is_judged_and_planned_for_each_point(preflight: Judge, tmp_path: Path) -> None:
    (tmp_path / "late.yml").write_text(SCENARIO)
    text = "base: {rounds: 2, dataset: synthetic}\ngrid: {scenario: [none, late.yml]}\n"
    refused, said, answer = preflight(text)
    assert not refused, said
    plain, late = answer["experiment"]["runs"]
    assert plain["scenario"] == {} and answer["scenario"] == {} and answer["staged"] == {}
    mine = late["scenario"]["machines"]["one"]
    assert [entry["do"] for entry in mine["entries"]] == ["pause", "throttle"]
    assert (mine["rounds"], mine["quiet"], mine["name"]) == (2, 1500.0, "late.yml")
    assert late["scenario"]["entries"]["1"] == "entry 1 (round 2, pause)"
    refused, said, _ = preflight(text.replace("rounds: 2", "rounds: 1"))
    assert refused and "timeline entry 1: round 2 is beyond the run's 1 rounds" in said


def test_run_yml_takes_a_scenario(preflight: Judge, tmp_path: Path) -> None:
    """With run.yml, and so with site.yml, it is judged for the one run."""
    (tmp_path / "late.yml").write_text(SCENARIO)
    run = ["rounds=2", "dataset=synthetic"]
    refused, said, answer = preflight("", *run, "scenario=late.yml", verb="run")
    assert not refused, said
    assert list(answer["scenario"]["machines"]) == ["one"] and answer["scenario"]["text"] == SCENARIO
    assert "-e scenario=late.yml" in answer["run_arguments"]
    (tmp_path / "late.yml").write_text(SCENARIO.replace("one-1", "two-1"))
    for verb in ("run", "site"):
        refused, said, _ = preflight("", *run, "scenario=late.yml", verb=verb)
        assert refused and "timeline entry 1: clients=two-1 matches none of one-0" in said
    refused, said, answer = preflight("", *run, "scenario=none", verb="run")
    assert not refused and answer["scenario"] == {}, said


def test_clients_that_are_nowhere_are_found(preflight: Judge) -> None:
    refused, said, _ = preflight("base: {dataset: synthetic, limits: {clients: 'c9-*', cpu: 0.2}}")
    assert refused and "limits of base: clients=c9-* matches none of one-0, one-1, one-2" in said


@pytest.mark.parametrize(
    ("text", "extra", "words"),
    [
        ("", [], "experiment.yml was given no file"),
        (GOOD, ["rounds=3"], "unknown variable 'rounds' for experiment.yml"),
        (GOOD, ["file=other.yml"], "file=other.yml cannot be read"),
        ("base: {rounds: 2", [], "is not YAML"),
    ],
)
def test_what_was_typed_is_judged_too(preflight: Judge, text: str, extra: list[str], words: str) -> None:
    refused, said, _ = preflight(text, *extra)
    assert refused and words in said, said


def test_runs_that_are_there_are_not_repeated(preflight: Judge, tmp_path: Path) -> None:
    _, _, answer = preflight(GOOD)
    runs = answer["experiment"]["runs"]
    done = {0: "completed", 1: "failed", 2: "stopped", 3: "stopped", 4: "diverged"}
    rounds = [{"event": "round", "round": n, "accuracy": n / 2} for n in (1, 2, 1)]
    for number, status in done.items():
        folder = tmp_path / "results" / "experiments" / "study" / "runs" / str(number)
        folder.mkdir(parents=True)
        summary = {"status": status, "experiment": runs[number]["note"], "wall_seconds": 8.0, "rounds": 2}
        summary |= {"run_id": str(number)}
        # The third one of the fourth run is worse than its target again.
        lines = [json.dumps(event) + "\n" for event in (rounds if number == 3 else rounds[:1])]
        (folder / "journal.jsonl").write_text("".join(lines))
        (folder / "summary.json").write_text(json.dumps(summary))
    refused, said, answer = preflight(GOOD)
    assert not refused, said
    plan = answer["experiment"]
    # Failed, and stopped by somebody: again. Stopped since it had reached its target: done.
    assert [run["key"] for run in plan["runs"]] == [runs[n]["key"] for n in (1, 2, 5, 6, 7)]
    assert "8 runs (4 points x 2 seeds), 3 of them there already" in plan["lines"][0]
    assert plan["lines"][-1].startswith("  time: about 40.0 s")


def test_compare_wants_runs(preflight: Judge) -> None:
    refused, said, _ = preflight("", verb="compare")
    assert refused and "compare.yml was given no runs" in said
    refused, said, answer = preflight("", "runs=12,34", "target=0.9", verb="compare")
    assert not refused and answer["run"]["runs"] == "12,34", said


def server_run(number: int, key: str, status: str = "finished", **more: Any) -> dict[str, Any]:
    sub_status = "completed" if status == "finished" else ""
    known = {"run_id": str(number), "status": status, "sub_status": sub_status, "experiment": {"name": "s"}}
    known["experiment"] = {"name": "s", "key": key, "world": "w"}
    return {**known, "collected": False, "pruned": False, **more}


def pending(*found: dict[str, Any]) -> list[tuple[str, str]]:
    plan = {"name": "s", "runs": [{"key": key, "until": {}} for key in "abc"], "about": {"world": "w"}}
    assert experiment_plan.coldframe_in_the_way(plan, found) == ""
    return [(item["do"], item["key"]) for item in experiment_plan.coldframe_pending(plan, found)]


def test_what_the_server_has_of_an_experiment_is_not_run_again() -> None:
    everything = [("run", key) for key in "abc"]
    assert pending() == everything
    assert pending(server_run(1, "b", "running")) == [("follow", "b"), ("run", "a"), ("run", "c")]
    ended = [server_run(2, "b", "running"), server_run(1, "a")]
    assert pending(*ended) == [("follow", "b"), ("collect", "a"), ("run", "c")]
    failed = server_run(1, "b", sub_status="failed")
    assert pending(failed) == [("collect", "b"), *everything]
    assert pending({**failed, "collected": True}) == everything
    stopped = server_run(1, "b", sub_status="stopped")
    assert pending(stopped) == [("collect", "b"), *everything]
    # It was collected by another way, and is not in the folder.
    assert pending(server_run(1, "a", collected=True))[0] == ("collect", "a")
    assert pending(server_run(1, "a", pruned=True)) == everything
    # Of other clients, or of another experiment.
    assert pending(server_run(1, "a", experiment={"name": "s", "key": "a", "world": "v"})) == everything
    assert pending(server_run(1, "a", experiment={"name": "other", "key": "a"})) == everything
    assert pending({**server_run(1, "a"), "experiment": None}) == everything


@pytest.mark.parametrize(
    "note",
    [None, {"name": "other", "key": "a", "world": "w"}, {"name": "s", "key": "gone", "world": "w"}],
    ids=["no experiment", "another one", "no longer in the file"],
)
def test_a_run_of_somebody_else_is_not_joined(note: dict[str, str] | None) -> None:
    plan = {"name": "s", "runs": [{"key": "a", "until": {}}], "about": {"world": "w"}}
    told = experiment_plan.coldframe_in_the_way(plan, [{**server_run(7, "a", "running"), "experiment": note}])
    assert "Run 7 is running on the same clients" in told and "run.yml -e stop=7" in told


def test_progress_says_which_run_and_how_long() -> None:
    items = [{"title": f"point {name}, seed 0"} for name in "xyz"]
    plan = {"count": 4, "seconds": 30.0}
    assert experiment_plan.coldframe_progress(items, 0, [], plan) == (
        "[=====               ] run 2 of 4: point x, seed 0  about 30.0 s left"
    )
    line = experiment_plan.coldframe_progress(items, 2, [0.0, 50.0, 100.0], plan)
    assert line == "[===============     ] run 4 of 4: point z, seed 0  about 50.0 s left"
    assert "left" not in experiment_plan.coldframe_progress(items, 0, [], {"count": 4, "seconds": None})


def test_a_run_that_ended_is_one_line() -> None:
    ended: dict[str, Any] = {"run_id": "7", "status": "finished"}
    ended |= {"sub_status": "completed", "details": ""}
    ended["experiment"] = {"factors": {"limits": "slow"}, "seed": 1, "repeat": 1}
    told = ["Run 7: completed", "  accuracy    0.9312", "  wall time   8.4 s", "  results     r/x/"]
    assert experiment_plan.coldframe_outcome(ended, told, []) == [
        "    limits slow, seed 1, repetition 2: completed, accuracy 0.9312, wall time 8.4 s, in r/x/"
    ]
    told.insert(3, "              FAILED: accuracy >= 0.95 (found: 0.9312)")
    [line] = experiment_plan.coldframe_outcome(ended, told, [])
    assert line.endswith("8.4 s, FAILED: accuracy >= 0.95 (found: 0.9312), in r/x/")
    ended |= {"sub_status": "failed", "details": "no module pandas", "experiment": None}
    assert experiment_plan.coldframe_outcome(ended, [], ["results: no"]) == [
        "    run 7: failed, no module pandas",
        "results: no",
    ]


def test_a_time_is_estimated_by_the_newest_runs_of_the_data_set(tmp_path: Path) -> None:
    for number, (dataset, seconds) in enumerate([("mnist", 90.0), ("synthetic", 10.0), ("synthetic", 20.0)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        summary = {
            "status": "completed",
            "dataset": dataset,
            "rounds": 2,
            "wall_seconds": seconds,
            "run_id": "1",
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    assert experiment_runs.seconds_per_round(tmp_path, "synthetic", 5) == [10.0, 5.0]
    assert experiment_runs.seconds_per_round(tmp_path, "synthetic", 1) == [10.0]
    assert experiment_runs.read(tmp_path / "none.json") == {}
