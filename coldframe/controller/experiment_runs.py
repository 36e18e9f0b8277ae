"""The runs of an experiment that are in its folder: which are done, which do not count and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldframe.controller.experiment import label
from coldframe.recording.journal import reaches, read_journal

FOLDER = "experiments"  # below the results: a folder for each experiment
RUNS = "runs"  # below the experiment's: the results folders of its runs
GOOD = ("completed", "diverged")  # a model that diverged is a result
SLACK = 0.5  # seconds that a run which was stopped in time may have ended before
CHANGES = ("throttle", "undo", "expiry", "trace")  # causes of events that somebody's throttle has
OTHER_LIMITS = "its limits were changed"
OTHER_CLIENTS = "of other clients"


@dataclass(frozen=True)
class Record:
    """A run that is done: its folder, wall time in seconds, and completed rounds."""

    folder: Path
    seconds: float
    rounds: int


def done(folder: Path, world: str) -> dict[str, Record]:
    """The runs that need not be repeated, by key.

    Parameters
    ----------
    folder : Path
        With a folder per run.
    world : str
        What the federation is now: a run of other clients or with other deployed limits is another run.
    """
    found = {}
    for path in sorted(folder.glob("*/summary.json")):
        summary = read(path)
        note = note_of(summary)
        if note and not spoilt(path.parent, summary) and note.get("world") == world:
            found[str(note["key"])] = Record(
                path.parent, summary.get("wall_seconds") or 0.0, summary.get("rounds") or 0
            )
    return found


def note_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of the experiment that its run is of; nothing where it is of none."""
    note = summary.get("experiment")
    return note if isinstance(note, dict) and "key" in note else {}


def spoilt(folder: Path, summary: Mapping[str, Any]) -> str:
    """Why a run has to be repeated; nothing where it has not."""
    if summary["status"] not in GOOD and not ended_early(folder, summary):
        return str(summary["status"])
    return OTHER_LIMITS if note_of(summary) and throttled(folder) else ""


def throttled(folder: Path) -> bool:
    """Whether somebody has changed limits of clients while the run trained."""
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return any(json.loads(line).get("cause") in CHANGES for line in lines)


def ended_early(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether a run was stopped because it had reached what the experiment says, a figure or its time."""
    until = note_of(summary).get("until") or {}
    if summary["status"] != "stopped" or not until:
        return False
    if "seconds" in until and (summary.get("wall_seconds") or 0.0) >= until["seconds"] - SLACK:
        return True
    events = read_journal(folder / "journal.jsonl")
    return any(event["event"] == "round" and event["round"] > 0 and reaches(event, until) for event in events)


def seconds_per_round(results: Path, dataset: str, most: int) -> list[float]:
    """Seconds per round of the newest completed runs with a data set."""
    found: list[float] = []
    for path in sorted(results.glob("*/summary.json"), reverse=True):
        summary = {} if path.parent.is_symlink() else read(path)
        like = summary.get("status") == "completed" and summary.get("dataset") == dataset
        if like and summary.get("rounds") and summary.get("wall_seconds"):
            found.append(summary["wall_seconds"] / summary["rounds"])
        if len(found) == most:
            break
    return found


def read(path: Path) -> dict[str, Any]:
    """Return a summary; nothing of a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"status", "run_id"} <= content.keys() else {}


def title(note: Mapping[str, Any]) -> str:
    """Say which run a note is of, for people."""
    again = f", repetition {note['repeat'] + 1}" if note["repeat"] else ""
    return f"{label(note['factors'])}, seed {note['seed']}{again}"
