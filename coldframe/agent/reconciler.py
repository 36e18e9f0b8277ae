"""Brings files and kernel into agreement: what is asked for, what holds, and what has happened.

clients/<name>.json        written by the deployment, read here: who the client is, and its baseline
agent/limits/<name>.json   written here: what is asked for beyond the baseline, and until when
agent/trace.json           written here: the trace that is being replayed
events.jsonl               appended here: every change with what was asked for and what the kernel says
agent/events.jsonl         the events before those, once there were too many
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from coldframe import cgroups, limits
from coldframe.agent import links
from coldframe.agent.engine import Engine, EngineError
from coldframe.agent.replay import Replay

TICK = 1.0  # seconds between two looks at the kernel
LOOK = 30.0  # seconds between two looks at the engine and at tc, if no event came
RETRY = 30.0  # seconds until limits that could not be set are tried again
EVENTS_BYTES = 4 << 20  # of events.jsonl, some 15,000 events; as many of the earlier ones are kept
SETTLE = 2.0  # seconds from a change until the engine is told of it: 20 ms of a core for each client
WORKERS = 4  # most of a change is waiting for the disk
REFUSALS = (EngineError, links.LinkError, OSError)  # of a change
RESTARTED = "container restarted"  # cause of the event of a client that was started again
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # control groups that only the engine may write to


@dataclass
class Container:
    """A client's container as the engine last said."""

    id: str
    pid: int = 0  # 0: it does not run
    started: str = ""
    device: str = ""  # the machine's end of its link
    told: limits.Limits = field(default_factory=dict)  # with which the engine would start it


@dataclass
class Client:
    """A client of this machine.

    Attributes
    ----------
    identity : dict
        Its file as the deployment wrote it.
    asked : limits.Asked
        What is asked for beyond the baseline.
    undone : float
        Stamp of the newest undo.
    shaped : bool
        Whether anything of ours may stand on its link.
    started : str
        When its container was last started, as the engine says it; empty where it was never seen to run.
    ran : str
        The id of that container: a start of another one, which the deployment has made, is no restart.
    oom_kills : int
        The kernel's count of processes killed for want of memory, as last seen.
    failed : tuple
        The limits that could not be set, and the unix time at which they are tried again.
    problem : str
        Why they could not.
    link : dict
        What tc said of its link when it was last asked; the exporter, which may not ask, reads it.
    link_pid : int
        The container's main process at that time: another one has another link.
    ways : tuple
        The same as `links.read` says it.
    tell_at : float
        When the engine is to be told of a change, by the monotonic clock.
    telling : threading.Lock
        Held while the engine is told: what it writes to the kernel then is what holds.
    laid : dict
        By client, the limits that a scenario lays over all others: the keeper's, shared by all clients.
    """

    identity: dict[str, Any]
    asked: limits.Asked
    undone: float = 0.0
    shaped: bool = False
    container: Container | None = None
    overlay: dict[str, Any] | None = None
    planned: float | None = None
    oom_kills: int | None = None
    cause: str = "start"
    started: str = ""
    ran: str = ""
    failed: tuple[dict[str, Any], float] | None = None
    problem: str | None = None
    link: limits.Limits | None = None
    link_pid: int = 0
    ways: links.Ways | None = None
    tell_at: float = 0.0
    telling: threading.Lock = field(default_factory=threading.Lock)
    laid: dict[str, limits.Limits] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.identity["name"])

    @property
    def desired(self) -> limits.Limits:
        """The limits that shall hold now."""
        return limits.desired(self.identity["baseline"], self.asked, self.over)

    @property
    def over(self) -> limits.Limits:
        """What a trace and a scenario lay over the limits that are asked for."""
        return {**(self.overlay or {}), **self.laid.get(self.name, {})}

    @property
    def running(self) -> bool:
        """Whether its container runs."""
        return self.container is not None and self.container.pid > 0


