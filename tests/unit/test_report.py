"""The report is one page that needs nothing but itself and says what the run's records say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import plots, report, results, timeline
from coldframe.controller.records import Run, gather
from tests.unit.test_results import NAMES, make_events, write_journal
from tests.unit.test_submission import NOTE

START = 1_700_000_000.0
MACHINE = {
    "name": "bench",
    "roles": ["server", "clients"],
    "cores": 4,
    "memory": 8 << 30,
    "architecture": "x86_64",
    "system": "Debian GNU/Linux 13 (trixie)",
    "kernel": "6.12.0",
    "docker": "26.1.5",
    "cgroup": 2,
}


def make_change(after: float, client: str, cause: str, **fields: Any) -> dict[str, Any]:
    """Make an event as an agent writes it; `cpu` is both asked for and held."""
    if "cpu" in fields:
        limit = {"cpu": fields.pop("cpu")}
        fields |= {"requested": limit, "verified": limit, "holds": True, "seconds": 0.1}
    return {"time": START + after, "client": client, "cause": cause, "machine": "bench", **fields}


CHANGES = [
    *(make_change(25 + i / 10, name, "throttle", cpu=0.1) for i, name in enumerate(NAMES)),
    make_change(30, "lab-1", "oom", kills=2),
    make_change(45, "lab-0", "undo", cpu=0.5),
    make_change(50, "lab-2", "expiry", cpu=0.5),
]


class Page(HTMLParser):
    """What a browser would make of the page: its words, its ids, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            within = str(value).startswith(("#", "data:"))
            if name in ("src", "href", "xlink:href", "srcset", "data") and not within:
                self.fetched.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        """All words, between single spaces."""
        return " ".join(" ".join(word.split()) for word in self.words if word)


