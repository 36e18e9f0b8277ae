"""The scenario of a run: does to clients what its timeline says, by time and by round, and takes it back.

agent/scenario.json        written here: the timeline, what of it has been done, and what is to be undone
scratch/<client>/task.json written by the client at the begin of each task: see recording/task_note.py

Neither controller nor server is asked. The time of a scenario begins with the first task of the run that a
client of this machine begins; a round begins here with the first task of it, or of a later one. An entry that
follows on another one counts from when that was due here; one that is about no client of this machine is then
staged without clients. A scenario ends when it is told to, when another is staged, or when no task of its run
has begun for a long time.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coldframe import limits
from coldframe.agent import links
from coldframe.agent.engine import EngineError
from coldframe.agent.reconciler import (
    REFUSALS,
    Client,
    Keeper,
    cores,
    is_shaped,
    said,
    say,
    without_network,
    write_json,
)
from coldframe.agent.reconciler import RETRY as LIMITS_RETRY
from coldframe.recording import task_note

POLL = 0.1  # seconds between two looks, while a scenario is staged
RETRY = 5.0  # seconds until a client that could not be set going again is tried again
EARLIER = 60.0  # seconds before the staging in which the run's first task can have begun
WORKERS = 8  # calls of the engine at a time; one that stops a container takes seconds
OFFLINE = {"online": False}
REMEDY = "type ansible-playbook site.yml -e train=false"
LAYING = ("throttle", "partition")  # what is done by limits; the rest the engine does
TAKEN_BACK = (*LAYING, "pause")  # by an undo
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not keep the agent waiting


@dataclass
class Staged:
    """A scenario and how far it is.

    Attributes
    ----------
    run : str
        The id of the run that it is for.
    entries : list of dict
        ``number``, ``do``, a trigger, ``clients``, ``seconds``, and of a throttle ``limits`` by client and
        ``force``. A trigger is ``at``; ``round`` and ``phase``; or from when the entry ``base`` was due a
        ``delay`` in seconds, or ``rounds`` and ``phase``.
    rounds : int, optional
        No round is later.
    quiet : float
        Seconds without a task after which the run is taken to be over.
    since : float
        Unix time before which no task can have begun.
    start : float, optional
        Unix time of second 0.
    fired : list of int
        The numbers of the entries that are done.
    due : dict
        By number of an entry: the unix time at which it was due, and the round that went on then (0: none).
    effects : list of dict
        What lasts now: ``client``, ``do``, ``entry``, ``until`` (unix time or None), ``limits``.
    touched : dict
        The clients that were paused (False) or stopped (True) and do not run as usual again yet.
    over : bool
        Whether nothing but `touched` is left to do.
    """

    name: str
    run: str
    entries: list[dict[str, Any]]
    rounds: int | None
    quiet: float
    since: float
    start: float | None = None
    fired: list[int] = field(default_factory=list)
    due: dict[str, tuple[float, int]] = field(default_factory=dict)
    effects: list[dict[str, Any]] = field(default_factory=list)
    touched: dict[str, bool] = field(default_factory=dict)
    over: bool = False


@dataclass(frozen=True)
class About:
    """What an event says besides its values: why, which entry, and how late (seconds)."""

    cause: str
    do: str
    entry: int
    lateness: float
    begin: float  # of the monotonic clock

    def more(self) -> dict[str, Any]:
        """Return it as the event has it."""
        return {"do": self.do, "entry": self.entry, "lateness": round(self.lateness, 3)}


class Scenario:
    """Plays the scenario that is staged, if one is."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.path = keeper.own / "scenario.json"
        self.pool = ThreadPoolExecutor(WORKERS)
        self.jobs: dict[str, Future[None]] = {}  # by client, the last one
        self.again: dict[str, float] = {}  # by client that could not be set going: unix time of the next try
        self.awake = threading.Event()
        self.heard = time.time()  # when a task of the run has begun last
        self.before: Seen = []  # what the last look has seen
        self.staged: Staged | None = None
        self._load()

    def _load(self) -> None:
        if not self.path.exists():
            return
        try:
            self.staged = Staged(**json.loads(self.path.read_text()))
        except (ValueError, TypeError) as error:  # of another version
            say(f"the scenario that was staged cannot be read: {error}")
            self.path.unlink()
            return
        self._lay()
        self.again = dict.fromkeys(self.staged.touched, 0.0)
        self.awake.set()

    def _save(self) -> None:
        try:
            if self.staged is not None:
                write_json(self.path, asdict(self.staged))
        except OSError as error:
            say(f"what the scenario has done is not recorded: {error}")

    # --- requests -----------------------------------------------------------------------------------------

    def stage(self, request: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Take the scenario of a run, in place of another; without entries, end the one of this run.

        Parameters
        ----------
        request : mapping
            ``run``, ``name``, ``entries``, ``rounds``, ``quiet``, ``check`` (change nothing).
        """
        run, entries = str(request["run"]), list(request["entries"])
        with self.keeper.lock:
            names = sorted({name for entry in entries for name in entry["clients"]})
            if not entries:
                ours = self.staged is not None and self.staged.run == run and not self.staged.over
                if ours and not request.get("check"):
                    self.end(now)
                return {"clients": {}, "ended": ours}
            if refused := self._refusals(entries, names):
                return {"refused": refused}
            if not request.get("check"):
                self.end(now)
                fresh = Staged(
                    name=str(request["name"]),
                    run=run,
                    entries=entries,
                    rounds=request.get("rounds"),
                    quiet=float(request["quiet"]),
                    since=now - EARLIER,
                    touched=self.staged.touched if self.staged else {},
                )
                write_json(self.path, asdict(fresh))  # on a full disk nothing is staged
                self.staged, self.heard, self.before = fresh, now, []
                self.awake.set()
            return {"clients": {name: {"changed": True} for name in names}}

    def _refusals(self, entries: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[str]]:
        """Say why this machine cannot do what entries ask for, by client."""
        refused: dict[str, list[str]] = {}
        wanted = [
            (f"timeline entry {entry['number']}", name, values)
            for entry in entries
            for name, values in entry.get("limits", {}).items()
        ]
        netem = any(values.get(key) for _, _, values in wanted for key in limits.NETEM)
        has_netem = not netem or links.has_netem()
        for place, name, values in wanted:
            found = limits.refusals(values, {}, cores(), has_netem, True)
            refused.setdefault(name, []).extend(f"{place}: {text}" for text in found)
        for name in names:
            try:
                os.close(os.open(self.keeper.root / "scratch" / name, DIRECTORY))
            except OSError as error:
                text = f"its scratch directory cannot be read ({error.strerror}): {REMEDY}"
                refused.setdefault(name, []).append(text)
        return {name: texts for name, texts in refused.items() if texts}

    def status(self) -> dict[str, Any] | None:
        """Say which scenario is staged, and how far it is."""
        it = self.staged
        if it is None or it.over:
            return None
        own = [entry["number"] for entry in it.entries if entry["clients"]]
        fired = sum(number in it.fired for number in own)
        return {"name": it.name, "run": it.run, "entries": len(own), "fired": fired}

    def lays(self, client: str) -> set[str]:
        """Return the limits of a client that the scenario decides now."""
        return set(self.keeper.laid.get(client, {}))

    def release(self, names: Iterable[str]) -> None:
        """Let go of clients, whatever was done to them; the caller brings their limits into force."""
        it, chosen = self.staged, set(names)
        if it is None:
            return
        with self.keeper.lock:
            it.effects = [effect for effect in it.effects if effect["client"] not in chosen]
            self._lay()
            self._save()
            for name in chosen & set(it.touched):
                self._submit(name, self._about("scenario ended", "undo", 0, 0.0))

    def end(self, now: float) -> None:
        """End the scenario: take back whatever lasts."""
        it = self.staged
        if it is None or it.over:
            return
        own = [entry["number"] for entry in it.entries if entry["clients"]]
        left = [number for number in own if number not in it.fired]
        if left:
            say(f"scenario {it.name} of run {it.run} has ended before its entries {left} were due")
        it.over = True
        self._take_back(it.effects, now)

    # --- the timeline -------------------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Do what is due, and take back what is over."""
        with self.keeper.lock:
            it = self.staged
            if it is None:
                self.awake.clear()
                return
            if not it.over:
                self._fire(self._due(it, now), now)
                expired = [item for item in it.effects if item["until"] is not None and item["until"] <= now]
                self._take_back(expired, now)
                if now - self.heard > it.quiet:
                    self.end(now)
            for name, moment in list(self.again.items()):
                if moment <= now and name in it.touched:
                    del self.again[name]
                    if self._usual(name):
                        self._submit(name, self._about("scenario ended", "undo", 0, 0.0))
            if it.over and not it.touched and all(job.done() for job in self.jobs.values()):
                self.path.unlink(missing_ok=True)
                self.staged = None

    def _due(self, it: Staged, now: float) -> list[tuple[dict[str, Any], float]]:
        """Return the entries that are due, each with the unix time at which it has become so."""
        seen: Seen = []
        for name in self.keeper.clients:
            task = read_note(self.keeper.root / "scratch", name)
            if task is None or task[0].run != it.run:
                continue
            note, moment = task[0], min(max(task[1], it.since), now)
            self.heard = max(self.heard, moment)
            seen.append(
                (note.place if note.round and note.round <= (it.rounds or note.round) else (0, 0), moment)
            )
        if it.start is None and seen:
            it.start = min(moment for _, moment in seen)
            self._save()
        due = []
        for entry in it.entries:  # those before those that follow on them
            key = str(entry["number"])
            if key not in it.due:
                planned = moment_of(it, entry, seen)
                if planned is None or planned > now:
                    continue
                # A task of the last look may have been followed by another since.
                it.due[key] = (planned, round_at(self.before + seen, planned))
            if entry["number"] not in it.fired:
                due.append((entry, it.due[key][0]))
        self.before = seen
        return sorted(due, key=lambda item: (item[1], item[0]["number"]))

    def _fire(self, due: Iterable[tuple[dict[str, Any], float]], now: float) -> None:
        it = self.staged
        assert it is not None
        for entry, planned in due:
            about = self._about("scenario", entry["do"], entry["number"], now - planned)
            it.fired.append(entry["number"])
            known = [self.keeper.clients[name] for name in entry["clients"] if name in self.keeper.clients]
            if entry["do"] == "undo":
                names = {client.name for client in known}
                effects = [e for e in it.effects if e["client"] in names and e["do"] in TAKEN_BACK]
                self._take_back(effects, now, about)
                continue
            if entry["do"] == "join":
                names = {client.name for client in known}
                it.effects = [e for e in it.effects if not (e["client"] in names and e["do"] == "leave")]
            until = None if entry["seconds"] is None else now + entry["seconds"]
            if entry["do"] in LAYING:
                known = [client for client in known if not self._too_little(client, entry, about)]
            if entry["do"] not in ("kill", "join"):
                it.effects += [
                    {
                        "client": client.name,
                        "do": entry["do"],
                        "entry": entry["number"],
                        "until": until,
                        "limits": self._limits_of(entry, client.name),
                    }
                    for client in known
                ]
            for client in known if entry["do"] in ("pause", "leave", "kill") else ():
                it.touched[client.name] = it.touched.get(client.name, False) or entry["do"] != "pause"
            self._lay()
            self._save()  # first: whoever comes after a crash has to know what to take back
            if entry["do"] in LAYING:
                self._apply({client.name: self._limits_of(entry, client.name) for client in known}, about)
            else:
                for client in known:
                    self._submit(client.name, about)

    def _limits_of(self, entry: Mapping[str, Any], name: str) -> limits.Limits:
        return dict(OFFLINE) if entry["do"] == "partition" else dict(entry.get("limits", {}).get(name, {}))

    def _too_little(self, client: Client, entry: Mapping[str, Any], about: About) -> bool:
        """Whether a client uses more than it is to get; then that is an event, and nothing is changed."""
        wanted = self._limits_of(entry, client.name)
        found = limits.refusals(wanted, self.keeper.use(client), cores(), True, bool(entry.get("force")))
        if found:
            problem = found[0].partition(": ")[0]
            more = {**about.more(), "refused": True}
            self.keeper.event(client, about.cause, wanted, None, about.begin, problem, more=more)
        return bool(found)

    def _take_back(
        self, effects: Iterable[Mapping[str, Any]], now: float, about: About | None = None
    ) -> None:
        """End effects: bring back the limits that they covered, and let go on what they held."""
        it, gone = self.staged, list(effects)
        if it is None:
            return
        it.effects = [effect for effect in it.effects if effect not in gone]
        self._lay()
        if gone or it.over or about:  # an entry was done, if there was something to do or not
            self._save()
        for effect in gone:
            lateness = now - effect["until"] if effect["until"] is not None and not it.over else 0.0
            told = about or self._about("scenario ended", effect["do"], effect["entry"], max(0.0, lateness))
            client = self.keeper.clients.get(effect["client"])
            if client is not None and effect["do"] in LAYING:
                self._apply({client.name: {key: client.desired.get(key) for key in effect["limits"]}}, told)
            elif client is not None:
                self._submit(client.name, told)

    @staticmethod
    def _about(cause: str, do: str, entry: int, lateness: float) -> About:
        return About(cause, do, entry, lateness, time.monotonic())

    # --- limits -------------------------------------------------------------------------------------------

    def _lay(self) -> None:
        """Note for each client the limits that lie over its others; the later entry's count."""
        laid = self.keeper.laid
        laid.clear()
        for effect in self.staged.effects if self.staged else ():
            if effect["limits"]:
                laid[effect["client"]] = {**laid.get(effect["client"], {}), **effect["limits"]}

    def _apply(self, requested: Mapping[str, limits.Limits], about: About) -> None:
        """Bring into force what is laid over clients' limits, and record what the kernel says."""
        chosen = [self.keeper.clients[name] for name in requested]
        list(
            self.keeper.pool.map(lambda client: self._apply_to(client, requested[client.name], about), chosen)
        )

    def _apply_to(self, client: Client, requested: limits.Limits, about: About) -> None:
        wanted, problem = client.desired, None
        network = client.shaped or is_shaped(wanted)
        try:
            held = self.keeper.apply(client, network)
        except REFUSALS as error:
            held, problem = self.keeper.read(client, network), said(error)
        if held is None:
            problem = problem or "it does not run: it gets the limits when it starts"
        left = limits.differences(wanted if network else without_network(wanted), held or {})
        client.shaped = network and (is_shaped(wanted) or bool(left))
        # What does not hold is tried again by the keeper, as after any change.
        client.failed, client.problem = (left, time.time() + LIMITS_RETRY) if left else None, problem
        client.cause = "drift"
        self.keeper._keep(client)
        self.keeper.event(client, about.cause, requested, held, about.begin, problem, more=about.more())

    # --- processes ----------------------------------------------------------------------------------------

    def _wanted(self, name: str) -> dict[str, bool]:
        """Return whether a client shall run, and stand still."""
        does = {e["do"] for e in (self.staged.effects if self.staged else ()) if e["client"] == name}
        return {"running": "leave" not in does, "paused": "pause" in does and "leave" not in does}

    def _usual(self, name: str) -> bool:
        return self._wanted(name) == {"running": True, "paused": False}

    def _submit(self, name: str, about: About) -> None:
        """Have the engine do to a client what is wanted of it, after what is under way for it."""
        before = self.jobs.get(name)
        self.jobs[name] = self.pool.submit(self._settle, name, about, before)

    def _settle(self, name: str, about: About, before: Future[None] | None) -> None:
        if before is not None:
            wait([before])
        with self.keeper.lock:
            client, it = self.keeper.clients.get(name), self.staged
            if client is None or it is None:
                return
            wanted, stopped = self._wanted(name), it.touched.get(name, False)
            container = client.container
        kill = about.do == "kill" and about.cause == "scenario"
        requested = asked_of(about)
        verified: dict[str, bool] | None = None
        problem = None if container else "it has no container"
        if container is not None:
            try:
                verified = self._act(container.id, wanted, stopped or about.do == "join", kill)
            except EngineError as error:
                problem = str(error)
        holds = verified is not None and all(verified[key] == value for key, value in requested.items())
        if verified and not holds:
            problem = "it does not run" if not verified["running"] else "the engine did not do it"
        entry = {"time": time.time(), "client": name, "cause": about.cause, "requested": requested}
        entry |= {"verified": verified and {key: verified[key] for key in requested}, "holds": holds}
        entry |= {"seconds": round(time.monotonic() - about.begin, 4), **about.more()}
        self.keeper.log({**entry, **({"problem": problem} if problem else {})})
        self._settled(name, verified)

    def _settled(self, name: str, verified: Mapping[str, bool] | None) -> None:
        """Note that a client goes on as usual, or that it has to be tried again."""
        with self.keeper.lock:
            self.keeper.stale = True
            self.keeper.wake.set()
            it = self.staged
            if it is None or not self._usual(name) or name not in it.touched:
                return
            if verified and not verified["paused"] and (verified["running"] or not it.touched[name]):
                del it.touched[name]
                self._save()
            else:
                self.again[name] = time.time() + RETRY

    def _act(self, container_id: str, wanted: Mapping[str, bool], start: bool, kill: bool) -> dict[str, bool]:
        """Have the engine pause, stop, kill or start a container; what it says of it then.

        Parameters
        ----------
        start : bool
            Whether one that does not run is to be started: not one that somebody else has stopped.
        """
        engine = self.keeper.engine
        state = engine.inspect(container_id)["State"]
        pid, running, paused = state["Pid"], bool(state["Running"]), bool(state.get("Paused"))
        if running and (kill or not wanted["running"]):
            if paused:
                engine.unpause(container_id)
            (engine.kill if kill else engine.stop)(container_id)
            running = paused = False
        if wanted["running"]:
            if not running and start:
                # The engine's own policy starts nothing that was ended by its API.
                engine.start(container_id)
                running = True
            if running and paused != wanted["paused"]:
                (engine.pause if wanted["paused"] else engine.unpause)(container_id)
        after = engine.inspect(container_id)["State"]
        runs = bool(after["Running"])
        killed = kill and pid > 0 and (not runs or after["Pid"] != pid)
        return {"running": runs, "paused": runs and bool(after.get("Paused")), "killed": killed}


Seen = list[tuple[tuple[int, int], float]]  # of each client's task its place in the run, and when it began


def moment_of(it: Staged, entry: Mapping[str, Any], seen: Seen) -> float | None:
    """Return the unix time at which an entry is due; None where nobody knows yet.

    Parameters
    ----------
    seen : list
        The tasks that the machine's clients work on.
    """
    if "at" in entry:
        return None if it.start is None else it.start + float(entry["at"])
    number = 0
    if "base" in entry:
        if str(entry["base"]) not in it.due:
            return None
        since, number = it.due[str(entry["base"])]
        if "delay" in entry:
            return since + float(entry["delay"])
    place = task_note.place_of(number + entry.get("rounds", entry.get("round")), entry["phase"])
    reached = [moment for other, moment in seen if other >= place]
    return min(reached, default=None)


def round_at(seen: Seen, moment: float) -> int:
    """Return the round that went on at a moment; where all tasks are younger, the earliest of theirs."""
    before = [number for (number, _), began in seen if began <= moment]
    return max(before) if before else min((number for (number, _), _ in seen), default=0)


def asked_of(about: About) -> dict[str, bool]:
    """Return what an action asks of a container, as its event says it."""
    back = about.cause != "scenario"
    if about.do == "pause":
        return {"paused": not back}
    if about.do == "leave":
        return {"running": back}
    if about.do == "kill" and not back:
        return {"killed": True, "running": True}
    return {"running": True, "paused": False}


def read_note(scratch: Path, client: str) -> tuple[task_note.Note, float] | None:
    """Return what a client says of the task that it works on, and the unix time of that.

    The client owns what is read here, and may have put anything there: no link is followed, nothing but a
    small regular file is read, and of that nothing but what `task_note.parse` knows is taken.
    """
    with suppress(OSError):
        folder = os.open(scratch / client, DIRECTORY)
        try:
            descriptor = os.open(task_note.NAME, FILE, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > task_note.LARGEST:
                return None
            note = task_note.parse(os.read(descriptor, task_note.LARGEST))
        finally:
            os.close(descriptor)
        return (note, status.st_mtime) if note else None
    return None
