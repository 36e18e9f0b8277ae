"""Shows the federation's runs to Prometheus: rounds, accuracy, times, failures, clients, from the journals.

It reads what the ServerApps append, and the SuperLink's own records for what no journal says: who is
connected, and the runs of apps that keep none. It lives in the server's container, on its loopback; the
gateway publishes it. The newest RUNS runs are shown, closed ones too, after any restart: 38 series per run
and 9 per run and client. `python3 -m coldframe.exporters.runs PORT [USERS]`: with the
file of users it asks for a password.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coldframe.exporters import exposition
from coldframe.exporters.exposition import Families, Page, labels
from coldframe.recording.journal import Tail
from coldframe.server.gateway import PKI

RUNS = 20
STATES = ("running", "completed", "failed", "diverged", "stopped")
PHASES = ("configure", "train", "aggregate", "evaluate", "server_evaluate")
REASONS = ("oom", "timeout", "lost", "exception", "bad_reply", "other")
# A failure's class by its code: Flower's ErrorCode; our own -1 for a time that was up, -2 for a bad reply.
REASON_OF_CODE = {
    -2: "bad_reply",
    -1: "timeout",
    1: "exception",
    2: "exception",
    3: "lost",
    4: "lost",
    5: "lost",
    6: "exception",
    7: "exception",
    8: "exception",
}
HEARTBEATS = 2  # a node counts as online for so many intervals after its last heartbeat

# By metric of a run: the field of the journal's event `round` that it shows.
ROUND_FIELDS = {
    "fl_run_accuracy": "accuracy",
    "fl_run_loss": "loss",
    "fl_run_client_accuracy": "client_accuracy",
    "fl_run_client_loss": "client_loss",
    "fl_run_train_loss": "train_loss",
    "fl_round_seconds": "seconds",
    "fl_round_participants": "clients",
}
EVALUATION = ("accuracy", "loss")  # of the round: by the server, which may leave rounds out
# By metric of a client: the field of a train reply's `system` that it shows.
SYSTEM_FIELDS = {
    "fl_client_train_seconds": "train_seconds",
    "fl_client_samples_per_second": "samples_per_second",
    "fl_client_cpu_limit_cores": "cpu_limit",
    "fl_client_threads": "threads",
    "fl_client_throttled_ratio": "throttled_share",
    "fl_client_memory_peak_bytes": "memory_peak",
}

FAMILIES: Families = {
    "fl_run_info": ("gauge", "What the run is."),
    "fl_run_state": ("gauge", "1 for the state that the run is in."),
    "fl_run_started_timestamp_seconds": ("gauge", "Unix time of the start."),
    "fl_run_finished_timestamp_seconds": ("gauge", "Unix time of the end; absent before."),
    "fl_run_last_event_timestamp_seconds": ("gauge", "Unix time of the journal's last event."),
    "fl_run_rounds_planned": ("gauge", "Rounds that the run is to have."),
    "fl_run_round_timeout_seconds": (
        "gauge",
        "Time after which a phase ends without those who are late.",
    ),
    "fl_run_round": ("gauge", "Last round that has ended."),
    "fl_run_accuracy": ("gauge", "Accuracy of the global model on the server's test set."),
    "fl_run_loss": ("gauge", "Loss of the global model on the server's test set."),
    "fl_run_client_accuracy": ("gauge", "Mean accuracy on the clients' test data."),
    "fl_run_client_loss": ("gauge", "Mean loss on the clients' test data."),
    "fl_run_train_loss": ("gauge", "Mean loss of the clients' training."),
    "fl_round_seconds": ("gauge", "Duration of the last round."),
    "fl_round_phase_seconds": ("gauge", "Duration of the last round's phases."),
    "fl_run_seconds_total": ("counter", "Duration of all rounds, by phase."),
    "fl_round_participants": ("gauge", "Clients that trained in the last round."),
    "fl_round_straggler_gap_seconds": ("gauge", "Slowest minus median train reply of the last round."),
    "fl_run_failures_total": ("counter", "Failed tasks, by reason."),
    "fl_run_bytes_total": ("counter", "Bytes of models to the clients (down) and from them (up)."),
    "fl_client_train_seconds": ("gauge", "Time that the client trained in its last round."),
    "fl_client_round_seconds": ("gauge", "From sending to receiving, in the client's last train phase."),
    "fl_client_samples_per_second": ("gauge", "Speed of the client's last training."),
    "fl_client_cpu_limit_cores": ("gauge", "CPU limit that the client saw; absent without one."),
    "fl_client_threads": ("gauge", "Threads that the client trained with."),
    "fl_client_throttled_ratio": ("gauge", "Share of throttled periods while the client trained."),
    "fl_client_memory_peak_bytes": ("gauge", "Most memory that the client ever used."),
    "fl_client_examples": ("gauge", "Examples that the client trained on in its last round."),
    "fl_client_failures_total": ("counter", "Failed tasks of the client in the run."),
    "fl_client_last_seen_timestamp_seconds": ("gauge", "Last heartbeat or reply of the client."),
    "fl_client_connected": ("gauge", "Whether the SuperLink hears the client's heartbeats."),
    "fl_clients": ("gauge", "Clients that are registered, and of those, online."),
    "fl_exporter_scrape_seconds": ("gauge", "How long it took to make this page."),
    **exposition.EXPIRY,
}


def reason_of(event: dict[str, Any]) -> str:
    """Return the class of a failure.

    >>> reason_of({"code": 8, "reason": "the task was killed (OOM)"})
    'oom'
    >>> reason_of({"code": -1, "reason": "no reply within 600 s"})
    'timeout'
    """
    text = str(event.get("reason"))
    if "OOM" in text or "out of memory" in text.lower():
        return "oom"
    if event.get("code") == -1 and "could not be sent" in text:
        return "lost"
    return REASON_OF_CODE.get(event.get("code", 0), "other")


@dataclass(frozen=True)
class Record:
    """What the SuperLink knows of a run; times are unix seconds, or None."""

    run_id: str
    app: str
    down: int
    up: int
    started: float | None
    finished: float | None
    status: str


class Run:
    """What the events of a journal add up to."""

    def __init__(self, run_id: str, path: Path | None) -> None:
        self.run_id = run_id
        self.tail = Tail(path) if path else None
        self.record: Record | None = None
        self._page: Page | None = None
        self._reset()

    def _reset(self) -> None:
        self.about: dict[str, Any] = {}
        self.started: float | None = None
        self.finished: float | None = None
        self.last = 0.0
        self.status = ""
        self.round: dict[str, Any] = {}
        self.seconds: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.clients: dict[str, dict[str, Any]] = {}
        self.replies: list[float] = []  # seconds of the train replies of the round that goes on
        self.gap: float | None = None

    def update(self, record: Record | None) -> None:
        """Take in what is new."""
        if record != self.record:
            self._page = None
        self.record = record
        while self.tail:
            events = self.tail.new()
            if self.tail.fresh:
                self._reset()
            if not events:
                break
            self._page = None
            for event in events:
                self.last = max(self.last, float(event.get("time", 0)))
                handle = getattr(self, f"_on_{event.get('event')}", None)
                if handle:
                    handle(event)

    def _on_run_started(self, event: dict[str, Any]) -> None:
        self.about, self.started = event, event["time"]
        for client in event["clients"]:
            self._client(client["name"], client["partition_id"])

    def _on_plan(self, event: dict[str, Any]) -> None:
        self.about.update({key: event[key] for key in ("strategy", "rounds") if event[key] is not None})

    def _on_phase_started(self, event: dict[str, Any]) -> None:
        if event["phase"] == "train":
            self.replies = []

    def _on_reply(self, event: dict[str, Any]) -> None:
        self.bytes["down"] += event.get("bytes_down") or 0
        self.bytes["up"] += event.get("bytes_up") or 0
        client = self._client(event["client"], event["partition_id"])
        client["seen"] = event["time"]
        if event["phase"] == "train":
            self.replies.append(event["seconds"])
            client.update(seconds=event["seconds"], examples=event["examples"], system=event["system"])

    def _on_failure(self, event: dict[str, Any]) -> None:
        self.failures[reason_of(event)] += 1
        self._client(event["client"], event["partition_id"])["failures"] += 1

    def _on_round(self, event: dict[str, Any]) -> None:
        if all(event.get(key) is None for key in EVALUATION):  # not in this round: the last ones still hold
            event = {**event, **{key: self.round.get(key) for key in EVALUATION}}
        self.round = event
        for phase, seconds in event["phases"].items():
            self.seconds[phase] += seconds
        if self.replies:
            self.gap = max(self.replies) - statistics.median(self.replies)

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        self.status, self.finished = event["status"], event["time"]

    def _client(self, name: str, partition_id: int | None) -> dict[str, Any]:
        return self.clients.setdefault(
            name,
            {"partition": "" if partition_id is None else partition_id, "failures": 0, "system": {}},
        )

    @property
    def state(self) -> str:
        """One of STATES; a ServerApp that was ended by force leaves it to the SuperLink to say so."""
        found = self.status or (self.record.status if self.record else "")
        return found if found in STATES else "running"

    def page(self) -> Page:
        """Return the run's metrics; made anew only when something has happened."""
        if self._page is None:
            self._page = Page(FAMILIES)
            self._fill(self._page)
        return self._page

    def _fill(self, page: Page) -> None:
        record, own = self.record, labels({"run": self.run_id})
        told = {key: value for key, value in self.about.items() if value is not None}
        info = {key: told.get(key, "") for key in ("strategy", "dataset", "partitioner", "seed")}
        name = told.get("run_name", record.app if record else "")
        page.add("fl_run_info", labels({"run": self.run_id, "run_name": name, **info}), 1)
        for state in STATES:
            page.add("fl_run_state", f'{own},state="{state}"', int(state == self.state))
        begin = self.started or (record.started if record else None)
        page.add("fl_run_started_timestamp_seconds", own, begin)
        end = self.finished or (record.finished if record else None)
        page.add("fl_run_finished_timestamp_seconds", own, end)
        for way, of_record in (("down", record.down if record else 0), ("up", record.up if record else 0)):
            amount = self.bytes[way] if self.about else of_record
            page.add("fl_run_bytes_total", f'{own},direction="{way}"', amount)
        if not self.about:
            return
        page.add("fl_run_last_event_timestamp_seconds", own, self.last)
        page.add("fl_run_rounds_planned", own, self.about["rounds"])
        timeout = self.about.get("config", {}).get("round-timeout")
        page.add("fl_run_round_timeout_seconds", own, timeout)
        page.add("fl_run_round", own, self.round.get("round", 0))
        for metric, field in ROUND_FIELDS.items():
            page.add(metric, own, self.round.get(field))
        for phase in PHASES:
            page.add("fl_round_phase_seconds", f'{own},phase="{phase}"', self._phases().get(phase))
            page.add("fl_run_seconds_total", f'{own},phase="{phase}"', round(self.seconds[phase], 3))
        page.add("fl_round_straggler_gap_seconds", own, self.gap)
        for reason in REASONS:
            page.add("fl_run_failures_total", f'{own},reason="{reason}"', self.failures[reason])
        for name, client in self.clients.items():
            text = labels({"run": self.run_id, "client": name, "partition": client["partition"]})
            page.add("fl_client_failures_total", text, client["failures"])
            page.add("fl_client_round_seconds", text, client.get("seconds"))
            page.add("fl_client_examples", text, client.get("examples"))
            for metric, field in SYSTEM_FIELDS.items():
                value = client["system"].get(field)
                # Clients write -1 for a limit that is not there.
                page.add(metric, text, value if value is None or value >= 0 else None)

    def _phases(self) -> dict[str, float]:
        found: dict[str, float] = self.round.get("phases", {})
        return found


