"""The agent brings files and kernel into agreement; here the kernel is a directory."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from coldframe import cgroups
from coldframe.agent import links, reconciler
from coldframe.agent import service as agent_module
from coldframe.agent.engine import EngineError
from coldframe.agent.service import measured
from tests.unit.bench import BASELINE, Bench
from tests.unit.trees import paths_of, write


def refuse(bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, *names: str) -> None:
    """Let the kernel refuse to take a CPU limit of these clients."""
    write = cgroups.Cgroup.set_cpu_limit

    def set_cpu_limit(group: cgroups.Cgroup, cores: float | None, period: int) -> None:
        folder = group.unified or group.controllers["cpu"]
        if folder.name in names:
            raise OSError(number, os.strerror(number), "cpu")
        write(group, cores, period)

    monkeypatch.setattr(cgroups.Cgroup, "set_cpu_limit", set_cpu_limit)


@pytest.fixture(params=[1, 2], ids=["cgroup v1", "cgroup v2"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, request.param, monkeypatch)


def test_limits_are_set_for_all_clients_and_read_back(bench: Bench) -> None:
    answer = bench.set(cpu=0.1, memory=512 << 20, pids=100, down=10_000_000)
    for name in ("a", "b"):
        client = answer["clients"][name]
        assert client["holds"] and client["changed"]
        assert client["before"]["cpu"] == 0.4
        held = bench.held(name)
        assert (held["cpu"], held["memory"], held["pids"], held["down"]) == (0.1, 512 << 20, 100, 10_000_000)
    assert [event["cause"] for event in bench.events] == ["throttle", "throttle"]
    assert bench.events[0]["verified"] == {"cpu": 0.1, "memory": 512 << 20, "pids": 100, "down": 10_000_000}


def test_same_request_again_changes_nothing(bench: Bench) -> None:
    bench.set(cpu=0.1)
    answer = bench.set(2.0, cpu=0.1)
    assert not any(client["changed"] for client in answer["clients"].values())
    assert len(bench.events) == 2


def test_check_changes_nothing(bench: Bench) -> None:
    answer = bench.set(cpu=0.1, check=True)
    assert answer["clients"]["a"]["changed"]
    assert bench.held()["cpu"] == 0.4
    assert bench.events == []
    bench.set(cpu=0.1)
    bench.undo(check=True)
    assert bench.held()["cpu"] == 0.1
    assert not bench.set(cpu=0.1, check=True)["clients"]["a"]["changed"]


def test_undo_returns_to_the_baseline_and_is_idempotent(bench: Bench) -> None:
    bench.set(cpu=0.1, up=5_000_000)
    assert all(client["changed"] for client in bench.undo()["clients"].values())
    assert (bench.held()["cpu"], bench.held()["up"]) == (0.4, None)
    assert not any(client["changed"] for client in bench.undo(10.0)["clients"].values())


def test_undo_works_after_a_crash(bench: Bench) -> None:
    bench.set(cpu=0.1, down=5_000_000)
    bench.agent = bench.start()
    assert bench.agent.clients["a"].desired["cpu"] == 0.1
    bench.undo()
    assert (bench.held()["cpu"], bench.held()["down"]) == (0.4, None)


def test_bad_request_changes_no_client_at_all(bench: Bench) -> None:
    request = {"do": "set", "stamp": 1.0, "limits": {"a": {"cpu": 0.1}, "b": {"memory": 310 << 20}}}
    assert "memory=310m" in bench.agent.answer(request)["refused"]["b"][0]
    assert "netem" in bench.set(cpu=0.1, delay=0.05)["refused"]["a"][0]
    assert "called c" in bench.set(clients=("a", "c"), cpu=0.1)["error"]
    assert bench.held()["cpu"] == 0.4
    assert bench.events == []


def test_force_goes_below_what_is_in_use(bench: Bench) -> None:
    assert bench.set(memory=100 << 20, force=True)["clients"]["a"]["holds"]
    assert bench.held()["memory"] == 100 << 20


def test_client_that_the_kernel_refuses_keeps_what_it_had(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(bench, patch, errno.EBUSY, "b")
        answer = bench.set(cpu=0.1, down=5_000_000)
    assert answer["clients"]["a"]["holds"]
    assert answer["clients"]["b"]["problem"] == "the kernel refuses cpu=0.1: Device or resource busy"
    bench.tick()
    assert (bench.held("b")["cpu"], bench.held("b")["down"]) == (0.4, None)
    assert bench.agent.clients["b"].asked == {}


def test_engine_is_told_when_a_change_has_settled(bench: Bench) -> None:
    """So a restart finds the limits, and `docker inspect` shows them; of several changes it is told once."""
    bench.set(cpu=0.2, memory=700 << 20)
    bench.set(2.0, cpu=0.1, pids=100)
    bench.agent.tell(time.monotonic())
    assert bench.engine.updates == []
    bench.agent.tell(time.monotonic() + reconciler.SETTLE)
    assert sorted(name for name, _ in bench.engine.updates) == ["a", "b"]
    assert bench.engine.known["a"] == {
        **{"CpuPeriod": 100_000, "CpuQuota": 10_000, "PidsLimit": 100},
        **{"Memory": 700 << 20, "MemorySwap": 700 << 20},
    }
    assert (bench.held()["cpu"], bench.held()["memory"], bench.held()["pids"]) == (0.1, 700 << 20, 100)
    bench.agent.tell(time.monotonic() + 2 * reconciler.SETTLE)
    assert len(bench.engine.updates) == 2


def test_agent_that_starts_anew_tells_the_engine_what_the_last_one_could_not(bench: Bench) -> None:
    bench.set(clients=("a",), cpu=0.2)
    bench.agent = bench.start()
    bench.agent.tell(time.monotonic())
    memory = {"Memory": 1 << 30, "MemorySwap": 1 << 30}
    assert bench.engine.updates == [("a", {"CpuPeriod": 100_000, "CpuQuota": 20_000, **memory})]


def test_swap_that_systemd_has_opened_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes all of a group's values when one has changed, and knows of no limit on swap."""
    bench = Bench(tmp_path, 2, monkeypatch)
    swap = tmp_path / "cgroup/docker/a/memory.swap.max"
    swap.write_text("max\n")
    assert bench.agent.read(bench.agent.clients["a"])["memory"] is None  # type: ignore[index]
    bench.tick()
    assert swap.read_text() == "0"
    assert bench.held()["memory"] == 1 << 30


