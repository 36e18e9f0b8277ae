"""The policy of a round: a phase ends at a deadline, or with enough replies, without clients that are late.

It is applied where a strategy of Flower's Message API chooses clients and the app sends them messages by
`send_and_receive`. Anything else may count on all replies: there it is left out, and the journal says why.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from coldframe.recording import fold
from coldframe.recording.fold import LateWork
from coldframe.recording.replies import clean
from coldframe.recording.rounds import Pending, Recorder, innermost
from coldframe.recording.settings import AUTO, FOLD, Settings
from coldframe.recording.task_note import PHASES, phase_of
from coldframe.recording.updates import HOOK
from coldframe.supervise import say

DEADLINE, GOAL = "deadline", "goal"  # why a client is late
# The deadline `auto`: the median of the seconds of the last phases' replies, and so many median absolute
# deviations.
DEVIATIONS = 3.0
LEAST_SLACK = 1.0  # seconds that are added to the median at least: replies that take equally long have none
RECENT = 3  # phases of a kind whose replies count, and more where those have fewer replies than
ENOUGH = 10  # clients that were asked; with fewer there is no deadline
PAUSE = 0.5  # seconds between two questions to a SuperLink that does not hold them

LEGACY = "the app uses Flower's legacy API, which has no place for it"
PRIVACY = "differential privacy is accounted for as if all sampled clients replied"
RAW = "the app sends its messages without a strategy of Flower's Message API"
WAITS_FOR_NONE = "its strategy waits for no client"
NOTHING = "the run ended before a strategy of Flower's Message API sent anything"


@dataclass(frozen=True)
class Terms:
    """What ends a phase before all clients have replied; by default no policy does.

    Attributes
    ----------
    deadline : float, optional
        Seconds since the messages were sent.
    goal : int, optional
        Good replies that are enough.
    minimum : int
        Good replies below which the phase is void.
    applied : bool
        Whether the policy holds for the phase.
    fold : bool
        Whether late replies to it are kept for a later phase, and it takes those to earlier ones.
    """

    applied: bool = False
    deadline: float | None = None
    goal: int | None = None
    minimum: int = 0
    fold: bool = False

    def limit(self, timeout: float | None) -> float | None:
        """Return the seconds after which the phase ends, by the deadline or by the app's time-out."""
        return min((value for value in (self.deadline, timeout) if value is not None), default=None)

    def lifetime(self, timeout: float | None) -> float | None:
        """Return the seconds after which nobody waits for a reply any more, late ones included."""
        return timeout if self.fold else self.limit(timeout)

    def reached(self, good: int) -> bool:
        """Say whether so many good replies are enough."""
        return self.goal is not None and good >= self.goal

    def reason(self, good: int, timeout: float | None) -> str | None:
        """Return why a phase that has ended left clients behind; None if their time was up."""
        if self.reached(good):
            return GOAL
        return DEADLINE if self.deadline is not None and self.limit(timeout) == self.deadline else None


@dataclass
class Arrivals:
    """How long the replies of a kind of phase took lately; infinitely long where none came in time.

    A client that was late counts for the median without its time being known, so that a deadline does not
    make the next one earlier; where more than half were late there is none.
    """

    phases: deque[list[float]] = field(default_factory=deque)

    def add(self, seconds: list[float]) -> None:
        """Take in a phase."""
        self.phases.append(seconds)
        while len(self.phases) > RECENT and sum(map(len, self.phases)) - len(self.phases[0]) >= ENOUGH:
            self.phases.popleft()

    def deadline(self) -> float | None:
        """Return the median and three deviations, as far as they are known.

        >>> known = Arrivals(deque([[1.0] * 4 + [3.0] * 4 + [5.0, math.inf]]))
        >>> known.deadline()
        9.0
        """
        seconds = [value for phase in self.phases for value in phase]
        if len(seconds) < ENOUGH:
            return None
        median = statistics.median(seconds)
        if not math.isfinite(median):
            return None
        deviation = statistics.median(abs(value - median) for value in seconds)
        found = median + max(DEVIATIONS * deviation, LEAST_SLACK)
        return found if math.isfinite(found) else None


