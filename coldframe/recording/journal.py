"""A run's journal: JSON lines that the recording of a ServerApp appends and everybody else reads.

Events (each line has `time`, unix seconds, and `event`):

- `run_started`: run_id, run_name, rounds, strategy, strategy_args, dataset, partitioner, partitioner_args,
  seed, config (the whole run config), clients [{name, partition_id, node_id}], versions, oversubscribed,
  replay (the run whose order of updates is repeated; no key where none is)
- `plan`: strategy, rounds (as soon as a strategy starts; null, or no event, where `run_started` has told it)
- `waiting`: missing [names], seconds
- `phase_started`: round, phase (train or evaluate), clients [names]
- `reply`: round, phase, client, partition_id, node_id, seconds (sent to received), examples, metrics, system,
  bytes_down, bytes_up
- `partition`: client, partition_id, class_counts [samples per class] (as its first reply tells it)
- `phase_extended`: round, phase, clients [names] (more of the phase that was started last)
- `unanswered`: round, phase, clients [names] (the app never asked for their replies, or the run was
  interrupted meanwhile: then it follows `resume`)
- `failure`: round, phase, client, partition_id, node_id, code, reason (after a `reply` of the same message:
  that was refused)
- `policy`: applied, reason (why not), deadline (seconds or "auto"), goal, minimum, late (drop or fold),
  late_reason (why late replies are not folded all the same) (of the policy that was asked for, as soon as it
  is known; no event without one)
- `late`: round, phase, client, partition_id, node_id, reason (deadline or goal: why the phase ended without
  it), seconds (that it had)
- `late_reply`: round, phase, client, partition_id, node_id, seconds (sent to received), error (in the place
  of a reply; else null): of a client that was late; not used, unless one of these follows
- `folded`: round, phase, client, partition_id, node_id, into (the round whose aggregate it is in), staleness
  (aggregations since it was sent), weight (of what the client has learnt, by its staleness), and all of
  `reply` from seconds on: of a client that was late; a late message without this event is in no model
- `not_folded`: round, phase, client, partition_id, node_id, reason (why a late reply cannot be used)
- `round_void`: round, replies (good ones), minimum (they are not aggregated: the global model stays as it is)
- `update`: round (that goes on), phase (train), client, partition_id, node_id, dispatch (the number of the
  message that it answers), base and version (of the model: that which the client was sent, that to which the
  update was added), staleness (version - base), weight (0 where it was not used), reason (why not; else
  null): with an asynchronous strategy, after the `reply`
- `not_aggregated`: round, messages, replies, reason (the strategy made no model: the global one stays)
- `round`: round (0 = before training), accuracy, loss (server-side), client_accuracy, client_loss,
  train_loss, seconds, phases {configure, train, aggregate, evaluate, server_evaluate} (seconds),
  clients (that trained), failures (with an asynchronous strategy: that came while it went on), late, folded
  and void (only with a policy), updates (used ones), discarded, staleness (mean) and max_staleness (only with
  an asynchronous strategy), keys {figure: the app's own name of it}, derived [figures that are the mean of
  the replies, weighted with their examples]
- `checkpoint`: round, bytes, held (seconds for which the run waited for it), seconds (that it took to write),
  unkept [attributes of the strategy that it cannot hold]
- `checkpoint_failed`: round, reason (no checkpoint of that round is there: the one before it still holds)
- `resume`: run_id, resumed_from (the run before it), round (the last one that was kept), resumed (how many
  times by now); a `run_started` follows, after what is `unanswered`. What came after that round is in the
  journal of the run before alone
- `model_saved`: path, sha256, bytes
- `run_finished`: status (completed, failed, diverged or stopped), error

What nobody tells is null, and so is the round of messages that belong to none. A metric may be a list.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STOPPED = "the run was stopped"
# How the reason of a failure begins that is that of no message: its client was sent none.
ABSENT = "the client was not connected when the phase"


class Journal:
    """Appends events, each by one write to a file opened with O_APPEND."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        # A writer that died in the middle of a line must not swallow the first line of the next.
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.write(self._file, b"\n")

    def append(self, event: str, **fields: Any) -> None:
        """Append one event with the present time."""
        record = {"time": round(time.time(), 3), "event": event, **_finite(fields)}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        os.write(self._file, line.encode())

    def size(self) -> int:
        """Return the bytes of all events so far."""
        return os.fstat(self._file).st_size

    def sync(self) -> None:
        """Wait until all events so far are on the disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON has no word for, by null: a diverged loss is no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def finish_interrupted(path: Path, error: str, status: str = "failed") -> None:
    """End the journal of a ServerApp that could not do it itself; one that has an end, or no begin, stays."""
    events = {event["event"] for event in read_journal(path)}
    if events and "run_finished" not in events:
        journal = Journal(path)
        journal.append("run_finished", status=status, error=error)
        journal.close()


def note_stop(path: Path) -> None:
    """End the journal of a stopped run whose ServerApp was not done with it in time."""
    finish_interrupted(path, STOPPED, "stopped")


AT_ONCE = 1 << 20  # bytes of a file that are read at once: as entries they take ten times as much memory


class Tail:
    """Reads what has been appended to a file of JSON lines since the last look.

    A file that has become shorter, or another one, is read from its start: `fresh` says so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self._inode, self._rest = 0, 0, b""
        self.fresh = False

    def new(self) -> list[dict[str, Any]]:
        """Return the new entries, or the first of many: those of AT_ONCE bytes. A last line that has no end
        yet waits for it, a torn one is left out."""
        self.fresh = False
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return []
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._offset, self._inode, self._rest, self.fresh = 0, status.st_ino, b"", True
        if status.st_size == self._offset:
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(AT_ONCE)
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the events of a journal, in order; lines that a dying writer tore are left out."""
    return [event for _, event in read_lines(path)]


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the events of a journal as `read_journal` does, each with the number of its line, from 1."""
    events = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append((number, event))
    return events


def reaches(event: Mapping[str, Any], target: Mapping[str, float]) -> str:
    """Return which figure of a round is as good as a target: ``accuracy`` at least, ``loss`` at most.

    >>> reaches({"accuracy": 0.91, "loss": None}, {"accuracy": 0.9})
    'accuracy'
    """
    accuracy, loss = event.get("accuracy"), event.get("loss")
    if "accuracy" in target and accuracy is not None and accuracy >= target["accuracy"]:
        return "accuracy"
    return "loss" if "loss" in target and loss is not None and loss <= target["loss"] else ""
