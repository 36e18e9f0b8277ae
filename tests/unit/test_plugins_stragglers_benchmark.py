"""What benchmarks/stragglers.py asks of experiment.yml can be run, and what that leaves is read as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import stragglers
from coldframe.controller import compare, comparison
from coldframe.controller.tables import write_table
from tests.unit.preflights import INVENTORY, judge
from tests.unit.test_comparison import CLIENTS, ROUNDS, make_run

ALONE, TWO, ALL, FEDBUFF = stragglers.ALONE, stragglers.TWO, stragglers.ALL, stragglers.FEDBUFF


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server, and two hosts with four clients each, by the names that the benchmark gives them."""
    content: dict[str, Any] = json.loads(json.dumps(INVENTORY))
    groups = content["fl_machines"]["children"]
    server, *others = stragglers.HOSTS
    groups["fl_server"]["hosts"] = {server: {"fl_address": "192.0.2.2"}}
    client = {"fl_client_count": stragglers.CLIENTS, "fl_client_cpu": stragglers.CPU}
    groups["fl_clients"]["hosts"] = {name: dict(client) for name in others}
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(content))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return path


def test_every_point_can_be_run_by_eight_clients(inventory: Path, tmp_path: Path) -> None:
    path = stragglers.write_experiment(tmp_path, list(stragglers.WORLDS), list(stragglers.POLICIES), range(3))
    root = [f"coldframe_root={tmp_path}/root", f"fl_results_dir={tmp_path}/results"]
    refused, said, answer = judge(inventory, "experiment", f"file={path}", *root)
    assert not refused and answer is not None, said
    plan = answer["experiment"]
    points = len(stragglers.WORLDS) * len(stragglers.POLICIES)
    assert plan["name"] == stragglers.NAME and plan["count"] == 3 * points
    assert plan["about"]["points"][plan["about"]["baseline"]] == {"world": ALONE, "policy": ALL}
    slow = {"cpu": stragglers.SLOW}
    for run in plan["runs"]:
        world = run["note"]["factors"]["world"]
        assert run["limits"] == ({"c1": {"c1-0": slow}, "c2": {"c2-0": slow}} if world == TWO else {})
        assert set(run["scenario"].get("machines", {})) == ({"c2"} if world == stragglers.WHILE else set())
        assert run["run"]["max_samples"] == 3200 and run["run"]["partitioner_args"] == {"alpha": 0.5}
    (first,) = [run for run in plan["runs"] if run["scenario"]][:1]
    (entry,) = first["scenario"]["machines"]["c2"]["entries"]
    assert (entry["at"], entry["seconds"], entry["limits"]) == (30.0, 60.0, {"c2-0": slow})


def test_what_comes_before_the_experiment_can_be_run(inventory: Path, tmp_path: Path) -> None:
    root = [f"coldframe_root={tmp_path}/root", f"fl_results_dir={tmp_path}/results"]
    refused, said, answer = judge(inventory, "run", json.dumps(stragglers.WARM_UP), *root)
    assert not refused and answer is not None, said
    assert answer["run"]["rounds"] == 1 and answer["run"]["max_samples"] == 3200


def test_a_part_of_it_names_only_that(tmp_path: Path) -> None:
    path = stragglers.write_experiment(tmp_path, [TWO], [ALL, FEDBUFF], range(1))
    content = yaml.safe_load(path.read_text())
    assert [value["name"] for value in content["grid"]["world"]] == [TWO]
    assert [value["name"] for value in content["grid"]["policy"]] == [ALL, FEDBUFF]
    assert content["seeds"] == [0]


def test_asynchronous_policies_make_as_many_updates_as_all() -> None:
    clients = stragglers.CLIENTS * (len(stragglers.HOSTS) - 1)
    wanted = stragglers.POLICIES[ALL]["rounds"] * clients
    for name, size in ((FEDBUFF, "buffer_size"), ("fedasync", "updates_per_round")):
        policy = stragglers.POLICIES[name]
        assert policy["rounds"] * policy["strategy_args"][size] == wanted


# Seconds and accuracy after each round: of `all` in two worlds, and of fedbuff in that with stragglers.
COURSES: dict[tuple[str, str, int], list[tuple[float, float]]] = {
    (ALONE, ALL, 0): [(10.0, 0.5), (20.0, 0.7), (30.0, 0.8)],
    (ALONE, ALL, 1): [(10.0, 0.6), (20.0, 0.896), (30.0, 0.9)],
    (TWO, ALL, 0): [(40.0, 0.5), (80.0, 0.7), (120.0, 0.8)],
    (TWO, ALL, 1): [(40.0, 0.6), (80.0, 0.896), (120.0, 0.9)],
    (TWO, FEDBUFF, 0): [(12.0, 0.6), (24.0, 0.79), (36.0, 0.796)],
    (TWO, FEDBUFF, 1): [(12.0, 0.7), (20.0, 0.896), (36.0, 0.88)],
}


def write_folder(folder: Path, courses: dict[tuple[str, str, int], list[tuple[float, float]]]) -> None:
    """Write the tables that experiment.yml would, with the columns that are read."""
    folder.mkdir(parents=True)
    runs, rounds, clients = [], [], []
    for number, ((world, policy, seed), course) in enumerate(courses.items(), start=1):
        run = {"factor_world": world, "factor_policy": policy, "seed": seed, "run_id": str(number)}
        runs.append({**run, "left_out": None, "accuracy": course[-1][1]})
        # Round 0 is the model that nobody has trained; it reaches no target.
        course = [(0.5, 0.95), *course]
        rounds += [
            {"run_id": str(number), "round": place, "elapsed_seconds": at, "accuracy": accuracy}
            for place, (at, accuracy) in enumerate(course)
        ]
        for phase, status, into in (
            ("train", "ok", None),
            ("train", "ok", None),
            ("train", "late", 3),
            ("train", "late", None),
            ("train", "failed", None),
            ("evaluate", "ok", None),
        ):
            clients.append({"run_id": str(number), "phase": phase, "status": status, "folded_into": into})
    spoilt = {"factor_world": TWO, "factor_policy": FEDBUFF, "seed": 2, "run_id": "99"}
    runs.append({**spoilt, "left_out": "oversubscribed", "accuracy": 0.99})
    write_table(folder / "runs.csv", runs)
    write_table(folder / "rounds.csv", rounds)
    write_table(folder / "clients.csv", clients)


