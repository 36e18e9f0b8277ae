"""What became of a run's messages: whether each that its journal has dispatched has exactly one outcome."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from coldframe.controller.records import Event, Line, Run
from coldframe.recording.journal import ABSENT

DISPATCHED = ("phase_started", "phase_extended")  # with the clients to which a message goes
OUTCOMES = ("reply", "failure", "late")
FOLDS = ("folded", "not_folded")  # what a late reply comes to
ONE_PULL = ("reply", "failure", "partition")  # events between which a strategy does nothing
ENDINGS = {"stopped": "was stopped", "running": "goes on", "diverged": "diverged"}
Key = tuple[Any, ...]  # round, phase, client: how outcomes name their message


def judge(journal: Sequence[Line], run: Run, status: str | None) -> tuple[bool, str, list[int]]:
    """Judge whether no update was lost.

    The outcome of a message is a reply, a failure, or that it is late. A reply that is refused has a failure
    as well: that is one outcome. In a run that has completed a message may also be unanswered: its app, an
    asynchronous strategy for example, did not need the reply. A late reply is folded, or not, at most once.
    With an asynchronous strategy each update belongs to a reply, and no reply is passed over by a later one.

    Returns
    -------
    passed, found, numbers
        The numbers are those of lines that speak against it.
    """
    sent, came, unanswered = _messages(journal)
    if status == "completed":
        for key, numbers in unanswered.items():
            came[key] += numbers
    total = sum(map(len, sent.values()))
    missing = {key: numbers[len(came[key]) :] for key, numbers in sent.items()}
    extra = {key: numbers[len(sent.get(key, ())) :] for key, numbers in list(came.items())}
    problems = [
        (_lines(missing), f"of {total} messages have no outcome"),
        (_lines(extra), "outcomes are of no message, or of one that has another"),
        (_folded_again(journal), "late replies are folded that were not late, or more than once"),
        *_of_updates(journal, run),
    ]
    found = [f"{len(numbers)} {words}" for numbers, words in problems if numbers]
    if found:
        ending = "" if status == "completed" else f" (the run {ENDINGS.get(str(status), 'has failed')})"
        return False, ", ".join(found) + ending, [number for numbers, _ in problems for number in numbers]
    if not total:
        return False, "not known: no message was dispatched", []
    rest = sum(map(len, unanswered.values()))
    return True, f"all {total} have one" + (f", {rest} of them are unanswered" if rest else ""), []


def _lines(by_key: Mapping[Key, list[int]]) -> list[int]:
    return [number for numbers in by_key.values() for number in numbers]


def _messages(journal: Sequence[Line]) -> tuple[dict[Key, list[int]], ...]:
    """Return the lines that dispatch messages, those of outcomes, and of messages that are unanswered."""
    sent: dict[Key, list[int]] = defaultdict(list)
    came: dict[Key, list[int]] = defaultdict(list)
    unanswered: dict[Key, list[int]] = defaultdict(list)
    for number, event in journal:
        kind = event["event"]
        if kind in (*DISPATCHED, "unanswered"):
            for client in event["clients"]:
                (unanswered if kind == "unanswered" else sent)[_key(event, client)].append(number)
        elif kind in OUTCOMES and not event.get("refused") and not _was_absent(event):
            came[_key(event, event["client"])].append(number)
    return sent, came, unanswered


def _key(event: Event, client: str) -> Key:
    return event["round"], event["phase"], client


def _was_absent(event: Event) -> bool:
    """Whether a failure is that of a client that nothing was sent to."""
    return event["event"] == "failure" and str(event["reason"]).startswith(ABSENT)


def _folded_again(journal: Sequence[Line]) -> list[int]:
    """Return the lines of late replies that are folded, or not, once more than they were late."""
    late: dict[Key, int] = defaultdict(int)
    numbers = []
    for number, event in journal:
        if event["event"] in ("late", *FOLDS):
            key = _key(event, event["client"])
            late[key] += 1 if event["event"] == "late" else -1
            if late[key] < 0:
                numbers.append(number)
    return numbers


def _of_updates(journal: Sequence[Line], run: Run) -> list[tuple[list[int], str]]:
    """Return what is wrong with the updates of an asynchronous strategy.

    It uses replies in the order in which they came, but for those that it took together: of these the
    journal has nothing else in between. Of the replies of one client the first ones are used. Those that
    waited when the run was interrupted are given up. A run that repeats the order of another one has that.
    """
    if not run.updates:
        return []
    pull, between = 0, False
    replies: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by client: line, pull
    updates: dict[str, list[int]] = defaultdict(list)
    for number, event in journal:
        between = between or event["event"] not in ONE_PULL
        if event["event"] == "update":
            updates[event["client"]].append(number)
        elif event["event"] == "reply" and event["phase"] == "train" and not event.get("refused"):
            pull, between = pull + between, False
            replies[event["client"]].append((number, pull))
        elif event["event"] == "resume":
            for client, own in replies.items():
                del own[len(updates[client]) :]
    invented = [number for client, own in updates.items() for number in own[len(replies[client]) :]]
    used = [item for client, own in replies.items() for item in own[: len(updates[client])]]
    last = max((pull for _, pull in used), default=0)
    rest = [item for client, own in replies.items() for item in own[len(updates[client]) :]]
    passed = [] if run.started.get("replay") else [number for number, pull in rest if pull < last]
    return [(invented, "updates are of no reply"), (passed, "replies were passed over by later ones")]
