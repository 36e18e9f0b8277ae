"""The FL exporter says what the journals say, and asks the SuperLink's own database for the rest."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from prometheus_client.parser import text_string_to_metric_families

from coldframe.controller.records import gather
from coldframe.exporters import runs as fl_exporter
from coldframe.exporters.runs import (
    CLIENTS,
    FAMILIES,
    MOST_METRICS,
    OTHER,
    PHASES,
    REASONS,
    RUNS,
    STATES,
    Exporter,
    reason_of,
)
from coldframe.flower import database
from coldframe.recording.journal import Journal, read_journal
from tests.unit.journals import make_journal, name_of

Samples = dict[str, list[tuple[dict[str, str], float]]]
SYSTEM = {
    "cpu_limit": 0.5,
    "threads": 1,
    "train_seconds": 7.5,
    "throttled_share": 0.25,
    "memory_peak": 3 << 28,
    "samples_per_second": 80.0,
}


def scrape(exporter: Exporter) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(exporter.page()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The value of the only sample with these labels."""
    found = [number for own, number in samples[name] if labels.items() <= own.items()]
    assert len(found) == 1, samples[name]
    return found[0]


def start(state: Path, run_id: str = "7", count: int = 2) -> Journal:
    """A journal with a run of that many clients that has begun."""
    journal = Journal(state / "runs" / run_id / "journal.jsonl")
    clients = [{"name": f"c1-{k}", "partition_id": k, "node_id": str(k)} for k in range(count)]
    about = {"run_name": "first", "strategy": "fedavg", "dataset": "mnist", "partitioner": "iid", "seed": 3}
    about["config"] = {"round-timeout": 900.0}
    journal.append("run_started", run_id=run_id, rounds=5, clients=clients, **about)
    return journal


def reply(
    journal: Journal, client: int, seconds: float, phase: str = "train", round: int = 1, **system: Any
) -> None:
    journal.append(
        "reply",
        round=round,
        phase=phase,
        client=f"c1-{client}",
        partition_id=client,
        node_id=str(client),
        seconds=seconds,
        examples=600,
        metrics={},
        system={**SYSTEM, **system},
        bytes_down=1000,
        bytes_up=400,
    )


def finish_round(journal: Journal, number: int = 1, **more: Any) -> None:
    phases = {"configure": 0.5, "train": 9.0, "aggregate": 0.25, "evaluate": 2.0, "server_evaluate": 1.0}
    figures = {"accuracy": 0.9, "loss": 0.4, "client_accuracy": 0.8, "client_loss": 0.5, "train_loss": 0.6}
    fields = {"seconds": 12.75, "phases": phases, "clients": 2, "failures": 1, **figures, **more}
    journal.append("round", round=number, **fields)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return start(tmp_path)


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    return Exporter(tmp_path)


def test_a_round_is_shown_as_the_journal_has_it(journal: Journal, exporter: Exporter) -> None:
    journal.append("phase_started", round=1, phase="train", clients=["c1-0", "c1-1"])
    reply(journal, 0, 4.0)
    reply(journal, 1, 9.0, cpu_limit=-1, train_seconds=8.5)
    reply(journal, 1, 99.0, phase="evaluate", train_seconds=0.1)
    finish_round(journal)
    samples = scrape(exporter)
    info = {"run_name": "first", "strategy": "fedavg", "dataset": "mnist", "partitioner": "iid", "seed": "3"}
    assert samples["fl_run_info"] == [({"run": "7", **info}, 1)]
    expected = {
        "fl_run_rounds_planned": 5,
        "fl_run_round_timeout_seconds": 900,
        "fl_run_round": 1,
        "fl_run_accuracy": 0.9,
        "fl_run_loss": 0.4,
        "fl_run_client_accuracy": 0.8,
        "fl_run_client_loss": 0.5,
        "fl_run_train_loss": 0.6,
        "fl_round_seconds": 12.75,
        "fl_round_participants": 2,
        "fl_round_straggler_gap_seconds": 2.5,
    }
    assert {name: value(samples, name, run="7") for name in expected} == expected
    assert value(samples, "fl_round_phase_seconds", phase="train") == 9.0
    assert {labels["phase"] for labels, _ in samples["fl_round_phase_seconds"]} == {*PHASES} - {OTHER}
    assert value(samples, "fl_run_bytes_total", direction="down") == 3000
    assert value(samples, "fl_run_bytes_total", direction="up") == 1200
    assert value(samples, "fl_client_round_seconds", client="c1-1", partition="1") == 9.0
    assert value(samples, "fl_client_train_seconds", client="c1-1") == 8.5
    assert value(samples, "fl_client_cpu_limit_cores") == 0.5  # c1-1 has none
    assert value(samples, "fl_client_memory_peak_bytes", client="c1-0") == 3 << 28
    assert value(samples, "fl_client_throttled_ratio", client="c1-0") == 0.25


