"""What a journal says about one run, sorted by kind, and how times are written."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Line = tuple[int, Event]  # with the number of its line, from 1
# What an event `folded` says of the work of a late reply.
FOLDED = ("into", "staleness", "weight", "examples", "metrics", "system", "bytes_down", "bytes_up")
BAD_REPLY = -2  # the code of the failure of a reply that cannot be used
LEFT_OUT = "left_out.json"  # of a run's `files/`: by client, or `server`, what was not collected, and why


@dataclass
class Run:
    """What a journal says about one run, sorted by kind.

    Attributes
    ----------
    started
        The `run_started` event; empty if the journal has none. Its `histogram`, where clients told one, has
        the samples of each class by partition id.
    rounds
        Round number -> `round` event. Round 0 is the evaluation before any training.
    not_aggregated
        Rounds of whose replies the strategy made no model.
    replies, failures, late
        The `reply`, `failure` and `late` events in the order of the journal. A reply that was refused
        afterwards has `refused`; its failure follows. Of those that are late `came`
        has the seconds after which there was a reply after all, if there was; and those that are in the
        model of a later round have that as `into`, with what their `folded` event says of the work.
    updates
        The `update` events; each is also the `update` of the reply that it is about.
    policy
        The last `policy` event; empty without one.
    resumes
        The `resume` events: of a run that was interrupted, the journal is that of all parts.
    gaps
        Unix times, in seconds: when the last event was that a part has kept, and when the next was submitted.
    checkpoints, unwritten
        The `checkpoint` and the `checkpoint_failed` events.
    model_sha256
        Hash over the final model's arrays, if it was saved.
    finished
        The `run_finished` event; empty if the run was cut off or goes on.
    first, last
        Unix time of the first and the last event, in seconds.
    """

    started: Event = field(default_factory=dict)
    rounds: dict[int, Event] = field(default_factory=dict)
    not_aggregated: set[int] = field(default_factory=set)
    replies: list[Event] = field(default_factory=list)
    failures: list[Event] = field(default_factory=list)
    late: list[Event] = field(default_factory=list)
    updates: list[Event] = field(default_factory=list)
    policy: Event = field(default_factory=dict)
    resumes: list[Event] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    checkpoints: list[Event] = field(default_factory=list)
    unwritten: list[Event] = field(default_factory=list)
    model_sha256: str | None = None
    finished: Event = field(default_factory=dict)
    first: float | None = None
    last: float | None = None

    @property
    def trained_rounds(self) -> list[Event]:
        """The `round` events of completed training rounds, in order."""
        return [self.rounds[number] for number in sorted(self.rounds) if number > 0]

    @property
    def interrupted(self) -> float:
        """Seconds between the last round that a part has kept and the submission of the next part."""
        return sum(end - begin for begin, end in self.gaps)

    @property
    def folded(self) -> list[Event]:
        """Those of `late` that are in the model of a later round."""
        return [event for event in self.late if "into" in event]

    def contributions(self) -> dict[str, int]:
        """Count by client what it has trained that is in the model: replies in time, and late ones folded in;
        with an asynchronous strategy the updates that it has used.

        A round that is void or not aggregated has none, and neither has a reply that was refused; of a client
        that never trained there is a zero.
        """
        counts = dict.fromkeys((str(client["name"]) for client in self.started.get("clients", [])), 0)
        if self.updates:
            for update in self.updates:
                counts[update["client"]] = counts.get(update["client"], 0) + (not update["reason"])
            return counts
        in_time = [
            event
            for event in self.replies
            if event["phase"] == "train" and not event.get("refused") and self._made(event["round"])
        ]
        for event in [*in_time, *(event for event in self.folded if self._made(event["into"]))]:
            counts[event["client"]] = counts.get(event["client"], 0) + 1
        return counts

    def _made(self, number: int | None) -> bool:
        """Whether the replies of a round were made a model."""
        void = self.rounds.get(number, {}).get("void") if number is not None else False
        return not void and number not in self.not_aggregated


def gather(events: Iterable[Event]) -> Run:
    """Sort a journal's events by kind; of two events for one round the later counts."""
    run = Run()
    outcomes = {
        **{"reply": run.replies, "failure": run.failures, "late": run.late, "update": run.updates},
        **{"resume": run.resumes, "checkpoint": run.checkpoints, "checkpoint_failed": run.unwritten},
    }
    kept = list(events)
    for event in kept:
        before, run.last = run.last, float(event["time"])
        if run.first is None:
            run.first = run.last
        kind = event["event"]
        if kind == "run_started":
            known = {"histogram": run.started["histogram"]} if "histogram" in run.started else {}
            run.started = {**known, **event}
        elif kind == "plan":
            known = {key: event[key] for key in ("strategy", "rounds") if event.get(key) is not None}
            run.started = {**run.started, **known}
        elif kind == "partition":
            counts = run.started.setdefault("histogram", {})
            counts[str(event["partition_id"])] = event["class_counts"]
        elif kind == "round":
            run.rounds[int(event["round"])] = event
        elif kind in outcomes:
            outcomes[kind].append(event)
            if kind == "resume":
                run.gaps.append((before or run.last, run.last))
        elif kind == "late_reply" and event.get("error") is None:
            _note_late(run, event, {"came": event["seconds"]})
        elif kind == "folded":
            _note_late(run, event, {key: event[key] for key in FOLDED})
        elif kind == "policy":
            run.policy = event
        elif kind == "model_saved":
            run.model_sha256 = event["sha256"]
        elif kind == "run_finished":
            run.finished = event
    run.not_aggregated = {event["round"] for event in kept if event["event"] == "not_aggregated"}
    _mark_refused(kept)
    _match_updates(run)
    return run