class Exporter:
    """Makes the page.

    Parameters
    ----------
    state : Path
        The directory that outlives the server's container.
    certificates : mapping
        Those whose end is shown, by name.
    """

    def __init__(self, state: Path, certificates: dict[str, Path] | None = None) -> None:
        self.state = state
        self.runs: dict[str, Run] = {}
        self.expiry = exposition.Expiry(certificates or {})
        self.process = exposition.own_process()

    def page(self) -> str:
        """Return the metrics as they are now."""
        begin = time.perf_counter()
        page = Page(FAMILIES)
        nodes, records = read_superlink(self.state / "superlink.db")
        for run in self._newest(records):
            run.update(records.get(run.run_id))
            page.extend(run.page())
        self._clients(page, nodes)
        self.expiry.add(page)
        page.add("fl_exporter_scrape_seconds", "", time.perf_counter() - begin)
        return page.text() + self.process()

    def _newest(self, records: dict[str, Record]) -> list[Run]:
        written = {path.parent.name: path for path in (self.state / "runs").glob("*/journal.jsonl")}
        ages = {run_id: path.stat().st_mtime for run_id, path in written.items()}
        for run_id, record in records.items():
            ages.setdefault(run_id, record.finished or record.started or 0.0)
        newest = sorted(ages, key=ages.__getitem__, reverse=True)[:RUNS]
        for run_id in newest:
            known = self.runs.get(run_id)
            # A run is known to the SuperLink before its ServerApp has opened the journal.
            if known is None or (known.tail is None and run_id in written):
                self.runs[run_id] = Run(run_id, written.get(run_id))
        self.runs = {run_id: self.runs[run_id] for run_id in newest}
        return list(self.runs.values())

    def _clients(self, page: Page, nodes: dict[str, tuple[bool, float]]) -> None:
        try:
            roster = json.loads((self.state / "nodes.json").read_text())
        except (OSError, ValueError):
            return  # before the first registration
        online = 0
        for node_id, client in roster.items():
            connected, heard = nodes.get(node_id, (False, 0.0))
            online += connected
            text = labels({"client": client["name"], "partition": client["partition_id"]})
            page.add("fl_client_connected", text, int(connected))
            seen = max(
                [heard, *(run.clients.get(client["name"], {}).get("seen", 0.0) for run in self.runs.values())]
            )
            page.add("fl_client_last_seen_timestamp_seconds", text, seen or None)
        page.add("fl_clients", 'state="registered"', len(roster))
        page.add("fl_clients", 'state="online"', online)


