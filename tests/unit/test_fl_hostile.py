"""Replies of a hostile client to our app: each is its own failure, and the run goes on without it."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from coldframe.controller.records import gather
from coldframe.controller.results import client_rows, write_table
from coldframe.exporters.runs import Exporter
from coldframe.recording.flower import SYSTEM_RECORD
from tests.unit.fl_runs import Start, changed, of, sha, with_metrics

# What a hostile client sends in place of its reply to `train`, and words of the reason that names it.
HOSTILE: dict[str, tuple[Callable[[Message, Message], Message], str]] = {
    "bytes in the system record": (
        lambda r, m: changed(r, m, **{SYSTEM_RECORD: ConfigRecord({"cpu_limit": b"\0", "memory_peak": "x"})}),
        "system figure",
    ),
    "examples below zero": (
        lambda r, m: changed(r, m, metrics=with_metrics(r, **{"num-examples": -5})),
        "-5",
    ),
    "NaN": (
        lambda r, m: changed(r, m, arrays=ArrayRecord({"float32": Array(np.full(7850, np.nan, np.float32))})),
        "not finite",
    ),
    "another shape": (
        lambda r, m: changed(r, m, arrays=ArrayRecord({"float32": Array(np.ones(3, np.float32))})),
        "was sent",
    ),
    "other keys": (lambda r, m: changed(r, m, arrays=ArrayRecord({"x": Array(np.ones(3))})), "other keys"),
    "no arrays": (lambda r, m: changed(r, m, arrays=None), "ArrayRecords"),
    "no metrics": (lambda r, m: changed(r, m, metrics=None), "MetricRecords"),
    "a metric that nobody else has": (
        lambda r, m: changed(r, m, metrics=with_metrics(r, **{"=cmd()": 1.0})),
        "not those of the other replies",
    ),
    "nothing": (lambda _r, m: Message(RecordDict(), reply_to=m), "MetricRecords"),
    "an error in colours": (
        lambda _r, m: Message(Error(code=2, reason="=1+1\x1b[2J\n" * 999), reply_to=m),
        "=1+1[2J =1+1",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_reply_fails_its_client_alone(start: Start, tmp_path: Path, name: str) -> None:
    forge, reason = HOSTILE[name]

    def answer(node: int, message: Message, reply: Message) -> Message | None:
        return forge(reply, message) if node == 905 and message.metadata.message_type == "train" else reply

    journal, _ = start(answer=answer, num_server_rounds=1)
    assert journal[-1]["status"] == "completed"
    (failure,) = of(journal, "failure")
    assert (failure["client"], failure["phase"], failure["round"]) == ("lab-0", "train", 1)
    assert reason in failure["reason"] and "\x1b" not in failure["reason"] and len(failure["reason"]) <= 500
    last = of(journal, "round")[-1]
    assert (last["clients"], last["failures"]) == (2, 1)
    assert last["accuracy"] > of(journal, "round")[0]["accuracy"]

    def without(node: int, message: Message, reply: Message) -> Message | None:
        lost = node == 905 and message.metadata.message_type == "train"
        return Message(Error(code=5, reason="lost"), reply_to=message) if lost else reply

    assert sha(journal) == sha(start(answer=without, num_server_rounds=1)[0]), "the others' model"
    # What reads the journal lives on: the table, the page.
    run = gather(journal)
    write_table(tmp_path / "clients.csv", client_rows(run))
    with (tmp_path / "clients.csv").open(newline="") as file:
        assert not [cell for row in csv.reader(file) for cell in row if cell.startswith("=")]
    assert 'fl_run_failures_total{run="0"' in Exporter(tmp_path).page()
