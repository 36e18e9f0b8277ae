"""The file of an experiment becomes runs, and what is wrong with it is found at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller import experiment
from coldframe.controller.experiment import Experiment
from coldframe.controller.settings import RUN, VERBS

ROOT = Path(__file__).parents[2]
GOOD = """
name: alpha
base: {rounds: 3, dataset: synthetic, partitioner: dirichlet}
grid:
  partitioner_args: [{alpha: 0.1}, {alpha: 1.0}]
  policy:
    - {name: plain}
    - {name: proximal, fl_strategy: fedprox, strategy_args: {proximal_mu: 0.1}}
seeds: [0, 1, 2]
target: {accuracy: 0.9}
baseline: proximal
"""


def build(text: str) -> Experiment:
    found, findings = experiment.build(yaml.safe_load(text), "file")
    assert found is not None and findings == []
    return found


def test_a_point_is_known_by_what_its_scenario_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a", 1), ("b", 1), ("c", 2)):
        text = f"# {name}\ntimeline: [{{at: {seconds}s, do: pause, clients: '*'}}]\n"
        (tmp_path / f"{name}.yml").write_text(text)
    text = "grid: {{scenario: [none, {}.yml]}}"
    plain, paused = build(text.format("a")).points
    assert (plain.name, paused.name) == ("scenario none", "scenario a.yml")
    assert plain.id == build("base: {rounds: 5}").points[0].id, "as before there were scenarios"
    assert paused.id == build(text.format("b")).points[1].id
    assert len({plain.id, paused.id, build(text.format("c")).points[1].id}) == 3


def wrong(text: str) -> list[str]:
    found, findings = experiment.build(yaml.safe_load(text), "file")
    assert found is None
    return [str(finding) for finding in findings]


def test_a_grid_is_every_combination_with_every_seed() -> None:
    found = build(GOOD)
    assert [point.factors for point in found.points] == [
        {"partitioner_args": f"alpha={alpha}", "policy": policy}
        for alpha in ("0.1", "1.0")
        for policy in ("plain", "proximal")
    ]
    runs = found.runs()
    assert len(runs) == 12 and len({run.key for run in runs}) == 12
    assert found.points[1].values["strategy_args"] == {"proximal_mu": 0.1}
    assert found.points[0].values["rounds"] == 3 and found.points[0].values["fl_strategy"] == "fedavg"
    assert found.baseline == 1 and found.target == {"accuracy": 0.9}


def test_blocked_order_has_one_seed_of_every_point_before_the_next() -> None:
    blocked = [(run.seed, run.point.name) for run in build(GOOD).runs()]
    assert [seed for seed, _ in blocked] == [0] * 4 + [1] * 4 + [2] * 4
    by_point = [(run.seed, run.point.name) for run in build(GOOD + "order: by_point\n").runs()]
    assert [seed for seed, _ in by_point] == [0, 1, 2] * 4
    assert sorted(blocked) == sorted(by_point)


def test_the_baseline_is_repeated_to_see_the_noise() -> None:
    runs = build(GOOD + "baseline_repeats: 2\n").runs()
    again = [run for run in runs if run.repeat]
    assert len(runs) == 15 and {run.point.factors["policy"] for run in again} == {"proximal"}


def test_a_point_is_known_by_what_it_is_and_not_by_how_it_is_written() -> None:
    ids = [point.id for point in build(GOOD).points]
    assert len(set(ids)) == 4
    other = GOOD.replace("rounds: 3,", "rounds: 3, batch_size: 32, fraction_train: 1,").replace(
        "seeds: [0, 1, 2]", "seeds: [7]"
    )
    assert [point.id for point in build(other).points] == ids  # a default that is written down; other seeds
    assert ids[0] != build(GOOD.replace("rounds: 3", "rounds: 4")).points[0].id
    assert ids[0] != build(GOOD + "max_seconds: 60\n").points[0].id
    assert ids[0] == build(GOOD.replace("name: plain", "name: fedavg")).points[0].id


def test_listed_points_and_limits() -> None:
    found = build(
        """
        base: {limits: {cpu: 0.5}}
        points:
          - {name: equal}
          - {name: slow, limits: [{clients: 'c1-*', cpu: 0.2, delay: 50ms}, {clients: c2-0, memory: 512m}]}
          - {name: free, limits: none}
        """
    )
    equal, slow, free = found.points
    assert [point.name for point in found.points] == ["point equal", "point slow", "point free"]
    assert [entry["cpu"] for entry in equal.limits] == [0.5] and free.limits == ()
    assert slow.limits[0]["delay"] == 0.05 and slow.limits[1]["memory"] == 512 << 20
    assert len({point.id for point in found.points}) == 3


def test_an_experiment_of_one_point_needs_no_grid() -> None:
    found = build("base: {rounds: 2}\nseeds: 5")
    app = build("base: {app: x, run_config: {lr: 0.1}}\nseeds: [3, 4]\nseed_key: seed")
    assert app.seed_key == "seed" and len(app.runs()) == 2
    assert found.name == "file" and [run.seed for run in found.runs()] == [5]
    assert found.points[0].name == "base"


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("bas: {rounds: 2}", ["unknown key 'bas'", "did you mean 'base'?"]),
        ("base: {round: 2}", ["base has the unknown variable 'round'", "did you mean 'rounds'?"]),
        ("base: {rounds: abc}", ["rounds=abc is not a whole number", "write rounds: 5"]),
        ("grid: {rounds: [1, -2]}", ["rounds=-2"]),
        ("grid: {rounds: 5}", ["grid: rounds is not a list of values", "[VALUE, VALUE]"]),
        ("grid: {polcy: [1, 2]}", ["'polcy' in grid: is no variable of run.yml"]),
        ("grid: {seed: [1, 2]}", ["sets seed", "below seeds:"]),
        ("grid: {dataset: [mnist, synthetic]}", ["varies dataset", "below base:"]),
        ("base: {run_name: x}", ["base sets run_name"]),
        ("grid: {rounds: [2]}\npoints: [{rounds: 3}]", ["grid: and points: are both there"]),
        ("grid: {rounds: [5, 5]}", ["are the same", "repeats: 2"]),
        ("seeds: [0, -1]", ["seeds: -1 is not a whole number"]),
        ("seeds: [1, 1]", ["the same seed is there twice"]),
        ("seeds: []", ["no seed"]),
        ("repeats: 0", ["repeats: 0 is not a whole number from 1"]),
        ("retries: true", ["retries: True is not a whole number"]),
        ("order: random", ["order: 'random' is not known", "blocked or by_point"]),
        ("target: {accuracy: 97}", ["accuracy 97 is not from 0 to 1"]),
        ("target: {f1: 0.9}", ["is no target"]),
        ("stop_at_target: true", ["stop_at_target is there, and no target"]),
        ("max_seconds: -1", ["max_seconds: -1 is not a number > 0"]),
        ("name: ../x", ["cannot be a folder's name"]),
        ("baseline: other\ngrid: {rounds: [1, 2]}", ["baseline: 'other' is none of the points"]),
        ("base: {limits: {cpus: 0.2}}", ["unknown key 'cpus'", "did you mean 'cpu'?"]),
        (
            "base: {limits: {cpu: 0.001}}",
            ["base: limits: cpu=0.001 is not a number ≥ 0.05", "write cpu: 0.5"],
        ),
        ("base: {limits: {clients: 'c1-*'}}", ["has no limit"]),
        ("base: {limits: slow}", ["'slow' is no set of limits"]),
        ("base: {limits: {delay: 50}}", ["delay=50"]),
        ("grid: {rounds: [1], batch_size: x}", ["grid: batch_size is not a list"]),
        ("base: {app: x}\nseeds: [0, 1]", ["another app does not get them", "seed_key: KEY"]),
        ("base: {app: x}\ngrid: {rounds: [1, 2]}", ["rounds is a variable of our own training"]),
        ("seed_key: seed", ["seed_key is there, and no app"]),
        ("target: {loss: .nan}", ["is no target"]),
        ("grid: {policy: [{name: a, rounds: 1}, {name: a, rounds: 2}]}", ["policy has 'a' twice"]),
        ("base: 5", ["base: is not a set of variables"]),
        ("points: 5", ["points: is not a list"]),
    ],
)
def test_what_is_wrong_is_named_with_what_to_write(text: str, needed: list[str]) -> None:
    told = "\n".join(wrong(text))
    assert all(words in told for words in needed), told


def test_everything_that_is_wrong_is_found_at_once() -> None:
    told = "\n".join(
        wrong(
            "nam: x\nbase: {round: 2, batch_size: 0}\ngrid: {learning_rate: [-1, 0.1]}\nseeds: [x]\n"
            "target: {accuracy: 3}\norder: none\n"
        )
    )
    for words in (
        "'nam'",
        "'round'",
        "batch_size=0",
        "learning_rate=-1",
        "seeds: 'x'",
        "accuracy 3",
        "order",
    ):
        assert words in told, told
    assert told.count("learning_rate=-1") == 1


def test_ten_thousand_points_are_refused_before_they_are_made() -> None:
    factors = ", ".join(f"{name}: {list(range(1, 101))}" for name in ("rounds", "batch_size"))
    (told,) = wrong(f"grid: {{{factors}}}")
    assert "10000 runs" in told and "1000 are the most" in told
    many = f"grid: {{batch_size: {list(range(1, 401))}}}\nbaseline_repeats: 3"
    assert len(build(many).runs()) == 402, "the baseline alone is repeated"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("base: {rounds: 2", "is not YAML"),
        ("- 1\n", "is not the description of an experiment"),
        ("", "is not the description of an experiment"),
        ("name: 2024-13-45", "is not YAML"),
        ("base: {app: x, run_config: {day: 2024-01-01}}", "put quotes around what looks like a date"),
        ("base: &base {limits: *base}", "is not YAML"),
    ],
)
def test_a_file_that_is_none_is_one_finding(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "x.yml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    found, (finding,) = experiment.read(path)
    assert found is None and words in str(finding) and str(path) in str(finding)


@pytest.mark.parametrize("given", ["resume: auto", "resume_changed: true", "replay: '7'", "follow: '7'"])
def test_an_experiment_names_no_earlier_run(tmp_path: Path, given: str) -> None:
    path = tmp_path / "x.yml"
    path.write_text(f"base: {{rounds: 2, {given}}}", encoding="utf-8")
    _, (finding,) = experiment.read(path)
    assert f"base sets {given.partition(':')[0]}: type ansible-playbook" in str(finding)


def test_what_the_experiment_decides_itself_are_variables_that_there_are() -> None:
    assert set(experiment.OWN) | set(experiment.ONLY_BASE) <= set(RUN)
    assert set(experiment.LIMIT_KEYS) <= set(VERBS["throttle"])


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yml")), ids=lambda path: path.stem)
def test_the_experiments_that_ship_are_well_formed(path: Path) -> None:
    found, findings = experiment.read(path)
    assert found is not None and findings == []
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found.name == path.stem and content["description"]
    assert len(found.points) > 1 and len(found.seeds) > 1
