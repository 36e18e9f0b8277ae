"""Who is registered with the SuperLink, and what a person reads while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import ListRunsResponse
from flwr.proto.run_pb2 import Run, RunStatus
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from coldframe.cgroups import Cgroup
from coldframe.server import control
from coldframe.server.control import (
    BAR,
    Follower,
    concurrent_with,
    follow,
    memory,
    progress,
    register,
    round_line,
    submit,
)


class Control:
    """The Control API's calls about nodes, on Flower's own records in a file."""

    def __init__(self, database: Path) -> None:
        self.link = LinkStateFactory(str(database), NoOpFederationManager(), ObjectStoreFactory()).state()

    def ListNodes(self, request: Any) -> Any:
        """All that are registered."""
        return SimpleNamespace(nodes_info=self.link.get_node_info(owner_aids=["me"]))

    def RegisterNode(self, request: Any) -> Any:
        """Refuses a key that the records have."""
        node_id = self.link.create_node("me", "me", request.public_key, 30.0, name=request.name)
        return SimpleNamespace(node_id=node_id)

    def UnregisterNode(self, request: Any) -> Any:
        """Keeps the record."""
        self.link.delete_node("me", request.node_id)


def test_a_client_that_has_left_the_roster_may_come_back_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    api: Any = Control(tmp_path / "superlink.db")
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    keys = [ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*openssh) for _ in range(2)]
    roster = [
        {"name": f"c1-{k}", "machine": "c1", "partition_id": k, "public_key": key.decode()}
        for k, key in enumerate(keys)
    ]
    assert register(api, roster)["added"] == ["c1-0", "c1-1"]
    assert len(register(api, roster[:1])["removed"]) == 1
    assert register(api, roster)["added"] == ["c1-1"]
    assert register(api, roster) == {"changed": False, "added": [], "removed": []}
    nodes = json.loads((tmp_path / "nodes.json").read_text())
    assert sorted(item["name"] for item in nodes.values()) == ["c1-0", "c1-1"]


class Superlink:
    """The Control API's list of runs; each answer is a status, or an error."""

    def __init__(self, *answers: str | httpx.HTTPError) -> None:
        self.answers = list(answers)
        self.asked = 0

    def ListRuns(self, request: Any) -> Any:
        """Give the next answer; the last one for ever."""
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return ListRunsResponse(run_dict={7: Run(run_id=7, status=RunStatus(status=answer))})


def test_a_run_is_followed_though_the_superlink_does_not_always_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine that is too busy. It is asked again at once when the journal has ended."""
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    monkeypatch.setattr(control, "ASK_SECONDS", 1000.0)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    append(tmp_path / "runs" / "7" / "journal.jsonl", event="plan", strategy="fedavg", rounds=2)
    append(tmp_path / "runs" / "7" / "journal.jsonl", event="run_finished", status="completed")
    busy = Superlink("pending", httpx.ReadTimeout("busy"), "running", httpx.ConnectError("busy"), "finished")
    assert follow(cast(Any, busy), "7", poll=0.01)["status"] == "finished"
    assert capsys.readouterr().out == "strategy fedavg, 2 rounds\n"


def test_a_running_run_is_not_asked_for_at_each_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    link, now, asked = Superlink("running", "running", "finished"), [100.0], []

    def sleep(seconds: float) -> None:
        asked.append(link.asked)
        now[0] += seconds

    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    follow(cast(Any, link), "7", poll=0.5)
    assert asked == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.ReadTimeout("too busy"), "the SuperLink has not answered for 0 s: too busy"),
        (
            httpx.HTTPStatusError(
                "", request=httpx.Request("POST", "https://x"), response=httpx.Response(404)
            ),
            "run 7 is not known here: type ansible-playbook status.yml",
        ),
    ],
    ids=["no answer", "no such run"],
)
def test_following_ends_where_nobody_answers_or_knows_the_run(
    answer: httpx.HTTPError, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    monkeypatch.setattr(control, "PATIENCE", 0.0)
    with pytest.raises(SystemExit, match=words):
        follow(cast(Any, Superlink(answer)), "7", poll=0.01)


def append(path: Path, **event: object) -> None:
    """Add an event to a journal."""
    with path.open("a") as file:
        file.write(json.dumps({"time": 0.0, **event}) + "\n")


def test_a_round_is_one_line() -> None:
    """Round, accuracy, loss, seconds, clients, and failures where there are any."""
    event = {"round": 3, "accuracy": 0.97561, "loss": 0.08123, "seconds": 21.44, "clients": 3, "failures": 0}
    assert round_line(event, 5) == "round 3/5  accuracy 0.9756  loss 0.0812  21.4 s  3 clients"
    assert round_line({**event, "clients": 1, "failures": 2}, 5).endswith("1 client  2 failed")
    assert round_line({"round": 0, "accuracy": None, "loss": None}, 5) == "round 0/5  before training"


def test_follower_shows_each_event_once_as_it_comes(tmp_path: Path) -> None:
    """A torn last line waits for its rest."""
    path = tmp_path / "journal.jsonl"
    follower = Follower(path)
    assert follower.lines() == []
    append(
        path,
        event="run_started",
        run_id="7",
        rounds=2,
        strategy="fedavg",
        dataset="mnist",
        partitioner="iid",
        clients=[{}, {}],
    )
    assert follower.lines() == ["run 7: fedavg on mnist (iid), 2 clients, 2 rounds"]
    assert follower.lines() == []
    append(path, event="phase_started", round=1, phase="train", clients=["a-0", "a-1"])
    append(path, event="failure", round=1, phase="train", client="a-1", reason="no reply within 9 s")
    lines = follower.lines()
    assert "round 1: a-1 failed to train: no reply within 9 s" in lines
    bars = [json.loads(line.removeprefix(BAR)) for line in lines if line.startswith(BAR)]
    assert bars[-1] == {"done": 0, "total": 2, "text": "round 1: train 1/2"}
    with path.open("a") as file:
        file.write('{"time": 0.0, "event": "round", "round": 1, "accur')
    assert follower.lines() == []
    with path.open("a") as file:
        file.write('acy": 0.5, "loss": 1.0, "seconds": 2.0, "clients": 1, "failures": 1}\n')
    assert follower.lines()[0] == "round 1/2  accuracy 0.5000  loss 1.0000  2.0 s  1 client  1 failed"


def test_progress_of_a_run_is_its_last_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a journal, such as an app of somebody else, tells nothing."""
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    path = tmp_path / "runs" / "7" / "journal.jsonl"
    assert progress("7") == {"round": None, "rounds": None, "accuracy": None}
    path.parent.mkdir(parents=True)
    append(path, event="run_started", rounds=3)
    assert progress("7") == {"round": None, "rounds": 3, "accuracy": None}
    append(path, event="round", round=1, accuracy=0.5)
    append(path, event="round", round=2, accuracy=0.75)
    append(path, event="phase_started", round=3)
    assert progress("7") == {"round": 2, "rounds": 3, "accuracy": 0.75}
    append(path, event="round", round=3, accuracy=None)  # the server does not evaluate in each round
    assert progress("7") == {"round": 3, "rounds": 3, "accuracy": 0.75}


