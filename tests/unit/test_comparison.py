"""Runs are compared as they were: tables, intervals, the noise, what is left out, and the page."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller import (
    compare,
    comparison,
    comparison_page,
    comparison_plots,
    experiment_runs,
    intervals,
    results,
    tables,
)
from coldframe.controller.records import gather
from tests.unit.journals import START, make_inventory, make_journal

CLIENTS, ROUNDS = 3, 4
SLOW = "slow"
POINTS = {"aaaa1111": {"policy": "plain"}, "bbbb2222": {"policy": SLOW}}


def make_run(folder: Path, name: str, **about: Any) -> Path:
    """Make a run's folder with the files that a comparison reads.

    `gain` is added to the accuracy of every round, and `pace` stretches its times.
    """
    gain, pace = about.pop("gain", 0.0), about.pop("pace", 1.0)
    events = make_journal(CLIENTS, ROUNDS)
    for event in events:
        event["time"] = START + (event["time"] - START) * pace
        if event.get("accuracy") is not None:
            event["accuracy"] += gain
        if event["event"] == "reply":
            event["system"]["cpu_seconds"] = 2.0
    run = gather(events)
    out = folder / name
    out.mkdir(parents=True)
    note, status = about.pop("note", None), about.pop("status", "completed")
    summary = results.summarise(run, run_id=name, status=status, versions={"commit": "abc"})
    summary |= {"experiment": note, "run_id": name, "oversubscribed": False, **about}
    results.write_json(out / "summary.json", summary)
    tables.write_table(out / "clients.csv", results.client_rows(run))
    (out / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (out / "inventory.json").write_text(json.dumps(make_inventory(CLIENTS)))
    return out


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two points and three seeds; the baseline was repeated once with each seed.

    One run is oversubscribed, and one failed before it was run again.
    """
    folder = tmp_path_factory.mktemp("results") / "experiments" / "policies"
    for point, gain, pace in (("aaaa1111", 0.0, 1.0), ("bbbb2222", -0.05, 3.0)):
        for seed in range(3):
            for repeat in range(2 if point == "aaaa1111" else 1):
                note = {"name": "policies", "key": f"{point}-s{seed}-r{repeat}", "point": point}
                note |= {"seed": seed, "repeat": repeat, "factors": POINTS[point], "until": {}}
                own = 0.02 * seed + 0.001 * repeat
                make_run(
                    folder / "runs",
                    f"{len(list((folder / 'runs').glob('*'))):04}",
                    **{"note": note, "seed": seed, "gain": gain + own, "pace": pace},
                    oversubscribed=(point, seed) == ("bbbb2222", 2),
                )
    note = {"name": "policies", "key": "aaaa1111-s0-r0", "point": "aaaa1111", "seed": 0, "repeat": 0}
    make_run(folder / "runs", "0000-failed", note={**note, "until": {}}, status="failed")
    about = {"name": "policies", "points": POINTS, "baseline": "aaaa1111", "target": {"accuracy": 0.7}}
    (folder / "experiment.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def compared(experiment: Path) -> comparison.Comparison:
    return comparison.of_experiment(experiment)


def test_runs_that_failed_or_were_oversubscribed_are_kept_and_do_not_count(
    compared: comparison.Comparison, experiment: Path
) -> None:
    left_out = {run.summary["run_id"]: run.left_out for run in compared.runs if run.left_out}
    assert sorted(left_out.values()) == ["failed", "oversubscribed"]
    assert [len(compared.of(point)) for point in POINTS] == [6, 2]
    both = comparison.of_experiment(experiment, oversubscribed_too=True)
    assert [len(both.of(point)) for point in POINTS] == [6, 3]


def test_of_several_runs_with_one_key_a_clean_one_counts(tmp_path: Path) -> None:
    """And none of other clients, or whose limits somebody has changed while it trained."""
    folder = tmp_path / "study"

    def make(name: str, key: str, **about: Any) -> Path:
        note = {"name": "study", "key": key, "point": "p", "seed": 0, "repeat": 0, "until": {}}
        note["world"] = about.pop("world", "w")
        return make_run(folder / "runs", name, note=note, **about)

    make("1-clean", "a")
    make("2-loaded", "a", oversubscribed=True)
    make("3-failed", "a", status="failed")
    make("4-elsewhere", "b", world="v")
    throttled = make("5-throttled", "c")
    event = {"time": START, "client": "x", "cause": "throttle"}
    (throttled / "events.jsonl").write_text(json.dumps(event) + "\n")
    make("6-late", "d", oversubscribed=True)
    about = {"name": "study", "points": {"p": {}}, "baseline": "p", "target": {}, "world": "w"}
    (folder / "experiment.json").write_text(json.dumps({**about, "keys": ["a", "b", "c", "d", "e"]}))
    found = comparison.of_experiment(folder)
    assert {run.folder.name: run.left_out for run in found.runs} == {
        "1-clean": "",
        "2-loaded": "oversubscribed",
        "3-failed": "failed",
        "4-elsewhere": "of other clients",
        "5-throttled": "its limits were changed",
        "6-late": "oversubscribed",
    }
    assert found.missing == 3, "b, c and e; d is there, and counted where that is asked for"
    assert set(experiment_runs.done(folder / "runs", "w")) == {"a", "d"}
    (folder / "experiment.json").write_text("{")
    with pytest.raises(comparison.ComparisonError, match="is not JSON"):
        comparison.of_experiment(folder)


def test_means_are_over_seeds_and_differences_seed_by_seed(compared: comparison.Comparison) -> None:
    base = 1 - math.exp(-ROUNDS / 3)
    values = compared.values("aaaa1111", "accuracy")
    assert values == pytest.approx({seed: base + 0.02 * seed + 0.0005 for seed in range(3)})
    found = compared.interval("aaaa1111", "accuracy")
    assert found is not None and found.count == 3 and found.mean == pytest.approx(base + 0.0205)
    difference = compared.difference("bbbb2222", "accuracy")
    assert difference is not None and difference.count == 2
    assert difference.mean == pytest.approx(-0.0505) and difference.half == pytest.approx(0, abs=1e-9)
    noise = compared.noise("accuracy")
    assert noise is not None and noise.mean == pytest.approx(0.001)
    times = [compared.interval(point, "wall_seconds") for point in POINTS]
    assert times[0] is not None and times[1] is not None
    assert times[1].mean == pytest.approx(3 * times[0].mean)


def test_what_a_target_took_is_that_of_the_first_round_that_reached_it(
    compared: comparison.Comparison,
) -> None:
    first = next(run for run in compared.runs if not run.left_out)
    reached = [row for row in first.rounds if row["accuracy"] >= 0.7]
    took = first.to_target({"accuracy": 0.7})
    assert took["target_round"] == reached[0]["round"] == 4
    assert took["target_seconds"] == pytest.approx(reached[0]["elapsed_seconds"])
    assert took["target_bytes"] == 4 * 2 * CLIENTS * 2 * (4 << 20)
    assert took["target_cpu_seconds"] == 4 * 2 * CLIENTS * 2.0
    assert set(first.to_target({"accuracy": 0.999}).values()) == {None}
    assert first.to_target({"loss": 0.8})["target_round"] == 1
    slow = [run.to_target({"accuracy": 0.7})["target_round"] for run in compared.of("bbbb2222")]
    assert slow == [None, 4]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(compared: comparison.Comparison, experiment: Path) -> Path:
    compare.write(compared, experiment)
    return experiment


def test_tables_are_long_and_name_their_units(written: Path) -> None:
    runs, rounds, clients = (read(written / f"{name}.csv") for name in ("runs", "rounds", "clients"))
    assert len(runs) == 10 and len(rounds) == 10 * ROUNDS and len(clients) == 10 * ROUNDS * CLIENTS * 2
    ids = {"point", "seed", "repeat", "run_id"}
    assert ids <= set(runs[0]) and ids <= set(rounds[0]) and ids <= set(clients[0])
    assert {"wall_seconds", "traffic_bytes", "client_cpu_seconds", "factor_policy", "left_out"} <= set(
        runs[0]
    )
    assert {row["factor_policy"] for row in runs} == {"plain", SLOW}
    of_one = [row for row in rounds if row["run_id"] == "0000"]
    assert [int(row["round"]) for row in of_one] == list(range(1, ROUNDS + 1))
    elapsed = [float(row["elapsed_seconds"]) for row in of_one]
    assert elapsed == sorted(elapsed) and int(of_one[-1]["traffic_bytes"]) == int(runs[0]["traffic_bytes"])


@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb"])
def test_tables_are_read_by_what_people_use(written: Path, reader: str) -> None:
    library = importlib.import_module(reader)
    path = str(written / "rounds.csv")
    if reader == "pandas":
        mean = library.read_csv(path).groupby("point")["accuracy"].mean()["bbbb2222"]
    elif reader == "polars":
        frame = library.read_csv(path)
        mean = frame.filter(library.col("point") == "bbbb2222")["accuracy"].mean()
    else:
        query = f"SELECT avg(accuracy) FROM '{path}' WHERE point = 'bbbb2222'"
        ((mean,),) = library.sql(query).fetchall()
    told = [float(row["accuracy"]) for row in read(written / "rounds.csv") if row["point"] == "bbbb2222"]
    assert mean == pytest.approx(sum(told) / len(told))


def test_the_page_and_the_figures_are_there(written: Path) -> None:
    figures = {path.name for path in (written / "figures").iterdir()}
    names = ("curves_accuracy", "curves_loss", "intervals", "differences", "to_target")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    page = (written / "comparison.html").read_text(encoding="utf-8")
    for words in ("8 runs of 2 points", "policy plain", "(baseline)", "baseline, repeated", "1 of 2"):
        assert words in page, words
    assert page.count("<svg") == len(names) and "http" not in page.replace("http://www.w3.org", "")
    assert "oversubscribed" in page and "failed" in page


def test_the_words_say_how_the_points_compare(compared: comparison.Comparison, tmp_path: Path) -> None:
    lines = compare.words(compared, tmp_path)
    assert lines[0].startswith("  policy plain  6 runs  accuracy 0.75") and "target 6 of 6" in lines[0]
    assert "2 runs" in lines[1] and "target 1 of 2" in lines[1]
    assert lines[2] == "  left out: 2 runs (failed, oversubscribed)"


def test_curves_average_the_seeds_and_keep_the_last_value_over_time(
    compared: comparison.Comparison,
) -> None:
    at, means, low, high = comparison_plots.curve(compared.of("aaaa1111"), "accuracy", "round")
    assert at == [1, 2, 3, 4] and all(a < b < c for a, b, c in zip(low, means, high, strict=True))
    found = intervals.interval([means[-1]])
    assert found is not None and means[-1] == pytest.approx(compared.interval("aaaa1111", "accuracy").mean)  # type: ignore[union-attr]
    at, means, _, _ = comparison_plots.curve(compared.of("bbbb2222"), "accuracy", "elapsed_seconds")
    assert at == sorted(at) and means == sorted(means) and len(at) == comparison_plots.GRID + 1


def with_settings(folder: Path, **settings: Any) -> None:
    base = {"rounds": 4, "seed": 0, "run_name": folder.name, "learning_rate": 0.1}
    (folder / "config.yml").write_text(yaml.safe_dump({**base, **settings}))


def test_runs_that_were_not_planned_together_are_compared_by_what_differs(tmp_path: Path) -> None:
    one, two, three = (make_run(tmp_path, f"run-{n}", seed=n % 2, gain=0.01 * n) for n in range(3))
    with_settings(one)
    with_settings(two, seed=1)
    with_settings(three, learning_rate=0.5)
    found = comparison.of_runs(["run-0", "run-1", "run-2"], tmp_path, "", {}, False)
    assert list(found.points.values()) == [{"learning_rate": "0.1"}, {"learning_rate": "0.5"}], found.points
    assert [len(found.of(point)) for point in found.points] == [2, 1]
    other = comparison.of_runs(["run-0", "run-2"], tmp_path, "run-2", {}, False)
    assert other.points[other.baseline] == {"learning_rate": "0.5"}
    for names, words in (
        (["run-0"], "not two different runs"),
        (["run-0", "run-9"], "no run run-9"),
        (["run-0", "run-0"], "not two different runs"),
    ):
        with pytest.raises(comparison.ComparisonError, match=words):
            comparison.of_runs(names, tmp_path, "", {}, False)


def test_the_command_writes_a_folder_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_plots, "figures", lambda _: {})
    for n in range(2):
        with_settings(make_run(tmp_path, f"run-{n}"), learning_rate=n)
    words = ["--runs=run-0,run-1", f"--results={tmp_path}", "--oversubscribed=false", "--accuracy=0.5"]
    assert compare.main(words) == 0
    assert "comparison.html" in capsys.readouterr().out
    (page,) = tmp_path.glob("comparisons/*/comparison.html")
    assert "learning_rate 1" in page.read_text() and "2 of 2" not in page.read_text()
    assert compare.main(["--runs=run-0,other", f"--results={tmp_path}"]) == 1
    assert "no run other" in capsys.readouterr().err
    assert compare.main([str(tmp_path)]) == 1
    assert "holds no experiment" in capsys.readouterr().err


def test_limits_that_differ_are_drawn(tmp_path: Path) -> None:
    runs = []
    for n, cpu in enumerate((0.5, 0.1)):
        folder = make_run(tmp_path, f"run-{n}")
        inventory = make_inventory(CLIENTS)
        inventory["clients"][0]["cpu"] = cpu
        (folder / "inventory.json").write_text(json.dumps(inventory))
        runs.append(comparison.read_run(folder, f"p{n}", 0, 0, False))
    change = {"time": START + 5, "client": "edge0-1", "cause": "throttle", "verified": {"cpu": 0.2}}
    (runs[1].folder / "events.jsonl").write_text(json.dumps(change) + "\n")
    assert comparison_plots.cpu_limits(runs[1])["edge0-1"] == [(0.0, 0.5), (5.0, 0.2)]
    points = {"p0": {"limits": "none"}, "p1": {"limits": "slow"}}
    drawn = comparison_plots.limits_over_time(comparison.Comparison("x", points, runs, "p0"))
    assert drawn is not None and len(drawn.axes) == 2
    alone = comparison.Comparison("x", {"p0": {}}, runs[:1], "p0")
    assert comparison_plots.limits_over_time(alone) is None
    assert comparison_page.measures(alone)