def _mark_refused(events: Iterable[Event]) -> None:
    """Mark replies whose failure follows: before the next messages are sent, a client has one of each."""
    replied: dict[tuple[Any, ...], Event] = {}
    for event in events:
        kind = event["event"]
        if kind == "phase_started":
            replied.clear()
        elif kind == "reply" or (kind == "failure" and event.get("code") == BAD_REPLY):
            message = (event["round"], event["phase"], event["client"])
            if kind == "reply":
                replied[message] = event
            elif message in replied:
                replied.pop(message)["refused"] = True


def _note_late(run: Run, event: Event, found: Event) -> None:
    """Note what became of a message whose reply a phase had not waited for."""
    for place in reversed(range(len(run.late))):
        late = run.late[place]
        if all(late[key] == event[key] for key in ("round", "phase", "node_id")):
            run.late[place] = {**late, **found}
            return


def jain(counts: Iterable[int]) -> float | None:
    """Return Jain's index of fairness: 1 where all have as much, 1/n where one of n has all.

    R. Jain, D. Chiu, W. Hawe: A quantitative measure of fairness and discrimination for resource allocation
    in shared computer systems, DEC-TR-301, 1984. None where nobody has anything.

    >>> jain([4, 4, 4, 4]), jain([1, 0, 0, 0]), jain([])
    (1.0, 0.25, None)
    """
    values = list(counts)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def _match_updates(run: Run) -> None:
    """Give each update to its reply: a client's updates come in the order of its replies to training.

    A reply that waited for its turn when the run was interrupted is given up.
    """
    resumed = [float(event["time"]) for event in run.resumes]
    waiting: dict[str, deque[Event]] = {}
    for reply in run.replies if run.updates else []:
        if reply["phase"] == "train":
            waiting.setdefault(reply["node_id"], deque()).append(reply)
    for update in run.updates:
        replies = waiting.get(update["node_id"], deque())
        begun = max((moment for moment in resumed if moment <= float(update["time"])), default=0.0)
        while replies and float(replies[0]["time"]) < begun:
            replies.popleft()
        if replies:
            replies.popleft()["update"] = update


def happened(event: Event) -> float:
    """Return the unix time at which something happened that an agent's event tells, in seconds.

    An agent notices that a container was started again later, and much later where it did not run meanwhile.
    """
    return float(event.get("started") or event["time"])


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Give the key that sorts names as people do.

    >>> sorted(["local-10", "local-2", "a"], key=natural)
    ['a', 'local-2', 'local-10']
    """
    parts = re.split(r"(\d+)", name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]


def named(names: Iterable[str], most: int = 12) -> str:
    """Write names in their natural order; of many, the first and how many more there are.

    >>> named(["c-10", "c-2", "c-1"], most=2)
    'c-1, c-2 and 1 more'
    """
    found = sorted(set(names), key=natural)
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest


def folders_of(results: Path, federation: str) -> list[Path]:
    """Return the result folders of one federation, oldest first; one without an inventory is nobody's."""
    found = [
        inventory.parent
        for pattern in ("*/inventory.json", "experiments/*/runs/*/inventory.json")
        for inventory in results.glob(pattern)
        if not inventory.parent.is_symlink()
        and (inventory.parent / "summary.json").exists()
        and federation_of(inventory) == federation
    ]
    return sorted(found, key=lambda folder: folder.name)  # a name begins with the time


def federation_of(inventory: Path) -> str:
    """Return the federation that the inventory of a result names; nothing where it cannot be read."""
    try:
        content = json.loads(inventory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(content.get("federation", "")) if isinstance(content, dict) else ""


def iso(moment: float | None) -> str | None:
    """Write a unix time as ISO 8601 in UTC, so that text order is time order."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def duration(seconds: float) -> str:
    """Say a time as people do: `8.4 s`, `3 min 12 s`, `2 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
