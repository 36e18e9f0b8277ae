"""With Flower's own processes: a client that is late for a round, and what becomes of its reply."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from coldframe.controller.records import gather
from coldframe.controller.results import client_rows
from coldframe.recording import settings
from coldframe.recording.journal import read_journal
from tests.unit.flower import ADAPTED, Federation, federation, tool, write_app

NAMES = ["c", "b", "a"]  # of the clients, by partition
DEADLINE = 8.0  # more than others need for a phase on a busy machine
TABLES = ("message_ins", "message_res", "objects")
# Partition 2 trains its first round until the second has trained without it. Before the third the server
# waits until it is listed again, which it is when its late reply has come.
CLIENT = """
import os, time
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

def answer(message, context, **more):
    metrics = MetricRecord({"num-examples": 1, "loss": float(context.node_config["partition-id"])})
    return Message(RecordDict({"metrics": metrics, **more}), reply_to=message)

@app.train()
def train(message, context):
    number = message.content["config"]["server-round"]
    while number == 1 and context.node_config["partition-id"] == 2 and not os.path.exists(GO):
        time.sleep(0.05)
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    step = 100.0 if number == 1 and context.node_config["partition-id"] == 2 else 1.0
    return answer(message, context, arrays=ArrayRecord([weights + step]))

@app.evaluate()
def evaluate(message, context):
    return answer(message, context)
"""
SERVER = """
import json, sqlite3, time
from contextlib import closing
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from coldframe.recording import grid as recording
recording.EXPIRY_MARGIN = 120.0  # a busy machine must not end the late client's task
app = ServerApp()

def counts():
    with closing(sqlite3.connect(DATABASE)) as database:
        count = "select count(*) from "
        return {table: database.execute(count + table).fetchone()[0] for table in TABLES}

class Waiting(FedAvg):
    def configure_evaluate(self, server_round, arrays, config, grid):
        if server_round == 2:
            open(GO, "w").close()
        return super().configure_evaluate(server_round, arrays, config, grid)

    def configure_train(self, server_round, arrays, config, grid):
        begin = time.monotonic()
        while server_round == 3 and len(list(grid.get_node_ids())) < 3 and time.monotonic() < begin + 60:
            time.sleep(0.1)
        return super().configure_train(server_round, arrays, config, grid)

@app.main()
def main(grid, context):
    Waiting(fraction_evaluate=0.5).start(grid, ArrayRecord([np.zeros(200_000)]), num_rounds=3)
    with open("counts.json", "w") as file:
        json.dump(counts(), file)
"""


def run_app(it: Federation, home: Path, late: str) -> Path:
    """Run the app with a deadline, as run.yml submits it; return the run's directory."""
    app = write_app(home / "app", f"GO = {str(home / 'go')!r}\n{CLIENT}")
    about = f"GO, DATABASE, TABLES = {str(home / 'go')!r}, {str(home / 'link.db')!r}, {TABLES!r}\n"
    (app / "probe" / "server.py").write_text(about + SERVER)
    with settings.submitting(it.state):
        run_id = it.submit(app)
        asked = {"round_deadline": DEADLINE, "round_late": late}
        settings.write(it.state, run_id, json.dumps({"settings": asked}))
    status = it.ended(run_id, 200)
    assert status.sub_status == "completed", status
    return it.state / "runs" / run_id


@pytest.mark.parametrize(("link", "late_work"), [("ours", "drop"), ("stock", "drop"), ("stock", "fold")])
def test_a_late_client_holds_nobody_up_and_nothing_is_lost_or_counted_twice(
    tmp_path: Path, link: str, late_work: str
) -> None:
    """Flower's own SuperLink keeps objects in its database, where they can be counted; ours in memory."""
    with federation(tmp_path / "federation") as it, TemporaryDirectory(prefix="cf") as scratch:
        it.state = tmp_path / "state"
        it.state.mkdir()
        it.environment["COLDFRAME_STATE"] = str(it.state)
        command = [*ADAPTED, "superlink"] if link == "ours" else [tool("flower-superlink")]
        auth = it.secret("link")
        it.start_link(command, "--isolation", "process", "--database", str(tmp_path / "link.db"), *auth)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{it.link_port}"]
        interval = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        it.start("superexec", [*ADAPTED, "serverapp-superexec", *address, *auth], **interval)
        nodes = it.start_clients(len(NAMES), Path(scratch))
        roster = {
            str(node): {"name": name, "partition_id": partition}
            for partition, (node, name) in enumerate(zip(nodes, NAMES, strict=True))
        }
        (it.state / "nodes.json").write_text(json.dumps(roster))
        folder = run_app(it, tmp_path, late_work)
        journal = read_journal(folder / "journal.jsonl")
    (late,) = [event for event in journal if event["event"] == "late"]
    assert (late["round"], late["phase"], late["client"], late["reason"]) == (1, "train", "a", "deadline")
    (came,) = [event for event in journal if event["event"] == "late_reply"]
    assert (came["round"], came["phase"], came["client"], came["error"]) == (1, "train", "a", None)
    assert_each_message_has_one_outcome(journal)
    trained = {
        number: {
            event["client"]
            for event in journal
            if event["event"] == "reply" and event["phase"] == "train" and event["round"] == number
        }
        for number in range(1, 4)
    }
    assert trained == {1: {"b", "c"}, 2: {"b", "c"}, 3: {"a", "b", "c"}}, "it answers a later round"
    sampled = [e["clients"] for e in journal if e["event"] == "phase_started" and e["phase"] == "train"]
    assert [len(clients) for clients in sampled] == [3, 2, 3], "it is not asked while it is busy"
    run = gather(journal)
    assert [event["clients"] for event in run.trained_rounds] == [2, 2, 3]
    assert [event["late"] for event in run.trained_rounds] == [1, 0, 0]
    assert Counter(row["status"] for row in client_rows(run)) == {"ok": len(run.replies), "late": 1}
    with np.load(folder / "model.npz") as model:
        (weights,) = model.values()
    folded = [(e["round"], e["into"], e["staleness"]) for e in journal if e["event"] == "folded"]
    assert folded == ([(1, 3, 2)] if late_work == "fold" else [])
    # Each round adds 1. The late reply has learnt 100, which counts for 1 / sqrt(3) after two aggregations.
    expected = 2 + (3 + 100 / 3**0.5) / 4 if late_work == "fold" else 3.0
    assert np.allclose(weights, expected, atol=1e-6)
    (left,) = (folder / "app").rglob("counts.json")
    assert json.loads(left.read_text()) == dict.fromkeys(TABLES, 0), "nothing is left with the SuperLink"


def assert_each_message_has_one_outcome(journal: list[dict[str, Any]]) -> None:
    sent = Counter(
        (event["round"], event["phase"], client)
        for event in journal
        if event["event"] == "phase_started"
        for client in event["clients"]
    )
    ended = Counter(
        (event["round"], event["phase"], event["client"])
        for event in journal
        if event["event"] in ("reply", "failure", "late")
    )
    assert sent == ended and set(sent.values()) == {1}
