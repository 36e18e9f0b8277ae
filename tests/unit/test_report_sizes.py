"""The report stays readable with any number of clients and rounds, and of any kind of app."""

from __future__ import annotations

import csv
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from coldframe.controller import plots, report, results, timeline
from coldframe.controller.records import Event, Run, gather, named
from tests.unit.journals import KINDS, START, make_changes, make_folder, make_inventory, make_journal, name_of
from tests.unit.test_report import Page

A4 = 297 / 210


def drawn(figure: Figure) -> Figure:
    """Lay a figure out as on paper: only then its axes have their ticks."""
    FigureCanvasAgg(figure).draw()
    return figure


def run_of(clients: int, rounds: int = 5, kind: str = "ours") -> Run:
    return gather(make_journal(clients, rounds, kind))


def lanes(clients: int, run: Run) -> list[timeline.Lane]:
    return timeline.lanes(run, make_changes(clients), {name_of(i): 0.5 for i in range(clients)})


def pictures(run: Run, clients: int) -> list[Figure]:
    found = [plots.rounds(run.rounds), plots.round_times(run.rounds)] if run.rounds else []
    found += [plots.convergence(run.rounds, START)] if plots.curves_of(run.rounds) else []
    work = plots.work_of(run.replies, run.failures)
    found += [plots.clients(work)] if work else []
    found += [timeline.draw(lanes(clients, run), run)]
    others = plots.metrics_of(run.replies, report.covered(run))
    found += [plots.metrics(others)] if others else []
    if run.started.get("histogram"):
        names = {int(item["partition_id"]): item["name"] for item in run.started["clients"]}
        found += [plots.class_map(run.started["histogram"], names)]
        found += [plots.partitions(run.started["histogram"], names)]
    return found


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures beside the page, and without those in it where a test is not about them."""
    monkeypatch.setattr(plots, "save", lambda _figure, path: path.write_bytes(b""))
    if request.node.get_closest_marker("renders") is None:
        monkeypatch.setattr(plots, "svg", lambda _figure, _name: "<svg/>")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [3, 20, 200])
def test_every_picture_fits_a_page_and_no_names_lie_upon_each_other(clients: int, kind: str) -> None:
    for figure in pictures(run_of(clients, 3, kind), clients):
        width, height = figure.get_size_inches()
        assert height <= A4 * max(width, 9.6), figure
        drawn(figure)
        for axes in figure.axes:
            labels = [label for label in axes.get_yticklabels() if label.get_text() and label.get_visible()]
            boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
            overlaps = [a.y1 - b.y0 for a, b in itertools.pairwise(boxes)]
            assert max(overlaps, default=0.0) <= 1.0, [label.get_text() for label in labels][:5]


def test_one_round_has_a_whole_tick_and_room_on_all_sides() -> None:
    run = run_of(3, 1)
    work = plots.work_of(run.replies, run.failures)
    assert work
    by_round = [
        *plots.rounds(run.rounds).axes,
        *plots.round_times(run.rounds).axes,
        *plots.convergence(run.rounds, START).axes[:2],
        *plots.clients(work).axes,
    ]
    for axes in by_round:
        drawn(axes.figure)  # type: ignore[arg-type]
        assert list(axes.get_xticks()) == [1]
        low, high = axes.get_xlim()
        assert low <= 0.5
        assert high >= 1.5
        bottom, top = axes.get_ylim()
        values = [float(y) for line in axes.lines for y in line.get_ydata()]
        assert all(y <= bottom + 0.93 * (top - bottom) for y in values), "a point at the upper edge"


@pytest.mark.parametrize("rounds", [2, 5, 30, 200])
def test_ticks_of_rounds_are_whole_numbers(rounds: int) -> None:
    (axes,) = drawn(plots.round_times(run_of(3, rounds).rounds)).axes
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert len(axes.get_xticks()) <= 14


def test_a_crowd_is_counted_and_the_slowest_have_rows() -> None:
    run = run_of(200, 3)
    rows = lanes(200, run)
    assert len(rows) == 200
    shown = [lane.name for lane in timeline.notable(rows)]
    assert len(shown) == timeline.SHOWN
    assert {name_of(i) for i in (49, 99, 149, 199)} <= set(shown), "the very slow ones"
    assert {name_of(i) for i in (47, 167)} & set(shown), "one that failed"
    assert shown == sorted(shown, key=[lane.name for lane in rows].index)
    count, below = timeline.draw(rows, run).axes
    assert count.get_ylabel() == "Clients at work, of 200"
    assert [label.get_text() for label in below.get_yticklabels()] == shown[::-1]


def test_clients_at_work_are_counted_by_phase() -> None:
    one = timeline.Lane("a", spans=[("train", 0.0, 10.0), ("evaluate", 10.0, 20.0)])
    two = timeline.Lane("b", spans=[("train", 0.0, 15.0), ("gossip", 15.0, 20.0)])
    moments = [0.0, 5.0, 10.0, 15.0, 20.0]
    assert timeline.at_work([one, two], "train", moments) == [2, 2, 1, 0]
    assert timeline.at_work([one, two], "evaluate", moments) == [0, 0, 1, 1]
    assert timeline.at_work([one, two], "other", moments) == [0, 0, 0, 1]
    assert list(timeline.kinds([one, two])) == ["train", "evaluate", "other"]


def test_clients_stand_in_the_order_of_partitions_and_of_natural_names() -> None:
    replies: list[Event] = [
        {"client": name, "partition_id": partition, "phase": "train", "round": 1, "seconds": 1.0}
        for name, partition in (("c-10", None), ("b", 1), ("c-9", None), ("z", 0))
    ]
    assert plots.in_order(replies) == ["z", "b", "c-9", "c-10"]
    assert named([f"c-{i}" for i in range(20)], most=3) == "c-0, c-1, c-2 and 17 more"


def test_exchanges_of_one_round_add_up() -> None:
    run = run_of(3, 2, "exchanges")
    work = plots.work_of(run.replies, run.failures)
    assert work
    own = [
        r["system"]["train_seconds"]
        for r in run.replies
        if (r["client"], r["phase"], r["round"]) == (name_of(0), "train", 1)
    ]
    assert len(own) == 4
    assert work.seconds[name_of(0), 1] == pytest.approx(sum(own))


@pytest.mark.renders
def test_an_app_without_rounds_has_no_invented_ones(tmp_path: Path) -> None:
    run = run_of(20, 3, "query")
    assert plots.work_of(run.replies, run.failures) is None
    out = make_folder(tmp_path, 20, 3, "query")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert re.findall(r"Figure \d\. [^.]+\.", page.text) == ["Figure 1. Clients over time."]
    assert "answers a query" in page.text
    assert "Rounds 0" in page.text
    assert not (out / "clients.png").exists()
    assert not (out / "rounds.png").exists()


@pytest.mark.renders
def test_metrics_of_a_foreign_app_are_drawn_under_their_names(tmp_path: Path) -> None:
    run = run_of(3, 4, "foreign")
    found = plots.metrics_of(run.replies, report.covered(run))
    assert [(metric.name, metric.phase) for metric in found] == [
        ("rmse", "train"),
        ("lr", "train"),
        ("r2", "evaluate"),
    ]  # a list of numbers is no curve
    assert found[1].values == {n: [0.1 / n] * 3 for n in range(1, 5)}
    page = Page((make_folder(tmp_path, 3, 4, "foreign") / "report.html").read_text(encoding="utf-8"))
    for words in ("rmse (train)", "r2 (evaluate)", "loss, clients' mean: eval_mse", "Figure 1. Loss."):
        assert words in page.text, words


def test_phases_that_an_app_has_made_up_are_columns_and_bars() -> None:
    event = {
        "time": 1.0,
        "event": "round",
        "round": 1,
        "seconds": 9.0,
        "phases": {"train": 4.0, "gossip": 5.0},
    }
    run = gather([event])
    assert results.round_rows(run)[0]["gossip_seconds"] == 5.0
    (axes,) = plots.round_times(run.rounds).axes
    assert axes.get_legend_handles_labels()[1] == ["train", "gossip"]


@pytest.mark.renders
def test_report_of_two_hundred_clients_is_short(tmp_path: Path) -> None:
    out = make_folder(tmp_path, 200, 6, "ours")
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 2 << 20
    assert "25 of 200 clients are shown" in page.text
    for words in ("lowest", "median", "highest", "and 55 more", "node unavailable"):
        assert words in page.text, words
    assert len(re.findall("node unavailable", page.text)) == 2, "a line for each round"
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        _, _, width, height = map(float, str(ET.fromstring(svg).get("viewBox")).split())
        assert height < A4 * width
    with (out / "clients.csv").open(encoding="utf-8") as file:
        clients = [row["client"] for row in csv.DictReader(file)]
    assert clients[:3] == [name_of(0), name_of(1), name_of(2)]
    assert len(set(clients)) == 200


def test_closing_words_of_a_crowd_are_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_folder(tmp_path, 200, 3, "ours")
    said = capsys.readouterr().out.splitlines()
    assert len(said) < 30
    assert max(map(len, said)) < 260
    assert out.is_dir()
    assert len(make_inventory(200)["machines"]) == 20