def test_times_are_read_seed_by_seed_against_all(tmp_path: Path) -> None:
    write_folder(tmp_path / "study", COURSES)
    runs, left_out = stragglers.read_runs(tmp_path / "study")
    assert left_out == [f"{TWO}, {FEDBUFF}, seed 2: oversubscribed"]
    assert stragglers.targets(runs) == {0: pytest.approx(0.795), 1: pytest.approx(0.895)}
    alone, of_all, buffered = stragglers.results_of(runs)
    assert (alone.world, of_all.world, buffered.policy) == (ALONE, TWO, FEDBUFF)
    assert alone.seconds == {0: 30.0, 1: 20.0} and of_all.seconds == {0: 120.0, 1: 80.0}
    assert of_all.ratios == {0: 1.0, 1: 1.0}
    # A model that gets worse again has reached its target.
    assert buffered.seconds == {0: 36.0, 1: 20.0} and buffered.ratios == {0: 0.3, 1: 0.25}
    assert buffered.accuracy.mean == pytest.approx(0.838)
    assert buffered.updates.mean == 3  # two in time and one that was folded
    half = 12.7062047 * 0.05 / 2  # Student's t with one degree of freedom, of two values 0.05 apart
    header, *rows = (re.split(r" {2,}", line) for line in stragglers.lines([alone, of_all, buffered]))
    assert header == stragglers.HEADER
    cells = ["0.8380 ± 0.5337", "3 ± 0", "28.0 ± 101.6", f"0.28 ± {half:.2f}"]
    assert rows[2] == [TWO, FEDBUFF, *cells]


def test_the_tables_of_an_experiment_have_what_is_read(tmp_path: Path) -> None:
    """Written by what experiment.yml compares with, from folders of runs: FedAvg, and another three times
    as quick that is a little worse."""
    points = {"aaaa1111": {"world": TWO, "policy": ALL}, "bbbb2222": {"world": TWO, "policy": FEDBUFF}}
    folder = tmp_path / "study"
    for point, gain, pace in (("aaaa1111", 0.0, 3.0), ("bbbb2222", -0.001, 1.0)):
        note = {"name": "study", "key": f"{point}-s0-r0", "point": point, "seed": 0, "repeat": 0, "until": {}}
        make_run(folder / "runs", point, note=note, seed=0, gain=gain, pace=pace)
    about = {"name": "study", "points": points, "baseline": "aaaa1111", "target": {}}
    (folder / "experiment.json").write_text(json.dumps(about))
    compare.write(comparison.of_experiment(folder), folder)
    runs, left_out = stragglers.read_runs(folder)
    assert left_out == [] and [run.updates for run in runs] == [CLIENTS * ROUNDS] * 2
    of_all, buffered = stragglers.results_of(runs)
    assert of_all.accuracy.mean - buffered.accuracy.mean == pytest.approx(0.001)
    assert buffered.ratios == {0: pytest.approx(1 / 3)}


def test_a_seed_that_did_not_reach_its_target_leaves_no_mean(tmp_path: Path) -> None:
    courses = {**COURSES, (TWO, FEDBUFF, 0): [(12.0, 0.6), (24.0, 0.79), (36.0, 0.794)]}
    write_folder(tmp_path / "study", courses)
    runs, _ = stragglers.read_runs(tmp_path / "study")
    buffered = stragglers.results_of(runs)[-1]
    assert buffered.missed == 1 and buffered.ratios == {1: 0.25}
    assert buffered.cells()[-2:] == ["not reached 1 of 2", "-"]
    assert buffered.figures()["seconds_to_target"] == {"0": None, "1": 20.0}


def test_without_a_world_that_has_no_straggler_the_target_is_that_of_all(tmp_path: Path) -> None:
    courses = {key: course for key, course in COURSES.items() if key[0] == TWO and key[2] == 0}
    write_folder(tmp_path / "study", courses)
    runs, _ = stragglers.read_runs(tmp_path / "study")
    assert stragglers.targets(runs) == {0: pytest.approx(0.795)}
    of_all, buffered = stragglers.results_of(runs)
    assert of_all.cells()[-2:] == ["120.0", "1.00"]  # one seed has no interval
    assert buffered.cells()[-2:] == ["36.0", "0.30"]


def test_the_picture_has_a_panel_for_each_world(tmp_path: Path) -> None:
    write_folder(tmp_path / "study", COURSES)
    runs, _ = stragglers.read_runs(tmp_path / "study")
    path = tmp_path / "stragglers.svg"
    stragglers.draw(runs, path)
    drawn = path.read_text()
    assert ALONE in drawn and TWO in drawn and FEDBUFF in drawn and stragglers.WHILE not in drawn


def test_a_name_that_is_not_known_is_refused() -> None:
    known = list(stragglers.POLICIES)
    assert stragglers.choice(known, None) == known
    assert stragglers.choice(known, f"{FEDBUFF}, {ALL}") == [ALL, FEDBUFF]
    with pytest.raises(ValueError, match="'fedbuf' is not known: type some of 'all,deadline,"):
        stragglers.choice(known, "fedbuf")
