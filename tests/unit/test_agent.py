"""The agent brings files and kernel into agreement; here the kernel is a directory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from coldframe import agent as agent_module
from coldframe import limits, links
from coldframe.agent import Agent, measured
from coldframe.engine import EngineError

BASELINE = {"cpu": 0.4, "memory": 1 << 30, "pids": 256}
V1 = {
    "cpu": {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "40000",
        "cpu.stat": "nr_periods 0\nnr_throttled 0",
    },
    "cpuacct": {"cpuacct.usage": "0"},
    "memory": {
        "memory.limit_in_bytes": str(1 << 30),
        "memory.usage_in_bytes": str(300 << 20),
        "memory.stat": "",
    },
    "pids": {"pids.max": "256", "pids.current": "40"},
}
V2 = {
    "": {
        **{"cpu.max": "40000 100000", "cpu.stat": "usage_usec 0\nnr_periods 0\nnr_throttled 0"},
        **{"memory.max": str(1 << 30), "memory.current": str(300 << 20), "memory.stat": ""},
        **{"pids.max": "256", "pids.current": "40"},
    }
}


class Engine:
    """Stands for Docker: its updates reach the files of the control group, of either version."""

    def __init__(self, tree: Path, version: int, names: list[str]) -> None:
        self.tree, self.version = tree, version
        self.pids = {name: 100 + index for index, name in enumerate(names)}
        self.started = dict.fromkeys(names, "1")
        self.updates: list[tuple[str, dict[str, int]]] = []
        self.broken: set[str] = set()
        if version == 2:
            (tree / "cgroup.controllers").parent.mkdir(parents=True, exist_ok=True)
            (tree / "cgroup.controllers").write_text("cpu memory pids")
        for name in names:
            self.reset(name)

    def reset(self, name: str) -> None:
        """Make the control group of a container that has just been made."""
        for controller, files in (V1 if self.version == 1 else V2).items():
            folder = self.tree / controller / "docker" / name
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (folder / file).write_text(text)

    def clients(self) -> dict[str, str]:
        """Names are ids here."""
        return {name: name for name in self.pids}

    def inspect(self, container_id: str) -> dict[str, Any]:
        """What the agent reads of it."""
        pid = self.pids[container_id]
        return {
            "Id": container_id,
            "State": {"Pid": pid, "Running": pid > 0, "StartedAt": self.started[container_id]},
        }

    def update(self, container_id: str, changes: dict[str, int]) -> None:
        """Write what the kernel would hold."""
        if container_id in self.broken:
            raise EngineError("device or resource busy")
        self.updates.append((container_id, changes))
        if self.version == 1:
            files = {
                **{"CpuQuota": "cpu/docker/{}/cpu.cfs_quota_us", "PidsLimit": "pids/docker/{}/pids.max"},
                "Memory": "memory/docker/{}/memory.limit_in_bytes",
            }
        else:
            files = {
                **{"CpuQuota": "docker/{}/cpu.max", "PidsLimit": "docker/{}/pids.max"},
                "Memory": "docker/{}/memory.max",
            }
        for key, path in files.items():
            if key in changes:
                value = f"{changes[key]} 100000" if path.endswith("cpu.max") else str(changes[key])
                (self.tree / path.format(container_id)).write_text(value)


class Links:
    """Stands for tc: what is written is what is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state: dict[str, dict[str, Any]] = {}
        monkeypatch.setattr(links, "device_of", lambda pid: f"veth{pid}")
        monkeypatch.setattr(links, "read", self.read)
        monkeypatch.setattr(links, "write", self.write)
        monkeypatch.setattr(links, "online", lambda device: self.state.get(device, {}).get("online", True))
        monkeypatch.setattr(links, "has_netem", lambda: False)

    def read(self, pid: int, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
        wanted = self.state.get(device, {})
        down, up = (limits.one_way(wanted, way) | {"kinds": ()} for way in ("down", "up"))
        return down, up

    def write(self, pid: int, device: str, wanted: dict[str, Any]) -> None:
        self.state[device] = dict(wanted)


class Bench:
    """An agent with two clients, and what stands around it."""

    def __init__(self, root: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "federation"
        (self.root / "clients").mkdir(parents=True)
        for name in ("a", "b"):
            self.baseline(name, BASELINE)
        self.engine = Engine(root / "cgroup", version, ["a", "b"])
        self.links = Links(monkeypatch)
        self.agent = self.start()

    def start(self) -> Agent:
        """Start an agent anew, as after a crash."""
        agent = Agent(self.root, self.engine, self.root.parent / "cgroup")  # type: ignore[arg-type]
        agent.refresh()
        return agent

    def baseline(self, name: str, values: dict[str, Any]) -> None:
        """What the deployment writes."""
        path = self.root / "clients" / f"{name}.json"
        path.write_text(json.dumps({"name": name, "partition_id": 0, "baseline": values}))

    def set(self, stamp: float = 1.0, clients: tuple[str, ...] = ("a", "b"), **more: Any) -> dict[str, Any]:
        """Ask for limits."""
        options = {key: more.pop(key) for key in ("duration", "force", "check") if key in more}
        return self.agent.answer(
            {"do": "set", "stamp": stamp, "limits": dict.fromkeys(clients, more), **options}
        )

    def undo(self, stamp: float = 9.0, check: bool = False) -> dict[str, Any]:
        """Ask for the baseline."""
        return self.agent.answer({"do": "undo", "stamp": stamp, "clients": ["a", "b"], "check": check})

    def held(self, name: str = "a") -> limits.Limits:
        """What the kernel holds."""
        found = self.agent.read(self.agent.clients[name])
        assert found is not None
        return found

    def tick(self, now: float | None = None) -> None:
        """Let the agent look around once."""
        self.agent.stale = True
        self.agent.refresh()
        self.agent.tick(time.time() if now is None else now)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events."""
        path = self.root / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
    before = len(bench.engine.updates)
    answer = bench.set(2.0, cpu=0.1)
    assert not any(client["changed"] for client in answer["clients"].values())
    assert len(bench.engine.updates) == before
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


def test_client_that_the_engine_refuses_keeps_what_it_had(bench: Bench) -> None:
    bench.engine.broken.add("b")
    answer = bench.set(cpu=0.1)
    assert answer["clients"]["a"]["holds"]
    assert answer["clients"]["b"]["problem"] == "device or resource busy"
    bench.engine.broken.clear()
    bench.tick()
    assert bench.held("b")["cpu"] == 0.4
    assert bench.agent.clients["b"].asked == {}


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
    bench.engine.pids["a"], bench.engine.started["a"] = 900, "2"
    bench.tick()
    assert bench.held()["down"] == 5_000_000
    assert bench.links.state["veth900"]["down"] == 5_000_000
    assert bench.events[-1]["cause"] == "restart"
    assert len(bench.events) == 3
    bench.tick()
    assert len(bench.events) == 3


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
    bench.engine.pids["a"] = 0
    bench.tick()
    answer = bench.set(cpu=0.1)
    assert not answer["clients"]["a"]["running"]
    bench.engine.pids["a"], bench.engine.started["a"] = 950, "3"
    bench.tick()
    assert bench.held("a")["cpu"] == 0.1


def test_client_that_is_started_anew_while_it_is_changed_is_looked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that the engine named last has ended, and the agent has not heard of the new one yet."""
    monkeypatch.setattr(agent_module, "PAUSE", 0.01)
    read = bench.links.read

    def of_living(pid: int, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if pid == 100 and bench.engine.started["a"] == "2":
            raise links.LinkError("no such process")
        return read(pid, device)

    monkeypatch.setattr(links, "read", of_living)
    bench.engine.pids["a"], bench.engine.started["a"] = 970, "2"
    answer = bench.set(down=5_000_000)
    assert answer["clients"]["a"]["holds"] and answer["clients"]["a"]["changed"]
    assert bench.links.state["veth970"]["down"] == 5_000_000


def test_client_that_left_leaves_no_file(bench: Bench) -> None:
    (bench.root / "clients" / "b.json").unlink()
    bench.tick()
    assert list(bench.agent.clients) == ["a"]
    assert [path.stem for path in (bench.root / "agent" / "limits").iterdir()] == ["a"]


def test_limits_that_cannot_be_set_are_not_tried_in_every_second(bench: Bench) -> None:
    bench.baseline("a", {**BASELINE, "cpu": 0.2})
    bench.engine.broken.add("a")
    now = time.time()
    for seconds in (0, 1, 2):
        bench.tick(now + seconds)
    assert len(bench.events) == 1
    assert "busy" in bench.events[0]["problem"]
    bench.engine.broken.clear()
    bench.tick(now + 60)
    assert bench.held()["cpu"] == 0.2


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


def test_agent_says_how_many_cores_there_are() -> None:
    assert agent_module.cores() >= 1