def test_reading_goes_on_where_it_stopped_and_sums_add_up(journal: Journal, exporter: Exporter) -> None:
    finish_round(journal, 1)
    scrape(exporter)
    finish_round(journal, 2, accuracy=0.95, loss=None)
    samples = scrape(exporter)
    assert value(samples, "fl_run_round") == 2
    assert value(samples, "fl_run_accuracy") == 0.95
    assert "fl_run_loss" not in samples  # it diverged: no number
    assert value(samples, "fl_run_seconds_total", phase="train") == 18.0
    finish_round(journal, 3, accuracy=None, loss=None)  # the server has not evaluated
    assert value(scrape(exporter), "fl_run_accuracy") == 0.95
    samples = scrape(exporter)
    again = scrape(Exporter(exporter.state))  # a restart
    assert again["fl_run_seconds_total"] == samples["fl_run_seconds_total"]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (8, "the task's process was killed by SIGKILL (OOM: memory limit 512 MB)", "oom"),
        (-1, "no reply within 600 s", "timeout"),
        (-1, "the message could not be sent", "lost"),
        (5, "the client restarted while it was to train", "lost"),
        (2, "ValueError: x", "exception"),
        (0, "no reason given", "other"),
        (77, "new", "other"),
    ],
)
def test_failures_have_few_classes(code: int, reason: str, expected: str) -> None:
    assert reason_of({"code": code, "reason": reason}) == expected
    assert expected in REASONS


def test_failures_are_counted_from_zero(journal: Journal, exporter: Exporter) -> None:
    samples = scrape(exporter)
    assert {labels["reason"]: number for labels, number in samples["fl_run_failures_total"]} == dict.fromkeys(
        REASONS, 0
    )
    assert value(samples, "fl_client_failures_total", client="c1-0") == 0
    journal.append(
        "failure", round=1, phase="train", client="c1-0", partition_id=0, node_id="0", code=2, reason="x"
    )
    samples = scrape(exporter)
    assert value(samples, "fl_run_failures_total", reason="exception") == 1
    assert value(samples, "fl_client_failures_total", client="c1-0") == 1


def test_late_replies_are_counted_by_what_ended_the_phase(journal: Journal, exporter: Exporter) -> None:
    about = {"phase": "train", "client": "c1-0", "partition_id": 0, "node_id": "0", "seconds": 3.0}
    for number, reason in ((1, "deadline"), (2, "goal"), (3, "goal")):
        journal.append("late", round=number, reason=reason, **about)
    found = {labels["reason"]: number for labels, number in scrape(exporter)["fl_run_late_total"]}
    assert found == {"deadline": 1, "goal": 2}


