"""Which run is resumed, with which app and settings, and what is refused; by the server's own commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListRunsResponse, StartRunRequest
from flwr.proto.run_pb2 import Run, RunStatus
from flwr.serverapp.strategy import FedAvg

from coldframe.controller import latest, results
from coldframe.recording import checkpoint, settings
from coldframe.recording.checkpoint import Checkpoints
from coldframe.recording.journal import Journal, read_journal
from coldframe.recording.rounds import Recorder
from coldframe.recording.server import versions
from coldframe.server import control
from coldframe.server.resume import Asked

CONFIG = {"num-server-rounds": 6, "learning-rate": 0.01, "strategy": "fedavg"}
NOTE = {
    "settings": {"run_name": "pilot", "round_deadline": "", "wait_timeout": 300.0},
    "variables": {"rounds": 6, "learning_rate": 0.01},
    "clients": [{"name": "lab-0"}],
    "image": "coldframe-fl:1",
}


class Superlink:
    """The Control API's calls about runs: each has its id, status and how it ended; the newest first."""

    def __init__(self, fab: bytes, *runs: tuple[int, str, str]) -> None:
        self.started: list[StartRunRequest] = []
        self.stopped: list[int] = []
        self.runs = {
            number: Run(
                run_id=number,
                fab_hash=hashlib.sha256(fab).hexdigest(),
                override_config=user_config_to_proto({"num-server-rounds": 6}),
                pending_at=f"2026-12-0{9 - place}T00:00:00+00:00",
                status=RunStatus(status=status, sub_status=ended),
                series_id=number + 1000,
            )
            for place, (number, status, ended) in enumerate(runs)
        }

    def ListRuns(self, _request: Any) -> Any:
        """All."""
        return ListRunsResponse(run_dict=self.runs)

    def StartRun(self, request: StartRunRequest) -> Any:
        """Number it."""
        self.started.append(request)
        return SimpleNamespace(run_id=9, HasField=lambda _name: True)

    def StopRun(self, request: Any) -> Any:
        """Note it."""
        self.stopped.append(request.run_id)
        return SimpleNamespace(success=True)


Go = Callable[..., dict[str, Any]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's directory, with the app of all runs and a run 7 of which three rounds are kept."""
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / f"{hashlib.sha256(b'fab').hexdigest()[:16]}.fab").write_bytes(b"fab")
    (tmp_path / "nodes.json").write_text("{}")
    keep(tmp_path, "7")
    return tmp_path


def keep(state: Path, run_id: str, **versions_: str) -> None:
    folder = state / "runs" / run_id
    journal = Journal(folder / "journal.jsonl")
    recorder = Recorder(journal, state / "nodes.json")
    recorder.known = {"config": CONFIG, "versions": versions() | versions_}
    taken, kept = Checkpoints(recorder, folder), FedAvg()
    for number in (1, 2, 3, 4):
        arrays = ArrayRecord({"w": Array(np.ones(2))})
        taken.configuring("train", kept, number, (number, arrays, ConfigRecord()), {})
        journal.append("round", round=number)
    taken.close()
    journal.append("run_finished", status="failed", error="gone")
    settings.write(state, run_id, json.dumps(NOTE))


def go(client: Superlink, wanted: str = "7", others: str = "refuse", **asked: Any) -> dict[str, Any]:
    return control.resume(client, wanted, 50, others, Asked(**asked))  # type: ignore[arg-type]