class Policy:
    """The policy that was asked for in a run.

    Parameters
    ----------
    asked : Settings
        With a `round_deadline`.
    """

    def __init__(self, recorder: Recorder, asked: Settings) -> None:
        self._recorder = recorder
        self._asked = asked
        self._armed: Strategy | None = None  # it has chosen clients, and nothing is sent to them yet
        self._arrivals: dict[str, Arrivals] = {}  # by phase
        self._void = False
        self._decision: tuple[bool, str | None, str | None] | None = None
        self.late_work = LateWork()

    # What strategies tell.

    def configured(self, strategy: Any) -> None:
        """Note that a strategy has chosen the clients of a phase."""
        self._armed = None
        if not isinstance(strategy, Strategy):
            self._decide(False, LEGACY)
        elif is_private(strategy):
            self._decide(False, PRIVACY)
        elif hasattr(innermost(strategy), HOOK):
            self._decide(False, WAITS_FOR_NONE)
        else:
            self._armed = strategy

    def take_void(self) -> bool:
        """Say, once, whether the phase of training that has ended is void: its replies are not aggregated."""
        void, self._void = self._void, False
        return void

    def aggregated(self) -> None:
        """Note that a strategy has made a model of a phase of training."""
        self.late_work.version += 1

    # What the grid sees.

    def pushed(self, messages: Sequence[Message]) -> None:
        """Note messages that an app sends itself."""
        self._armed = None
        if self._decision is None and any(kind_of(message) in PHASES for message in messages):
            self._decide(False, RAW)

    def begin(self, messages: Sequence[Message]) -> Terms:
        """Return what may end the phase of messages that are about to be sent."""
        strategy, self._armed = self._armed, None
        if strategy is None or not messages:
            if messages:
                self.pushed(messages)
            return Terms()
        minimum = self._minimum(strategy)
        late_reason = fold.why_not(strategy) if self._asked.round_late == FOLD else None
        self._decide(True, None, minimum, late_reason)
        phase = kind_of(messages[0])
        deadline = self._asked.round_deadline
        if deadline == AUTO:
            deadline = self._arrivals.setdefault(phase, Arrivals()).deadline()
        known = None if deadline is None else float(deadline)
        if phase != "train":
            return Terms(True, known)
        goal = None if known is None else self._goal(len(messages), minimum)
        folds = self._asked.round_late == FOLD and late_reason is None
        return Terms(True, known, goal, minimum, folds)

    def ended(self, phase: str, terms: Terms, seconds: list[float], late: int, good: int) -> None:
        """Take in a phase that has ended: the seconds of its replies, and how many of them are good."""
        if not terms.applied:
            return
        if phase in self._arrivals:
            self._arrivals[phase].add(seconds + [math.inf] * late)
        self._void = good < terms.minimum
        if self._void:
            self._recorder.void(good, terms.minimum)

    def folds(self, terms: Terms) -> bool:
        """Whether the phase that has ended takes the late replies to earlier ones: a void one does not."""
        return terms.fold and not self._void

    def close(self) -> None:
        """Say at the end of the run that there was nothing to apply it to."""
        self.late_work.close()
        if self._decision is None:
            self._decide(False, NOTHING)

    def _minimum(self, strategy: Strategy) -> int:
        own = getattr(innermost(strategy), "min_train_nodes", 1)
        return self._asked.round_minimum or max(own if isinstance(own, int) else 1, 1)

    def _goal(self, sent: int, minimum: int) -> int | None:
        goal = self._asked.round_goal
        if goal is None:
            return None
        wanted = math.ceil(goal * sent - 1e-9) if goal <= 1 else int(goal)
        return min(max(wanted, minimum), sent)

    def _decide(
        self, applied: bool, reason: str | None, minimum: int | None = None, late_reason: str | None = None
    ) -> None:
        """Write down whether the policy is applied, where that is new."""
        if self._decision == (applied, reason, late_reason):
            return
        self._decision = (applied, reason, late_reason)
        self._recorder.policed = self._recorder.policed or applied
        asked = self._asked
        self._recorder.journal.append(
            "policy",
            applied=applied,
            reason=reason,
            deadline=asked.round_deadline,
            goal=asked.round_goal,
            minimum=minimum or asked.round_minimum,
            late=asked.round_late,
            late_reason=late_reason,
        )
        if reason:
            say(f"round_deadline is not applied: {reason}")
        elif late_reason:
            say(f"round_late=fold is not applied: {late_reason}")