def test_updates_are_counted_by_client_with_late_ones_and_without_void_rounds(
    journal: Journal, exporter: Exporter
) -> None:
    def updates() -> list[float]:
        samples = scrape(exporter)
        return [value(samples, "fl_client_updates_total", client=f"c1-{client}") for client in (0, 1)]

    assert updates() == [0, 0] and value(scrape(exporter), "fl_run_folded_total") == 0
    reply(journal, 0, 1.0)
    reply(journal, 1, 1.0)
    reply(journal, 1, 1.0, "evaluate")
    assert updates() == [0, 0], "the round goes on"
    finish_round(journal)
    assert updates() == [1, 1]
    reply(journal, 0, 1.0)
    finish_round(journal, 2, void=True)
    assert updates() == [1, 1]
    about = {"phase": "train", "client": "c1-1", "partition_id": 1, "node_id": "1", "round": 2}
    work = {"seconds": 9.0, "examples": 40, "metrics": {}, "system": SYSTEM, "bytes_down": 5, "bytes_up": 6}
    before = value(scrape(exporter), "fl_run_bytes_total", direction="up")
    journal.append("folded", **about, into=3, staleness=0, weight=1.0, **work)
    samples = scrape(exporter)
    assert updates() == [1, 1] and value(samples, "fl_run_folded_total") == 1
    assert value(samples, "fl_run_bytes_total", direction="up") == before + 6
    assert value(samples, "fl_client_round_seconds", client="c1-1") == 9.0
    assert value(samples, "fl_client_examples", client="c1-1") == 40
    finish_round(journal, 3)
    assert updates() == [1, 2]


def test_checkpoints_and_resumes_are_shown_and_where_there_is_none_a_zero(
    journal: Journal, exporter: Exporter
) -> None:
    names = ("round", "seconds", "held_seconds", "bytes", "failures_total")

    def shown() -> list[float]:
        samples = scrape(exporter)
        found = [value(samples, f"fl_run_checkpoint_{name}", run="7") for name in names]
        return [*found, value(samples, "fl_run_resumes_total", run="7")]

    assert shown() == [0, 0, 0, 0, 0, 0]
    journal.append("checkpoint", round=1, bytes=400, held=0.25, seconds=1.5, unkept=[])
    assert shown() == [1, 1.5, 0.25, 400, 0, 0]
    journal.append("checkpoint_failed", round=2, reason="OSError: no space")
    assert shown() == [1, 1.5, 0.25, 400, 1, 0]
    journal.append("resume", run_id="7", resumed_from="6", round=3, resumed=1)
    assert shown() == [3, 1.5, 0.25, 400, 1, 1], "what it goes on from"
    journal.append("checkpoint", round=4, bytes=410, held=0.5, seconds=2.5, unkept=[])
    assert shown() == [4, 2.5, 0.5, 410, 1, 1]


def failure(journal: Journal, client: int, code: int) -> None:
    about = {"client": f"c1-{client}", "partition_id": client, "node_id": str(client)}
    journal.append("failure", round=1, phase="train", **about, code=code, reason="x")


def test_replies_that_are_in_no_model_are_no_updates(journal: Journal, exporter: Exporter) -> None:
    def updates() -> list[float]:
        samples = scrape(exporter)
        found = [value(samples, "fl_client_updates_total", client=f"c1-{client}") for client in (0, 1)]
        run = gather(read_journal(journal.path))
        assert list(run.contributions().values()) == found
        return found

    def phase() -> None:
        journal.append("phase_started", round=1, phase="train", clients=["c1-0", "c1-1"])

    phase()
    reply(journal, 0, 1.0)
    reply(journal, 1, 1.0)
    failure(journal, 1, -2)
    phase()
    failure(journal, 0, -2)  # a reply to this message has not been written down
    finish_round(journal)
    assert updates() == [1, 0]
    phase()
    journal.append("not_aggregated", round=2, messages=2, replies=2, reason="x")
    for client in (0, 1):
        reply(journal, client, 1.0, round=2)
    finish_round(journal, 2)
    assert updates() == [1, 0]
    reply(journal, 1, 1.0, round=3)
    finish_round(journal, 3)
    assert updates() == [1, 1]


def test_of_an_asynchronous_run_the_used_updates_count(journal: Journal, exporter: Exporter) -> None:
    journal.append("phase_started", round=1, phase="train", clients=["c1-0", "c1-1"])
    for client in (0, 1, 0):
        reply(journal, client, 1.0)
    for client, reason in ((0, None), (1, "max_staleness"), (0, None)):
        update(journal, client, reason)
    finish_round(journal, updates=2, discarded=1, staleness=1.5, max_staleness=3)
    samples = scrape(exporter)
    assert value(samples, "fl_run_discarded_total") == 1
    assert value(samples, "fl_round_staleness", stat="mean") == 1.5
    assert value(samples, "fl_round_staleness", stat="max") == 3
    reply(journal, 1, 1.0)
    reply(journal, 1, 1.0)  # which waits for the next round
    update(journal, 1)
    finish_round(journal, 2, updates=1, discarded=0, staleness=0.0, max_staleness=0)
    samples = scrape(exporter)
    assert [value(samples, "fl_client_updates_total", client=f"c1-{client}") for client in (0, 1)] == [2, 1]