def ran(run_id: str, started: str, finished: str) -> dict[str, Any]:
    """A run as the SuperLink lists it; times as minutes of an hour, empty where there is none."""
    moment = "2026-01-01T00:{}:00+00:00"
    times = {"started": started, "finished": finished}
    return {"run_id": run_id, **{key: moment.format(value) if value else "" for key, value in times.items()}}


def test_runs_that_overlap_name_each_other() -> None:
    runs = [
        ran("1", "00", "10"),
        ran("2", "05", "15"),
        ran("3", "10", "20"),
        ran("4", "18", ""),
        ran("5", "", ""),
    ]
    found = {run["run_id"]: concurrent_with(run, runs) for run in runs}
    assert found == {"1": ["2"], "2": ["1", "3"], "3": ["2", "4"], "4": ["3"], "5": []}


def test_status_has_the_servers_memory_as_the_kernel_says(tmp_path: Path) -> None:
    files = {"memory.max": "2147483648\n", "memory.current": "400\n", "memory.stat": "inactive_file 100\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = Cgroup({}, tmp_path)
    assert memory(group) == {"memory_limit": 2 << 30, "memory_used": 300}
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(group)["memory_limit"] is None


class Runs:
    """The Control API's calls about runs."""

    def __init__(self, *going: int) -> None:
        self.stopped: list[int] = []
        self.runs = {
            number: SimpleNamespace(
                run_id=number,
                status=SimpleNamespace(status="pending", sub_status="", details=""),
                **dict.fromkeys(("fab_id", "fab_hash", "pending_at", "running_at", "finished_at"), ""),
                **dict.fromkeys(("bytes_sent", "bytes_recv"), 0),
            )
            for number in going
        }

    def ListRuns(self, request: Any) -> Any:
        """All."""
        return SimpleNamespace(run_dict=self.runs)

    def StopRun(self, request: Any) -> Any:
        """Notes it."""
        self.stopped.append(request.run_id)
        return SimpleNamespace(success=True)

    def StartRun(self, request: Any) -> Any:
        """Gives it a number."""
        return SimpleNamespace(run_id=9, HasField=lambda _name: True)


def test_a_run_is_not_started_beside_another_unless_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    (tmp_path / "runs").mkdir()
    fab = tmp_path / "app.fab"
    fab.write_bytes(b"fab")
    control: Any = Runs(7, 8)
    with pytest.raises(SystemExit, match=r"run 7, 8 is running on the same clients: .*concurrent=true"):
        submit(control, fab, {}, 50, "refuse")
    assert submit(control, fab, {}, 50, "beside")["run_id"] == "9"
    assert control.stopped == []
    assert submit(control, fab, {}, 50, "end")["run_id"] == "9"
    assert control.stopped == [7, 8]
    assert submit(Runs(), fab, {}, 50, "refuse")["run_id"] == "9"  # type: ignore[arg-type]


def test_the_note_of_a_run_is_kept_beside_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    (tmp_path / "app.fab").write_bytes(b"fab")

    client: Any = Runs()
    submitted = submit(client, tmp_path / "app.fab", {"a": 1}, 50, "refuse", '{"clients": []}')
    assert submitted["run_id"] == "9"
    assert (tmp_path / "runs" / "9" / "submitted.json").read_text() == '{"clients": []}'
    (tmp_path / "runs" / "9" / "submitted.json").unlink()
    submit(client, tmp_path / "app.fab", {"a": 1}, 50, "refuse")  # as by hand, without a note
    assert not (tmp_path / "runs" / "9" / "submitted.json").exists()


class Stoppable(Superlink):
    """A SuperLink whose run has ended as soon as somebody has stopped it."""

    def __init__(self) -> None:
        super().__init__("running")
        self.stopped = 0

    def StopRun(self, request: Any) -> Any:
        """Ends the run."""
        self.stopped += 1
        self.answers = ["finished"]
        return SimpleNamespace(success=True)


def test_a_run_is_stopped_once_it_has_reached_what_the_experiment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a round of training, also where a worse one has come since; the untrained model does not count."""
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    monkeypatch.setattr(control, "ASK_SECONDS", 0.0)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    journal = tmp_path / "runs" / "7" / "journal.jsonl"
    begun = {"run_id": "7", "rounds": 5, "strategy": None, "dataset": None, "partitioner": None}
    append(journal, event="run_started", clients=[], **begun)
    figures = {"loss": 1.0, "seconds": 1.0, "clients": 2, "failures": 0}
    for number, accuracy in enumerate((0.95, 0.5, 0.91, 0.7)):
        append(journal, event="round", round=number, accuracy=accuracy, **figures)
    link = Stoppable()
    assert follow(cast(Any, link), "7", poll=0.01, until={"accuracy": 0.9})["status"] == "finished"
    assert link.stopped == 1
    out = capsys.readouterr().out
    assert "accuracy 0.9100 in round 2: the run is stopped, as the experiment has it" in out


@pytest.mark.parametrize(
    ("until", "figures", "words"),
    [
        ({"accuracy": 0.9}, {"accuracy": 0.89, "loss": 0.1}, ""),
        ({"accuracy": 0.9}, {"accuracy": None}, ""),
        ({"accuracy": 0.9}, {"accuracy": 0.9}, "accuracy 0.9000 in round 3"),
        ({"loss": 0.3}, {"loss": 0.2}, "loss 0.2000 in round 3"),
        ({"loss": 0.3}, {"loss": 0.4, "accuracy": 1.0}, ""),
        ({"seconds": 1e12}, {}, ""),
        ({"seconds": 60}, {}, "60 s have passed"),
        ({}, {"accuracy": 1.0}, ""),
    ],
)
def test_what_ends_a_run_early(until: dict[str, float], figures: dict[str, Any], words: str) -> None:
    follower = Follower(Path("nowhere"), until)
    assert follower.over() == "", "it has not begun"
    follower.begin = 0.0
    follower.describe({"event": "round", "round": 3, "seconds": 1.0, "clients": 2, **figures})
    assert follower.over() == words
    follower.ended = True
    assert follower.over() == ""


def test_a_run_is_stopped_though_the_superlink_does_not_answer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    monkeypatch.setattr(control, "ASK_SECONDS", 0.0)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    begun = {"run_id": "7", "rounds": 5, "strategy": None, "dataset": None, "partitioner": None}
    append(tmp_path / "runs" / "7" / "journal.jsonl", event="run_started", clients=[], **begun)

    class Busy(Stoppable):
        def StopRun(self, request: Any) -> Any:
            if not self.stopped:
                self.stopped = 1
                raise httpx.ReadTimeout("busy")
            return super().StopRun(request)

    link = Busy()
    assert follow(cast(Any, link), "7", poll=0.01, until={"seconds": 1.0})["status"] == "finished"
    assert link.stopped == 2


def test_runs_tell_the_experiment_that_they_belong_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    note = {"name": "study", "key": "abc-s0-r0"}
    for number, text in ((7, json.dumps({"experiment": note})), (8, "{}"), (9, "torn")):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "submitted.json").write_text(text)
    (tmp_path / "runs" / "7" / "collected").touch()
    found = {run["run_id"]: run for run in control.list_runs(cast(Any, Runs(7, 8, 9, 10)))}
    assert [found[number]["experiment"] for number in ("7", "8", "9", "10")] == [note, None, None, None]
    assert [found[number]["collected"] for number in ("7", "8")] == [True, False]