def test_a_run_goes_on_with_its_own_app_and_settings(state: Path) -> None:
    client = Superlink(b"fab", (7, "finished", "failed"))
    assert go(client) == {"run_id": "9", "pruned": [], "resumed_from": "7", "round": 3}
    (request,) = client.started
    assert request.fab.content == b"fab" and request.series_id == 1007
    assert control.user_config_from_proto(request.override_config) == {"num-server-rounds": 6}
    found = settings.read(state, "9")
    assert (found.resumed_from, found.run_name) == ("7", "pilot")
    note = settings.note_of(state, "9")
    assert note["settings"]["began"] == "2026-12-09T00:00:00+00:00"
    assert {key: note[key] for key in ("variables", "clients", "image")} == {
        key: NOTE[key] for key in ("variables", "clients", "image")
    }
    events = read_journal(state / "runs" / "9" / "journal.jsonl")
    kept = [(event["event"], event["round"]) for event in events if event["event"] in ("round", "resume")]
    assert kept == [("round", 1), ("round", 2), ("round", 3), ("resume", 3)], "the fourth was after it"
    assert "run_finished" not in {event["event"] for event in events}
    (copy,) = (state / "runs" / "9" / "checkpoints").iterdir()
    assert copy.name == "round-3.zip" and not copy.samefile(checkpoint.path_of(state / "runs" / "7", 3))
    listed = control.list_runs(client)  # type: ignore[arg-type]
    assert [(run["checkpoint"], run["began"]) for run in listed] == [(3, "2026-12-09T00:00:00+00:00")]


def test_auto_is_the_newest_that_has_failed(state: Path) -> None:
    """Not one that was stopped on purpose, nor one whose model diverged."""
    for number in ("4", "5", "6"):
        keep(state, number)
    path = state / "runs" / "5" / "journal.jsonl"
    path.write_text(path.read_text().replace('"status": "failed"', '"status": "diverged"'))
    runs = [(7, "finished", "completed"), (6, "finished", "stopped"), (5, "finished", "failed")]
    client = Superlink(b"fab", *runs, (4, "finished", "failed"))
    offered = {run["run_id"]: run["checkpoint"] for run in control.list_runs(client)}  # type: ignore[arg-type]
    assert (offered["6"], offered["5"], offered["4"]) == (3, None, 3)
    assert go(client, "auto")["resumed_from"] == "4"
    with pytest.raises(SystemExit, match=r"no run here can be resumed by resume=auto: .*status\.yml"):
        go(Superlink(b"fab", *runs), "auto")
    assert go(Superlink(b"fab", *runs), "5")["resumed_from"] == "5", "asked for by its id it may be"


def test_auto_takes_no_older_run_in_the_place_of_one_that_has_no_checkpoint(state: Path) -> None:
    (state / "runs" / "8").mkdir()
    with pytest.raises(SystemExit, match=r"run 8 has no checkpoint"):
        go(Superlink(b"fab", (8, "finished", "failed"), (7, "finished", "failed")), "auto")


def test_auto_passes_over_a_run_that_was_resumed_already(state: Path) -> None:
    go(Superlink(b"fab", (7, "finished", "failed")))
    with pytest.raises(SystemExit, match="no run here can be resumed by resume=auto"):
        go(Superlink(b"fab", (9, "finished", "stopped"), (7, "finished", "failed")), "auto")


def test_a_run_of_an_experiment_is_repeated_by_that(state: Path) -> None:
    settings.write(state, "7", json.dumps({**NOTE, "experiment": {"name": "stragglers", "key": "a"}}))
    with pytest.raises(
        SystemExit, match=r"run 7 belongs to experiment stragglers: type .*experiment\.yml -e"
    ):
        go(Superlink(b"fab", (7, "finished", "failed")), changed=True)


def test_a_federation_of_other_clients_is_refused_by_their_names(state: Path) -> None:
    def deploy(**partitions: int) -> None:
        nodes = {
            str(number): {"name": name, "partition_id": partitions[name]}
            for number, name in enumerate(partitions)
        }
        (state / "nodes.json").write_text(json.dumps(nodes))

    deploy(a=0, b=1, c=2)
    keep(state, "6")
    client = Superlink(b"fab", (6, "finished", "failed"))
    deploy(a=0, c=1, d=2)
    words = r"\(b is gone, c had partition 2 and has 1, d is new\): deploy .* resume_changed"
    with pytest.raises(SystemExit, match=rf"run 6 had other clients {words}"):
        go(client, "6")
    assert go(client, "6", changed=True)["round"] == 3
    deploy(c=2, b=1, a=0)
    assert go(client, "6")["round"] == 3, "node ids may differ"


