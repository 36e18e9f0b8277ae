"""Shows the federation's runs to Prometheus: rounds, accuracy, times, failures, clients, from the journals.

It reads what the ServerApps append, and the SuperLink's own records for what no journal says: who is
connected, and the runs of apps that keep none. It lives in the server's container, on its loopback; the
gateway publishes it. The newest RUNS runs are shown, closed ones too, after any restart: 52 series per run
and 3 per metric that its clients report, of MOST_METRICS metrics at most. The 10 series per run and client
are there for the newest run, for those that go on, and for the newest others: CLIENTS clients of all runs.
`python3 -m coldframe.exporters.runs PORT [USERS]`: with the file of users it asks for a password.
"""

from __future__ import annotations

import json
import operator
import os
import sqlite3
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coldframe.exporters import exposition
from coldframe.exporters.exposition import Families, Page, labels
from coldframe.flower import database
from coldframe.flower.database import Node, Record
from coldframe.recording.journal import Tail
from coldframe.server.gateway import METRICS, PKI
from coldframe.supervise import say

RUNS = 20
CLIENTS = 600  # whose series are shown, summed over the runs
MOST_METRICS = 24  # of the clients' replies, by phase and name, that a run shows
ELEMENTS = 10  # of a metric that is a list; a longer one is no metric to be drawn
STATES = ("running", "completed", "failed", "diverged", "stopped")
OTHER = "other"  # all phases that an app has made up
PHASES = ("configure", "train", "aggregate", "evaluate", "server_evaluate", OTHER)
REASONS = ("oom", "timeout", "lost", "exception", "bad_reply", "other")
LATE = ("deadline", "goal")  # why a phase ended without a reply
BAD_REPLY = -2  # our code of a failure: what a reply contains cannot be used
# A failure's class by its code: Flower's ErrorCode; our own -1 for a time that was up, -2 for a bad reply.
REASON_OF_CODE = {
    BAD_REPLY: "bad_reply",
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
# By metric of a run: the field of its last event `checkpoint` that it shows.
CHECKPOINT_FIELDS = {
    "fl_run_checkpoint_round": "round",
    "fl_run_checkpoint_seconds": "seconds",
    "fl_run_checkpoint_held_seconds": "held",
    "fl_run_checkpoint_bytes": "bytes",
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
    "fl_run_late_total": ("counter", "Replies that a phase did not wait for, by what ended it."),
    "fl_run_folded_total": ("counter", "Late replies that are in the model of a later round."),
    "fl_run_discarded_total": ("counter", "Updates that an asynchronous strategy did not use."),
    "fl_round_staleness": (
        "gauge",
        "Versions of the model by which the updates of the last round were behind: mean and max.",
    ),
    "fl_run_bytes_total": ("counter", "Bytes of models to the clients (down) and from them (up)."),
    "fl_run_checkpoint_round": ("gauge", "Last round of which there is a checkpoint; 0 without any."),
    "fl_run_checkpoint_seconds": ("gauge", "Time that the last checkpoint took to be written."),
    "fl_run_checkpoint_held_seconds": ("gauge", "Time for which the run waited for its last checkpoint."),
    "fl_run_checkpoint_bytes": ("gauge", "Size of the last checkpoint."),
    "fl_run_checkpoint_failures_total": ("counter", "Checkpoints that could not be written."),
    "fl_run_resumes_total": ("counter", "How often the run was interrupted and went on."),
    "fl_run_metric": (
        "gauge",
        "Metric of the clients' replies of the last round, by the app's name: mean (by examples), min, max.",
    ),
    "fl_client_train_seconds": ("gauge", "Time that the client trained in its last round."),
    "fl_client_round_seconds": (
        "gauge",
        "From sending to receiving, in the client's last round of training, or of what the app does instead.",
    ),
    "fl_client_samples_per_second": ("gauge", "Speed of the client's last training."),
    "fl_client_cpu_limit_cores": ("gauge", "CPU limit that the client saw; absent without one."),
    "fl_client_threads": ("gauge", "Threads that the client trained with."),
    "fl_client_throttled_ratio": ("gauge", "Share of throttled periods while the client trained."),
    "fl_client_memory_peak_bytes": ("gauge", "Most memory that the client ever used."),
    "fl_client_examples": ("gauge", "Examples that the client trained on in its last round."),
    "fl_client_updates_total": (
        "counter",
        "Replies of the client that are in the model, late ones too; counted as the round ends.",
    ),
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


class Metrics:
    """The metrics of the clients' replies, by phase and name; those of a round count when it has ended."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], tuple[float, float, float]] = {}  # mean, lowest, highest
        self._open: dict[tuple[str, str], list[tuple[float, float | None]]] = {}  # values and examples

    def add(self, phase: str, metrics: Mapping[str, Any], examples: float | None) -> None:
        """Take in those of a reply."""
        for name, value in metrics.items():
            listed = isinstance(value, list) and len(value) <= ELEMENTS
            parts = {f"{name}[{i}]": part for i, part in enumerate(value)} if listed else {name: value}
            for key, part in ((key, part) for key, part in parts.items() if is_number(part)):
                known = self.shown.keys() | self._open.keys()
                if (phase, key) in known or len(known) < MOST_METRICS:
                    self._open.setdefault((phase, key), []).append((float(part), examples))

    def close(self) -> None:
        """Show what has been taken in, in the place of what was there."""
        for key, found in self._open.items():
            values = [value for value, _ in found]
            # Weighted as an app's own aggregation would be, where every reply says with what.
            weights = [examples or 0.0 for _, examples in found]
            if any(examples is None for _, examples in found) or not sum(weights):
                weights = [1.0] * len(values)
            mean = sum(map(operator.mul, values, weights)) / sum(weights)
            self.shown[key] = (mean, min(values), max(values))
        self._open = {}


def is_number(value: object) -> bool:
    """Return whether a value of a journal can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class Run:
    """What the events of a journal add up to."""

    def __init__(self, run_id: str, path: Path | None) -> None:
        self.run_id = run_id
        self.tail = Tail(path) if path else None
        self.record: Record | None = None
        self._pages: dict[str, Page] = {}
        self._reset()

    def _reset(self) -> None:
        self.about: dict[str, Any] = {}
        self.started: float | None = None
        self.finished: float | None = None
        self.last = 0.0
        self.status = ""
        self.round: dict[str, Any] = {}
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.failures: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.folded = 0
        self.checkpoint: dict[str, Any] = {}  # the last one
        self.unwritten = 0  # checkpoints
        self.resumes = 0
        self.trained: Counter[str] = Counter()  # replies by client, for the model of the round that goes on
        self.replied: set[str] = set()  # clients, to the messages of training that were sent last
        self.void = False  # the round that goes on makes no model
        self.discarded = 0  # updates
        self.asynchronous = False  # each update is told, in the round that uses it
        self.bytes: Counter[str] = Counter()
        self.clients: dict[str, dict[str, Any]] = {}
        self.metrics = Metrics()
        # Phase -> client -> seconds of its replies in the round that goes on: there may be several exchanges.
        self.spent: dict[str, dict[str, float]] = {}
        self.gap: float | None = None

    def update(self, record: Record | None) -> None:
        """Take in what is new."""
        if record != self.record:
            self._pages = {}
        self.record = record
        while self.tail:
            events = self.tail.new()
            if self.tail.fresh:
                self._reset()
            if not events:
                break
            self._pages = {}
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
        if event.get("round") is None:  # no round will end: each exchange stands for itself
            self.metrics.close()
        self.replied = set()

    def _on_reply(self, event: dict[str, Any]) -> None:
        self.bytes["down"] += event.get("bytes_down") or 0
        self.bytes["up"] += event.get("bytes_up") or 0
        client = self._client(event["client"], event["partition_id"])
        client["seen"] = event["time"]
        if event["phase"] == "train" and not self.asynchronous:
            self.trained[event["client"]] += 1
            self.replied.add(event["client"])
        phase, seconds = event["phase"], event.get("seconds") or 0.0
        spent = self.spent.setdefault(phase, {})
        spent[event["client"]] = spent.get(event["client"], 0.0) + seconds
        self.metrics.add(phase, event.get("metrics") or {}, event.get("examples"))
        if phase == "train" or client.get("phase") != "train":
            self._work(client, event, seconds)

    def _work(self, client: dict[str, Any], event: dict[str, Any], seconds: float) -> None:
        """Note what a client has done in its last round; several messages of one phase of it add up."""
        place = (event["round"], event["phase"])
        again = event["round"] is not None and place == (client.get("round"), client.get("phase"))
        system = dict(event.get("system") or {})
        if again:
            seconds += client["seconds"]
            before = client["system"].get("train_seconds")
            if before is not None and system.get("train_seconds") is not None:
                system["train_seconds"] += before
        client.update(
            round=event["round"],
            phase=event["phase"],
            seconds=seconds,
            examples=event.get("examples"),
            system=system,
        )

    def _on_failure(self, event: dict[str, Any]) -> None:
        self.failures[reason_of(event)] += 1
        self._client(event["client"], event["partition_id"])["failures"] += 1
        if event["phase"] == "train" and event["code"] == BAD_REPLY and event["client"] in self.replied:
            self.trained[event["client"]] -= 1  # it was refused after it had come
            self.replied.remove(event["client"])

    def _on_late(self, event: dict[str, Any]) -> None:
        self.late[event["reason"]] += 1

    def _on_folded(self, event: dict[str, Any]) -> None:
        self.folded += 1
        self.bytes["down"] += event.get("bytes_down") or 0
        self.bytes["up"] += event.get("bytes_up") or 0
        client = self._client(event["client"], event["partition_id"])
        client["seen"] = event["time"]
        self.trained[event["client"]] += 1
        self._work(client, event, event.get("seconds") or 0.0)

    def _on_update(self, event: dict[str, Any]) -> None:
        self.asynchronous, self.trained = True, Counter()
        if not event["reason"]:
            self._client(event["client"], event["partition_id"])["updates"] += 1
        self.discarded += bool(event["reason"])

    def _on_checkpoint(self, event: dict[str, Any]) -> None:
        self.checkpoint = event

    def _on_checkpoint_failed(self, event: dict[str, Any]) -> None:
        self.unwritten += 1

    def _on_resume(self, event: dict[str, Any]) -> None:
        self.resumes += 1
        self.checkpoint = {**self.checkpoint, "round": event["round"]}  # it may be told after its round

    def _on_not_aggregated(self, event: dict[str, Any]) -> None:
        self.void = True

    def _on_round(self, event: dict[str, Any]) -> None:
        if all(event.get(key) is None for key in EVALUATION):  # not in this round: the last ones still hold
            event = {**event, **{key: self.round.get(key) for key in EVALUATION}}
        self.round = event
        for phase, seconds in self._phases().items():
            self.seconds[phase] += seconds
        # Of an app that does not train, what took longest.
        longest = max(self.spent.values(), key=lambda seconds: max(seconds.values()), default={})
        spent = self.spent.get("train", longest)
        if spent:
            self.gap = max(spent.values()) - statistics.median(spent.values())
        self.spent = {}
        for name, count in self.trained.items():
            self.clients[name]["updates"] += 0 if event.get("void") or self.void else count
        self.trained, self.void = Counter(), False
        self.metrics.close()

    def _on_run_finished(self, event: dict[str, Any]) -> None:
        self.status, self.finished = event["status"], event["time"]
        self.metrics.close()

    def _client(self, name: str, partition_id: int | None) -> dict[str, Any]:
        return self.clients.setdefault(
            name,
            {
                "partition": "" if partition_id is None else partition_id,
                **{"failures": 0, "updates": 0, "system": {}},
            },
        )

    @property
    def state(self) -> str:
        """One of STATES; a ServerApp that was ended by force leaves it to the SuperLink to say so."""
        found = self.status or (self.record.status if self.record else "")
        return found if found in STATES else "running"

    def page(self) -> Page:
        """Return the run's metrics; made anew only when something has happened."""
        return self._made("run", self._fill)

    def clients_page(self) -> Page:
        """Return the metrics of the run's clients; likewise."""
        return self._made("clients", self._fill_clients)

    def _made(self, name: str, fill: Callable[[Page], None]) -> Page:
        if name not in self._pages:
            self._pages[name] = Page(FAMILIES)
            fill(self._pages[name])
        return self._pages[name]

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
        page.add("fl_run_rounds_planned", own, self.about.get("rounds"))
        timeout = self.about.get("config", {}).get("round-timeout")
        page.add("fl_run_round_timeout_seconds", own, timeout if is_number(timeout) else None)
        page.add("fl_run_round", own, self.round.get("round", 0))
        for metric, field in ROUND_FIELDS.items():
            page.add(metric, own, self.round.get(field))
        last = self._phases()
        for phase in PHASES:
            page.add("fl_round_phase_seconds", f'{own},phase="{phase}"', last.get(phase))
            page.add("fl_run_seconds_total", f'{own},phase="{phase}"', round(self.seconds[phase], 3))
        page.add("fl_round_straggler_gap_seconds", own, self.gap)
        for reason in REASONS:
            page.add("fl_run_failures_total", f'{own},reason="{reason}"', self.failures[reason])
        for reason in LATE:
            page.add("fl_run_late_total", f'{own},reason="{reason}"', self.late[reason])
        page.add("fl_run_folded_total", own, self.folded)
        page.add("fl_run_discarded_total", own, self.discarded)
        for metric, field in CHECKPOINT_FIELDS.items():
            page.add(metric, own, self.checkpoint.get(field, 0))
        page.add("fl_run_checkpoint_failures_total", own, self.unwritten)
        page.add("fl_run_resumes_total", own, self.resumes)
        for stat, field in (("mean", "staleness"), ("max", "max_staleness")):
            page.add("fl_round_staleness", f'{own},stat="{stat}"', self.round.get(field) or 0)
        for (phase, metric), values in self.metrics.shown.items():
            for stat, value in zip(("mean", "min", "max"), values, strict=True):
                text = labels({"run": self.run_id, "phase": phase, "metric": metric, "stat": stat})
                page.add("fl_run_metric", text, value)

    def _fill_clients(self, page: Page) -> None:
        for name, client in self.clients.items():
            text = labels({"run": self.run_id, "client": name, "partition": client["partition"]})
            page.add("fl_client_failures_total", text, client["failures"])
            page.add("fl_client_updates_total", text, client["updates"])
            page.add("fl_client_round_seconds", text, client.get("seconds"))
            page.add("fl_client_examples", text, client.get("examples"))
            for metric, field in SYSTEM_FIELDS.items():
                value = client["system"].get(field)
                # Clients write -1 for a limit that is not there.
                page.add(metric, text, value if value is None or value >= 0 else None)

    def _phases(self) -> dict[str, float]:
        """Return the seconds of the last round's phases; those that an app has made up are one."""
        found: dict[str, float] = {}
        for phase, seconds in (self.round.get("phases") or {}).items():
            key = phase if phase in PHASES else OTHER
            found[key] = found.get(key, 0.0) + seconds
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
        self._unread = ""  # why the SuperLink's database could not be read the last time

    def page(self) -> str:
        """Return the metrics as they are now."""
        begin = time.perf_counter()
        page = Page(FAMILIES)
        nodes, records = self._superlink()
        room = CLIENTS
        for place, run in enumerate(self._newest(records)):
            run.update(records.get(run.run_id))
            page.extend(run.page())
            # A run whose clients find no room is closed: Prometheus has what they were.
            if place == 0 or run.state == "running" or len(run.clients) <= room:
                page.extend(run.clients_page())
                room -= len(run.clients)
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

    def _superlink(self) -> tuple[dict[str, Node] | None, dict[str, Record]]:
        """Return what the SuperLink knows of nodes and runs; no nodes where its database cannot be read.

        The metrics of who is connected are absent then: none is shown as disconnected.
        """
        try:
            nodes, records = database.read_nodes_and_runs(self.state / database.NAME)
        except (database.SchemaError, sqlite3.Error) as error:
            if str(error) != self._unread:
                self._unread = str(error)
                say(f"fl_client_connected and fl_clients are not shown: {error}")
            return None, {}
        self._unread = ""
        return nodes, records

    def _clients(self, page: Page, nodes: dict[str, Node] | None) -> None:
        try:
            roster = json.loads((self.state / "nodes.json").read_text())
        except (OSError, ValueError):
            return  # before the first registration
        online = 0
        for node_id, client in roster.items():
            node = (nodes or {}).get(node_id, Node(online=False, heard=0.0))
            online += node.online
            text = labels({"client": client["name"], "partition": client["partition_id"]})
            page.add("fl_client_connected", text, None if nodes is None else int(node.online))
            seen = max(
                [
                    node.heard,
                    *(run.clients.get(client["name"], {}).get("seen", 0.0) for run in self.runs.values()),
                ]
            )
            page.add("fl_client_last_seen_timestamp_seconds", text, seen or None)
        page.add("fl_clients", 'state="registered"', len(roster))
        page.add("fl_clients", 'state="online"', None if nodes is None else online)


def main(arguments: list[str]) -> int:
    """Serve on the loopback, until the end."""
    state = Path(os.environ.get("COLDFRAME_STATE", "/state"))
    certificates = {name: PKI / f"{name}.crt" for name in ("server", "ca")}
    certificates["metrics"] = METRICS / "metrics.crt"
    page = Exporter(state, certificates).page
    guard = exposition.Guard(Path(arguments[1])) if len(arguments) > 1 else None
    exposition.Server(("127.0.0.1", int(arguments[0])), page, guard).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
