"""The settings of a run that its app knows nothing of: they travel beneath it, in `submitted.json`.

Who submits a run learns its id when its ServerApp may have started already: it holds a lock until the file is
there, and the ServerApp's process waits for that. A run that came another way (`flwr run`) has no such file.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = "submit.lock"  # below the state directory
NOTE = "submitted.json"  # below the run's
AUTO = "auto"  # a deadline that follows from the replies of recent rounds
DROP, FOLD = "drop", "fold"  # what becomes of a late reply


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes
    ----------
    run_name : str, optional
        Part of the name of the results folder.
    oversubscribed : bool, optional
        Whether the clients' quotas exceed a machine's cores.
    wait_timeout : float
        Seconds to wait for the clients that a round needs.
    round_deadline : float or "auto", optional
        Seconds after which a phase goes on without the clients that have not replied; None: no policy.
    round_goal : float or int, optional
        Good replies that end a phase of training: a share up to 1, or a whole number.
    round_minimum : int, optional
        Good replies below which a phase of training is void; None: the strategy's own minimum of clients.
    round_late : "drop" or "fold"
        What becomes of replies to a phase of training that has ended: nothing, or they are in the next one.
    replay : str, optional
        The run whose order of updates is to be repeated.
    checkpoint : bool
        Whether a checkpoint is taken after each round.
    resumed_from : str, optional
        The run that this one goes on from.
    """

    run_name: str | None = None
    oversubscribed: bool | None = None
    wait_timeout: float = 300.0
    round_deadline: float | str | None = None
    round_goal: float | int | None = None
    round_minimum: int | None = None
    round_late: str = DROP
    replay: str | None = None
    checkpoint: bool = True
    resumed_from: str | None = None


@contextmanager
def submitting(state: Path) -> Iterator[None]:
    """Hold the lock, from before the run is started until its note is written."""
    with (state / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(state: Path, run_id: str, note: str) -> None:
    """Write the note of a run."""
    folder = state / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{NOTE}.part"
    part.write_text(note, encoding="utf-8")
    part.rename(folder / NOTE)


def note_of(state: Path, run_id: str) -> dict[str, Any]:
    """Return the note of a run; empty where there is none."""
    try:
        return dict(json.loads((state / "runs" / run_id / NOTE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def experiment_of(state: Path, run_id: str) -> dict[str, Any] | None:
    """Return what a run's note says of the experiment that it belongs to; None for any other run."""
    found = note_of(state, run_id).get("experiment")
    return found if isinstance(found, dict) else None


def began(state: Path, run_id: str) -> str | None:
    """Return when the first part of a run was submitted that was resumed; None for any other run."""
    return (note_of(state, run_id).get("settings") or {}).get("began")


def read(state: Path, run_id: str) -> Settings:
    """Return the settings of a run, once nobody submits any more; those of a run without a note."""
    try:
        with (state / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        text = (state / "runs" / run_id / NOTE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    given: Mapping[str, Any] = json.loads(text).get("settings") or {}
    return Settings(
        run_name=given.get("run_name") or None,
        oversubscribed=given.get("oversubscribed"),
        wait_timeout=float(given.get("wait_timeout", Settings.wait_timeout)),
        round_deadline=given.get("round_deadline") or None,
        round_goal=given.get("round_goal") or None,
        round_minimum=given.get("round_minimum") or None,
        round_late=given.get("round_late") or DROP,
        replay=given.get("replay") or None,
        checkpoint=given.get("checkpoint", True),
        resumed_from=given.get("resumed_from"),
    )
