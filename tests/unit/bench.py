"""An agent with all that stands around it: the engine, the kernel's control groups as a directory, and tc."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from coldframe import limits
from coldframe.agent import links
from coldframe.agent.engine import EngineError
from coldframe.agent.service import Agent
from tests.unit.trees import mountinfo, paths_of, write

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
    """Stands for Docker: what it is told it remembers, and it reaches the files of the control group, of
    either version."""

    def __init__(self, tree: Path, proc: Path, version: int, names: list[str]) -> None:
        self.tree, self.proc, self.version = tree, proc, version
        self.pids = {name: 100 + index for index, name in enumerate(names)}
        self.started = dict.fromkeys(names, "1")
        self.ids: dict[str, str] = {}  # of containers that were made anew
        self.paused: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.updates: list[tuple[str, dict[str, int]]] = []
        self.executed: list[tuple[str, list[str]]] = []
        self.known: dict[str, dict[str, int]] = {}
        self.broken: set[str] = set()
        if version == 2:
            (tree / "cgroup.controllers").parent.mkdir(parents=True, exist_ok=True)
            (tree / "cgroup.controllers").write_text("cpu memory pids")
        write(proc, {"self/mountinfo": mountinfo(tree, V1 if version == 1 else ())})
        for name in names:
            self.reset(name)

    def reset(self, name: str) -> None:
        """Make the control group of a container that has just been made."""
        self.known[name] = {"CpuPeriod": 100_000, "CpuQuota": 40_000, "Memory": 1 << 30, "PidsLimit": 256}
        for controller, files in (V1 if self.version == 1 else V2).items():
            folder = self.tree / controller / "docker" / name
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (folder / file).write_text(text)
        self.run(name, self.pids[name])

    def run(self, name: str, pid: int, started: str = "1") -> None:
        """Let a container's main process be another one, or none; `started` is in unix seconds."""
        ended, self.pids[name], self.started[name] = self.pids[name], pid, started
        shutil.rmtree(self.proc / str(ended), ignore_errors=True)
        if pid:
            group = f"docker/{name}"
            write(self.proc, {f"{pid}/cgroup": paths_of(group, self.version), f"{pid}/cmdline": "python3"})

    def clients(self) -> dict[str, str]:
        """Names are ids here."""
        return {name: name for name in self.pids}

    def inspect(self, container_id: str) -> dict[str, Any]:
        """What the agent reads of it."""
        pid, at = self.pids[container_id], datetime.fromtimestamp(int(self.started[container_id]), UTC)
        return {
            "Id": self.ids.get(container_id, container_id),
            "State": {
                **{"Pid": pid, "Running": pid > 0, "StartedAt": f"{at:%Y-%m-%dT%H:%M:%S}.250000000Z"},
                "Paused": container_id in self.paused,
            },
            "HostConfig": dict(self.known[container_id]),
        }

    def execute(self, container_id: str, command: list[str]) -> None:
        """Note what was started where."""
        self.executed.append((container_id, command))

    def _call(self, action: str, container_id: str) -> None:
        if container_id in self.broken:
            raise EngineError("context deadline exceeded")
        self.calls.append((action, container_id))

    def pause(self, container_id: str) -> None:
        """Have it stand still."""
        self._call("pause", container_id)
        assert self.pids[container_id] and container_id not in self.paused
        self.paused.add(container_id)

    def unpause(self, container_id: str) -> None:
        """Let it go on."""
        self._call("unpause", container_id)
        self.paused.remove(container_id)

    def kill(self, container_id: str) -> None:
        """End it; as with Docker, it stays so."""
        self._call("kill", container_id)
        self.run(container_id, 0)

    def stop(self, container_id: str) -> None:
        """The same, gently."""
        self._call("stop", container_id)
        self.run(container_id, 0)

    def start(self, container_id: str) -> None:
        """Start it: another process."""
        self._call("start", container_id)
        self.run(container_id, 500 + len(self.calls), str(len(self.calls)))

    def update(self, container_id: str, changes: dict[str, int]) -> None:
        """Write what the kernel would hold: all that is known, as Docker does."""
        if container_id in self.broken:
            raise EngineError("device or resource busy")
        self.updates.append((container_id, changes))
        known = self.known[container_id]
        known |= changes
        quota, memory, pids = known["CpuQuota"], known["Memory"], known["PidsLimit"]
        self.file(container_id, "cpu").write_text(str(quota) if self.version == 1 else f"{quota} 100000")
        self.file(container_id, "memory").write_text(str(memory))
        self.file(container_id, "pids").write_text(str(pids))

    def file(self, container_id: str, limit: str) -> Path:
        """The file of a limit."""
        v1 = {"cpu": "cpu.cfs_quota_us", "memory": "memory.limit_in_bytes", "pids": "pids.max"}
        v2 = {"cpu": "cpu.max", "memory": "memory.max", "pids": "pids.max"}
        if self.version == 1:
            return self.tree / limit / "docker" / container_id / v1[limit]
        return self.tree / "docker" / container_id / v2[limit]


class Links:
    """Stands for tc: what is written is what is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state: dict[str, dict[str, Any]] = {}
        monkeypatch.setattr(links, "device_of", lambda pid: f"veth{pid}")
        monkeypatch.setattr(links, "read", self.read)
        monkeypatch.setattr(links, "write", self.write)
        monkeypatch.setattr(links, "online", lambda device: self.state.get(device, {}).get("online", True))
        monkeypatch.setattr(links, "has_netem", lambda: False)

    def read(self, pid: int, device: str) -> links.Ways:
        wanted = self.state.get(device, {})
        down, up = (limits.one_way(wanted, way) | {"kinds": ()} for way in ("down", "up"))
        return down, up

    def write(self, pid: int, device: str, wanted: dict[str, Any], ways: links.Ways) -> links.Ways:
        assert ways == self.read(pid, device)
        self.state[device] = dict(wanted)
        return self.read(pid, device)


class Bench:
    """An agent with two clients, and what stands around it."""

    def __init__(self, root: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "federation"
        (self.root / "clients").mkdir(parents=True)
        for name in ("a", "b"):
            self.baseline(name, BASELINE)
            (self.root / "scratch" / name).mkdir(parents=True)
        self.engine = Engine(root / "cgroup", root / "proc", version, ["a", "b"])
        self.links = Links(monkeypatch)
        self.agent = self.start()

    def start(self) -> Agent:
        """Start an agent anew, as after a crash."""
        tree, proc = self.engine.tree, self.engine.proc
        agent = Agent(self.root, self.engine, tree, proc)  # type: ignore[arg-type]
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