def update(journal: Journal, client: int, reason: str | None = None) -> None:
    about = {"client": f"c1-{client}", "partition_id": client, "node_id": str(client)}
    figures = {"dispatch": 0, "base": 0, "version": 0, "staleness": 0, "weight": 0 if reason else 1}
    journal.append("update", round=1, phase="train", **about, **figures, reason=reason)


def state_of(samples: Samples, run: str = "7") -> str:
    found = {labels["state"]: number for labels, number in samples["fl_run_state"] if labels["run"] == run}
    assert set(found) == set(STATES)
    assert sum(found.values()) == 1
    return max(found, key=found.__getitem__)


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_closed_run_stays_visible_with_its_end(journal: Journal, exporter: Exporter, status: str) -> None:
    assert state_of(scrape(exporter)) == "running"
    assert "fl_run_finished_timestamp_seconds" not in scrape(exporter)
    journal.append("run_finished", status=status, error=None)
    samples = scrape(exporter)
    assert state_of(samples) == status
    begin, end = (value(samples, f"fl_run_{what}_timestamp_seconds") for what in ("started", "finished"))
    assert end >= begin > 1.6e9
    assert value(samples, "fl_run_last_event_timestamp_seconds") == end


def write_run(state: Path, run_id: str, clients: int, rounds: int, kind: str, age: float = 0.0) -> None:
    """The journal of a whole run of some kind of app."""
    path = state / "runs" / run_id / "journal.jsonl"
    path.parent.mkdir(parents=True)
    events = make_journal(clients, rounds, kind, time.time() - 600)
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    os.utime(path, (time.time() - age, time.time() - age))


def metrics_of(samples: Samples, stat: str = "mean") -> dict[tuple[str, str], float]:
    found = [
        (labels, number) for labels, number in samples.get("fl_run_metric", []) if labels["stat"] == stat
    ]
    return {(labels["phase"], labels["metric"]): number for labels, number in found}


def test_metrics_of_a_foreign_app_are_shown_by_its_names(tmp_path: Path, exporter: Exporter) -> None:
    """Those of the last round; of a list each element; accuracy, which the app does not tell, is absent."""
    write_run(tmp_path, "7", 20, 4, "foreign")
    samples = scrape(exporter)
    mean = metrics_of(samples)
    listed = {("train", f"per_class_f1[{i}]") for i in range(3)}
    assert set(mean) == {("train", "rmse"), ("train", "lr"), ("evaluate", "r2")} | listed
    assert mean["train", "lr"] == pytest.approx(0.1 / 4)
    low, high = metrics_of(samples, "min"), metrics_of(samples, "max")
    assert low["train", "rmse"] < mean["train", "rmse"] < high["train", "rmse"]
    assert not {"fl_run_accuracy", "fl_run_loss"} & set(samples)
    assert value(samples, "fl_run_client_loss") > 0
    assert value(samples, "fl_run_round") == 4


def test_mean_of_a_metric_is_weighted_with_the_examples(journal: Journal, exporter: Exporter) -> None:
    for client, (examples, score) in enumerate([(100, 0.0), (300, 1.0)]):
        who = {"client": f"c1-{client}", "partition_id": client, "node_id": "0", "seconds": 1.0}
        metrics = {"score": score, "flag": True, "long": [0.0] * 11, "text": "x", "none": None}
        fields = {"round": 1, "phase": "train", "examples": examples, "metrics": metrics, "system": {}}
        journal.append("reply", **who, **fields)
    assert "fl_run_metric" not in scrape(exporter), "the round goes on"
    finish_round(journal)
    assert metrics_of(scrape(exporter)) == {("train", "score"): 0.75}