class LeftBehind:
    """Messages that a phase left behind: their replies are taken from the SuperLink, and thrown away or kept.

    Else the SuperLink would keep each of them, with its model, until the run ends. A thread does it, since a
    reply comes when it comes: while the server aggregates, evaluates, or waits for the next phase.

    Parameters
    ----------
    grid : Grid
        Flower's own. Of a message that has expired it has an error.
    late_work : LateWork, optional
        What keeps the replies that are to be folded.
    lost : callable, optional
        Returns errors for those of some messages whose client has lost them.
    """

    def __init__(
        self,
        grid: Grid,
        recorder: Recorder,
        late_work: LateWork | None = None,
        lost: Callable[[Mapping[str, Pending], Collection[str]], list[Message]] | None = None,
    ) -> None:
        self._grid = grid
        self._recorder = recorder
        self._late_work = late_work
        self._lost = lost
        self._lock = threading.Lock()
        self._messages: dict[str, tuple[Pending, float]] = {}  # with when it expires
        self._collector: threading.Thread | None = None
        self._closed = False

    def add(self, messages: Mapping[str, tuple[Pending, float]]) -> None:
        """Take over messages, each with the seconds after which it expires."""
        with self._lock:
            for message_id, (pending, ttl) in messages.items():
                self._messages[message_id] = (pending, pending.sent + ttl)
            if self._messages and self._collector is None and not self._closed:
                self._collector = threading.Thread(target=self._collect, name="left-behind", daemon=True)
                self._collector.start()

    def without_busy(self, nodes: Collection[int], required: int) -> list[int]:
        """Return the nodes that are not busy with an earlier message, and so many at least: a SuperNode works
        on one message at a time. Of busy ones those come back first whose messages expire first."""
        with self._lock:
            now = time.monotonic()
            free_at = {
                pending.message.metadata.dst_node_id: expires
                for pending, expires in self._messages.values()
                if expires > now
            }
        busy = sorted((node for node in nodes if node in free_at), key=lambda node: -free_at[node])
        hidden = set(busy[: max(0, len(nodes) - required)])
        return [node for node in nodes if node not in hidden]

    def close(self) -> None:
        """Write nothing any more; what is left, the SuperLink removes with the run."""
        with self._lock:
            self._closed = True

    def _collect(self) -> None:
        while wanted := self._wanted():
            asked = time.monotonic()
            try:
                replies = list(self._grid.pull_messages(list(wanted)))
                if self._lost is not None:
                    replies += self._lost(wanted, {reply.metadata.reply_to_message_id for reply in replies})
            except Exception as error:
                replies = []
                with self._lock:
                    if self._late_work is not None:
                        for message_id in self._messages:
                            self._late_work.settle(message_id, None, 0.0)
                    self._messages.clear()
                    if not self._closed:  # else Flower has closed the connection
                        say(f"late replies stay with the SuperLink: {type(error).__name__}: {error}")
            with self._lock:
                for reply in replies:
                    self._settle(reply)
            if not replies:
                time.sleep(max(0.0, PAUSE - (time.monotonic() - asked)))

    def _wanted(self) -> dict[str, Pending]:
        with self._lock:
            if self._closed or not self._messages:
                self._collector = None
                return {}
            return {message_id: pending for message_id, (pending, _) in self._messages.items()}

    def _settle(self, reply: Message) -> None:
        message_id = reply.metadata.reply_to_message_id
        pending, _ = self._messages.pop(message_id, (None, 0.0))
        if pending is None or self._closed:
            return
        seconds = time.monotonic() - pending.sent
        expired = reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        if not expired:
            error = clean(reply.error.reason or "no reason given") if reply.has_error() else None
            about = self._recorder.about(pending)
            self._recorder.journal.append("late_reply", **about, seconds=round(seconds, 3), error=error)
        if self._late_work is not None:
            kept = None if reply.has_error() else reply
            for older in self._late_work.settle(message_id, kept, seconds):
                self._recorder.not_folded(older.pending, "a newer reply of the same client has come")


def is_private(strategy: Any) -> bool:
    """Whether one of a strategy's wrappers makes it differentially private."""
    while isinstance(strategy, Strategy):
        if any(kind.__name__.startswith("DifferentialPrivacy") for kind in type(strategy).__mro__):
            return True
        strategy = getattr(strategy, "strategy", None)
    return False


def kind_of(message: Message) -> str:
    """Return the phase of a message."""
    return phase_of(message.metadata.message_type)
