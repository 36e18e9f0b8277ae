"""The note of a client about the task that it works on: for the machine's agent, which plays scenarios by it.

One small file, replaced at the begin of each task, in the directory that the client may write to. It knows
nothing of flwr but a message's fields, so that the agent can import it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "task.json"
LARGEST = 512  # bytes
PHASES = ("train", "evaluate")  # of a round, in their order
MOST = 10**9  # rounds


@dataclass(frozen=True)
class Note:
    """A task: its run, its round where the message names one, and its phase."""

    run: str
    round: int | None
    phase: str

    @property
    def place(self) -> tuple[int, int]:
        """Where it lies in the run; places of the same run can be compared."""
        return place_of(self.round or 0, self.phase)


def place_of(number: int, phase: str) -> tuple[int, int]:
    """Return the place of a phase in a run: in each round training comes first.

    >>> place_of(2, "train") < place_of(2, "evaluate") < place_of(3, "train")
    True
    """
    return number, PHASES.index(phase) if phase in PHASES else -1


def of_message(run: str, message: Any) -> Note:
    """Return the note of a message's task."""
    return Note(run, told_round(message), phase_of(message.metadata.message_type))


def phase_of(kind: str) -> str:
    """Return the phase of a message type: `train` of `train.apply_gradients`."""
    return kind.partition(".")[0]


def told_round(message: Any) -> int | None:
    """Return the round that a message names: `server-round` in a config, or a number as its group; from 1."""
    for record in message.content.config_records.values() if message.has_content() else ():
        number: Any = record.get("server-round")
        if is_round(number):
            return int(number)
    group = message.metadata.group_id
    return int(group) if re.fullmatch(r"[1-9]\d{0,8}", group) else None


def write(folder: Path, note: Note) -> None:
    """Replace the note in one step; whoever is not its owner may read it."""
    fresh = folder / f".{NAME}.{os.getpid()}"
    content = {"run": note.run, "round": note.round, "phase": note.phase}
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        os.fchmod(file.fileno(), 0o644)
    fresh.replace(folder / NAME)


def parse(text: bytes) -> Note | None:
    """Return the note that a file holds; None where it holds anything else.

    >>> parse(b'{"run": "7", "round": 3, "phase": "train"}')
    Note(run='7', round=3, phase='train')
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    run, number, phase = (found.get(key) for key in ("run", "round", "phase"))
    if not (isinstance(run, str) and re.fullmatch(r"\d{1,20}", run)):
        return None
    if not (isinstance(phase, str) and re.fullmatch(r"[a-z_]{1,32}", phase)):
        return None
    return Note(run, number, phase) if number is None or is_round(number) else None


def is_round(number: Any) -> bool:
    """Whether a value is a round's number."""
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST
