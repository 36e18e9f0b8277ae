"""Apps of the shapes that Flower's public ones have, unchanged, leave the journal that our own app leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from coldframe.controller import results
from coldframe.exporters import runs as exported
from coldframe.recording import files, settings
from coldframe.recording.journal import read_journal
from coldframe.recording.policy import LEGACY, NOTHING, RAW
from coldframe.server import control
from tests.unit.flower import Federation, federation

SHAPES = Path(__file__).parent / "shapes"
NAMES = ["e", "d", "c", "b", "a"]  # of the clients, by partition
MANIFEST = """
[project]
name = "{project}"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = []
[tool.flwr.app]
publisher = "test"
fab-include = ["/{package}/*.py", "/LICENSE"]
[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"
[tool.flwr.app.config]
{rounds} = 2
"""
WITHOUT_ROUNDS = ("analytics", "vertical")  # nothing in their configuration that tells a number of rounds
# Why an app's rounds have no deadline, though one was asked for; None: they have.
POLICIES = {
    **{"legacy_server": LEGACY, "workflow_state": LEGACY, "secure_aggregation": LEGACY},
    **{"vertical": RAW, "analytics": NOTHING, "custom_start": None},
}
NOTE = {
    "settings": {"round_deadline": 600.0},
    "federation": "lab",
    "server": "s",
    "clients": [],
    "machines": [],
}
HEAD = """
import os, signal, sys
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

class Strategy(FedAvg):
    def aggregate_train(self, server_round, replies):
        if server_round == 2:
            {second}
        return super().aggregate_train(server_round, replies)

@app.main()
def main(grid, context):
    Strategy(fraction_train=0.2, fraction_evaluate=0.0, min_train_nodes=1).start(
        grid, ArrayRecord([np.zeros(2)]), num_rounds=2
    )
    {end}
"""
BY_SIGKILL = "its process was killed by SIGKILL"
# What a ServerApp does -> how its run ends, why, and how many rounds it has had.
ENDS: dict[str, tuple[str, str, str, int]] = {
    "import": ("import a_package_that_is_not_there", "failed", "a_package_that_is_not_there", 0),
    "round 2": (HEAD.format(second="raise ValueError('bad luck')", end=""), "failed", "bad luck", 1),
    "sys.exit(3)": (HEAD.format(second="sys.exit(3)", end=""), "failed", "sys.exit(3)", 1),
    "killed": (
        HEAD.format(second="os.kill(os.getpid(), signal.SIGKILL)", end=""),
        "failed",
        f"ServerApp: {BY_SIGKILL}",
        1,
    ),
    "removes its directory, sys.exit(0)": (
        HEAD.format(second="import shutil; shutil.rmtree(os.getcwd())", end="sys.exit(0)"),
        "completed",
        "",
        2,
    ),
}
# Each client does something else the first time: the last one nothing.
WRONG_CLIENT = """
import os, shutil, signal
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    answer = {"cwd": os.getcwd(), "there": sorted(os.listdir())}
    with open(f"{message.content['order']['number']}.txt", "w") as file:
        file.write("kept")
    if message.content["order"]["number"] == 1:
        match context.node_config["partition-id"]:
            case 0:
                with open("large", "wb") as file:
                    file.seek(2 << 30)
                    file.write(b"x")
            case 1:
                shutil.rmtree(os.getcwd())
            case 2:
                os.chdir("/")
            case 3:
                os.kill(os.getpid(), signal.SIGKILL)
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""
WRONG_SERVER = """
import json
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    answers = []
    for number in (1, 2):
        order = RecordDict({"order": ConfigRecord({"number": number})})
        replies = grid.send_and_receive([Message(order, node, "query") for node in grid.get_node_ids()])
        answers.append([None if r.has_error() else dict(r.content["answer"]) for r in replies])
    with open("answers.json", "w") as file:
        json.dump(answers, file)
"""


@dataclass
class Ran:
    """A run that has ended."""

    status: str
    details: str  # as the SuperLink has them
    folder: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        """The journal."""
        return read_journal(self.folder / "journal.jsonl")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    def phases(self) -> list[tuple[int | None, str, list[str]]]:
        """Return round, phase and clients of each phase, in order."""
        return [(event["round"], event["phase"], event["clients"]) for event in self.of("phase_started")]

    def written(self) -> list[str]:
        """Return what is collected of the files of the ServerApp."""
        return sorted(files.collect(self.folder)["files"])

    def model(self) -> list[list[float]]:
        """Return the arrays of the model that was saved."""
        with np.load(self.of("model_saved")[0]["path"]) as model:
            return [model[name].tolist() for name in model]

    def summary(self, out: Path) -> dict[str, Any]:
        """Have progress lines, exporter and results folder treat the journal as one of our own app."""
        lines = list(control.Follower(self.folder / "journal.jsonl").lines())
        rounds = self.of("round")
        last = f"round {rounds[-1]['round']}" if rounds else ""
        assert any(line.startswith(last) for line in lines) or not rounds, lines
        page = exported.Run(self.folder.name, self.folder / "journal.jsonl")
        page.update(None)
        told = any(event["accuracy"] is not None for event in rounds)
        assert ("fl_run_accuracy{" in page.page().text()) == told
        arguments = [str(self.folder), "--results", str(out), "--status", self.status]
        assert results.main([*arguments, "--error", self.details]) == 0
        assert (out / "latest" / "report.html").stat().st_size > 1000
        table = (out / "latest" / "clients.csv").read_text().splitlines()
        assert len(table) - bool(table) == len(self.of("reply")) + len(self.of("failure"))
        found: dict[str, Any] = json.loads((out / "latest" / "summary.json").read_text())
        return found


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink and five clients."""
    home = tmp_path_factory.mktemp("recorded")
    # Short, as in a container: the name of a socket, which a DataLoader makes there, has 107 characters.
    with federation(home / "federation") as it, TemporaryDirectory(prefix="cf") as scratch:
        it.environment["COLDFRAME_STATE"] = str(home / "state")
        it.start_recorded_link()
        it.state, it.scratch = home / "state", Path(scratch)
        nodes = it.start_clients(len(NAMES), it.scratch)
        it.state.mkdir(exist_ok=True)
        roster = {
            str(node): {"name": name, "partition_id": partition}
            for partition, (node, name) in enumerate(zip(nodes, NAMES, strict=True))
        }
        (it.state / "nodes.json").write_text(json.dumps(roster))
        yield it


@pytest.fixture(scope="module")
def runs(started: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Ran]]]:
    """Every app of this module, three at a time: most of a run is a ServerApp that starts."""
    directory = tmp_path_factory.mktemp("apps")
    shapes = {path.name: path for path in sorted(SHAPES.iterdir()) if (path / "server.py").exists()}
    names = [*ENDS, "wrong clients", *shapes]

    def run(name: str) -> Ran:
        app = directory / str(names.index(name))
        package = shapes[name].name if name in shapes else "probe"
        if name in shapes:
            shutil.copytree(shapes[name], app / package)
        else:
            (app / package).mkdir(parents=True)
            server, client = (ENDS[name][0], None) if name in ENDS else (WRONG_SERVER, WRONG_CLIENT)
            (app / package / "server.py").write_text(server)
            client = client or (SHAPES / "custom_start" / "client.py").read_text()
            (app / package / "client.py").write_text(client)
        (app / package / "__init__.py").touch()
        (app / "LICENSE").write_text("none\n")
        project = package.replace("_", "-")
        rounds = "bins" if name in WITHOUT_ROUNDS else "num-server-rounds"
        manifest = MANIFEST.format(project=project, package=package, rounds=rounds)
        (app / "pyproject.toml").write_text(manifest)
        with settings.submitting(started.state):
            run_id = started.submit(app)
            if name in POLICIES:
                settings.write(started.state, run_id, json.dumps(NOTE))
        status = started.ended(run_id, 300)  # a machine may be busy with other things
        return Ran(status.sub_status, status.details, started.state / "runs" / run_id)

    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(run, name) for name in names}


@pytest.fixture
def ran(request: pytest.FixtureRequest, runs: dict[str, Future[Ran]]) -> Ran:
    """The run of the app that the test is about."""
    found = runs[request.param].result()
    assert found.of("run_started") and len(found.of("run_finished")) == 1, found
    assert {client["name"] for client in found.of("run_started")[0]["clients"]} == set(NAMES)
    if request.param not in ENDS:
        assert found.status == found.of("run_finished")[0]["status"] == "completed", found
        assert all(event["system"]["train_seconds"] > 0 for event in found.of("reply"))
    return found


def shape(name: str) -> Any:
    """Give a test the run of this app."""
    return pytest.mark.parametrize("ran", [name], indirect=True, ids=[name])


BOTH = ("train", "evaluate")


@shape("numpy_quickstart")
def test_an_app_of_the_message_api(ran: Ran, started: Federation, tmp_path: Path) -> None:
    (plan,) = ran.of("plan")
    assert (plan["strategy"], plan["rounds"]) == ("Looking", 2)
    assert ran.phases() == [(number, phase, NAMES) for number in (1, 2) for phase in BOTH]
    (failure,) = ran.of("failure")
    assert (failure["round"], failure["phase"], failure["client"]) == (2, "evaluate", "d")
    assert "no data" in failure["reason"]
    first = ran.of("reply")[0]
    assert first["metrics"] == {"train_loss": 0.5, "per_class": [0.1, 0.9]}
    assert first["examples"] in (10, 20, 30, 40, 50) and min(first["bytes_up"], first["bytes_down"]) >= 24
    assert first["system"]["threads"] >= 1
    two = ran.of("round")[-1]
    assert (two["client_accuracy"], two["client_loss"], two["train_loss"]) == (0.75, 0.25, 0.5)
    assert (two["accuracy"], two["loss"]) == (None, None), "the server has not evaluated"
    assert (two["clients"], two["failures"], two["derived"]) == (5, 1, [])
    assert {"configure", "train", "aggregate", "evaluate"} <= set(two["phases"])
    assert ran.model() == [[2.0, 2.0, 2.0]]
    assert ran.written() == ["final_model.npz"]
    work = started.scratch / "0" / "runs" / ran.folder.name / "app" / "files"
    assert [path.name for path in work.iterdir()] == ["local_model.npz"]
    assert "the model is saved" in (ran.folder / "logs" / "serverapp.log").read_text()
    summary = ran.summary(tmp_path)
    assert (summary["rounds"], summary["clients"], summary["accuracy"]) == (2, 5, None)


@shape("torch_quickstart")
def test_an_app_that_evaluates_on_the_server(ran: Ran, tmp_path: Path) -> None:
    rounds = ran.of("round")
    assert [event["round"] for event in rounds] == [0, 1, 2]
    assert all(event["accuracy"] is not None for event in rounds)
    assert rounds[2]["loss"] < rounds[1]["loss"] < rounds[0]["loss"]
    assert rounds[2]["keys"]["accuracy"] == "accuracy" and "server_evaluate" in rounds[2]["phases"]
    assert [len(clients) for _, _, clients in ran.phases()] == [5, 2, 5, 2]
    assert ran.written() == ["final_model.pt"]
    assert len(ran.model()) == 2
    assert ran.summary(tmp_path)["accuracy"] == rounds[2]["accuracy"]


@shape("custom_start")
def test_a_strategy_with_a_start_of_its_own(ran: Ran, tmp_path: Path) -> None:
    assert ran.of("plan")[0]["rounds"] == 2
    assert [event["accuracy"] for event in ran.of("round")] == [0.25, 0.5]
    assert [event["train_loss"] for event in ran.of("round")] == [1.0, 0.5]
    assert ran.phases() == [(1, "train", NAMES), (2, "train", NAMES)]
    written = [Path(name) for name in ran.written()]
    assert [path.name for path in written] == ["model_1.npz", "model_2.npz", "results.json"]
    assert {len(path.parts) for path in written} == {4}, "with the folders that the app made"
    assert ran.summary(tmp_path)["accuracy"] == 0.5


@shape("legacy_server")
def test_a_legacy_server_whose_threads_make_one_phase(ran: Ran, tmp_path: Path) -> None:
    assert ran.of("plan")[0]["rounds"] == 2
    assert ran.phases() == [(number, phase, NAMES) for number in (1, 2) for phase in BOTH]
    assert ran.of("phase_extended") == []
    rounds = ran.of("round")
    assert [event["accuracy"] for event in rounds] == [0.0, 0.1, 0.2]
    assert (rounds[-1]["client_loss"], rounds[-1]["client_accuracy"]) == (0.25, 0.75)
    assert rounds[-1]["derived"] == ["client_accuracy", "train_loss"], "our means: it has no aggregate"
    assert all(event["examples"] in (5, 10) and event["system"] for event in ran.of("reply"))
    assert ran.model() == [[2.0, 2.0, 2.0]]
    assert ran.summary(tmp_path)["rounds"] == 2


@shape("workflow_state")
def test_the_default_workflow_and_the_state_of_its_clients(ran: Ran) -> None:
    assert ran.of("plan")[0]["rounds"] == 2
    assert [(number, phase) for number, phase, _ in ran.phases()] == [(n, p) for n in (1, 2) for p in BOTH]
    assert [event["train_loss"] for event in ran.of("round")] == [1.0, 2.0], "the state of the round before"
    assert [event["accuracy"] for event in ran.of("round")] == [None, None]


@shape("vertical")
def test_a_loop_that_never_asks_for_some_replies(ran: Ran, tmp_path: Path) -> None:
    assert [event["round"] for event in ran.of("round")] == [1, 2, 3]
    assert [(number, phase) for number, phase, _ in ran.phases()] == [
        *((None, "query"), (1, "train"), (2, "query"), (2, "train"), (3, "query"), (3, "train"))
    ]
    unanswered = [(event["round"], event["phase"], event["clients"]) for event in ran.of("unanswered")]
    assert unanswered == [(number, "train", NAMES) for number in (1, 2, 3)]
    assert ran.of("failure") == [] and ran.of("model_saved") == []
    lines = "\n".join(control.Follower(ran.folder / "journal.jsonl").lines())
    assert "round 3  " in lines, "no number of rounds is made up"
    assert ran.summary(tmp_path)["rounds"] == 3


@shape("secure_aggregation")
def test_secure_aggregation_has_four_exchanges_in_a_round(ran: Ran, tmp_path: Path) -> None:
    assert ran.phases() == [(1, "train", NAMES)] * 4
    (only,) = ran.of("round")
    assert (only["round"], only["clients"], only["failures"]) == (1, 5, 0)
    assert (only["accuracy"], only["client_accuracy"], only["train_loss"]) == (None, None, None)
    (array,) = ran.model()
    assert np.allclose(array, 2.0, atol=1e-4), "the mean of 0, 1, 2, 3, 4: shares were opened"
    assert ran.summary(tmp_path)["clients"] == 5


@shape("analytics")
def test_an_app_without_rounds_has_none(ran: Ran, tmp_path: Path) -> None:
    assert ran.of("round") == [] and ran.of("plan") == []
    replies = ran.of("reply")
    assert sorted(event["client"] for event in replies) == sorted(NAMES)
    assert {(event["round"], event["phase"], event["examples"]) for event in replies} == {
        (None, "query", None)
    }
    assert ran.written() == ["answers.json"]
    summary = ran.summary(tmp_path)
    assert (summary["rounds"], summary["clients"], summary["accuracy"]) == (0, 5, None)
    assert (summary["strategy"], summary["model_sha256"]) == (None, None)


@pytest.mark.parametrize("name", POLICIES)
def test_a_deadline_is_for_strategies_of_the_message_api_and_else_it_is_said_why(
    runs: dict[str, Future[Ran]], name: str, tmp_path: Path
) -> None:
    ran, reason = runs[name].result(), POLICIES[name]
    (event,) = ran.of("policy")
    assert (event["applied"], event["reason"], event["deadline"]) == (reason is None, reason, 600.0)
    assert ran.summary(tmp_path)["policy"] == (f"not applied: {reason}" if reason else "applied")
    log = (ran.folder / "logs" / "serverapp.log").read_text()
    assert (f"round_deadline is not applied: {reason}" in log) == bool(reason)


@pytest.mark.parametrize("name", ENDS)
def test_how_an_app_ends_is_said_once_and_clearly(
    runs: dict[str, Future[Ran]], name: str, tmp_path: Path
) -> None:
    ran, (_, status, reason, rounds) = runs[name].result(), ENDS[name]
    assert ran.status == status and reason in ran.details, ran
    (end,) = ran.of("run_finished")
    assert end["status"] == status and reason in (end["error"] or ""), end
    assert [event["round"] for event in ran.of("round")] == list(range(1, rounds + 1))
    summary = ran.summary(tmp_path)
    assert (summary["status"], summary["rounds"]) == (status, rounds)
    assert reason in (summary["error"] or "")


@shape("wrong clients")
def test_what_a_client_app_does_wrong_is_its_own_failure_and_the_next_message_works(
    ran: Ran, started: Federation
) -> None:
    reasons = {event["client"]: event["reason"] for event in ran.of("failure")}
    assert set(reasons) == {"e", "b"}
    assert "File too large" in reasons["e"] and "client.py line" in reasons["e"]
    assert BY_SIGKILL in reasons["b"]
    first, second = json.loads((ran.folder / "app" / "files" / "answers.json").read_text())
    assert [answer is None for answer in first] == [True, False, False, True, False]
    directories = [
        str(started.scratch / str(partition) / "runs" / ran.folder.name / "app" / "files")
        for partition in range(len(NAMES))
    ]
    assert [answer["cwd"] for answer in second] == directories, "however they left it"
    kept = [["1.txt", "large"], [], ["1.txt"], ["1.txt"], ["1.txt"]]
    assert [answer["there"] for answer in second] == kept
