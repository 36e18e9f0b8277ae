"""Adds up what is seen beneath a ServerApp to rounds, and writes it into the run's journal.

A round's number is told by a strategy (see `probes`), else by a message: its config's `server-round`, else
its group id; else a message type that goes to the same node again opens the next round. Messages before the
first training or evaluation, and those of an app that never has one, belong to no round: null.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common import Parameters, parameters_to_ndarrays
from flwr.common.constant import ErrorCode
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy

from coldframe.recording.app_errors import readable
from coldframe.recording.delivery import died_with_it
from coldframe.recording.flower import CLASS_COUNTS, PARTITION_RECORD
from coldframe.recording.journal import ABSENT, Journal
from coldframe.recording.messages import is_number, metrics_of, pick, size_of
from coldframe.recording.replies import BAD_REPLY, MOST_EXAMPLES, NO_REPLY, SYSTEM_FIGURES, clean
from coldframe.recording.roster import Client, read_roster
from coldframe.recording.task_note import PHASES, phase_of, told_round
from coldframe.recording.updates import HOOK, Updates, described
from coldframe.supervise import say

PROCESSED = "examples_processed"  # the metric of an app that tells how many it has processed in all passes
MOST_CLASSES = 1000


def harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Keep what a method of the recorder does not expect from failing the app; the log says it."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            say(f"the recording missed something ({method.__name__}): {type(error).__name__}: {error}")

    return call


@dataclass
class Exchange:
    """Messages of one type that belong together, in one round: sent at once, or by threads one by one."""

    round: int | None
    kind: str
    expected: set[int]
    sent: set[int] = field(default_factory=set)
    started: float = 0.0
    ended: float = 0.0


@dataclass
class Pending:
    """A message without a reply yet."""

    message: Message  # without its content
    exchange: Exchange
    sent: float
    down: int
    activated: str | None = None  # when its node was, as of its sending; None: it is not known


@dataclass
class Configuring:
    """A strategy of the Message API chooses the nodes of a phase; it needs so many."""

    required: int
    nodes: list[int] = field(default_factory=list)  # as it was told last
    told: float = float("-inf")


@dataclass
class Round:
    """What is known of a round that goes on."""

    number: int
    started: float
    last: float  # when something last happened
    phases: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # figure -> the app's own name of it
    derived: list[str] = field(default_factory=list)  # figures that are our mean of the replies
    exchanges: list[Exchange] = field(default_factory=list)
    replies: list[tuple[str, int, int | None, dict[str, Any]]] = field(default_factory=list)
    told: set[str] = field(default_factory=set)  # phases whose aggregate the app has told
    failures: int = 0
    late: int = 0
    folded: int = 0  # late replies of earlier rounds that are in this one's aggregate
    void: bool = False
    updates: Updates = field(default_factory=Updates)

    @property
    def trained(self) -> set[int]:
        """The nodes that have replied to `train`, or whose updates an asynchronous strategy used."""
        return self.updates.nodes or {node for phase, node, _, _ in self.replies if phase == "train"}


class Recorder:
    """Keeps the journal of one run; its methods may be called by several threads."""

    def __init__(self, journal: Journal, roster: Path) -> None:
        journal.append = harmless(journal.append)  # type: ignore[method-assign]
        self.journal = journal
        self.model: ArrayRecord | Sequence[np.ndarray] | None = None
        self.examples_key = "num-examples"
        self.pending: dict[str, Pending] = {}
        self.probed = False  # a strategy tells the rounds
        self.asynchronous = False  # it tells its updates; its messages span rounds
        self.configuring: Configuring | None = None
        self.known: Mapping[str, Any] = {}  # of strategy and rounds, what the run_config tells
        self.epochs = 1  # passes over the examples of a reply to `train`
        self.policed = False  # phases may end without clients that are late
        self._counts: dict[int, list[int]] = {}  # by node, the samples of each class
        self._roster = roster
        self._clients = read_roster(roster)
        self._lock = threading.RLock()
        self._round: Round | None = None
        self._last = 0  # the last round that has ended
        self._offset = 0  # rounds of strategies that came before
        self._exchange: Exchange | None = None
        self._pairs: set[tuple[str, int]] = set()
        self._seen: set[int] = set()  # nodes that were connected when messages were sent
        self._away: set[int] = set()  # those of them that are not connected

    # The clients.

    def client(self, node_id: int) -> Client:
        """Return what is known of a node; the roster is read again for one that is new."""
        if node_id not in self._clients:
            self._clients |= read_roster(self._roster)
        return self._clients.get(node_id) or Client(node_id, f"node-{node_id}")

    def clients(self) -> list[Client]:
        """Return the registered clients, in the order of partition ids."""
        return sorted(self._clients.values(), key=lambda client: self.order(client.node_id))

    def order(self, node_id: int) -> tuple[bool, int, int]:
        """Return what sorts nodes by partition id; those that have none come last."""
        partition_id = self.client(node_id).partition_id
        return (partition_id is None, partition_id or 0, node_id)

    # What strategies tell.

    @harmless
    def plan(self, strategy: Any, rounds: int | None) -> None:
        """Note which strategy runs, and for how many rounds."""
        with self._lock:
            self.examples_key = str(getattr(innermost(strategy), "weighted_by_key", self.examples_key))
            self.asynchronous = hasattr(innermost(strategy), HOOK)
            known = rounds if isinstance(rounds, int) else None
            planned = None if known is None else known + self._offset
            name = None if self.known.get("strategy") else type(strategy).__name__
            if name is not None or planned != self.known.get("rounds"):
                self.journal.append("plan", strategy=name, rounds=planned)

    def begin_strategy(self) -> None:
        """Count on from the last round: each strategy that is started counts from 1."""
        with self._lock:
            self.probed = True
            self.end_round()
            self._offset = self._last

    def enter(self, number: int | None) -> None:
        """Go to a round that a strategy names, if it does; the one before has ended."""
        with self._lock:
            self.probed = True
            # Round 0, before training, is the first strategy's.
            if number is not None and (number or not self._offset):
                self._enter(number + self._offset)

    def passed(self, number: int) -> None:
        """Note a round that the journal has already: a resumed run had it before."""
        self.probed, self._last = True, max(self._last, number)

    def _enter(self, number: int) -> Round:
        now = time.monotonic()
        if self._round is None or number > self._round.number:
            self._end_round(now)
            self._round = Round(number, now, now)
        self._round.last = now
        return self._round

    @harmless
    def announce(self, kind: str, node_ids: Iterable[int]) -> None:
        """Open an exchange whose messages will be sent one by one."""
        with self._lock:
            number = self._round.number if self._round else None
            self._open(Exchange(number, kind, set(node_ids)))

    @harmless
    def timed(self, phase: str, seconds: float) -> None:
        """Add to the time of a phase of the round."""
        with self._lock:
            if self._round is not None:
                self._round.phases[phase] = self._round.phases.get(phase, 0.0) + seconds
                self._round.last = time.monotonic()

    @harmless
    def told(self, phase: str, figures: Mapping[str, tuple[str, str]], metrics: Mapping[str, Any]) -> None:
        """Take figures of the round from metrics of the app.

        Parameters
        ----------
        phase : str
            What the metrics are of.
        figures : mapping
            Name in the journal to the name to look for, and the pattern that else only one metric may match.
        metrics : mapping
            The app's.
        """
        with self._lock:
            if self._round is None:
                return
            self._round.told.add(phase)
            for figure, (name, pattern) in figures.items():
                found = pick(metrics, name, pattern)
                if found is not None:
                    self._round.figures[figure] = found[1]
                    self._round.keys[figure] = found[0]

    @harmless
    def aggregated(self, strategy: Any, arrays: Any) -> None:
        """Keep the model that a strategy made; if it made none of the replies, write that down."""
        with self._lock:
            if arrays:
                if not isinstance(arrays, Parameters):
                    self.model = arrays
                elif arrays.tensor_type == "numpy.ndarray":
                    self.model = parameters_to_ndarrays(arrays)
                return
            this, exchange = self._round, self._exchange
            if this and exchange and exchange.round == this.number and phase_of(exchange.kind) == "train":
                self.journal.append(
                    "not_aggregated",
                    round=this.number,
                    messages=len(exchange.sent),
                    replies=len(this.trained),
                    reason=f"{self.known.get('strategy') or type(innermost(strategy)).__name__} made no model"
                    " of them; the global model stays as it is",
                )

    # What the grid sees.

    @property
    def round_number(self) -> int | None:
        """The round that goes on."""
        return self._round.number if self._round else None

    @harmless
    def waiting(self, missing: Sequence[str], seconds: float) -> None:
        """Write down that clients are waited for."""
        self.journal.append("waiting", missing=list(missing), seconds=round(seconds, 1))

    def sending(self, messages: Sequence[Message]) -> list[Exchange]:
        """Write down that messages are about to be sent; return the exchange of each."""
        with self._lock:
            return [self._sending(message, messages[place:]) for place, message in enumerate(messages)]

    def _sending(self, message: Message, rest: Sequence[Message]) -> Exchange:
        kind, node_id = message.metadata.message_type, message.metadata.dst_node_id
        number = self._number_of(message)
        exchange = self._exchange
        if exchange is None or (exchange.round, exchange.kind) != (number, kind) or node_id in exchange.sent:
            # Of those before it in its batch some may belong to the exchange before.
            nodes = {m.metadata.dst_node_id for m in rest if m.metadata.message_type == kind}
            exchange = self._open(Exchange(number, kind, nodes))
        elif node_id not in exchange.expected:
            exchange.expected.add(node_id)
            self.journal.append(
                "phase_extended",
                round=number,
                phase=phase_of(kind),
                clients=[self.client(node_id).name],
            )
        exchange.sent.add(node_id)
        return exchange

    def _open(self, exchange: Exchange) -> Exchange:
        self._exchange = exchange
        exchange.started = exchange.ended = time.monotonic()
        if self._round is not None and exchange.round == self._round.number:
            self._round.exchanges.append(exchange)
        names = [self.client(node_id).name for node_id in sorted(exchange.expected, key=self.order)]
        phase = phase_of(exchange.kind)
        self.journal.append("phase_started", round=exchange.round, phase=phase, clients=names)
        return exchange

    def _number_of(self, message: Message) -> int | None:
        if self.probed:
            return self._round.number if self._round else None
        kind, node_id = message.metadata.message_type, message.metadata.dst_node_id
        told = told_round(message)
        if told is not None:
            return self._enter(told).number
        if self._round is not None and (kind, node_id) in self._pairs:
            self._pairs.clear()
            self._enter(self._round.number + 1)
        elif self._round is None and phase_of(kind) in PHASES:
            self._enter(1)
        self._pairs.add((kind, node_id))
        return self._round.number if self._round else None

    @harmless
    def sent(
        self, message: Message, exchange: Exchange, accepted: bool, activated: str | None = None
    ) -> None:
        """Note that a message is on its way to a node that was activated then, or was not taken."""
        with self._lock:
            if not accepted:
                node_id = message.metadata.dst_node_id
                self._failed(exchange, node_id, NO_REPLY, "the message could not be sent")
                return
            down = size_of(message)
            bare = remove_content_from_message(message)
            begun = time.monotonic()
            self.pending[message.metadata.message_id] = Pending(bare, exchange, begun, down, activated)

    @harmless
    def replied(self, reply: Message, system: Mapping[str, Any]) -> None:
        """Write down a reply, or the error that came in its place."""
        with self._lock:
            pending = self.pending.pop(reply.metadata.reply_to_message_id, None)
            if pending is None:
                return
            # The map from message to node is ours: an error for a lost node has another source.
            node_id = pending.message.metadata.dst_node_id
            now = time.monotonic()
            pending.exchange.ended = now
            if reply.has_error():
                reason = reply.error.reason or "no reason given"
                self._failed(pending.exchange, node_id, reply.error.code, reason)
                return
            work = self._work(pending, reply, system, now - pending.sent)
            self.journal.append("reply", **self.about(pending), **work)
            if self._round is not None and pending.exchange.round == self._round.number:
                phase = phase_of(pending.exchange.kind)
                self._round.last = now
                self._round.replies.append((phase, node_id, work["examples"], work["metrics"]))
            self._note_classes(node_id, reply.content)

    def _work(
        self, pending: Pending, reply: Message, system: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Return what the journal says of a reply's work."""
        examples, metrics = metrics_of(reply.content, self.examples_key)
        return {
            "seconds": round(seconds, 3),
            "examples": examples,
            "metrics": metrics,
            "system": self._figures(
                system, phase_of(pending.exchange.kind), examples, metrics.get(PROCESSED)
            ),
            "bytes_down": pending.down,
            "bytes_up": size_of(reply),
        }

    def _figures(
        self, system: Mapping[str, Any], phase: str, examples: int | None, processed: Any = None
    ) -> dict[str, Any]:
        """Return a client's figures of its own work, and its speed."""
        figures = {
            key: value
            for key, (low, high) in SYSTEM_FIGURES.items()
            if is_number(value := system.get(key)) and low <= value <= high
        }
        seconds = figures.get("train_seconds")
        if examples is not None and seconds:
            passes = self.epochs if phase == "train" else 1
            told = is_number(processed) and 0 <= processed <= MOST_EXAMPLES
            done = processed if told else passes * examples
            figures["samples_per_second"] = done / seconds
        return figures

    def _note_classes(self, node_id: int, content: RecordDict) -> None:
        """Write down what a client tells of its partition, once."""
        told: Mapping[str, Any] = content.config_records.get(PARTITION_RECORD, {})
        counts = told.get(CLASS_COUNTS)
        if not isinstance(counts, list) or not 0 < len(counts) <= MOST_CLASSES:
            return
        whole = all(type(count) is int and 0 <= count <= MOST_EXAMPLES for count in counts)
        if whole and self._counts.get(node_id) != counts:
            self._counts[node_id] = counts
            client = self.client(node_id)
            self.journal.append(
                "partition", client=client.name, partition_id=client.partition_id, class_counts=counts
            )

    @harmless
    def updated(self, node_id: int, update: Any) -> None:
        """Write down what an asynchronous strategy did with a reply."""
        with self._lock:
            about = self._about(Exchange(self.round_number, "train", set()), node_id)
            self.journal.append("update", **about, **described(update))
            if self._round is not None:
                self._round.updates.add(node_id, update.staleness, not update.reason)
                self._round.last = time.monotonic()

    @harmless
    def refused(self, pending: Pending, reason: str) -> None:
        """Take a reply back that does not fit to the others."""
        with self._lock:
            node_id, phase = pending.message.metadata.dst_node_id, phase_of(pending.exchange.kind)
            if self._round is not None and pending.exchange.round == self._round.number:
                self._round.replies = [
                    reply for reply in self._round.replies if reply[:2] != (phase, node_id)
                ]
            self._failed(pending.exchange, node_id, BAD_REPLY, reason)

    @harmless
    def gave_up(self, message_id: str, seconds: float) -> None:
        """Write down that the app waits no longer for a reply."""
        with self._lock:
            pending = self.pending.pop(message_id, None)
            if pending is not None:
                pending.exchange.ended = time.monotonic()
                node_id = pending.message.metadata.dst_node_id
                self._failed(pending.exchange, node_id, NO_REPLY, f"no reply within {seconds:.0f} s")

    @harmless
    def late(self, message_id: str, reason: str) -> None:
        """Write down that a phase ended without a client: at its deadline, or with enough replies."""
        with self._lock:
            pending = self.pending.pop(message_id, None)
            if pending is None:
                return
            pending.exchange.ended = now = time.monotonic()
            seconds = round(now - pending.sent, 3)
            self.journal.append("late", **self.about(pending), reason=reason, seconds=seconds)
            if self._round is not None and pending.exchange.round == self._round.number:
                self._round.late += 1
                self._round.last = now

    @harmless
    def folded(
        self,
        pending: Pending,
        reply: Message,
        system: Mapping[str, Any],
        *,
        seconds: float,
        staleness: int,
        weight: float,
    ) -> None:
        """Write down that a late reply is in the aggregate of the round that goes on."""
        with self._lock:
            work = self._work(pending, reply, system, seconds)
            into = {"into": self.round_number, "staleness": staleness, "weight": round(weight, 6)}
            self.journal.append("folded", **self.about(pending), **into, **work)
            if self._round is not None:
                self._round.folded += 1
            self._note_classes(pending.message.metadata.dst_node_id, reply.content)

    @harmless
    def not_folded(self, pending: Pending, reason: str) -> None:
        """Write down that a late reply cannot be used."""
        self.journal.append("not_folded", **self.about(pending), reason=clean(reason))

    @harmless
    def void(self, replies: int, minimum: int) -> None:
        """Write down that a round has too few good replies to be aggregated."""
        with self._lock:
            self.journal.append("round_void", round=self.round_number, replies=replies, minimum=minimum)
            if self._round is not None:
                self._round.void = True

    def _failed(self, exchange: Exchange, node_id: int, code: int, reason: str) -> None:
        self.journal.append(
            "failure", **self._about(exchange, node_id), code=code, reason=clean(readable(reason))
        )
        if self._round is not None and (self.asynchronous or exchange.round == self._round.number):
            self._round.failures += 1
            self._round.last = time.monotonic()

    def _about(self, exchange: Exchange, node_id: int) -> dict[str, Any]:
        client = self.client(node_id)
        who = {"client": client.name, "partition_id": client.partition_id, "node_id": str(node_id)}
        return {"round": exchange.round, "phase": phase_of(exchange.kind), **who}

    def about(self, pending: Pending) -> dict[str, Any]:
        """Return what every event of a message says of it."""
        return self._about(pending.exchange, pending.message.metadata.dst_node_id)

    @harmless
    def connected(self, nodes: set[int], exchanges: Sequence[Exchange]) -> None:
        """Note who is connected when messages are sent, and who was before and is not any more.

        Nobody sends a message to a client that is away: without this a run would go on without it and say
        nothing.
        """
        with self._lock:
            exchange = exchanges[-1]
            away = self._seen - nodes - set().union(*(it.expected for it in exchanges))
            for node_id in sorted(away - self._away, key=self.order):
                reason = f"{ABSENT} {phase_of(exchange.kind)} began"
                self._failed(exchange, node_id, ErrorCode.NODE_UNAVAILABLE, reason)
            self._seen |= nodes
            self._away = away

    def lost_with_its_client(self, message_id: str, activated: str) -> bool:
        """Say whether a client that was activated anew had fetched a message before."""
        return died_with_it(self._roster.parent, message_id, activated)

    # The end of a round, and of the run.

    @harmless
    def end_round(self) -> None:
        """End the round that goes on, at the moment when something last happened in it."""
        with self._lock:
            if self._round is not None:
                self._end_round(self._round.last)

    def _end_round(self, now: float) -> None:
        this, self._round = self._round, None
        if this is None or (this.number == 0 and not this.figures):
            return
        self._last = this.number
        for exchange in this.exchanges:
            phase, seconds = phase_of(exchange.kind), exchange.ended - exchange.started
            this.phases[phase] = this.phases.get(phase, 0.0) + seconds
        this.updates.time_training(this.phases, now - this.started)
        self._derive(this)
        self.journal.append(
            "round",
            round=this.number,
            **{name: this.figures.get(name) for name in ("accuracy", "loss")},
            **{name: this.figures.get(name) for name in ("client_accuracy", "client_loss", "train_loss")},
            seconds=round(now - this.started, 3),
            phases={phase: round(seconds, 3) for phase, seconds in this.phases.items()},
            clients=len(this.trained),
            failures=this.failures,
            **({"late": this.late, "folded": this.folded, "void": this.void} if self.policed else {}),
            **this.updates.figures(),
            keys=this.keys,
            derived=this.derived,
        )

    @harmless
    def _derive(self, this: Round) -> None:
        """Take our mean of the replies, weighted by examples, for what the app has no aggregate of."""
        for phase, figures in (("evaluate", EVALUATED), ("train", TRAINED)):
            replies = [(examples, metrics) for kind, _, examples, metrics in this.replies if kind == phase]
            for figure, (name, pattern) in figures.items():
                if figure in this.figures or not replies:
                    continue
                found = [(examples, pick(metrics, name, pattern)) for examples, metrics in replies]
                total = sum(examples or 0 for examples, _ in found)
                if total and all(value is not None for _, value in found):
                    weighted = sum((examples or 0) * value[1] for examples, value in found if value)
                    this.figures[figure] = weighted / total
                    this.derived.append(figure)

    def finish(self, status: str, error: str | None, folder: Path) -> None:
        """End the record: the last round, what was never answered, the model, how the run ended."""
        with self._lock:
            if status != "completed" and self._round is not None and not self._is_whole(self._round):
                self._round = None  # it was cut off
            self.end_round()
            unanswered: dict[tuple[int | None, str], list[int]] = {}
            for pending in self.pending.values():
                key = (pending.exchange.round, phase_of(pending.exchange.kind))
                unanswered.setdefault(key, []).append(pending.message.metadata.dst_node_id)
            for (number, phase), nodes in unanswered.items():
                names = [self.client(node).name for node in sorted(nodes, key=self.order)]
                self.journal.append("unanswered", round=number, phase=phase, clients=names)
            self._save(folder / "model.npz")
            self.journal.append("run_finished", status=status, error=error and clean(error))

    def _is_whole(self, this: Round) -> bool:
        """Whether a round in which the app ended had come to its aggregate, or else had its replies."""
        return bool(this.replies) and (not self.probed or bool(this.told))

    def _save(self, path: Path) -> None:
        try:
            if arrays := named_arrays(self.model):
                self.journal.append("model_saved", **save(path, arrays))
        except Exception as error:  # a full disk, arrays of objects: the run ends as it would
            say(f"the model could not be saved: {error}")