def write_json(path: Path, content: Any) -> None:
    """Replace a file in one step: a reader finds the old or the new one, never half of it."""
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        json.dump(content, file, indent=1)
        os.fchmod(file.fileno(), 0o644)  # the exporter, a user of no rights, reads it
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class Keeper:
    """Brings files and kernel into agreement, for all clients of a machine at once.

    Parameters
    ----------
    root : Path
        The federation's directory.
    tree, proc : Path
        The machine's `/sys/fs/cgroup` and `/proc`.
    """

    def __init__(
        self, root: Path, engine: Engine, tree: Path = cgroups.ROOT, proc: Path = Path("/proc")
    ) -> None:
        self.root, self.engine = root, engine
        self.hierarchies = cgroups.mounted(tree, proc)
        self.own = root / "agent"
        self.lock = threading.RLock()  # whoever holds it is the one writer
        self.log_lock = threading.Lock()
        self.wake = threading.Event()
        self.pool = ThreadPoolExecutor(WORKERS)
        self.clients: dict[str, Client] = {}
        self.laid: dict[str, limits.Limits] = {}  # by client, what a scenario lays over its limits
        self.versions: dict[str, int] = {}
        self.stale = True  # the engine has to be asked again
        self.looked = 0.0
        self.replay: Replay | None = None
        self.trace_name, self.trace_stamp = "", 0.0
        (self.own / "limits").mkdir(parents=True, exist_ok=True)
        self._load_trace()

    # --- what is known ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the deployment's files if they have changed, ask the engine if something has happened."""
        versions = {path.stem: path.stat().st_mtime_ns for path in (self.root / "clients").glob("*.json")}
        if versions != self.versions:
            self._load(versions)
        if self.stale or time.monotonic() - self.looked > LOOK:
            self.stale = False
            self.looked = time.monotonic()
            self._look()

    def _load(self, versions: dict[str, int]) -> None:
        for name in [name for name in self.clients if name not in versions]:
            del self.clients[name]
        # Also those of a client that left while no agent ran: it may come back, and begins at its baseline.
        for path in (self.own / "limits").glob("*.json"):
            if path.stem not in versions:
                path.unlink(missing_ok=True)
        for name, version in versions.items():
            if self.versions.get(name) == version:
                continue
            identity = json.loads((self.root / "clients" / f"{name}.json").read_text())
            known = self.clients.get(name)
            if known:
                known.cause = (
                    "inventory" if known.identity["baseline"] != identity["baseline"] else known.cause
                )
                known.identity = identity
                self._keep(known)
            else:
                self.clients[name] = self._restore(name, identity)
        self.versions = versions
        self.stale = True

    def _restore(self, name: str, identity: dict[str, Any]) -> Client:
        path = self.own / "limits" / f"{name}.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        client = Client(identity, kept.get("asked", {}), kept.get("undone", 0.0), kept.get("shaped", False))
        client.laid = self.laid
        client.link, client.link_pid = kept.get("link"), kept.get("link_pid", 0)
        client.started, client.ran = kept.get("started", ""), kept.get("ran", "")
        self._keep(client)
        return client

    def _save(self, client: Client) -> None:
        write_json(
            self.own / "limits" / f"{client.name}.json",
            {
                "name": client.name,
                "asked": client.asked,
                "undone": client.undone,
                "shaped": client.shaped,
                "desired": client.desired,
                "link": client.link,
                "link_pid": client.link_pid,
                "revert_at": limits.next_expiry(client.asked),
                "container_id": client.container and client.container.id,
                "started": client.started,
                "ran": client.ran,
            },
        )

    def _keep(self, client: Client) -> None:
        """Save what has happened by itself: that a disk is full must not keep limits from ending."""
        try:
            self._save(client)
        except OSError as error:
            say(f"what {client.name} is limited to is not recorded: {error}")

    def _look(self) -> None:
        ids = self.engine.clients()
        known = [client for client in self.clients.values() if client.name in ids]
        for client in self.clients.values():
            if client.name not in ids:
                client.container = None
        described = self.pool.map(lambda client: self.engine.inspect(ids[client.name]), known)
        for client, item in zip(known, described, strict=True):
            state, told = item["State"], limits.engine_limits(item["HostConfig"])
            pid = state["Pid"] if state["Running"] else 0
            old = client.container
            if old and (old.id, old.pid, old.started) == (item["Id"], pid, state["StartedAt"]):
                old.told = told
                continue
            client.container = Container(item["Id"], pid, state["StartedAt"], told=told)
            client.cause = "restart" if old else client.cause
            client.failed, client.problem, client.oom_kills = None, None, None
            if pid:
                if client.ran == item["Id"] and client.started not in ("", state["StartedAt"]):
                    self._log_restart(client, state["StartedAt"])
                client.ran, client.started = item["Id"], state["StartedAt"]
            self._keep(client)

    def _log_restart(self, client: Client, started: str) -> None:
        """Record a restart with the time of it, which may be long ago, and by which an event that is repeated
        is known: who dies before the state is kept records it again."""
        moment = datetime.fromisoformat(started).timestamp()
        self.log({"time": time.time(), "client": client.name, "cause": RESTARTED, "started": moment})

    # --- the kernel ---------------------------------------------------------------------------------------

    def group(self, client: Client) -> cgroups.Cgroup | None:
        """Return the control group of a client that runs."""
        if client.container is None or not client.running:
            return None
        return self.hierarchies.of_container(client.container.id, client.container.pid)

    def no_group(self, client: Client) -> str | None:
        """Say why a client that runs has no control group, which no limit of its can do without."""
        if client.container is None or not client.running or self.group(client):
            return None
        return self.hierarchies.why_none(client.container.id, client.container.pid)

    def device(self, client: Client) -> str:
        """Return the machine's end of a running client's link."""
        assert client.container is not None
        if not client.container.device:
            client.container.device = links.device_of(client.container.pid)
        return client.container.device

    def read(self, client: Client, network: bool = True) -> limits.Limits | None:
        """Return the limits that the kernel holds for a client, or None where it does not run."""
        group = self.group(client)
        if group is None or client.container is None:
            return None
        found: limits.Limits = {
            "cpu": group.cpu_limit(),
            "memory": group.hard_memory_limit(),
            "pids": group.pids_limit(),
        }
        if network:
            try:
                device = self.device(client)
                found |= self._note(client, device, links.read(client.container.pid, device))
            except links.LinkError:
                self.stale = True
                return None  # it has just ended
        return found

    @staticmethod
    def _note(client: Client, device: str, ways: links.Ways) -> limits.Limits:
        link = limits.both_ways(*ways)
        link["online"] = links.online(device)
        client.ways, client.link = ways, link
        client.link_pid = client.container.pid if client.container else 0
        return link

    def use(self, client: Client) -> dict[str, Any]:
        """Return what a client uses: bytes, seconds, shares, counts."""
        group = self.group(client)
        if group is None:
            return {}
        periods, throttled = group.cpu_periods()
        return {
            "memory": group.working_set(),
            "memory_peak": group.memory_peak(),
            "pids": group.pids_current(),
            "cpu_seconds": group.cpu_usage_seconds(),
            "throttled_share": throttled / periods if periods else 0.0,
            "oom_kills": group.oom_kills(),
        }

    def apply(self, client: Client, network: bool, held: limits.Limits | None = None) -> limits.Limits | None:
        """Make the kernel hold what is desired of a running client, and return what it holds then.

        Parameters
        ----------
        held : dict, optional
            What it holds now, where that has just been read.
        """
        held = held or self.read(client, network)
        group = self.group(client)
        if held is None or group is None or client.container is None:
            return None
        wanted = client.desired
        wrong = limits.differences(wanted if network else without_network(wanted), held)
        if not wrong:
            return held
        client.tell_at = time.monotonic() + SETTLE
        with client.telling:
            if not self._write_group(client, group, wrong):
                return None
        if not any(key in wrong for key in (*limits.SHAPING, "online")):
            return {**held, **(self.read(client, network=False) or {})}
        if not client.shaped:
            client.shaped = True
            self._keep(client)  # first: who comes after a crash has to know that there is something
        device = self.device(client)
        ways = links.write(client.container.pid, device, wanted, client.ways or links.NOTHING)
        link = self._note(client, device, ways)
        found = self.read(client, network=False)
        return None if found is None else found | link

    def _write_group(self, client: Client, group: cgroups.Cgroup, wrong: limits.Limits) -> bool:
        """Write limits to the control group; whether it is still there."""
        # Not through the engine: for that it starts a process, 20 ms of a core. It is told later.
        write = {
            "cpu": lambda cpu: group.set_cpu_limit(cpu, limits.PERIOD),
            "memory": group.set_memory_limit,
            "pids": group.set_pids_limit,
        }
        for key in limits.CONTROL_GROUP:
            if key not in wrong:
                continue
            try:
                write[key](wrong[key])
            except OSError as error:
                if error.errno in NOT_OURS:
                    assert client.container is not None
                    self.engine.update(
                        client.container.id, limits.engine_update(self._to_tell(client, wrong))
                    )
                    client.container.told |= without_network(client.desired)
                    return True
                if error.errno in (errno.ENOENT, errno.ENODEV):
                    self.stale = True
                    return False  # it has just ended
                raise OSError(
                    error.errno, f"the kernel refuses {key}={wrong[key]}: {error.strerror}"
                ) from error
        return True

    def tell(self, now: float) -> None:
        """Tell the engine of changes that have settled: with these limits it would start the clients anew,
        and these it shows."""
        for client in list(self.clients.values()):
            with self.lock:  # so no change is under way
                container = client.container
                if container is None or now < client.tell_at:
                    continue
                wrong = limits.differences(without_network(client.desired), container.told)
                if not wrong:
                    continue
                client.telling.acquire()
            try:
                self.engine.update(container.id, limits.engine_update(self._to_tell(client, wrong)))
                container.told = {**container.told, **wrong}
            except EngineError as error:
                say(f"the engine is not told of {client.name}'s limits: {error}")
                client.tell_at = now + RETRY
            finally:
                client.telling.release()

    @staticmethod
    def _to_tell(client: Client, wrong: limits.Limits) -> limits.Limits:
        """Return what the engine is told: the memory limit too, whatever has changed.

        Where systemd owns the control groups (v2) it writes all of its own values at each change, and that
        of swap it does not know where memory and swap are the same: runc writes it, if it is told of memory.
        """
        memory = client.desired["memory"]
        return wrong if memory is None else {**wrong, "memory": memory}

    # --- the keeper ---------------------------------------------------------------------------------------

    def keep(self, stop: threading.Event) -> None:
        """Keep files and kernel in agreement until told to stop."""
        while not stop.is_set():
            with self.lock:
                wait = 0.0
                for step in (self.refresh, lambda: self.tick(time.time())):
                    # What has a time ends at it, though the engine may not answer.
                    try:
                        step()
                    except (EngineError, OSError) as error:
                        say(f"{error}; the limits are looked after again as soon as that is over")
                        self.stale, wait = True, TICK
                wait = max(wait, self._until_next(time.time()))
            self.wake.wait(wait)
            self.wake.clear()

    def _until_next(self, now: float) -> float:
        moments = [limits.next_expiry(client.asked) for client in self.clients.values()]
        moments.append(self.replay.next_change(now) if self.replay else None)
        return min([TICK, *(max(0.0, moment - now) for moment in moments if moment is not None)])

    def tick(self, now: float) -> None:
        """Let pass what is over, and mend what differs from what is desired."""
        full = self.looked > time.monotonic() - TICK
        for client in self.clients.values():
            asked = limits.expire(client.asked, now)
            if asked != client.asked:
                client.asked, client.cause = asked, "expiry"
                self._keep(client)
        if self.replay:
            self._follow_trace(now)
        todo = []
        for client in self.clients.values():
            self._watch_memory(client)
            network = client.shaped or is_shaped(client.desired)
            if client.cause == "drift" and not full:
                network = False  # tc costs two processes per client: a look at the control group is free
            known = client.link, client.link_pid
            if client.telling.locked():
                continue  # what the engine writes is not complete yet
            held = self.read(client, network)
            if held is None:
                continue
            if (client.link, client.link_pid) != known:
                self._keep(client)
            wrong = limits.differences(client.desired if network else without_network(client.desired), held)
            if client.failed and client.failed[0] == wrong and now < client.failed[1]:
                continue
            if wrong or (client.planned is not None):
                # Somebody else's change went through the engine perhaps: ask what it would start now.
                self.stale = self.stale or client.cause == "drift"
                todo.append((client, wrong, network))
            else:
                client.cause = "drift"
        list(self.pool.map(lambda item: self._mend(*item), todo))

    def _mend(self, client: Client, wrong: limits.Limits, network: bool) -> None:
        begin, problem = time.monotonic(), None
        try:
            held = self.apply(client, network)
        except REFUSALS as error:
            held, problem = self.read(client, network), said(error)
        if held is None:
            return
        left = limits.differences(client.desired if network else without_network(client.desired), held)
        client.failed, client.problem = (left, time.time() + RETRY) if left else None, problem
        self.event(client, client.cause, wrong or client.overlay or {}, held, begin, problem, client.planned)
        client.cause, client.planned = "drift", None
        # What could not be taken away stands still, and is tried again.
        client.shaped = client.shaped and (bool(left) or not network or is_shaped(client.desired))
        self._keep(client)

    def _watch_memory(self, client: Client) -> None:
        group = self.group(client)
        if group is None:
            return
        kills = group.oom_kills()
        # The count of a container that the agent meets for the first time says nothing of when.
        if client.oom_kills is not None and kills > client.oom_kills:
            self.log(
                {
                    "time": time.time(),
                    "client": client.name,
                    "cause": "oom",
                    "kills": kills - client.oom_kills,
                }
            )
        client.oom_kills = kills

    def event(
        self,
        client: Client,
        cause: str,
        requested: limits.Limits,
        verified: limits.Limits | None,
        begin: float,
        problem: str | None = None,
        planned: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a change to events.jsonl: what was to change, and what the kernel says of that then."""
        entry: dict[str, Any] = {
            "time": time.time(),
            "client": client.name,
            "cause": cause,
            "requested": requested,
            "verified": verified and {key: verified.get(key) for key in requested},
            "holds": verified is not None and not limits.differences(requested, verified),
            "seconds": round(time.monotonic() - begin, 4),
        }
        if problem:
            entry["problem"] = problem
        if planned is not None:
            entry["planned"] = planned
        self.log({**entry, **(more or {})})

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to events.jsonl, whose size is bounded; a full disk is only said, since limits matter
        more than records."""
        line = json.dumps(entry).encode() + b"\n"
        try:
            with self.log_lock, (self.root / "events.jsonl").open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                if size > EVENTS_BYTES:
                    # Emptied, not renamed: the exporter has this very file mounted.
                    part = self.own / "events.jsonl.part"
                    shutil.copyfile(file.name, part)
                    part.replace(self.own / "events.jsonl")
                    file.truncate(size := 0)
                # A writer that died in the middle of a line must not swallow the next one.
                if size:
                    file.seek(size - 1)
                    line = line if file.read() == b"\n" else b"\n" + line
                file.write(line)
        except OSError as error:
            say(f"an event is not recorded: {error}: {line.decode().strip()}")

    # --- traces -------------------------------------------------------------------------------------------

    def _load_trace(self) -> None:
        path = self.own / "trace.json"
        if path.exists():
            kept = json.loads(path.read_text())
            self.trace_name, self.trace_stamp = kept.pop("name"), kept.pop("stamp", 0.0)
            self.replay = Replay(**kept)

    def _follow_trace(self, now: float) -> None:
        assert self.replay is not None
        over = self.replay.over(now)
        for client in self.clients.values():
            found = self.replay.row(client.name, now)
            row, planned = found if found else (None, None)
            if row == client.overlay:
                continue
            client.overlay, client.planned, client.cause = row, planned, "trace" if row else "trace ended"
            self._keep(client)
        if over:
            self._end_trace()

    def _take_from_trace(self, names: Iterable[str]) -> None:
        """Let the trace go on without these clients."""
        if self.replay is None:
            return
        path = self.own / "trace.json"
        kept = json.loads(path.read_text())
        kept["rows"] = {name: rows for name, rows in kept["rows"].items() if name not in set(names)}
        if not kept["rows"]:
            self._end_trace()
            return
        write_json(path, kept)
        self._load_trace()
        for name in names:
            client = self.clients[name]
            if client.overlay is not None:
                client.overlay, client.planned, client.cause = None, None, "trace ended"

    def _end_trace(self) -> None:
        self.replay, self.trace_name, self.trace_stamp = None, "", 0.0
        (self.own / "trace.json").unlink(missing_ok=True)
        for client in self.clients.values():
            if client.overlay is not None:
                client.overlay, client.planned, client.cause = None, None, "trace ended"
                self._keep(client)


def without_network(wanted: limits.Limits) -> limits.Limits:
    """Return the limits of the control group alone."""
    return {key: wanted.get(key) for key in limits.CONTROL_GROUP}


def is_shaped(wanted: limits.Limits) -> bool:
    """Return whether the limits need anything of ours on the client's link."""
    return any(wanted.get(key) for key in limits.SHAPING) or wanted.get("online") is False


def cores() -> int:
    """Return the number of the machine's cores."""
    return os.cpu_count() or 1


def said(error: Exception) -> str:
    """Return an error's own words."""
    return str(getattr(error, "strerror", None) or error)


def say(text: str) -> None:
    """Write to the container's log."""
    print(f"agent: {text}", flush=True)