def read_superlink(database: Path) -> tuple[dict[str, tuple[bool, float]], dict[str, Record]]:
    """Return, by id, the nodes (online? last heartbeat) and runs that the SuperLink has in its records.

    Both are empty where there are none yet, or where they are being made over.
    """
    now = time.time()
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1.0)) as connection:
            nodes = {
                str(node_id % 2**64): (
                    status == "online" and until > now,
                    until - HEARTBEATS * interval if until else 0.0,
                )
                for node_id, status, until, interval in connection.execute(
                    "SELECT node_id, status, coalesce(online_until, 0), coalesce(heartbeat_interval, 0) "
                    "FROM node WHERE status != 'unregistered'"
                )
            }
            return nodes, {record.run_id: record for record in _records(connection)}
    except sqlite3.Error:
        return {}, {}


def _records(connection: sqlite3.Connection) -> Iterator[Record]:
    rows = connection.execute(
        "SELECT run.run_id, fab_id, bytes_sent, bytes_recv, pending_at, running_at, finished_at, sub_status "
        "FROM run JOIN task ON task.task_id = run.primary_task_id"
    )
    for run_id, app, down, up, pending, running, finished, status in rows:
        started = _unix(running) or _unix(pending)
        yield Record(
            str(run_id % 2**64), app or "", down, up, started, _unix(finished), status if finished else ""
        )


def _unix(text: str | None) -> float | None:
    """Return the unix seconds of the SuperLink's times, which are UTC, whether or not they say so."""
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def main(arguments: list[str]) -> int:
    """Serve on the loopback, until the end."""
    state = Path(os.environ.get("COLDFRAME_STATE", "/state"))
    certificates = {name: PKI / f"{name}.crt" for name in ("server", "ca")}
    page = Exporter(state, certificates).page
    guard = exposition.Guard(Path(arguments[1])) if len(arguments) > 1 else None
    exposition.Server(("127.0.0.1", int(arguments[0])), page, guard).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