# Figures of a round: name in the journal -> the metric of that name, else the one that matches the pattern.
SERVER = {"accuracy": ("accuracy", "acc"), "loss": ("loss", "loss")}
EVALUATED = {"client_accuracy": ("accuracy", "acc"), "client_loss": ("loss", "loss")}
TRAINED = {"train_loss": ("train_loss", "loss")}


def innermost(strategy: Any) -> Any:
    """Return the strategy that others wrap, for differential privacy for example."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy | LegacyStrategy):
        strategy = inner
    return strategy


def named_arrays(model: ArrayRecord | Sequence[np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return a model's arrays by name; those that are no numpy arrays (trees in bytes) cannot be told."""
    if model is None:
        return {}
    if isinstance(model, ArrayRecord):
        return {key: array.numpy() for key, array in model.items() if array.stype == "numpy.ndarray"}
    return {str(place): np.asarray(array) for place, array in enumerate(model)}


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Save a model so that a half-written file never bears its name; return what to journal of it."""
    unfinished = path.with_suffix(".tmp")
    # As np.savez does, which cannot have an array named `file`.
    with zipfile.ZipFile(unfinished, "w") as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    unfinished.rename(path)
    return {"path": str(path), "sha256": sha256_of(arrays), "bytes": path.stat().st_size}


def sha256_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash what a model is (names, dtypes, shapes and bytes, in their order), not how it is written."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