def test_what_the_engine_is_just_writing_is_no_drift(bench: Bench) -> None:
    bench.set(clients=("a",), cpu=0.2)
    update = bench.engine.update

    def by_halves(container_id: str, changes: dict[str, int]) -> None:
        bench.engine.file("a", "memory").write_text(str(2 << 30))
        bench.tick()
        assert [event["cause"] for event in bench.events] == ["throttle"]
        update(container_id, changes)

    bench.engine.update = by_halves  # type: ignore[method-assign]
    bench.agent.tell(time.monotonic() + reconciler.SETTLE)
    assert bench.held()["memory"] == 1 << 30


def test_engine_that_refuses_is_told_again_later(bench: Bench) -> None:
    bench.engine.broken.add("a")
    bench.set(cpu=0.2)
    now = time.monotonic() + reconciler.SETTLE
    bench.agent.tell(now)
    assert [name for name, _ in bench.engine.updates] == ["b"]
    bench.engine.broken.clear()
    bench.agent.tell(now + 1)
    assert len(bench.engine.updates) == 1
    bench.agent.tell(now + reconciler.RETRY)
    assert [name for name, _ in bench.engine.updates] == ["b", "a"]
    assert bench.held()["cpu"] == 0.2


def test_change_waits_for_the_engine_that_is_being_told(bench: Bench) -> None:
    """What it writes then is older: it must not come after what was read back."""
    bench.set(clients=("a",), cpu=0.2)
    update = bench.engine.update
    change = threading.Thread(target=lambda: bench.set(2.0, clients=("a",), cpu=0.1))

    def slow(container_id: str, changes: dict[str, int]) -> None:
        change.start()
        change.join(0.2)
        assert change.is_alive()
        update(container_id, changes)

    bench.engine.update = slow  # type: ignore[method-assign]
    bench.agent.tell(time.monotonic() + reconciler.SETTLE)
    change.join(5)
    assert bench.held()["cpu"] == 0.1


def test_where_only_the_engine_may_write_it_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """SELinux, or user namespaces."""
    refuse(bench, monkeypatch, errno.EACCES, "a", "b")
    answer = bench.set(cpu=0.1, pids=100)
    assert answer["clients"]["a"]["holds"]
    assert (bench.held()["cpu"], bench.held()["pids"]) == (0.1, 100)
    # Told of the memory limit too, whatever has changed: see Keeper._to_tell.
    assert all({"Memory", "MemorySwap"} <= changes.keys() for _, changes in bench.engine.updates)
    bench.agent.tell(time.monotonic() + reconciler.SETTLE)
    assert len(bench.engine.updates) == 2


