"""Checkpoints of a run: what its ServerApp needs to go on after a round, in a file on the server's disk.

A checkpoint of round n is taken when the strategy begins to configure round n + 1: then it has the arrays and
the config of that round in hand, and nothing of the rounds before is still to come. It is copied there and
written by a thread, to a temporary name, synchronised, and then renamed; the last KEPT are there.

A run that goes on from one calls the app again from its beginning. Of the rounds that are over the strategy
asks no client: its methods return what they returned then. Before the next round arrays, configs, the
strategy's attributes and the random generators are set to what they were. So it works for every app with a
strategy of Flower's Message API, also one with a `start` of its own.

What is not kept: variables of the app that are no attributes of its strategy, connections and sessions (of an
experiment tracker, for example), replies that are on their way, and what clients have in memory. Of an
asynchronous strategy some always are: their clients get new messages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from coldframe.recording import files, state
from coldframe.recording.journal import ABSENT, Journal, read_journal
from coldframe.recording.replies import BAD_REPLY, clean
from coldframe.recording.roster import Client
from coldframe.recording.rounds import Recorder, innermost
from coldframe.recording.state import Blobs
from coldframe.recording.updates import HOOK
from coldframe.supervise import say

FOLDER = "checkpoints"  # below the run's
KEPT = 2
FORMAT = 1
CONTENT = "checkpoint.json"
NAME = re.compile(r"round-(\d+)\.zip")
SEVERAL = "the app trains with several strategies in a loop of its own"
PHASES = ("train", "evaluate", "server")  # whose metrics are kept, by round


class CheckpointError(ValueError):
    """A run that cannot be resumed; the message says why."""


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes
    ----------
    round : int
        The last round that is over.
    content : dict
        As it was written: `run_id`, `config` (of the run), `versions`, `journal` (bytes of the journal up to
        here), `arrays`, `aggregated` (whether a strategy made them), `configs` (by phase), `strategy` (its
        `name` and `state`), `random`, `metrics` (by phase and round), `unkept` (names of attributes),
        `clients` (name and partition id of each).
    blobs : dict
        The bytes that the content names.
    """

    round: int
    content: dict[str, Any]
    blobs: dict[str, bytes | np.ndarray]

    def value(self, *keys: str) -> Any:
        """Return a value of the content; None where there is none."""
        tree: Any = self.content
        for key in keys:
            tree = tree.get(key) if isinstance(tree, dict) else None
        return state.decode(tree, self.blobs)


# --- files


def rounds_of(run: Path) -> list[int]:
    """Return the rounds of which a run has checkpoints, newest first."""
    found = (NAME.fullmatch(path.name) for path in (run / FOLDER).glob("*"))
    return sorted((int(name[1]) for name in found if name), reverse=True)


def path_of(run: Path, number: int) -> Path:
    """Return the file of a round's checkpoint."""
    return run / FOLDER / f"round-{number}.zip"


