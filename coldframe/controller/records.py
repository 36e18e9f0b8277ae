"""What a journal says about one run, sorted by kind, and how times are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Event = dict[str, Any]


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
    replies, failures, late
        The `reply`, `failure` and `late` events in the order of the journal. Of those that are late `came`
        has the seconds after which there was a reply after all, if there was.
    policy
        The last `policy` event; empty without one.
    resumes
        The `resume` events: of a run that was interrupted, the journal is that of all parts.
    interrupted
        Seconds between the last round that a part has kept and the submission of the next part.
    checkpoints
        The `checkpoint` events.
    model_sha256
        Hash over the final model's arrays, if it was saved.
    finished
        The `run_finished` event; empty if the run was cut off or goes on.
    first, last
        Unix time of the first and the last event, in seconds.
    """

    started: Event = field(default_factory=dict)
    rounds: dict[int, Event] = field(default_factory=dict)
    replies: list[Event] = field(default_factory=list)
    failures: list[Event] = field(default_factory=list)
    late: list[Event] = field(default_factory=list)
    policy: Event = field(default_factory=dict)
    resumes: list[Event] = field(default_factory=list)
    interrupted: float = 0.0
    checkpoints: list[Event] = field(default_factory=list)
    model_sha256: str | None = None
    finished: Event = field(default_factory=dict)
    first: float | None = None
    last: float | None = None

    @property
    def trained_rounds(self) -> list[Event]:
        """The `round` events of completed training rounds, in order."""
        return [self.rounds[number] for number in sorted(self.rounds) if number > 0]


def gather(events: Iterable[Event]) -> Run:
    """Sort a journal's events by kind; of two events for one round the later counts."""
    run = Run()
    outcomes = {
        **{"reply": run.replies, "failure": run.failures, "late": run.late},
        **{"resume": run.resumes, "checkpoint": run.checkpoints},
    }
    for event in events:
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
                run.interrupted += run.last - (before or run.last)
        elif kind == "late_reply":
            _came_late(run, event)
        elif kind == "policy":
            run.policy = event
        elif kind == "model_saved":
            run.model_sha256 = event["sha256"]
        elif kind == "run_finished":
            run.finished = event
    return run


def _came_late(run: Run, event: Event) -> None:
    """Note when a reply came that a phase had not waited for."""
    for place in reversed(range(len(run.late))):
        late = run.late[place]
        if all(late[key] == event[key] for key in ("round", "phase", "node_id")):
            run.late[place] = {**late, "came": event["seconds"]}
            return


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
