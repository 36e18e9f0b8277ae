"""An agent plays a run's scenario: when things are due, what is done and recorded, what is taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from coldframe.agent import links, reconciler, scenario, service
from coldframe.recording import task_note
from coldframe.recording.task_note import Note
from tests.unit.bench import Bench
from tests.unit.flower import wait_until

RUN = "77"
NOW = 1_800_000_000.0  # of the tests' clock


@pytest.fixture(params=[1, 2], ids=["cgroup v1", "cgroup v2"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, request.param, monkeypatch)


def stage(bench: Bench, *entries: dict[str, Any], now: float = NOW, **more: Any) -> dict[str, Any]:
    """Stage entries for the run: without a trigger they are due at once, without clients they are about a."""
    numbered = []
    for number, entry in enumerate(entries, start=1):
        entry = {"number": number, "clients": ["a"], "seconds": None, **entry}
        if "limits" in entry:
            entry["limits"] = dict.fromkeys(entry["clients"], entry["limits"])
        if "round" in entry or "rounds" in entry:
            entry.setdefault("phase", "train")
        elif "base" not in entry:
            entry.setdefault("at", 0.0)
        numbered.append(entry)
    request = {
        "do": "scenario",
        "run": RUN,
        "name": "x.yml",
        "entries": numbered,
        "rounds": 9,
        "quiet": 600.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now)
        return bench.agent.answer(request | more)


def begin(
    bench: Bench, now: float, number: int | None = 1, phase: str = "train", run: str = RUN, name: str = "a"
) -> None:
    """A client begins a task."""
    folder = bench.root / "scratch" / name
    task_note.write(folder, Note(run, number, phase))
    os.utime(folder / task_note.NAME, (now, now))


def poll(bench: Bench, now: float) -> list[dict[str, Any]]:
    """Let the agent look once and do what it has to; the events of that."""
    before = len(bench.events)
    it = bench.agent.scenario
    it.poll(now)
    for job in list(it.jobs.values()):
        job.result(10)
    return bench.events[before:]


THROTTLE = {"do": "throttle", "limits": {"cpu": 0.1, "down": 5_000_000}}


def test_time_is_counted_from_the_first_task_of_the_run(bench: Bench) -> None:
    stage(bench, {"at": 20.0, **THROTTLE, "seconds": 60.0})
    assert poll(bench, NOW + 100) == []
    begin(bench, NOW + 100, run="76")  # of another run
    assert poll(bench, NOW + 101) == []
    begin(bench, NOW + 100, name="b")
    assert poll(bench, NOW + 119.9) == []
    [event] = poll(bench, NOW + 120.1)
    assert (bench.held()["cpu"], bench.held()["down"]) == (0.1, 5_000_000)
    assert bench.held("b")["cpu"] == 0.4
    assert event["cause"] == "scenario" and event["holds"] and event["lateness"] == 0.1
    assert event["requested"] == event["verified"] == THROTTLE["limits"]
    assert (event["do"], event["entry"], event["client"]) == ("throttle", 1, "a")
    assert poll(bench, NOW + 180) == []
    [event] = poll(bench, NOW + 180.3)
    assert (bench.held()["cpu"], bench.held()["down"]) == (0.4, None)
    assert (event["cause"], event["lateness"], event["holds"]) == ("scenario ended", 0.2, True)
    assert event["requested"] == {"cpu": 0.4, "down": None}
    bench.tick()
    assert [event["cause"] for event in bench.events] == ["scenario", "scenario ended"]


@pytest.mark.parametrize(
    ("trigger", "tasks", "fires"),
    [
        ({"round": 3}, [(2, "evaluate")], False),
        ({"round": 3}, [(3, "train")], True),
        (
            {"round": 3},
            [(4, "train")],
            True,
        ),  # its clients had nothing to do in round 3, or it was over at once
        ({"round": 3, "phase": "evaluate"}, [(3, "train")], False),
        ({"round": 3, "phase": "evaluate"}, [(3, "evaluate")], True),
        ({"round": 3}, [(10, "train")], False),  # the run has 9: somebody else's number
        ({"round": 3}, [(None, "train")], False),
    ],
)
def test_a_round_begins_with_the_first_task_of_it(
    bench: Bench, trigger: dict[str, Any], tasks: list[tuple[int | None, str]], fires: bool
) -> None:
    stage(bench, {**trigger, **THROTTLE})
    for number, phase in tasks:
        begin(bench, NOW + 5, number, phase, name="b")  # any client of the machine
    found = poll(bench, NOW + 5.5)
    assert [event["lateness"] for event in found] == [0.5] * fires
    assert bench.held()["cpu"] == (0.1 if fires else 0.4)


PAUSE = {"do": "pause", "clients": ["b"]}


@pytest.mark.parametrize("anew", [False, True], ids=["going on", "started anew"])
def test_seconds_after_a_round_are_counted_from_its_first_task_here(bench: Bench, anew: bool) -> None:
    """Also where the entry of the round is about nobody here, and by an agent that was started meanwhile."""
    stage(bench, {"round": 3, "do": "kill", "clients": []}, {"base": 1, "delay": 20.0, **PAUSE})
    begin(bench, NOW, 2)
    assert poll(bench, NOW + 30) == []
    begin(bench, NOW + 40, 3)
    assert poll(bench, NOW + 40.1) == [] and bench.engine.calls == []
    begin(bench, NOW + 50, 4)
    if anew:
        bench.agent = bench.start()
    assert poll(bench, NOW + 59.9) == []
    [event] = poll(bench, NOW + 60.2)
    assert (event["do"], event["entry"], event["lateness"]) == ("pause", 2, 0.2)
    assert poll(bench, NOW + 61) == []


@pytest.mark.parametrize("anew", [False, True], ids=["going on", "started anew"])
@pytest.mark.parametrize("first", [THROTTLE, {"do": "undo"}], ids=["throttle", "nothing to undo"])
def test_rounds_after_a_time_are_counted_from_the_round_that_went_on_then(
    bench: Bench, first: dict[str, Any], anew: bool
) -> None:
    stage(bench, {"at": 20.0, **first}, {"base": 1, "rounds": 2, **PAUSE})
    begin(bench, NOW, 4)
    assert poll(bench, NOW) == []
    begin(bench, NOW + 10, 5, "evaluate")
    assert len(poll(bench, NOW + 20)) == (first is THROTTLE)  # in round 5
    if anew:
        bench.agent = bench.start()
    begin(bench, NOW + 30, 6, "evaluate")
    assert poll(bench, NOW + 30) == []
    begin(bench, NOW + 40, 7)
    [event] = poll(bench, NOW + 40.5)
    assert (event["do"], event["entry"], event["lateness"]) == ("pause", 2, 0.5)


def test_entries_that_follow_on_each_other_by_both_kinds(bench: Bench) -> None:
    stage(
        bench,
        {"round": 2, "phase": "evaluate", **THROTTLE},
        {"base": 1, "delay": 5.0, "do": "undo"},
        {"base": 2, "rounds": 1, "phase": "evaluate", **PAUSE},
        {"base": 3, "delay": 0.0, **THROTTLE},
    )
    begin(bench, NOW, 2)
    assert poll(bench, NOW) == []
    begin(bench, NOW + 1, 2, "evaluate")
    assert [event["entry"] for event in poll(bench, NOW + 1)] == [1]
    begin(bench, NOW + 4, 3)
    assert [event["entry"] for event in poll(bench, NOW + 6.1)] == [2]  # in round 3
    begin(bench, NOW + 9, 3, "evaluate")
    assert poll(bench, NOW + 9) == []
    begin(bench, NOW + 10, 4, "evaluate")
    assert {event["entry"] for event in poll(bench, NOW + 10)} == {3, 4}  # at once, in their order


def test_the_round_that_goes_on_is_that_of_the_time_and_not_of_the_look(bench: Bench) -> None:
    """The next round may begin between the two."""
    stage(bench, {"at": 20.0, **THROTTLE}, {"base": 1, "rounds": 1, **PAUSE})
    begin(bench, NOW, 1)
    poll(bench, NOW + 19.95)
    begin(bench, NOW + 20.02, 2)
    assert {event["entry"] for event in poll(bench, NOW + 20.05)} == {1, 2}


def test_what_others_follow_on_is_no_entry_of_this_machine(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(bench, {"at": 1.0, "do": "kill", "clients": []}, {"base": 1, "rounds": 3, **PAUSE})
    begin(bench, NOW)
    assert poll(bench, NOW + 2) == []
    staged = bench.agent.answer({"do": "status"})["scenario"]
    assert (staged["entries"], staged["fired"]) == (1, 0)
    bench.agent.answer({"do": "scenario", "run": RUN, "entries": []})
    assert "before its entries [2] were due" in capsys.readouterr().out


def test_each_entry_is_done_once(bench: Bench) -> None:
    stage(bench, {"round": 1, **THROTTLE}, {"round": 2, "do": "undo"})
    begin(bench, NOW + 1)
    assert len(poll(bench, NOW + 1)) == 1 and poll(bench, NOW + 2) == []
    begin(bench, NOW + 3, 2)
    [event] = poll(bench, NOW + 3)
    assert (event["cause"], event["do"], bench.held()["cpu"]) == ("scenario", "undo", 0.4)
    assert poll(bench, NOW + 4) == []


def test_what_held_before_holds_again(bench: Bench) -> None:
    """Of two throttles the later counts while it lasts; beneath both is what throttle.yml has asked for."""
    bench.set(clients=("a",), cpu=0.3)
    stage(bench, {**THROTTLE}, {"at": 5.0, "do": "throttle", "limits": {"cpu": 0.2}, "seconds": 5.0})
    begin(bench, NOW)
    held = []
    for seconds in (1, 6, 11):
        poll(bench, NOW + seconds)
        held.append(bench.held()["cpu"])
    bench.agent.answer({"do": "scenario", "run": RUN, "entries": []})
    assert [*held, bench.held()["cpu"]] == [0.1, 0.2, 0.1, 0.3]


def test_partition_cuts_the_link_and_mends_it(bench: Bench) -> None:
    stage(bench, {"do": "partition", "seconds": 5.0})
    begin(bench, NOW)
    [event] = poll(bench, NOW + 1)
    assert bench.held()["online"] is False
    assert event["requested"] == event["verified"] == {"online": False} and event["holds"]
    bench.engine.run("a", 900, "2")  # restarted: it stays cut off
    bench.tick()
    assert bench.held()["online"] is False
    poll(bench, NOW + 6.1)
    assert bench.held()["online"] is True


def test_pause_stops_all_processes_for_its_time(bench: Bench) -> None:
    stage(bench, {"round": 1, "do": "pause", "seconds": 20.0, "clients": ["a", "b"]})
    begin(bench, NOW)
    found = poll(bench, NOW + 1)
    assert bench.engine.paused == {"a", "b"}
    assert [(event["requested"], event["verified"], event["holds"]) for event in found] == [
        ({"paused": True}, {"paused": True}, True)
    ] * 2
    assert poll(bench, NOW + 20) == []
    found = poll(bench, NOW + 21.5)
    assert bench.engine.paused == set()
    assert {(event["cause"], event["lateness"]) for event in found} == {("scenario ended", 0.5)}


def test_killed_client_is_another_process_and_runs(bench: Bench) -> None:
    stage(bench, {"do": "kill"})
    begin(bench, NOW)
    [event] = poll(bench, NOW)
    assert bench.engine.calls == [("kill", "a"), ("start", "a")]
    assert event["verified"] == {"killed": True, "running": True} and event["holds"]
    assert bench.agent.scenario.staged.touched == {}


def test_whoever_has_left_comes_back_only_when_it_joins(bench: Bench) -> None:
    stage(bench, {"round": 1, "do": "leave"}, {"round": 4, "do": "join"})
    begin(bench, NOW)
    [event] = poll(bench, NOW)
    assert (event["requested"], event["holds"], bench.engine.pids["a"]) == ({"running": False}, True, 0)
    begin(bench, NOW + 5, 3, name="b")
    bench.tick()
    assert poll(bench, NOW + 5) == [] and bench.engine.pids["a"] == 0
    begin(bench, NOW + 9, 4, name="b")
    [event] = poll(bench, NOW + 9)
    assert event["do"] == "join" and event["verified"]["running"] and bench.engine.pids["a"]


def test_paused_client_that_leaves_and_one_that_does_not_run(bench: Bench) -> None:
    bench.engine.run("b", 0)
    entries = [
        {"do": "pause", "clients": ["a", "b"], "seconds": 9.0},
        {"at": 1.0, "do": "leave", "seconds": 3.0},
    ]
    stage(bench, *entries)
    begin(bench, NOW)
    of_b = next(event for event in poll(bench, NOW) if event["client"] == "b")
    assert not of_b["holds"] and of_b["problem"] == "it does not run"
    poll(bench, NOW + 1)
    assert bench.engine.calls[-2:] == [("unpause", "a"), ("stop", "a")]
    poll(bench, NOW + 4.5)
    assert bench.engine.pids["a"] and bench.engine.paused == {"a"}  # the pause is not over
    poll(bench, NOW + 9.5)
    assert bench.engine.paused == set()
    assert bench.engine.pids["b"] == 0  # somebody else has stopped it


LASTING = [
    {"do": "throttle", "limits": {"cpu": 0.1}},
    {"do": "partition"},
    {"do": "pause", "clients": ["b"]},
    {"at": 1.0, "do": "leave", "clients": ["a"]},
]


def is_as_before(bench: Bench) -> bool:
    bench.tick()
    running = all(bench.engine.pids.values()) and not bench.engine.paused
    return running and bench.held()["cpu"] == 0.4 and bench.held()["online"] is True


def play_lasting(bench: Bench) -> None:
    stage(bench, *LASTING)
    begin(bench, NOW)
    poll(bench, NOW)
    poll(bench, NOW + 2)
    assert bench.engine.pids["a"] == 0 and bench.engine.paused == {"b"}


@pytest.mark.parametrize("how", ["told", "quiet", "replaced", "undone"])
def test_at_its_end_everything_is_as_before(bench: Bench, how: str) -> None:
    play_lasting(bench)
    ask = bench.agent.answer
    endings: dict[str, Callable[[], Any]] = {
        "told": lambda: ask({"do": "scenario", "run": RUN, "entries": []}),
        "quiet": lambda: poll(bench, NOW + 601),
        "replaced": lambda: stage(bench, {"round": 2, **THROTTLE}, run="78", now=NOW + 5),
        "undone": lambda: bench.undo(),
    }
    endings[how]()
    for seconds in (6, 7):
        poll(bench, NOW + seconds + (600 if how == "quiet" else 0))
    assert is_as_before(bench)
    staged = bench.agent.answer({"do": "status"})["scenario"]
    assert staged == {
        "replaced": {"name": "x.yml", "run": "78", "entries": 1, "fired": 0},
        "undone": {"name": "x.yml", "run": RUN, "entries": 4, "fired": 4},
    }.get(how)
    assert (bench.root / "agent" / "scenario.json").exists() == (how in ("replaced", "undone"))


def test_the_end_of_another_run_is_not_this_ones(bench: Bench) -> None:
    play_lasting(bench)
    answer = bench.agent.answer({"do": "scenario", "run": "76", "entries": []})
    assert answer == {"clients": {}, "ended": False}
    assert bench.engine.paused == {"b"}


def test_an_agent_that_starts_anew_goes_on(bench: Bench) -> None:
    stage(bench, {"seconds": 10.0, **THROTTLE}, {"do": "pause", "clients": ["b"], "seconds": 10.0})
    stage_file = bench.root / "agent" / "scenario.json"
    begin(bench, NOW)
    poll(bench, NOW)
    bench.agent = bench.start()
    bench.tick()
    assert bench.held()["cpu"] == 0.1 and len(bench.events) == 2  # it was never without
    assert poll(bench, NOW + 9) == []
    assert {event["cause"] for event in poll(bench, NOW + 11)} == {"scenario ended"}
    assert is_as_before(bench) and stage_file.exists()


def test_client_that_the_engine_could_not_set_going_is_tried_again(bench: Bench) -> None:
    stage(bench, {"do": "pause", "seconds": 1.0})
    begin(bench, NOW)
    poll(bench, NOW)
    bench.engine.broken.add("a")
    [event] = poll(bench, NOW + 2)
    assert not event["holds"] and event["problem"] == "context deadline exceeded"
    bench.engine.broken.clear()
    bench.agent = bench.start()  # whoever comes after a crash knows it, too
    poll(bench, time.time() + scenario.RETRY)
    assert bench.engine.paused == set() and bench.agent.scenario.staged.touched == {}


def test_what_a_client_uses_is_not_taken_from_it(bench: Bench) -> None:
    """It would be killed: so that is an event, and nothing is changed."""
    entry = {"do": "throttle", "limits": {"memory": 310 << 20}}
    stage(bench, entry, {"at": 1.0, **entry, "force": True})
    begin(bench, NOW)
    [event] = poll(bench, NOW)
    assert not event["holds"] and "below the 300 MB in use" in event["problem"]
    assert event["refused"] is True
    assert bench.held()["memory"] == 1 << 30
    [event] = poll(bench, NOW + 1)
    assert "refused" not in event
    assert bench.held()["memory"] == 310 << 20


def test_what_a_machine_cannot_do_is_refused_before_the_run(bench: Bench) -> None:
    refused = stage(bench, {"do": "throttle", "limits": {"delay": 0.1}})["refused"]
    assert "timeline entry 1: delay needs the kernel's netem" in refused["a"][0]
    (bench.root / "scratch" / "a").rmdir()
    assert "site.yml -e train=false" in stage(bench, {"do": "pause"})["refused"]["a"][0]
    assert "called c" in stage(bench, {"do": "pause", "clients": ["c"]})["error"]
    assert bench.agent.scenario.staged is None


def test_check_stages_nothing(bench: Bench) -> None:
    assert stage(bench, THROTTLE, check=True) == {"clients": {"a": {"changed": True}}}
    assert bench.agent.scenario.staged is None and not (bench.root / "agent" / "scenario.json").exists()


def test_throttle_does_not_change_what_the_scenario_sets(bench: Bench) -> None:
    stage(bench, THROTTLE)
    begin(bench, NOW)
    poll(bench, NOW)
    assert "the scenario of the running run sets its cpu" in bench.set(cpu=0.2)["refused"]["a"][0]
    assert bench.set(memory=700 << 20)["clients"]["a"]["holds"]


def test_on_a_full_disk_it_is_not_staged_but_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scenario, "write_json", fail)
        assert "No space left" in stage(bench, THROTTLE)["error"]
    stage(bench, {**THROTTLE, "seconds": 5.0})
    begin(bench, NOW)
    with monkeypatch.context() as patch:
        for module in (scenario, reconciler):
            patch.setattr(module, "write_json", fail)
        poll(bench, NOW)
        assert bench.held()["cpu"] == 0.1
        poll(bench, NOW + 6)
    assert bench.held()["cpu"] == 0.4


def test_limits_that_the_kernel_refuses_do_not_hold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise links.LinkError("not now")

    stage(bench, THROTTLE)
    begin(bench, NOW)
    with monkeypatch.context() as patch:
        patch.setattr(links, "write", fail)
        [event] = poll(bench, NOW)
    assert (event["holds"], event["problem"]) == (False, "not now")
    bench.tick(time.time() + 2 * reconciler.RETRY)
    assert bench.held()["down"] == 5_000_000


def test_a_scenario_that_is_staged_wakes_the_player(bench: Bench) -> None:
    threading.Thread(target=service.play, args=(bench.agent,), daemon=True).start()
    now = time.time()
    stage(bench, {"do": "pause"}, now=now)
    begin(bench, now)
    wait_until(lambda: bench.engine.paused == {"a"}, 10, "nobody plays")
    bench.agent.answer({"do": "scenario", "run": RUN, "entries": []})
    wait_until(lambda: not (bench.root / "agent" / "scenario.json").exists(), 10, "nobody tidies up")
    wait_until(lambda: not bench.agent.scenario.awake.is_set(), 10, "nobody goes to sleep")
    assert bench.engine.paused == set()


def test_state_of_another_version_does_not_keep_the_agent_from_starting(bench: Bench) -> None:
    path = bench.root / "agent" / "scenario.json"
    for text in ('{"name": "x"}', "[", '{"nam": 1}'):
        path.write_text(text)
        assert bench.start().scenario.staged is None and not path.exists()


# The note of a task.

GOOD = b'{"run": "77", "round": 3, "phase": "train"}'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[" * 500,
        b"[]",
        b'{"run": 77, "round": 3, "phase": "train"}',
        b'{"run": "77/..", "round": 3, "phase": "train"}',
        b'{"run": "77", "round": true, "phase": "train"}',
        b'{"run": "77", "round": 1e3, "phase": "train"}',
        b'{"run": "77", "round": 0, "phase": "train"}',
        b'{"run": "77", "round": 10000000000, "phase": "train"}',
        b'{"run": "77", "round": 3, "phase": "Train\\n"}',
        b'{"run": "77", "round": 3}',
        b"\xff\xfe\x00",
    ],
)
def test_a_note_that_is_none_is_not_taken(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / task_note.NAME
    path.write_bytes(GOOD)
    found = scenario.read_note(tmp_path, "a")
    assert found is not None and found[0] == Note("77", 3, "train")
    path.write_bytes(text)
    assert scenario.read_note(tmp_path, "a") is None


def test_nothing_but_a_small_file_is_read(tmp_path: Path) -> None:
    """A client owns its directory: it may put links, pipes and directories there."""
    (tmp_path / "a").mkdir()
    outside, path = tmp_path / "outside", tmp_path / "a" / task_note.NAME
    outside.write_bytes(GOOD)
    makers: list[Callable[[], Any]] = [
        lambda: path.symlink_to(outside),
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
        lambda: path.write_bytes(GOOD + b" " * task_note.LARGEST),
    ]
    for make in makers:
        make()
        assert scenario.read_note(tmp_path, "a") is None
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    path.write_bytes(GOOD)
    assert scenario.read_note(tmp_path, "link") is None and scenario.read_note(tmp_path, "b") is None
    assert scenario.read_note(tmp_path, "a") is not None


def test_a_note_is_read_by_whoever_is_not_its_owner(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        task_note.write(tmp_path, Note("77", None, "query"))
    finally:
        os.umask(before)
    path = tmp_path / task_note.NAME
    assert path.stat().st_mode & 0o777 == 0o644 and [path] == list(tmp_path.iterdir())
    assert json.loads(path.read_text()) == {"run": "77", "round": None, "phase": "query"}


@pytest.mark.skipif(
    os.getuid() != 0,
    reason="not tested without root: whether the agent may read a note that another user owns",
)
def test_the_agent_reads_a_note_by_its_group(tmp_path: Path) -> None:
    """As root without the right to pass over modes, and a directory as roles/fl_client makes it."""
    folder = tmp_path / "a"
    folder.mkdir()
    task_note.write(folder, Note("77", 3, "train"))
    os.chown(folder, 10001, 0)
    os.chown(folder / task_note.NAME, 10001, 10001)
    code = "import sys; from pathlib import Path; from coldframe.agent.scenario import read_note;"
    code += "print(read_note(Path(sys.argv[1]), 'a'))"
    rights = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", sys.executable, "-c", code]
    found = []
    for mode in (0o750, 0o700):
        folder.chmod(mode)
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
        found.append("round=3" in done.stdout)
    assert found == [True, False]


@pytest.mark.parametrize(
    ("configs", "group", "number"),
    [
        ([{"server-round": 3}], "7", 3),
        ([{"server-round": True}], "7", 7),
        ([{"server-round": True}, {"server-round": 4}], "7", 4),
        ([{"lr": 0.1}, {"server-round": 4}], "", 4),
        ([{"lr": 0.1}], "7", 7),
        ([{}], "epoch 7", None),
        ([], "0", None),
        ([{"server-round": -1}], "", None),
    ],
)
def test_a_message_names_its_round(
    monkeypatch: pytest.MonkeyPatch, configs: list[dict[str, Any]], group: str, number: int | None
) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    content = RecordDict({f"config{place}": ConfigRecord(config) for place, config in enumerate(configs)})
    message = Message(content, dst_node_id=1, message_type="train.step", group_id=group)
    assert task_note.of_message("77", message) == Note("77", number, "train")