def test_change_asks_nobody_but_the_kernel(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started and the engine is not called: that is what took the time."""

    def fail(*_: Any) -> None:
        raise AssertionError("not needed")

    for name in ("read", "write"):
        monkeypatch.setattr(links, name, fail)
    for name in ("clients", "inspect", "update"):
        monkeypatch.setattr(bench.engine, name, fail)
    assert bench.set(cpu=0.1, memory=700 << 20, pids=100)["clients"]["a"]["holds"]


@pytest.mark.parametrize("order", [(1.0, 2.0), (2.0, 1.0)])
def test_of_two_requests_at_once_the_later_wins(bench: Bench, order: tuple[float, float]) -> None:
    answers = [bench.set(stamp, cpu=stamp / 10, down=int(stamp * 1e6)) for stamp in order]
    assert (bench.held()["cpu"], bench.held()["down"]) == (0.2, 2_000_000)
    assert answers[1]["clients"]["a"]["superseded"] == (order == (2.0, 1.0))


def test_request_that_began_before_an_undo_comes_too_late(bench: Bench) -> None:
    bench.undo(5.0)
    assert bench.set(4.0, cpu=0.1)["clients"]["a"]["superseded"]
    assert bench.held()["cpu"] == 0.4


def test_time_that_is_over_brings_back_what_was_before(bench: Bench) -> None:
    bench.set(cpu=0.2)
    bench.set(2.0, cpu=0.1, duration=20.0)
    now = time.time()
    bench.tick(now + 19)
    assert bench.held()["cpu"] == 0.1
    bench.tick(now + 21)
    assert bench.held()["cpu"] == 0.2
    assert bench.events[-1]["cause"] == "expiry"


def test_time_runs_out_while_nobody_looks(bench: Bench) -> None:
    bench.set(cpu=0.1, duration=0.01)
    time.sleep(0.02)
    bench.agent = bench.start()
    bench.tick()
    assert bench.held()["cpu"] == 0.4


def test_link_is_shaped_again_after_a_restart(bench: Bench) -> None:
    bench.set(down=5_000_000)
    bench.engine.run("a", 900, "2")
    bench.tick()
    assert bench.held()["down"] == 5_000_000
    assert bench.links.state["veth900"]["down"] == 5_000_000
    assert [event["cause"] for event in bench.events[-2:]] == ["container restarted", "restart"]
    assert len(bench.events) == 4
    bench.tick()
    assert len(bench.events) == 4


def test_new_container_gets_what_was_asked_for(bench: Bench) -> None:
    bench.set(cpu=0.1)
    bench.engine.reset("a")
    bench.engine.started["a"] = "2"
    bench.tick()
    assert bench.held()["cpu"] == 0.1


def test_somebody_elses_change_is_mended(bench: Bench) -> None:
    bench.tick()
    bench.engine.update("a", {"CpuQuota": 5000})
    bench.tick()
    assert bench.held()["cpu"] == 0.4
    assert [(event["client"], event["cause"]) for event in bench.events] == [("a", "drift")]


def test_changed_baseline_reaches_those_of_whom_nothing_else_is_asked(bench: Bench) -> None:
    bench.set(clients=("a",), cpu=0.1)
    for name in ("a", "b"):
        bench.baseline(name, {**BASELINE, "cpu": 0.3, "pids": 300})
    bench.tick()
    assert (bench.held("a")["cpu"], bench.held("a")["pids"]) == (0.1, 300)
    assert (bench.held("b")["cpu"], bench.held("b")["pids"]) == (0.3, 300)
    bench.undo()
    assert bench.held("a")["cpu"] == 0.3


def test_client_that_does_not_run_gets_its_limits_when_it_starts(bench: Bench) -> None:
    bench.engine.run("a", 0)
    bench.tick()
    answer = bench.set(cpu=0.1)
    assert not answer["clients"]["a"]["running"]
    bench.engine.run("a", 950, "3")
    bench.tick()
    assert bench.held("a")["cpu"] == 0.1


def test_client_that_is_started_anew_while_it_is_changed_is_looked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that the engine named last has ended, and the agent has not heard of the new one yet."""
    monkeypatch.setattr(agent_module, "PAUSE", 0.01)
    read = bench.links.read

    def of_living(pid: int, device: str) -> links.Ways:
        if pid == 100 and bench.engine.started["a"] == "2":
            raise links.LinkError("no such process")
        return read(pid, device)

    monkeypatch.setattr(links, "read", of_living)
    bench.engine.run("a", 970, "2")
    answer = bench.set(down=5_000_000)
    assert answer["clients"]["a"]["holds"] and answer["clients"]["a"]["changed"]
    assert bench.links.state["veth970"]["down"] == 5_000_000


def test_client_that_left_leaves_no_file(bench: Bench) -> None:
    (bench.root / "clients" / "b.json").unlink()
    bench.tick()
    assert list(bench.agent.clients) == ["a"]
    assert [path.stem for path in (bench.root / "agent" / "limits").iterdir()] == ["a"]


def test_limits_that_cannot_be_set_are_not_tried_in_every_second(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.baseline("a", {**BASELINE, "cpu": 0.2})
    now = time.time()
    with monkeypatch.context() as patch:
        refuse(bench, patch, errno.EBUSY, "a")
        for seconds in (0, 1, 2):
            bench.tick(now + seconds)
    assert len(bench.events) == 1
    assert "busy" in bench.events[0]["problem"]
    bench.tick(now + 60)
    assert bench.held()["cpu"] == 0.2


def test_client_whose_engine_gives_it_no_control_group_says_so(bench: Bench) -> None:
    outside = paths_of("user.slice/session-2.scope", bench.engine.version)
    write(bench.engine.proc, {"100/cgroup": outside})
    client = bench.agent.answer({"do": "status"})["clients"]["a"]
    assert not client["holds"] and "session-2.scope" in client["problem"]
    assert bench.agent.answer({"do": "status"})["clients"]["b"]["problem"] is None


def test_each_restart_of_a_container_is_an_event_whatever_its_limits_are(bench: Bench) -> None:
    bench.tick()
    assert bench.events == []  # met for the first time
    bench.engine.run("a", 0)
    bench.tick()
    assert bench.events == []  # ended, and not started yet
    bench.engine.run("a", 900, "2")
    bench.tick()
    bench.tick()
    assert [(event["cause"], event["client"]) for event in bench.events] == [("container restarted", "a")]


def test_a_restart_while_no_agent_runs_is_an_event_too(bench: Bench) -> None:
    bench.tick()
    bench.engine.run("b", 900, "2")
    bench.agent = bench.start()
    bench.tick()
    bench.agent = bench.start()
    bench.tick()
    [event] = bench.events
    assert (event["cause"], event["client"]) == ("container restarted", "b")
    assert event["started"] == 2.25 and event["time"] > time.time() - 60  # when it was noticed


@pytest.mark.parametrize("anew", [False, True], ids=["going on", "started anew"])
def test_a_container_that_was_made_anew_has_not_restarted(bench: Bench, anew: bool) -> None:
    bench.tick()
    bench.engine.ids["a"] = "another"
    bench.engine.run("a", 900, "2")
    bench.agent = bench.start() if anew else bench.agent
    bench.tick()
    assert "container restarted" not in [event["cause"] for event in bench.events]
    bench.engine.run("a", 950, "3")
    bench.tick()
    assert [event["started"] for event in bench.events if event["cause"] == "container restarted"] == [3.25]


def test_kill_for_want_of_memory_is_an_event(bench: Bench) -> None:
    bench.tick()
    v1 = bench.engine.version == 1
    file = "memory/docker/a/memory.oom_control" if v1 else "docker/a/memory.events"
    (bench.engine.tree / file).write_text("oom_kill 2\n")
    bench.tick()
    assert [(event["cause"], event["client"], event["kills"]) for event in bench.events] == [("oom", "a", 2)]


def test_trace_is_followed_and_then_over(bench: Bench) -> None:
    now = time.time()
    rows = {"a": [{"seconds": 0, "cpu": 0.3}, {"seconds": 10, "cpu": 0.2, "online": False}]}
    trace = {"name": "t.csv", "rows": rows, "start": now, "length": 20.0, "speed": 1.0, "loop": False}
    assert bench.agent.answer({"do": "trace", "stamp": now, **trace})["clients"]["a"]["changed"]
    bench.tick(now + 1)
    assert bench.held()["cpu"] == 0.3
    bench.agent = bench.start()  # a crash in between
    bench.tick(now + 11)
    assert (bench.held()["cpu"], bench.held()["online"]) == (0.2, False)
    assert bench.held("b")["cpu"] == 0.4
    played = [event for event in bench.events if event["cause"] == "trace"]
    assert [round(event["planned"] - now) for event in played] == [0, 10]
    bench.tick(now + 21)
    bench.tick(now + 22)
    assert (bench.held()["cpu"], bench.held()["online"]) == (0.4, True)
    assert bench.agent.replay is None
    assert not (bench.root / "agent" / "trace.json").exists()


def test_undo_ends_a_trace(bench: Bench) -> None:
    now = time.time()
    rows = {"a": [{"seconds": 0, "cpu": 0.3}]}
    trace = {"name": "t.csv", "rows": rows, "start": now, "length": 99.0, "speed": 1.0, "loop": True}
    bench.agent.answer({"do": "trace", "stamp": now, **trace})
    bench.tick(now + 1)
    bench.undo(now + 1)
    bench.tick(now + 2)
    assert bench.held()["cpu"] == 0.4


def test_measurement_is_a_difference_of_counters() -> None:
    before = {"time": 5.0, "cpu": 1.0, "periods": 10, "throttled": 1, "received": 100, "sent": 0}
    after = {"time": 15.0, "cpu": 2.0, "periods": 110, "throttled": 51, "received": 1350, "sent": 2500}
    assert measured(before, after) == {
        **{"seconds": 10.0, "cpu": 0.1, "throttled_share": 0.5, "down": 1000.0, "up": 2000.0}
    }


def play(bench: Bench, stamp: float, *names: str, **row: Any) -> dict[str, Any]:
    """Ask for an endless trace of one row."""
    rows = {name: [{"seconds": 0, **row}] for name in names}
    how = {"name": "t.csv", "start": time.time() - 1, "length": 99.0, "speed": 1.0, "loop": True}
    return bench.agent.answer({"do": "trace", "stamp": stamp, "rows": rows, **how})


def test_what_a_trace_sets_cannot_be_set_meanwhile(bench: Bench) -> None:
    """It would not hold; what the trace leaves alone can be set."""
    play(bench, 1.0, "a", cpu=0.3)
    bench.tick()
    answer = bench.set(stamp=2.0, cpu=0.1)
    assert list(answer["refused"]) == ["a"]
    assert "the trace t.csv sets its cpu" in answer["refused"]["a"][0]
    assert [bench.held(name)["cpu"] for name in ("a", "b")] == [0.3, 0.4]
    assert bench.set(stamp=3.0, pids=100)["clients"]["a"]["holds"]


def test_undo_for_one_client_leaves_the_others_their_trace(bench: Bench) -> None:
    play(bench, 1.0, "a", "b", cpu=0.3)
    bench.tick()
    bench.agent.answer({"do": "undo", "stamp": 2.0, "clients": ["a"]})
    bench.tick()
    assert [bench.held(name)["cpu"] for name in ("a", "b")] == [0.4, 0.3]
    bench.agent = bench.start()
    bench.tick()
    assert [bench.held(name)["cpu"] for name in ("a", "b")] == [0.4, 0.3]


def test_a_second_trace_does_not_end_the_first_for_others(bench: Bench) -> None:
    play(bench, 1.0, "a", cpu=0.3)
    assert "is being played for a" in play(bench, 2.0, "b", cpu=0.2)["refused"]["b"][0]
    assert "refused" not in play(bench, 3.0, "a", "b", cpu=0.2)


def test_of_an_undo_and_a_trace_at_once_the_later_wins(bench: Bench) -> None:
    """Whichever reaches the machine first."""
    bench.undo(stamp=5.0)
    answer = play(bench, 4.0, "a", cpu=0.3)["clients"]["a"]
    assert (answer["changed"], answer["superseded"]) == (False, True)
    assert play(bench, 6.0, "a", cpu=0.3)["clients"]["a"]["changed"]
    bench.undo(stamp=5.5)
    bench.tick()
    assert bench.held()["cpu"] == 0.3


def test_torn_line_of_events_costs_only_itself(bench: Bench) -> None:
    with (bench.root / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "cli')
    bench.set(cpu=0.1)
    answer = bench.agent.answer({"do": "events", "since": "2020-01-01T00:00:00+00:00"})
    assert [event["cause"] for event in answer["events"]] == ["throttle", "throttle"]


def test_events_are_bounded_and_the_recent_ones_are_all_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays the same one: the container exporter has it mounted."""
    path = bench.root / "events.jsonl"
    bench.set(cpu=0.1)
    inode = path.stat().st_ino
    monkeypatch.setattr(reconciler, "EVENTS_BYTES", 4000)
    for number in range(400):
        bench.agent.log({"time": 1e9 + number, "client": "a", "cause": "oom", "kills": number})
    assert path.stat().st_ino == inode
    assert sum(file.stat().st_size for file in bench.root.rglob("events.jsonl*")) < 3 * 4000
    answer = bench.agent.answer({"do": "events", "since": "2001-09-09T01:53:00+00:00"})
    assert [event["kills"] for event in answer["events"]] == list(range(380, 400))


def test_shape_that_could_not_be_taken_away_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    bench.set(down=10_000_000, duration=5.0)

    def fail(*_: Any) -> None:
        raise links.LinkError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(links, "write", fail)
        bench.tick(now + 10)
    assert bench.held()["down"] == 10_000_000
    bench.agent.looked = 0.0
    bench.tick(now + 10 + reconciler.RETRY + 1)
    assert bench.held()["down"] is None


def test_agent_that_starts_anew_still_knows_the_link(bench: Bench) -> None:
    """The exporter reads it from the file."""
    bench.set(down=10_000_000)
    bench.agent = bench.start()
    kept = json.loads((bench.root / "agent" / "limits" / "a.json").read_text())
    assert kept["link"]["down"] == 10_000_000


def test_limits_of_a_client_that_left_while_no_agent_ran_are_forgotten(bench: Bench) -> None:
    bench.set(cpu=0.1)
    (bench.root / "clients" / "b.json").unlink()
    bench.agent = bench.start()
    bench.baseline("b", BASELINE)
    bench.tick()
    assert [bench.held(name)["cpu"] for name in ("a", "b")] == [0.1, 0.4]


def test_limit_ends_on_a_full_disk_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    bench.set(cpu=0.1, duration=5.0)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reconciler, "write_json", fail)
        bench.tick(now + 10)
    assert bench.held()["cpu"] == 0.4


def test_limit_ends_though_the_engine_does_not_answer_and_the_disk_is_full(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.set(cpu=0.1, duration=0.05)
    bench.baseline("a", BASELINE | {"pids": 300})  # a changed file has to be noted
    stop = threading.Event()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def silent() -> None:
        raise EngineError("no answer")

    time.sleep(0.1)
    bench.agent.stale = True
    with monkeypatch.context() as patch:
        patch.setattr(reconciler, "write_json", fail)
        patch.setattr(bench.engine, "clients", silent)
        patch.setattr(bench.agent.wake, "wait", lambda _seconds: stop.set())
        bench.agent.keep(stop)
    assert bench.held()["cpu"] == 0.4


def test_shape_that_a_killed_agent_has_left_is_known_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*arguments: Any) -> None:
        bench.links.write(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(links, "write", killed)
        with pytest.raises(Killed):
            bench.set(down=10_000_000, clients=("a",))
    bench.agent = bench.start()
    assert bench.undo()["clients"]["a"]["holds"]
    assert bench.held()["down"] is None


def test_full_disk_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be remembered is not done, and the next request finds the agent alive."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reconciler, "write_json", fail)
        answer = bench.set(cpu=0.1)
    assert "No space left" in answer["clients"]["a"]["problem"]
    assert bench.held()["cpu"] == 0.4
    assert bench.set(stamp=2.0, cpu=0.1)["clients"]["a"]["holds"]


def test_a_proof_under_load_burns_in_the_clients_that_run_for_its_time_only(bench: Bench) -> None:
    bench.engine.pids["b"] = 0
    bench.agent.stale = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "counters", lambda _: (0, 0))
        patch.setattr("coldframe.agent.service.time.sleep", lambda _: None)
        bench.agent.answer({"do": "prove", "clients": ["a", "b"], "seconds": 2.5})
        assert bench.engine.executed == []
        bench.agent.answer({"do": "prove", "clients": ["a", "b"], "seconds": 2.5, "load": True})
    [(container, command)] = bench.engine.executed
    assert container == "a"
    assert command[:4] == ["timeout", "-s", "KILL", "4"]


def test_proof_names_who_does_not_run_and_who_was_restarted(bench: Bench) -> None:
    bench.engine.run("b", 0)
    bench.agent.stale = True

    def restart(_: float) -> None:
        bench.engine.run("a", 990)
        bench.agent.stale = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "counters", lambda _: (0, 0))
        patch.setattr("coldframe.agent.service.time.sleep", restart)
        answer = bench.agent.answer({"do": "prove", "clients": ["a", "b"], "seconds": 1})
    found = {name: proof.get("problem") for name, proof in answer["clients"].items()}
    assert found == {"a": "restarted meanwhile", "b": "does not run"}