def test_only_the_newest_runs_that_did_not_complete_keep_their_checkpoints(state: Path) -> None:
    for number in ("2", "3", "4", "5"):
        keep(state, number)
    runs = [(number, "finished", "failed") for number in (7, 6, 5, 4, 3)]
    go(Superlink(b"fab", (8, "running", ""), *runs, (2, "finished", "stopped")), others="beside")
    kept = {path.parent.name for path in (state / "runs").glob("*/checkpoints")}
    assert kept == {"9", "7", "5", "4"}
    assert (state / "runs" / "3" / "journal.jsonl").exists()


def test_a_run_that_goes_on_once_more_began_when_the_first_did(state: Path) -> None:
    go(Superlink(b"fab", (7, "finished", "failed")))
    (state / "runs" / "9").rename(state / "runs" / "6")
    client = Superlink(b"fab", (6, "finished", "failed"), (7, "finished", "failed"))
    assert go(client, "auto")["resumed_from"] == "6"
    assert settings.began(state, "9") == "2026-12-09T00:00:00+00:00"
    assert checkpoint.ancestors(state / "runs" / "9") == ["7", "6"]


@pytest.mark.parametrize(
    ("run", "asked", "words"),
    [
        ((8, "finished", "failed"), {}, r"run 7 is not known here: type -e resume=auto, or .*: 8"),
        ((7, "running", ""), {}, r"run 7 has not ended: type -e follow=7"),
        ((7, "finished", "completed"), {}, r"run 7 has completed, .*: type -e collect=7"),
        (
            None,
            {"typed": [["learning_rate", "learning-rate", 0.5]]},
            r"learning_rate=0.01, and not 0.5: leave",
        ),
        (
            None,
            {"typed": [["round_deadline", "", 60.0]]},
            r"has round_deadline=, and not 60.0: leave it out, or",
        ),
        (None, {"typed": [["speed", "speed", 1]]}, r"speed: the app of run 7 has no setting speed: leave"),
        (
            None,
            {"typed": [["rounds", "num-server-rounds", 3]], "changed": True},
            r"round 3 .*: type -e rounds=4",
        ),
        (
            None,
            {"typed": [["rounds", "num-server-rounds", 9]]},
            r"rounds=6, and not 9: .*resume_changed=true",
        ),
        (
            None,
            {"image": "coldframe-fl:2"},
            r"the image coldframe-fl:1, and the server has coldframe-fl:2: dep",
        ),
        (
            None,
            {"fab": "other.fab"},
            r"app=other is not the app of run 7, which is [0-9a-f]{16}: leave app out",
        ),
        (None, {"fab": "missing.fab"}, r"the app of run 7 is no longer on the server: type -e app=DIR too"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    state: Path, run: tuple[int, str, str] | None, asked: dict[str, Any], words: str
) -> None:
    (state / "other.fab").write_bytes(b"another app")
    if "fab" in asked:
        asked = {"fab": str(state / asked["fab"])}
    client = Superlink(b"fab", run or (7, "finished", "failed"))
    with pytest.raises(SystemExit, match=words):
        go(client, **asked)
    assert client.started == []


def test_a_run_without_a_checkpoint_or_of_other_versions_is_refused(state: Path) -> None:
    keep(state, "6", flwr="1.0")
    (state / "runs" / "5").mkdir()
    client = Superlink(b"fab", (6, "finished", "failed"), (5, "finished", "failed"))
    with pytest.raises(
        SystemExit, match=r"run 6 had flwr 1\.0, and the server has flwr .*: deploy what it had"
    ):
        go(client, "6")
    assert go(client, "6", changed=True)["round"] == 3
    with pytest.raises(SystemExit, match=r"run 5 has no checkpoint: .*Leave resume out to train anew"):
        go(client, "5")


def test_what_was_changed_on_purpose_reaches_the_new_run(state: Path) -> None:
    (state / "other.fab").write_bytes(b"another app")
    client = Superlink(b"fab", (7, "finished", "failed"))
    typed = [["rounds", "num-server-rounds", 9], ["round_deadline", "", 60.0], ["run_name", "", "longer"]]
    go(client, typed=typed, changed=True, fab=str(state / "other.fab"), image="coldframe-fl:2")
    (request,) = client.started
    assert request.fab.content == b"another app"
    assert control.user_config_from_proto(request.override_config) == {"num-server-rounds": 9}
    found = settings.read(state, "9")
    assert (found.round_deadline, found.run_name) == (60.0, "longer")
    assert settings.note_of(state, "9")["variables"]["rounds"] == 9


def test_what_changes_no_result_needs_no_force(state: Path) -> None:
    client = Superlink(b"fab", (7, "finished", "failed"))
    typed = [["run_name", "", "again"], ["checkpoint", "", False], ["rounds", "num-server-rounds", 6]]
    go(client, typed=typed, image="coldframe-fl:1")
    assert settings.read(state, "9").checkpoint is False


def test_a_run_that_was_submitted_otherwise_gets_the_note_of_now(state: Path) -> None:
    (state / "runs" / "7" / settings.NOTE).unlink()
    now = {"clients": [{"name": "lab-1"}], "settings": {"run_name": ""}}
    go(Superlink(b"fab", (7, "finished", "failed")), note=now)
    note = settings.note_of(state, "9")
    assert note["clients"] == [{"name": "lab-1"}] and note["settings"]["resumed_from"] == "7"


def test_a_run_is_not_resumed_beside_another_unless_that_is_asked_for(state: Path) -> None:
    client = Superlink(b"fab", (8, "running", ""), (7, "finished", "failed"))
    with pytest.raises(SystemExit, match=r"run 8 is running on the same clients"):
        go(client)
    assert go(client, others="beside")["run_id"] == "9"


def test_a_run_for_which_the_disk_has_no_room_does_not_start_anew(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "hand_over", full)
    client = Superlink(b"fab", (7, "finished", "failed"))
    with pytest.raises(OSError, match="no space"):
        go(client)
    assert client.stopped == [9]


def test_the_progress_lines_name_the_run_before_and_what_is_not_kept_once(tmp_path: Path) -> None:
    follower = control.Follower(tmp_path / "journal.jsonl")
    event = {"event": "resume", "run_id": "9", "resumed_from": "7", "round": 3, "resumed": 1}
    assert follower.describe(event) == ["resumed from run 7 after round 3"]
    kept = {"event": "checkpoint", "round": 4, "unkept": []}
    lost = {**kept, "unkept": ["Own.session (lock)"]}
    assert follower.describe(kept) == []
    assert follower.describe(lost) == [
        "no checkpoint holds Own.session (lock): a run that is resumed begins with new ones"
    ]
    assert follower.describe(lost) == []


def test_the_whole_has_a_folder_beside_that_of_its_part_and_is_the_latest(tmp_path: Path) -> None:
    first, other = "2026-12-01T09:00:00.000+00:00", "2026-12-01T10:00:00.000+00:00"
    names = ("pilot", "pilot-resumed-8", "pilot-resumed-9", "other")
    for number, (name, resumed_at) in enumerate(
        zip(names, (None, other, "2026-12-01T11:00:00.000+00:00", None), strict=True), start=7
    ):
        summary = {
            "run_id": str(number),
            "run_name": name.split("-")[0],
            "started": first if name != "other" else other,
            "resumed": int(resumed_at is not None),
            "resumed_at": resumed_at,
        }
        name = f"20261201-{'09' if name != 'other' else '10'}0000-{name}"
        assert results.folder_name(summary) == name
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    latest.point(tmp_path)
    assert (tmp_path / "latest").readlink().name == "20261201-090000-pilot-resumed-9"