def test_an_app_without_rounds_shows_its_last_exchange(tmp_path: Path, exporter: Exporter) -> None:
    write_run(tmp_path, "7", 3, 2, "query")
    samples = scrape(exporter)
    assert metrics_of(samples) == {("query", "rows"): pytest.approx(11, abs=0.3)}
    assert value(samples, "fl_run_round") == 0
    assert not {"fl_run_rounds_planned", "fl_round_seconds", "fl_round_straggler_gap_seconds"} & set(samples)
    assert 1.0 < value(samples, "fl_client_round_seconds", client="edge0-0") < 3.0
    assert {number for _, number in samples["fl_run_seconds_total"]} == {0}


def test_exchanges_of_one_round_add_up(tmp_path: Path, exporter: Exporter) -> None:
    """A client's time, and so the straggler gap, is that of all four; the evaluation is none of it."""
    write_run(tmp_path, "7", 10, 2, "exchanges")
    samples = scrape(exporter)
    seconds = {labels["client"]: number for labels, number in samples["fl_client_round_seconds"]}
    assert all(4 * 5.4 < number < 4 * 6.6 * 1.3 for name, number in seconds.items() if name != name_of(9))
    assert seconds[name_of(9)] > 4 * 16
    slowest, middle = max(seconds.values()), sorted(seconds.values())[4:6]
    gap = value(samples, "fl_round_straggler_gap_seconds")
    assert gap == pytest.approx(slowest - sum(middle) / 2)
    trained = value(samples, "fl_client_train_seconds", client=name_of(0))
    assert trained == pytest.approx(0.9 * seconds[name_of(0)], rel=0.01)


def test_phases_that_an_app_has_made_up_are_one(journal: Journal, exporter: Exporter) -> None:
    finish_round(journal, phases={"train": 1.0, "gossip": 2.0, "vote": 3.0})
    samples = scrape(exporter)
    assert value(samples, "fl_round_phase_seconds", phase="other") == 5.0
    assert value(samples, "fl_run_seconds_total", phase="other") == 5.0


def test_an_app_with_very_many_metrics_shows_the_first(journal: Journal, exporter: Exporter) -> None:
    for client in range(2):
        who = {"client": f"c1-{client}", "partition_id": client, "node_id": "0", "seconds": 1.0}
        metrics = {f"m{i}": float(i) for i in range(200)}
        journal.append(
            "reply", **who, round=1, phase="train", examples=None, metrics=metrics, system={}, bytes_down=0
        )
    finish_round(journal)
    found = metrics_of(scrape(exporter))
    assert found == {("train", f"m{i}"): float(i) for i in range(MOST_METRICS)}


def test_series_of_many_clients_and_runs_are_bounded(tmp_path: Path, exporter: Exporter) -> None:
    """Of 20 runs of 200 clients the newest three have their clients, and one that goes on."""
    for number in range(RUNS):
        write_run(tmp_path, str(number), 200, 1, "foreign", age=100.0 + number)
    path = tmp_path / "runs" / "15" / "journal.jsonl"
    changed = path.stat().st_mtime
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")  # without its end
    os.utime(path, (changed, changed))
    samples = scrape(exporter)
    with_clients = {labels["run"] for labels, _ in samples["fl_client_round_seconds"]}
    assert with_clients == {"0", "1", "2", "15"}
    assert len({labels["run"] for labels, _ in samples["fl_run_info"]}) == RUNS
    assert CLIENTS == 3 * 200
    lines = [line for line in exporter.page().splitlines() if not line.startswith(("#", "process_"))]
    assert len(lines) <= 10 * (CLIENTS + 200) + (52 + 3 * MOST_METRICS) * RUNS


def test_no_more_than_the_newest_runs_are_shown(tmp_path: Path, exporter: Exporter) -> None:
    for number in range(RUNS + 3):
        path = start(tmp_path, str(number)).path
        os.utime(path, (number, number))
    shown = {labels["run"] for labels, _ in scrape(exporter)["fl_run_info"]}
    assert shown == {str(number) for number in range(3, RUNS + 3)}
    assert len(exporter.runs) == RUNS


