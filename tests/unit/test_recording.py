"""Apps of the shapes that Flower's public ones have, unchanged, leave the journal that our own app leaves."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coldframe.controller import results
from coldframe.exporters import runs as fl_exporter
from coldframe.recording.journal import read_journal
from coldframe.server import control
from tests.unit.flower import Federation, federation, wait_until, write_app
from tests.unit.test_executor import EXECUTOR

# Trains by adding 1, tells a list among its metrics; client 1 fails to evaluate in round 2.
CLIENT = """
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    arrays = [a + 1 for a in message.content["arrays"].to_numpy_ndarrays()]
    examples = 10 * (1 + context.node_config["partition-id"])
    metrics = MetricRecord({"train_loss": 0.5, "per_class": [0.1, 0.9], "num-examples": examples})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

@app.train("apply_gradients")
def apply_gradients(message, context):
    return Message(RecordDict(), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    config = message.content.config_records.get("config", {})
    if context.node_config["partition-id"] == 1 and config.get("server-round") == 2:
        raise ValueError("no data")
    metrics = MetricRecord({"eval_acc": 0.75, "eval_loss": 0.25, "num-examples": 5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)

@app.query()
def query(message, context):
    return Message(RecordDict({"answer": ConfigRecord({"n": 1})}), reply_to=message)

@app.query("embed")
def embed(message, context):
    return Message(RecordDict({"embedding": ArrayRecord([np.zeros(2)])}), reply_to=message)
"""
HEAD = """
import time
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

def nodes_of(grid):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    return nodes

def done(context):
    open(context.run_config["out"], "w").write("[]")
"""
LISTS = """
@app.main()
def main(grid, context):
    import json
    open(context.run_config["out"], "w").write(json.dumps(sorted(nodes_of(grid))))
"""
# An override that calls super() and looks at what arrives; an evaluation on the server; a file of its own.
NUMPY = """
class Looking(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert all(set(reply.content) == {"arrays", "metrics"} for reply in replies), "a foreign record"
        assert [r.content["metrics"]["num-examples"] for r in replies] == [10, 20], "not in order"
        return super().aggregate_train(server_round, replies)

def evaluate(server_round, arrays):
    return MetricRecord({"test_accuracy": 0.5 + server_round / 10, "test_loss": 1.0})

@app.main()
def main(grid, context):
    result = Looking(min_available_nodes=2).start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=2, evaluate_fn=evaluate
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
    done(context)
"""
CUSTOM = """
class Own(FedAvg):
    def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, train_config=None,
              evaluate_config=None, evaluate_fn=None):
        arrays = initial_arrays
        for number in range(1, num_rounds + 1):
            config = ConfigRecord({"lr": 0.1})
            replies = grid.send_and_receive(self.configure_train(number, arrays, config, grid), timeout=60)
            arrays, _ = self.aggregate_train(number, replies)
            evaluate_fn(number, arrays)
        return arrays

@app.main()
def main(grid, context):
    Own(min_available_nodes=2).start(
        grid, ArrayRecord([np.zeros(3)]), num_rounds=2,
        evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": number / 4}),
    )
    done(context)
"""
LEGACY_CLIENT = """
import numpy as np
from flwr.client import ClientApp, NumPyClient

class Client(NumPyClient):
    def fit(self, parameters, config):
        return [parameter + 1 for parameter in parameters], 10, {"train_loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, 5, {"accuracy": 0.75}

app = ClientApp(client_fn=lambda context: Client().to_client())
"""
LEGACY = """
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

def server_fn(context):
    def evaluate(number, parameters, config):
        if number == 2:
            done(context)
        return 1.0 - number / 10, {"accuracy": number / 10}

    initial = ndarrays_to_parameters([np.zeros(3)])
    strategy = FedAvg(min_available_clients=2, initial_parameters=initial, evaluate_fn=evaluate)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

app = ServerApp(server_fn=server_fn)
"""
WORKFLOW = """
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow

@app.main()
def main(grid, context):
    strategy = FedAvg(min_available_clients=2, initial_parameters=ndarrays_to_parameters([np.zeros(3)]))
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=2), strategy=strategy)
    DefaultWorkflow()(grid, legacy)
    done(context)
"""
# Asks for embeddings, and sends gradients whose replies it never asks for; three times.
VERTICAL = """
@app.main()
def main(grid, context):
    nodes = nodes_of(grid)
    for _ in range(3):
        replies = grid.send_and_receive([Message(RecordDict(), node, "query.embed") for node in nodes])
        assert all(set(reply.content) == {"embedding"} for reply in replies)
        list(grid.push_messages([Message(RecordDict(), node, "train.apply_gradients") for node in nodes]))
    done(context)
"""
QUERY = """
@app.main()
def main(grid, context):
    for _ in range(2):
        waiting = set(grid.push_messages([Message(RecordDict(), node, "query") for node in nodes_of(grid)]))
        while waiting:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
            time.sleep(0.05)
    done(context)
"""
EXITS = """
import sys

@app.main()
def main(grid, context):
    done(context)
    sys.exit(3)
"""
BROKEN = """
import a_package_that_is_not_there
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink and two clients, b and a, of which the one with the greater node id is partition 0."""
    home = tmp_path_factory.mktemp("recorded")
    adapters = [sys.executable, "-m", "coldframe.flower.adapters"]
    with federation(home / "federation") as it:
        it.environment["COLDFRAME_STATE"] = str(home / "state")
        secret = it.home / "link-secret"
        secret.write_bytes(secrets.token_bytes(32))
        auth = ["--superexec-auth-secret-file", str(secret)]
        it.start_link([*adapters, "superlink"], "--isolation", "process", *auth)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{it.link_port}"]
        it.start("superexec", [*adapters, "serverapp-superexec", *address, *auth])
        it.state = home / "state"
        nodes: list[int] = []
        for partition in (1, 0):
            config = f"partition-id={partition} num-partitions=2"
            it.start_node(
                [*adapters, "supernode", "--node-config", config],
                EXECUTOR,
                COLDFRAME_SCRATCH=str(home / f"scratch-{partition}"),
            )
            looking = HEAD.replace("< 2", f"< {len(nodes) + 1}") + LISTS
            found = it.run(make_app(home / f"look-{partition}", looking), [], nodes=0)
            nodes += [node for node in found if node not in nodes]
        roster = {
            str(node): {"name": name, "partition_id": partition}
            for node, name, partition in zip(nodes, ("b", "a"), (1, 0), strict=True)
        }
        (it.state / "nodes.json").write_text(json.dumps(roster))
        yield it


def make_app(directory: Path, server: str, client: str = CLIENT) -> Path:
    """Write an app with these modules."""
    app = write_app(directory, client)
    (app / "probe" / "server.py").write_text(server)
    return app


def run(it: Federation, directory: Path, server: str, client: str = CLIENT) -> list[dict[str, Any]]:
    """Run an app to its end and return its journal."""
    before = set((it.state / "runs").iterdir())
    it.run(make_app(directory, HEAD + server, client), [], nodes=0)
    (folder,) = set((it.state / "runs").iterdir()) - before
    journal = folder / "journal.jsonl"
    wait_until(lambda: of(read_journal(journal), "run_finished"), 20, f"the run has not ended: {journal}")
    return read_journal(journal)


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind."""
    return [event for event in events if event["event"] == kind]


def phases(events: list[dict[str, Any]]) -> list[tuple[int | None, str, list[str]]]:
    """Return round, phase and clients of each phase, in order."""
    return [(event["round"], event["phase"], event["clients"]) for event in of(events, "phase_started")]


def replies(events: list[dict[str, Any]]) -> list[tuple[int | None, str, str]]:
    """Return round, phase and client of each reply, sorted."""
    found = [(event["round"], event["phase"], event["client"]) for event in of(events, "reply")]
    return sorted(found, key=str)


BOTH = ["a", "b"]


def test_an_app_of_the_message_api(started: Federation, tmp_path: Path) -> None:
    events = run(started, tmp_path / "app", NUMPY)
    assert of(events, "run_finished")[0]["status"] == "completed", events[-1]
    (begin,), (plan,) = of(events, "run_started"), of(events, "plan")
    assert [client["name"] for client in begin["clients"]] == BOTH
    assert (plan["strategy"], plan["rounds"]) == ("Looking", 2)
    assert phases(events) == [(n, phase, BOTH) for n in (1, 2) for phase in ("train", "evaluate")]
    (failure,) = of(events, "failure")
    assert (failure["round"], failure["phase"], failure["client"]) == (2, "evaluate", "b")
    assert "no data" in failure["reason"]
    first = of(events, "reply")[0]
    assert first["metrics"] == {"train_loss": 0.5, "per_class": [0.1, 0.9]}
    assert first["examples"] in (10, 20) and min(first["bytes_up"], first["bytes_down"]) >= 24
    assert first["system"]["train_seconds"] > 0 and first["system"]["threads"] >= 1
    before, one, two = of(events, "round")
    assert [event["accuracy"] for event in (before, one, two)] == [0.5, 0.6, 0.7]
    assert two["keys"]["accuracy"] == "test_accuracy"
    assert (two["client_accuracy"], two["client_loss"], two["train_loss"]) == (0.75, 0.25, 0.5)
    assert (two["clients"], two["failures"], two["derived"]) == (2, 1, [])
    assert {"configure", "train", "aggregate", "evaluate", "server_evaluate"} <= set(two["phases"])
    (saved,) = of(events, "model_saved")
    with np.load(saved["path"]) as model:
        assert [model[name].tolist() for name in model] == [[2.0, 2.0, 2.0]]
    folder = Path(saved["path"]).parent
    assert (folder / "app" / "files" / "final_model.npz").exists()
    assert_consumers_take_it(events, folder, tmp_path / "results", rounds=2, accuracy=0.7)


def assert_consumers_take_it(
    events: list[dict[str, Any]], folder: Path, out: Path, rounds: int, accuracy: float | None
) -> None:
    """Progress lines, exporter and results folder treat the journal as one of our own app."""
    follower = control.Follower(folder / "journal.jsonl")
    lines = [line for line in follower.lines() if not line.startswith(control.BAR)]
    assert sum(line.startswith(f"round {rounds}/{rounds}") for line in lines) == (rounds > 0)
    page = fl_exporter.Run(folder.name, folder / "journal.jsonl")
    page.update(None)
    text = page.page().text()
    assert ("fl_run_accuracy{" in text) == (accuracy is not None)
    assert results.main([str(folder), "--results", str(out), "--status", "completed"]) == 0
    summary = json.loads((out / "latest" / "summary.json").read_text())
    assert (summary["rounds"], summary["clients"], summary["accuracy"]) == (rounds, 2, accuracy)
    assert (out / "latest" / "report.html").stat().st_size > 1000
    table = (out / "latest" / "clients.csv").read_text().splitlines()
    assert len(table) == 1 + len(of(events, "reply")) + len(of(events, "failure"))


def test_a_strategy_with_a_start_of_its_own(started: Federation, tmp_path: Path) -> None:
    events = run(started, tmp_path / "app", CUSTOM)
    assert of(events, "plan")[0]["rounds"] == 2
    assert [event["accuracy"] for event in of(events, "round")] == [0.25, 0.5]
    assert phases(events) == [(1, "train", BOTH), (2, "train", BOTH)]
    assert of(events, "round")[0]["client_accuracy"] is None


def test_a_legacy_server_whose_threads_make_one_phase(started: Federation, tmp_path: Path) -> None:
    events = run(started, tmp_path / "app", LEGACY, LEGACY_CLIENT)
    assert of(events, "run_finished")[0]["status"] == "completed", events[-1]
    assert of(events, "plan")[0]["rounds"] == 2
    assert phases(events) == [(n, phase, BOTH) for n in (1, 2) for phase in ("train", "evaluate")]
    assert of(events, "phase_extended") == []
    rounds = of(events, "round")
    assert [event["accuracy"] for event in rounds] == [0.0, 0.1, 0.2]
    assert (rounds[-1]["client_loss"], rounds[-1]["client_accuracy"]) == (0.25, 0.75)
    assert rounds[-1]["derived"] == ["client_accuracy", "train_loss"], (
        "our means of what it has no aggregate of"
    )
    assert all(event["examples"] in (5, 10) and event["system"] for event in of(events, "reply"))
    with np.load(of(events, "model_saved")[0]["path"]) as model:
        assert model["0"].tolist() == [2.0, 2.0, 2.0]


def test_the_default_workflow(started: Federation, tmp_path: Path) -> None:
    events = run(started, tmp_path / "app", WORKFLOW, LEGACY_CLIENT)
    assert of(events, "run_finished")[0]["status"] == "completed", events[-1]
    assert of(events, "plan")[0]["rounds"] == 2
    assert phases(events) == [(n, phase, BOTH) for n in (1, 2) for phase in ("train", "evaluate")]
    assert [event["accuracy"] for event in of(events, "round")] == [None, None]


def test_a_loop_that_never_asks_for_some_replies(started: Federation, tmp_path: Path) -> None:
    events = run(started, tmp_path / "app", VERTICAL)
    assert of(events, "run_finished")[0]["status"] == "completed", events[-1]
    assert [event["round"] for event in of(events, "round")] == [1, 2, 3]
    assert [(n, phase) for n, phase, _ in phases(events)] == [
        *((None, "query"), (1, "train"), (2, "query"), (2, "train"), (3, "query"), (3, "train"))
    ]
    unanswered = [(event["round"], event["phase"], event["clients"]) for event in of(events, "unanswered")]
    assert unanswered == [(n, "train", BOTH) for n in (1, 2, 3)]
    assert of(events, "failure") == [] and of(events, "model_saved") == []
    folder = max((started.state / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    follower = control.Follower(folder / "journal.jsonl")
    assert "round 3  " in "\n".join(follower.lines()), "no number of rounds is made up"


def test_an_app_without_rounds_has_none(started: Federation, tmp_path: Path) -> None:
    events = run(started, tmp_path / "app", QUERY)
    assert of(events, "round") == []
    assert replies(events) == [(None, "query", name) for name in ("a", "a", "b", "b")]
    folder = max((started.state / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert_consumers_take_it(events, folder, tmp_path / "results", rounds=0, accuracy=None)


@pytest.mark.parametrize(
    ("server", "reason"),
    [(EXITS, "sys.exit(3)"), (BROKEN, "a_package_that_is_not_there")],
    ids=["sys.exit", "import"],
)
def test_how_an_app_fails_is_recorded(started: Federation, tmp_path: Path, server: str, reason: str) -> None:
    before = set((started.state / "runs").iterdir())
    try:
        started.run(make_app(tmp_path / "app", HEAD + server), [], nodes=0, timeout=8)
    except TimeoutError:
        assert server is BROKEN, "it could not say that it was done"
    (folder,) = set((started.state / "runs").iterdir()) - before
    journal = folder / "journal.jsonl"
    wait_until(lambda: of(read_journal(journal), "run_finished"), 20, "the run has not ended")
    (end,) = of(read_journal(journal), "run_finished")
    assert end["status"] == "failed" and reason in end["error"]