def write(run: Path, number: int, content: Mapping[str, Any], blobs: Mapping[str, bytes | np.ndarray]) -> int:
    """Write a checkpoint so that it has its name only when all of it is on the disk; return its bytes."""
    path = path_of(run, number)
    with _appearing(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(CONTENT, json.dumps(content))
            for name, blob in blobs.items():
                with archive.open(name, "w", force_zip64=True) as entry:
                    entry.write(state.to_bytes(blob))
        size = file.tell()
    for old in rounds_of(run)[KEPT:]:
        path_of(run, old).unlink(missing_ok=True)
    return size


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that has its name only when all of it is on the disk; what is left of others is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.part"):  # of a process that was killed: it would take the disk's room
        left.unlink(missing_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        If it is not whole, or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # which compares each member with its checksum
            content = json.loads(archive.read(CONTENT))
            members = (name for name in archive.namelist() if name != CONTENT)
            blobs = {name: state.from_bytes(name, archive.read(name)) for name in members}
        known, number = content["format"], int(content["round"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name} is not whole ({type(error).__name__}: {error})") from None
    if known != FORMAT:
        raise CheckpointError(f"{path.name} has the format {known} of another version, and not {FORMAT}")
    return Checkpoint(number, content, blobs)


def newest(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run that is whole."""
    for number in rounds_of(run):
        try:
            return read(path_of(run, number))
        except CheckpointError as error:
            say(f"{error}: the one before it is taken")
    return None


# --- from one run to the next


def hand_over(runs: Path, earlier: str, run_id: str, found: Checkpoint) -> None:
    """Give a new run what it goes on from: the checkpoint, the journal up to it, the ServerApp's files.

    The journal of the new run is that of the whole: of a round that was cut off nothing is in it.
    """
    try:
        _hand_over(runs / earlier, runs / run_id, found)
    except BaseException:  # nothing of a run that never began may look like one that was resumed
        shutil.rmtree(runs / run_id / FOLDER, ignore_errors=True)
        (runs / run_id / "journal.jsonl").unlink(missing_ok=True)
        raise


def _hand_over(source: Path, target: Path, found: Checkpoint) -> None:
    with path_of(source, found.round).open("rb") as old, _appearing(path_of(target, found.round)) as new:
        shutil.copyfileobj(old, new)
    (target / "journal.jsonl").write_bytes(_up_to(source / "journal.jsonl", found.content["journal"]))
    journal = Journal(target / "journal.jsonl")
    events = read_journal(journal.path)
    times = sum(event["event"] == "resume" for event in events) + 1
    # This comes first: the interruption is the time since the event before it.
    journal.append("resume", run_id=target.name, resumed_from=source.name, round=found.round, resumed=times)
    for (number, phase), clients in _on_their_way(events).items():
        journal.append("unanswered", round=number, phase=phase, clients=clients)
    journal.close()
    _take_along(source / "app" / "files", target / "app" / "files")


def _on_their_way(events: Iterable[Mapping[str, Any]]) -> dict[tuple[int | None, str], list[str]]:
    """Return the clients, by round and phase, whose messages had no outcome yet: they are given up."""
    open_: Counter[tuple[int | None, str, str]] = Counter()
    for event in events:
        kind = event["event"]
        if kind in ("phase_started", "phase_extended", "unanswered"):
            for client in event["clients"]:
                open_[event["round"], event["phase"], client] += -1 if kind == "unanswered" else 1
        elif kind in ("reply", "late") or (kind == "failure" and _is_outcome(event)):
            open_[event["round"], event["phase"], event["client"]] -= 1
    found: dict[tuple[int | None, str], list[str]] = {}
    for number, phase, client in open_.elements():
        found.setdefault((number, phase), []).append(client)
    return found


def _is_outcome(failure: Mapping[str, Any]) -> bool:
    """Whether a failure is that of a message: it has no reply, and one was sent."""
    return failure["code"] != BAD_REPLY and not str(failure["reason"]).startswith(ABSENT)


def _up_to(path: Path, size: int) -> bytes:
    """Return the whole lines among the first bytes of a journal.

    A run that was resumed and broke off before it had a checkpoint of its own has that of the run before, and
    in its journal, after that size, the event that says so, and what was given up then: they belong to them.
    """
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n", 0, size) + 1]
    resumed = False
    for line in whole[len(kept) :].splitlines(keepends=True):
        resumes = b'"event": "resume"' in line
        given_up = resumed and b'"event": "unanswered"' in line
        if not (resumes or given_up) or not line.endswith(b"\n"):
            break
        resumed = True
        kept += line
    return kept


def _take_along(source: Path, target: Path) -> None:
    """Copy the files that a ServerApp has written: what its strategy says of them is in the checkpoint."""

    def special(folder: str, names: list[str]) -> list[str]:
        modes = {name: Path(folder, name).lstat().st_mode for name in names}
        return [name for name, mode in modes.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))]

    if not source.is_dir():
        return
    size = sum(status.st_size for _, status in files.walk(source))
    if size <= files.LIMIT:
        shutil.copytree(source, target, ignore=special, dirs_exist_ok=True)
    else:
        say(f"the {size / 1e9:.1f} GB that the ServerApp has written stay with the run before")


def ancestors(run: Path) -> list[str]:
    """Return the runs that a run goes on from, oldest first."""
    events = read_journal(run / "journal.jsonl")
    return [str(event["resumed_from"]) for event in events if event["event"] == "resume"]


def diverged(run: Path) -> bool:
    """Whether a run ended since its model is NaN or infinite: it would end so again."""
    ends = (event for event in read_journal(run / "journal.jsonl") if event["event"] == "run_finished")
    return next((event["status"] for event in ends), "") == "diverged"


def forget(run: Path) -> None:
    """Remove the checkpoints of a run that has completed, and of those that it went on from."""
    for run_id in (run.name, *ancestors(run)):
        shutil.rmtree(run.parent / run_id / FOLDER, ignore_errors=True)


# --- in the ServerApp's process


@dataclass
class Snapshot:
    """A checkpoint that is to be written."""

    round: int
    content: dict[str, Any]
    blobs: dict[str, bytes | np.ndarray]
    held: float  # seconds for which the run waited for it


@dataclass
class Memory:
    """What the strategy's methods have returned: metrics, encoded, by phase and round; whether a model."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=lambda: {phase: {} for phase in PHASES})
    aggregated: bool = False


class EvaluateConfig:
    """The config of evaluation, which a strategy may change in place, as that of training.

    It is looked at when a checkpoint is taken, after the round's evaluation. An app's own loop that makes a
    new one for each round has nothing to keep in it.
    """

    def __init__(self) -> None:
        self._live: ConfigRecord | None = None
        self._varies = False
        self._kept: ConfigRecord | None = None  # of the run before, until there is one to be set

    def keep(self, found: ConfigRecord | None) -> None:
        """Take over what the run before had."""
        self._kept = found

    def meet(self, config: ConfigRecord) -> None:
        """Note the config of a round, and set the first one to what it was."""
        self._varies = self._varies or (self._live is not None and self._live is not config)
        self._live = config
        if self._kept is not None:
            config.clear()
            config.update(self._kept)
            self._kept = None

    def now(self) -> ConfigRecord | None:
        """Return what is to be kept."""
        return None if self._varies else self._kept if self._kept is not None else self._live


class Checkpoints:
    """Takes the checkpoints of a run, and brings one that is resumed to where it was.

    Of an app that starts several strategies one after the other the first one's rounds are kept; none of
    several at once, nor of an asynchronous one that does not tell its state by a `state_dict`.

    Parameters
    ----------
    run : Path
        The run's folder.
    takes : bool
        Whether checkpoints are taken.
    resumed : Checkpoint, optional
        What the run goes on from.
    """

    def __init__(
        self, recorder: Recorder, run: Path, takes: bool = True, resumed: Checkpoint | None = None
    ) -> None:
        self._recorder, self._run, self._takes = recorder, run, takes
        self._resumed = resumed
        self._strategy: Strategy | None = None
        self._before: dict[str, Any] = {}  # the strategy's attributes before the first round
        self._last = resumed.round if resumed else 0  # the last round of which there is a checkpoint
        self._over = False
        self._memory = Memory()
        if resumed:
            self._memory.metrics = {phase: dict(resumed.content["metrics"][phase]) for phase in PHASES}
            self._memory.aggregated = resumed.content["aggregated"]
        self._evaluates = EvaluateConfig()
        self._writer: threading.Thread | None = None
        self._told = threading.Lock()  # what the writer appends to the journal, and the journal's end
        self._ended = False

    @property
    def goes_on(self) -> bool:
        """Whether there is a checkpoint whose state is not set yet."""
        return self._resumed is not None

    # What the probes ask.

    def first_arrays(self) -> ArrayRecord | None:
        """Return the arrays that a resumed strategy starts with."""
        return self._resumed.value("arrays") if self._resumed and not self._over else None

    def is_past(self, strategy: Any, number: int | None) -> bool:
        """Whether a round was over when the run was interrupted: nobody is asked in it.

        Raises
        ------
        CheckpointError
            If the strategy, or the app, cannot be resumed.
        """
        if self._resumed is None or number is None or self._over:
            return False
        if strategy is not None:
            if is_untold(strategy):
                name = type(innermost(strategy)).__name__
                raise CheckpointError(f"{name} waits for no client, has no state_dict, and cannot be resumed")
            if not self._meet(strategy):
                raise CheckpointError(f"{SEVERAL}, and cannot be resumed")
        if number > self._resumed.round:
            return False
        self._recorder.passed(number)
        return True

    def past_arrays(self) -> ArrayRecord | None:
        """Return the arrays of the rounds that are past; None if none has made any."""
        return self._resumed.value("arrays") if self._resumed and self._memory.aggregated else None

    def past_metrics(self, phase: str, number: int) -> MetricRecord | None:
        """Return the metrics of a round that is past."""
        return self._resumed.value("metrics", phase, str(number)) if self._resumed else None

    def configuring(
        self, phase: str, strategy: Any, number: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keep the round before, or set all to what it was; return what to call the method with."""
        if self._over or number is None or not isinstance(strategy, Strategy) or is_untold(strategy):
            return args, kwargs
        if not self._meet(strategy):
            self._over = True  # what the other one holds would not be in them
            if self._takes:
                say(f"no checkpoint is taken any more: {SEVERAL}")
            return args, kwargs
        arrays, config = _argument(args, kwargs, 1, "arrays"), _argument(args, kwargs, 2, "config")
        if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
            return args, kwargs
        if self._resumed is not None and number == self._resumed.round + 1:
            if phase == "train":
                if kept := self._resumed.value("configs", phase):
                    config.clear()
                    config.update(kept)
                args, kwargs = self._go_on(self._resumed, strategy, args, kwargs)
        elif phase == "train":
            self._take(strategy, number - 1, arrays, config)
        if phase == "evaluate":
            self._evaluates.meet(config)
        return args, kwargs

    def told(self, phase: str, number: int | None, metrics: Any) -> None:
        """Keep metrics that a method has returned."""
        if self._takes and not self._over and number is not None and isinstance(metrics, MetricRecord):
            self._memory.metrics[phase][str(number)] = state.encode(metrics, Blobs())

    def aggregated(self, arrays: Any) -> None:
        """Note that a strategy has made a model."""
        self._memory.aggregated = self._memory.aggregated or isinstance(arrays, ArrayRecord)

    def end_strategy(self) -> None:
        """Take none of a strategy that is started after the first has ended."""
        self._over = True

    def end(self) -> None:
        """Take no more, and have the journal say no more of them: its end comes next."""
        self._over = True
        with self._told:
            self._ended = True

    def close(self) -> None:
        """Wait for what is being written."""
        self.end()
        if self._writer is not None:
            self._writer.join()

    # The rest.

    def _meet(self, strategy: Any) -> bool:
        """Note what a strategy is before its first round; say whether it is the first."""
        if self._strategy is None:
            self._strategy = strategy
            self._before, _ = state.capture(strategy, Blobs(), begun=False)
        return self._strategy is strategy

    def _go_on(
        self, found: Checkpoint, strategy: Strategy, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Set all to what it was before the first round that is not past."""
        try:
            lost = state.restore(strategy, found.content["strategy"]["state"], found.blobs)
        except Exception as error:  # of a strategy's own load_state_dict
            name = type(innermost(strategy)).__name__
            raise CheckpointError(f"{name} cannot be resumed: {error}") from error
        lost += found.content["unkept"]
        if lost:
            say(f"begins anew, since the checkpoint has no or another state of it: {', '.join(lost)}")
        state.restore_random(found.content["random"], found.blobs)
        self._evaluates.keep(found.value("configs", "evaluate") or None)
        args, kwargs = _replaced(args, kwargs, 1, "arrays", found.value("arrays"))
        self._resumed = None  # it takes memory, and is not needed any more
        return args, kwargs

    def _take(self, strategy: Strategy, number: int, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Take a checkpoint of a round; the recorder has ended it."""
        if number < self._last:
            self._over = True  # an app's own loop that counts from 1 again
        if not self._takes or self._over or number <= self._last:
            return
        start = time.monotonic()
        if self._writer is not None:
            self._writer.join()  # on a slow disk: else there would be more and more copies in memory
        self._last = number
        blobs = Blobs()
        try:
            attributes, unkept = state.capture(strategy, blobs)
            content = {
                "format": FORMAT,
                "run_id": self._run.name,
                "round": number,
                "config": dict(self._recorder.known.get("config", {})),
                "versions": dict(self._recorder.known.get("versions", {})),
                "clients": told_of(self._recorder.clients()),
                "journal": self._recorder.journal.size(),
                "arrays": state.encode(arrays, blobs),
                "aggregated": self._memory.aggregated,
                "configs": {
                    phase: state.encode(kept, blobs)
                    for phase, kept in (("train", config), ("evaluate", self._evaluates.now()))
                },
                "strategy": {
                    "name": type(strategy).__name__,
                    "state": state.changes(attributes, self._before),
                },
                "random": state.random_states(blobs),
                "metrics": {phase: dict(found) for phase, found in self._memory.metrics.items()},
                "unkept": unkept,
            }
        except Exception as error:  # Untold, arrays of a kind that nobody knows: the run goes on without
            self._failed(number, error)
            return
        snapshot = Snapshot(number, content, blobs.seal(), time.monotonic() - start)
        self._writer = threading.Thread(target=self._write, args=[snapshot], name="checkpoint", daemon=True)
        self._writer.start()

    def _write(self, snapshot: Snapshot) -> None:
        start = time.monotonic()
        try:
            self._recorder.journal.sync()  # what it names of the journal must be there too
            size = write(self._run, snapshot.round, snapshot.content, snapshot.blobs)
        except Exception as error:  # a full disk
            self._failed(snapshot.round, error)
            return
        self._tell(
            "checkpoint",
            round=snapshot.round,
            bytes=size,
            held=round(snapshot.held, 4),
            seconds=round(time.monotonic() - start, 4),
            unkept=snapshot.content["unkept"],
        )

    def _failed(self, number: int, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        say(f"no checkpoint of round {number}: {reason}")
        self._tell("checkpoint_failed", round=number, reason=clean(reason))

    def _tell(self, event: str, **fields: Any) -> None:
        with self._told:
            if not self._ended:
                self._recorder.journal.append(event, **fields)


def is_untold(strategy: Any) -> bool:
    """Whether a strategy is asynchronous, so that messages are always on their way, and does not tell what it
    needs to go on without them."""
    inner = innermost(strategy)
    return hasattr(inner, HOOK) and not (hasattr(inner, "load_state_dict") and hasattr(inner, "state_dict"))


def told_of(clients: Iterable[Client]) -> list[list[Any]]:
    """Return what a checkpoint has of the federation: a name and a partition id for each client."""
    return sorted([client.name, client.partition_id] for client in clients)


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return kwargs[name] if name in kwargs else args[place] if len(args) > place else None


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if name in kwargs:
        return args, {**kwargs, name: value}
    return (*args[:place], value, *args[place + 1 :]), kwargs