@pytest.mark.parametrize("clients", [2, 100])
def test_a_run_has_as_few_series_as_the_readme_says(tmp_path: Path, exporter: Exporter, clients: int) -> None:
    journal = start(tmp_path, count=clients)
    for number in (1, 2, 3):
        for client in range(clients):
            reply(journal, client, 1.0)
        finish_round(journal, number)
    journal.append("run_finished", status="completed", error=None)
    exporter.page()
    run = exporter.runs["7"]
    text = run.page().text() + run.clients_page().text()
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == 51 + 10 * clients  # one more where the app has made up a phase


def test_clients_and_foreign_runs_come_from_flowers_own_database(tmp_path: Path, exporter: Exporter) -> None:
    """One of two clients is online; a run of an app that keeps no journal, and one that was stopped."""
    factory = LinkStateFactory(str(tmp_path / "superlink.db"), NoOpFederationManager(), ObjectStoreFactory())
    link = factory.state()
    nodes = [link.create_node("", "", bytes([i]), 30.0, name=f"c1-{i}") for i in range(2)]
    assert link.activate_node(nodes[0], 30.0)
    roster = {str(node): {"name": f"c1-{i}", "partition_id": i} for i, node in enumerate(nodes)}
    (tmp_path / "nodes.json").write_text(json.dumps(roster))
    about = ("other/app", "1.0", "hash", {}, "@none/default", None, None, TaskType.SERVER_APP)
    numbers = [link.create_run(*about) for _ in range(2)]
    assert link.stop_run(numbers[1])
    run_ids = [str(number) for number in numbers]
    journal = start(tmp_path, run_ids[1])
    samples = scrape(exporter)
    assert value(samples, "fl_clients", state="registered") == 2
    assert value(samples, "fl_clients", state="online") == 1
    assert value(samples, "fl_client_connected", client="c1-0", partition="0") == 1
    assert value(samples, "fl_client_connected", client="c1-1") == 0
    now = time.time()
    seen = value(samples, "fl_client_last_seen_timestamp_seconds", client="c1-0")
    assert seen == pytest.approx(now, abs=5)
    foreign = next(labels for labels, _ in samples["fl_run_info"] if labels["run"] == run_ids[0])
    assert (foreign["run_name"], foreign["strategy"]) == ("other/app", "")
    assert value(samples, "fl_run_started_timestamp_seconds", run=run_ids[0]) == pytest.approx(now, abs=5)
    assert state_of(samples, run_ids[0]) == "running"
    assert state_of(samples, run_ids[1]) == "stopped"
    assert value(samples, "fl_run_round", run=run_ids[1]) == 0
    journal.append("run_finished", status="failed", error="x")
    assert state_of(scrape(exporter), run_ids[1]) == "failed"


def test_clients_are_not_shown_as_disconnected_where_the_database_cannot_be_read(
    tmp_path: Path, exporter: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log says why, once."""
    path = tmp_path / database.NAME
    LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory()).state()
    (tmp_path / "nodes.json").write_text(json.dumps({"1": {"name": "c1-0", "partition_id": 0}}))
    assert value(scrape(exporter), "fl_client_connected", client="c1-0") == 0
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE node RENAME COLUMN status TO state")
    for _ in range(2):
        samples = scrape(exporter)
        assert "fl_client_connected" not in samples
        assert [labels["state"] for labels, _ in samples["fl_clients"]] == ["registered"]
    assert capsys.readouterr().err.count("node.status") == 1


def test_nothing_is_there_before_the_first_registration(exporter: Exporter) -> None:
    samples = scrape(exporter)
    assert "fl_clients" not in samples
    assert "fl_run_info" not in samples


def test_every_metric_is_described(journal: Journal, exporter: Exporter) -> None:
    journal.append("phase_started", round=1, phase="train", clients=["c1-0"])
    reply(journal, 0, 1.0)
    finish_round(journal)
    samples = scrape(exporter)
    assert set(samples) - set(FAMILIES) == {name for name in samples if name.startswith("process_")}
    assert all(words.endswith(".") for _, words in FAMILIES.values())
    assert fl_exporter.REASON_OF_CODE.keys() >= set(range(1, 9))