def make_report(
    folder: Path,
    events: list[dict[str, Any]],
    changes: list[dict[str, Any]] = CHANGES,
    record: dict[str, Any] | None = None,
) -> tuple[str, Page]:
    """Make the results folder as collect does; the report's text and the page."""
    source = write_journal(folder / "run", events)
    clients = [
        {"name": name, "machine": "bench", "partition_id": i, "cpu": 0.5, "memory": 1 << 30, "profile": None}
        for i, name in enumerate(NAMES)
    ]
    given = {
        "inventory": json.dumps({"federation": "lab", "clients": clients, "machines": [MACHINE]}),
        "events": "".join(json.dumps(change) + "\n" for change in changes),
        "versions": json.dumps({"torch": "2.13.0"}),
        "record": json.dumps(record or {}),
    }
    options = []
    for option, text in given.items():
        (folder / option).write_text(text, encoding="utf-8")
        options += [f"--{option}", str(folder / option)]
    assert results.main([str(source), "--results", str(folder / "out"), "--run-id", "99", *options]) == 0
    text = (folder / "out" / "latest" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module", autouse=True)
def no_files() -> Iterator[None]:
    """Without the pictures beside the page, which test_results.py looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda _figure, path: path.write_bytes(b""))
        yield


@pytest.fixture(autouse=True)
def unpainted(
    request: pytest.FixtureRequest, made: tuple[str, Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the pictures of any other page than `made`, where a test is not about them."""
    if request.node.get_closest_marker("renders") is None:
        monkeypatch.setattr(plots, "svg", lambda _figure, _name: "<svg/>")


@pytest.fixture(scope="module", name="made")
def report_of_the_pilot(tmp_path_factory: pytest.TempPathFactory, no_files: None) -> tuple[str, Page]:
    """The report of a run with a failure, throttles and an OOM kill."""
    return make_report(tmp_path_factory.mktemp("report"), make_events())


def test_page_fetches_nothing(made: tuple[str, Page]) -> None:
    text, page = made
    assert page.fetched == []
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    addresses = set(re.findall(r"https?://[^\"' <)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "only names"


def test_page_says_first_how_it_went(made: tuple[str, Page]) -> None:
    text = made[1].text
    for words in (
        "pilot completed Federated training with fedprox on mnist, partitioner dirichlet, seed 7.",
        "2023-11-14 22:13:20 UTC to 2023-11-14 22:14:23 UTC",
        "Run 71 , federation lab",
        "Accuracy 0.9300 best 0.9300 in round 3",
        "Loss 0.1000",
        "Rounds 3 of 3 1 failures",
        "Wall time 1 min 03 s median round 20.0 s",
    ):
        assert words in text
    assert "Oversubscribed:" not in text, "the machine has four cores: what was typed does not count"


def test_page_has_its_five_figures(made: tuple[str, Page]) -> None:
    text, page = made
    titles = re.findall(r"<b>Figure (\d)\. ([^<]+)\.</b>", text)
    assert titles == [
        ("1", "Accuracy and loss"),
        ("2", "Time by phase of the round"),
        ("3", "Clients over time"),
        ("4", "Training time by client"),
        ("5", "Classes by client"),
    ]
    assert page.tags.count("svg") == 5
    assert len(page.ids) == len(set(page.ids)), "one figure would take another's clip paths"
    for words in ("Seconds since the run's start", "server's test set", "throttled", "throttle undone"):
        assert words in page.text
    for words in ("throttle expired", "killed for lack of memory", "trains", "evaluates", "failed"):
        assert words in page.text


def test_tables_hold_events_failures_machines_configuration_and_versions(made: tuple[str, Page]) -> None:
    text = made[1].text
    for words in (
        "25.0 throttled cpu 0.1 cores lab-0, lab-1, lab-2 holds",  # one change of three clients, one line
        "30.0 killed for lack of memory \u2013 lab-1 \u2013",
        "50.0 throttle expired cpu 0.5 cores lab-2 holds",
        "2 train lab-1 node unavailable",
        "bench server, clients 4 \u2013 \u2013 8 GiB x86_64 Debian GNU/Linux 13 (trixie) 6.12.0 26.1.5 v2",
        "learning-rate 0.01 strategy fedprox",
        "flwr 1.42.0 torch 2.13.0",
        "ab" * 32,
    ):
        assert words in text, words
    # Name, machine, partition, examples, limits, seconds, rate, throttled, peak, traffic, failures, kills.
    assert "lab-1 bench 1 157 0.5 1 GiB 11 \u2013 \u2013 286 MiB 22 B 1 2" in text, text[
        text.index("lab-1 bench") :
    ][:90]


@pytest.mark.renders
def test_same_records_make_the_same_page(made: tuple[str, Page], tmp_path: Path) -> None:
    assert make_report(tmp_path, make_events())[0] == made[0]


def test_lane_follows_the_kernels_limit_and_names_what_happened() -> None:
    run = gather(make_events())
    first, second, third = timeline.lanes(run, CHANGES, dict.fromkeys(NAMES, 0.5))
    assert [lane.name for lane in (first, second, third)] == NAMES
    assert first.limits == [(START, 0.5), (START + 25, 0.1), (START + 45, 0.5)]
    assert [cause for _, cause in second.marks] == ["throttle", "oom"]
    assert second.failures == [START + 36]
    assert [phase for phase, _, _ in first.spans] == ["train", "evaluate"] * 3
    assert first.spans[0][1:] == (START + 4, START + 16)


def test_timeline_shades_where_the_run_was_interrupted_and_marks_checkpoints_that_failed() -> None:
    """The second round is the last one that was kept; the run is resumed 100 s later."""
    events = make_events()
    place = next(i for i, event in enumerate(events) if event.get("event") == "round" and event["round"] == 2)
    at = events[place]["time"]
    later = [{**event, "time": event["time"] + 100} for event in events[place + 1 :]]
    resume = {"event": "resume", "run_id": "99", "resumed_from": "98", "round": 2, "resumed": 1}
    failed = {"event": "checkpoint_failed", "round": 1, "reason": "OSError: no space"}
    parts = [*events[:place], {"time": at - 5, **failed}, events[place], {"time": at + 100, **resume}, *later]
    run = gather(parts)
    assert run.gaps == [(at, at + 100)] and run.interrupted == 100

    def drawn(run: Run) -> tuple[list[tuple[float, float]], list[float], set[str]]:
        figure = timeline.draw(timeline.lanes(run, [], {}), run)
        (axes,) = figure.axes
        shaded = [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches if p.get_hatch()]
        dotted = [float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == ":"]
        return shaded, dotted, {text.get_text() for text in figure.legends[0].texts}

    shaded, dotted, words = drawn(run)
    assert shaded == [(at - START, at - START + 100)] and dotted == [at - 5 - START]
    ours = {"interrupted, then resumed", "a checkpoint could not be written"}
    assert ours <= words
    shaded, dotted, words = drawn(gather(events))
    assert shaded == dotted == [] and not ours & words


def test_report_says_of_which_rounds_there_is_no_checkpoint(tmp_path: Path) -> None:
    events = make_events()
    failed = [
        {"time": START + 30 + n, "event": "checkpoint_failed", "round": n, "reason": "x"} for n in (1, 2)
    ]
    text = make_report(tmp_path, [*events[:-1], *failed, events[-1]])[1].text
    assert "1 failures, no checkpoint of round 1 and 1 more" in text


def test_limit_before_the_first_change_is_the_inventorys_where_no_client_has_replied_yet() -> None:
    change = make_change(1, "lab-0", "throttle", cpu=0.1)
    assert timeline.limits(START, [], [change], 0.4) == [(START, 0.4), (START + 1, 0.1)]
    assert timeline.limits(START, [], [change], None) == [(START, None), (START + 1, 0.1)]


def test_limit_comes_from_the_replies_where_no_agent_says_anything() -> None:
    replies = [
        {"time": START + after, "seconds": 5.0, "system": {"cpu_limit": limit}}
        for after, limit in ((10, 0.5), (20, 0.5), (30, 0.25), (40, -1))
    ]
    steps = [(START, 0.5), (START + 25, 0.25), (START + 35, None)]
    assert timeline.limits(START, replies, [], None) == steps


@pytest.mark.renders
def test_fifty_clients_stay_readable(tmp_path: Path) -> None:
    """Every client has its row in each picture, and the timeline still fits a page: three more are known."""
    events = make_events()
    events[0]["clients"] = [{"name": f"far-{i}", "partition_id": i, "node_id": i} for i in range(47)]
    del events[0]["histogram"]  # the clients tell it
    more = [
        {
            "time": START,
            "event": "partition",
            "client": f"far-{i}",
            "partition_id": i,
            "class_counts": [i, 50],
        }
        for i in range(47)
    ]
    more += [
        event | {"client": f"far-{i}", "partition_id": i}
        for event in events
        if event.get("client") == "lab-0"
        for i in range(47)
    ]
    kept = [event for event in events if "client" not in event]
    text, page = make_report(tmp_path, kept[:2] + more + kept[2:], changes=[])
    for i in range(47):
        # Timeline, training time, classes, table of clients.
        assert len(re.findall(rf">\s*far-{i}\s*<", text)) == 4, i
    svg = text[: text.index("Figure 3.")].rpartition("<svg")[2]
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found and float(found[2]) / float(found[1]) < 1.35, "higher than a page of A4"
    assert "far-46" in page.text


def test_report_says_what_exceeded_a_machines_cores(tmp_path: Path) -> None:
    changes = [make_change(12, name, "throttle", cpu=2.0) for name in NAMES]
    text = make_report(tmp_path, make_events(), changes=changes)[1].text
    assert "Oversubscribed: more was asked of a machine than it has." in text
    assert "added up to 4.5 cores 12.0 s after its start, and it has 4" in text


def test_report_of_a_failed_run_says_why(tmp_path: Path) -> None:
    text = make_report(tmp_path, make_events(end="failed"))[1].text
    assert "pilot failed" in text
    assert "It failed: round 3: no client replied" in text


def test_words_of_others_are_no_markup(tmp_path: Path) -> None:
    events = make_events()
    failure = next(event for event in events if event["event"] == "failure")
    failure["reason"] = "<script>alert(1)</script> & more"
    text, page = make_report(tmp_path, events)
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_long_table_of_rounds_is_thinned_and_says_so() -> None:
    rows = [{"round": number} for number in range(101)]
    shown = [row["round"] for row in report.thinned(rows)]
    assert len(shown) == report.ROUNDS
    assert (shown[0], shown[1], shown[-1]) == (0, 4, 100)


def test_foreign_app_is_reported_as_far_as_the_records_reach(tmp_path: Path) -> None:
    """No journal: SuperLink's record gives times and traffic, the agents their events."""
    record = {
        "run_id": "99",
        "app": "somebody/counting",
        "started": "2023-11-14T22:13:20+00:00",
        "finished": "2023-11-14T22:14:20+00:00",
        "bytes_sent": 3 << 20,
        "bytes_received": 1 << 20,
    }
    (tmp_path / "run").mkdir()
    note = {**NOTE, "variables": {"app": "counting", "run_config": {"step": 0.5}}, "machines": [MACHINE]}
    (tmp_path / "run" / "submitted.json").write_text(json.dumps(note), encoding="utf-8")
    text, page = make_report(tmp_path, [], record=record)
    for words in (
        "Federated run of the app somebody/counting.",
        "2023-11-14 22:13:20 UTC to 2023-11-14 22:14:20 UTC",
        "Wall time 1 min 00 s",
        "Traffic 4 MiB",
        "Figure 1. Clients over time.",
        "25.0 throttled cpu 0.1 cores lab-0, lab-1, lab-2 holds",
        "step 0.5",
        "bench server, clients 4 \u2013 \u2013 8 GiB",
    ):
        assert words in page.text, words
    assert "Figure 2" not in text


def test_run_of_which_nothing_is_known_has_a_report_too(tmp_path: Path) -> None:
    text = make_report(tmp_path, [], changes=[])[1].text
    assert "This run has left no rounds and no replies" in text
