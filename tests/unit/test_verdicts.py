"""What a run's records say about its assertions: of each kind a run that holds, and one that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coldframe.agent import reconciler
from coldframe.controller import assertions, timeline, verdicts
from coldframe.controller.records import Event, gather
from coldframe.controller.results import summarise
from coldframe.controller.verdicts import Records, Verdict
from coldframe.recording.journal import ABSENT

START = 1_700_000_000.0


def message(event: str, number: int | None, client: str, phase: str = "train", **more: Any) -> Event:
    """An event about a message."""
    return {"event": event, "round": number, "phase": phase, "client": client, "node_id": client, **more}


def dispatch(number: int | None, *clients: str, phase: str = "train", more: bool = False) -> Event:
    event = "phase_extended" if more else "phase_started"
    return {"event": event, "round": number, "phase": phase, "clients": list(clients)}


def ended(number: int, seconds: float = 10.0, **more: Any) -> Event:
    return {"event": "round", "round": number, "accuracy": 0.9, "loss": 0.1, "seconds": seconds, **more}


def failure(number: int, client: str, reason: str, code: int = 5, **more: Any) -> Event:
    return message("failure", number, client, code=code, reason=reason, **more)


BEGUN: Event = {"event": "run_started", "run_id": "7", "clients": [{"name": "a"}, {"name": "b"}]}
FINISHED: Event = {"event": "run_finished", "status": "completed", "error": None}


def records(
    *journal: Event, events: list[Event] | None = None, status: str = "completed", **summary: Any
) -> Records:
    """The records of a run: a line of the journal each second, the first at second 0, unless it says when."""
    timed = [
        {"time": START + event.pop("at", place), **event} for place, event in enumerate(map(dict, journal))
    ]
    run = gather(timed)
    told = {**summarise(run, run_id="7", status=status), "scenario": None, **summary}
    return Records(told, run, list(enumerate(timed, start=1)), events)


def judge(text: str, found: Records) -> Verdict:
    return verdicts.judge(assertions.parse(text), found)


def of_agent(at: float, client: str, cause: str, **more: Any) -> Event:
    """An event of the agents at a second of the run."""
    return {"time": START + at, "client": client, "cause": cause, **more}


ROUNDS = records(
    {**BEGUN, "clients": [{"name": name} for name in ("c1-0", "c1-1", "c2-0", "c2-1")]},
    failure(2, "c1-0", "no reply within the timeout"),
    ended(1, 10.0),
    failure(3, "c1-1", "Timeout"),
    failure(3, "c2-0", "its process was killed", phase="evaluate"),
    *(ended(number, seconds) for number, seconds in enumerate((4.0, 2.0, 3.0, 1.0), start=2)),
    {**FINISHED, "at": 61.5},
    events=[
        of_agent(1, "a", "scenario", lateness=0.05, holds=True),
        of_agent(2, "a", "scenario", lateness=0.4, holds=True),
    ],
    loss=None,
    scenario={"entries": [{"lateness": 0.05}, {"lateness": None}, {"lateness": 0.4}]},
)


@pytest.mark.parametrize(
    ("text", "passed", "found", "against"),
    [
        ("accuracy >= 0.9", True, "0.9", ()),
        ("accuracy > 0.95", False, "0.9", ("journal.jsonl:9",)),
        ("loss < 1", False, "not known", ("journal.jsonl:9",)),
        ("rounds == 5", True, "5", ()),
        ("rounds != 5", False, "5", ("journal.jsonl:10",)),
        ("clients == 4", True, "4", ()),
        ("clients == 3", False, "4", ("journal.jsonl:1",)),
        ("wall_seconds<=7e1", True, "61.5", ()),
        ("wall_seconds<=6e1", False, "61.5", ("journal.jsonl:10",)),
        ("round_seconds.median <= 3", True, "3", ()),
        ("round_seconds.p95 <= 8", False, "8.8", ("journal.jsonl:3",)),
        ("round_seconds.mean == 4", True, "4", ()),
        ("round_seconds.min > 1", False, "1", ("journal.jsonl:9",)),
        ("lateness.max <= 0.5", True, "0.4", ()),
        ("lateness.max <= 0.1", False, "0.4", ("events.jsonl:2",)),
        ("failures <= 2", False, "3", ("journal.jsonl:2", "journal.jsonl:4", "journal.jsonl:5")),
        ("failures{reason=timeout} <= 2", True, "2", ()),
        ("failures{client=c1-*, round=3} == 1", True, "1", ()),
        ("failures{phase=evaluate} < 1", False, "1", ("journal.jsonl:5",)),
    ],
)
def test_figures_are_compared(text: str, passed: bool, found: str, against: tuple[str, ...]) -> None:
    verdict = judge(text, ROUNDS)
    assert (verdict.passed, verdict.found, verdict.against) == (passed, found, against)


def test_a_series_of_nothing_is_not_known() -> None:
    for text in ("round_seconds.max <= 1", "lateness.max <= 1"):
        assert judge(text, records(BEGUN, FINISHED)).found == "not known"


def test_of_many_lines_the_first_ones_are_named() -> None:
    found = records(BEGUN, *(failure(number, "a", "no") for number in range(1, 9)), FINISHED)
    verdict = judge("failures == 0", found)
    assert verdict.against == tuple(f"journal.jsonl:{number}" for number in range(2, 7))
    assert verdict.more == 3


def test_limits_are_verified_where_all_events_hold() -> None:
    good = [of_agent(1, "a", "throttle", holds=True), of_agent(2, "a", "oom")]
    assert judge("limits_verified", records(BEGUN, events=good)).passed
    bad = [*good, of_agent(3, "b", "throttle", holds=False)]
    verdict = judge("limits_verified", records(BEGUN, events=bad))
    assert (verdict.passed, verdict.found, verdict.against) == (False, "not for b", ("events.jsonl:3",))
    assert judge("limits_verified", records(BEGUN)).found == "not known"  # nobody asked the agents


# Late work.

LATE = (
    BEGUN,
    dispatch(1, "a", "b"),
    message("late", 1, "a", reason="goal"),
    message("reply", 1, "b"),
    dispatch(2, "b", "a"),
    message("late", 2, "a", reason="deadline"),
    message("late_reply", 1, "a", seconds=3.0, error=None),
    message("reply", 2, "b"),
    message(
        "folded", 1, "a", **dict.fromkeys(("staleness", "weight", "examples", "metrics", "system")), into=2
    )
    | {"bytes_down": 1, "bytes_up": 1},
    FINISHED,
)


@pytest.mark.parametrize(
    ("text", "passed", "found", "against"),
    [
        ("late == 2", True, "2", ()),
        ("late{reason=goal} < 1", False, "1", ("journal.jsonl:3",)),
        ("late{client=b} == 0", True, "0", ()),
        ("folded >= 1", True, "1", ()),
        ("folded{round=1, client=a} == 0", False, "1", ("journal.jsonl:9",)),
        ("discarded == 0", False, "not known", ()),  # the strategy is not asynchronous
        ("no_lost_update", True, "all 4 have one", ()),
    ],
)
def test_late_work_is_counted(text: str, passed: bool, found: str, against: tuple[str, ...]) -> None:
    verdict = judge(text, records(*LATE))
    assert (verdict.passed, verdict.found, verdict.against) == (passed, found, against)


# Messages and their outcomes.


def update(client: str, reason: str | None = None) -> Event:
    return message("update", 1, client, reason=reason, staleness=0, weight=1.0)


ROUND = (dispatch(1, "a", "b"), message("reply", 1, "a"), failure(1, "b", "no reply within 60 s"))
BUFFERED = (
    BEGUN,
    dispatch(1, "a", "b"),
    message("reply", 1, "a"),
    message("reply", 1, "b"),
    update("a"),
    update("b", "its staleness is more than max_staleness 0"),
    dispatch(1, "a", more=True),
    message("reply", 1, "a"),
    ended(1),
    dispatch(2, "b"),
    update("a"),
    {**ended(2), "updates": 1},
    {"event": "unanswered", "round": 2, "phase": "train", "clients": ["b"]},
)


@pytest.mark.parametrize(
    ("journal", "found"),
    [
        ((BEGUN, *ROUND, FINISHED), "all 2 have one"),
        (
            (
                BEGUN,
                *ROUND,
                dispatch(2, "a"),
                failure(2, "b", f"{ABSENT} train began"),
                message("reply", 2, "a"),
            ),
            "all 3",
        ),
        (
            (BEGUN, dispatch(1, "a"), message("reply", 1, "a"), failure(1, "a", "odd", code=-2)),
            "all 1 have one",
        ),
        # Several exchanges of one round, as secure aggregation has.
        ((BEGUN, *ROUND, *ROUND), "all 4 have one"),
        ((BEGUN, dispatch(None, "a"), message("reply", None, "a")), "all 1 have one"),
        ((*BUFFERED, FINISHED), "all 4 have one, 1 of them are unanswered"),
    ],
)
def test_no_update_is_lost_where_each_message_has_one_outcome(journal: tuple[Event, ...], found: str) -> None:
    verdict = judge("no_lost_update", records(*journal))
    assert verdict.passed and verdict.found.startswith(found), verdict


@pytest.mark.parametrize(
    ("journal", "found", "against"),
    [
        (
            (BEGUN, dispatch(1, "a", "b"), message("reply", 1, "a"), FINISHED),
            "1 of 2 messages have no outcome",
            ("journal.jsonl:2",),
        ),
        (
            (BEGUN, dispatch(1, "a"), dispatch(1, "b", more=True), message("reply", 1, "a"), FINISHED),
            "1 of 2 messages have no outcome",
            ("journal.jsonl:3",),
        ),
        (
            (BEGUN, *ROUND, failure(1, "a", "its process was killed"), FINISHED),
            "1 outcomes are of no message, or of one that has another",
            ("journal.jsonl:5",),
        ),
        (
            (*LATE[:-1], LATE[-2], FINISHED),
            "1 late replies are folded that were not late, or more than once",
            ("journal.jsonl:10",),
        ),
        (
            (*BUFFERED[:-1], update("b"), update("a"), message("reply", 2, "b"), FINISHED),
            "1 updates are of no reply",
            ("journal.jsonl:14",),
        ),
        (
            (*BUFFERED[:4], update("a"), *BUFFERED[6:], FINISHED),
            "1 replies were passed over by later ones",
            ("journal.jsonl:4",),
        ),
        ((BEGUN, FINISHED), "not known: no message was dispatched", ()),
    ],
    ids=["none", "extended", "two", "folded twice", "invented", "passed over", "nothing"],
)
def test_an_update_that_is_lost_is_found(
    journal: tuple[Event, ...], found: str, against: tuple[str, ...]
) -> None:
    verdict = judge("no_lost_update", records(*journal))
    assert (verdict.passed, verdict.found, verdict.against) == (False, found, against)


def test_replies_that_came_together_are_used_in_any_order() -> None:
    """The last update of such a run may be that of any of them; so may it be where an order is repeated."""
    together = (BEGUN, dispatch(1, "a", "b"), message("reply", 1, "b"), message("reply", 1, "a"), update("a"))
    assert judge("no_lost_update", records(*together, FINISHED)).passed
    apart = (*BUFFERED[:4], update("a"), *BUFFERED[6:], FINISHED)
    assert judge("no_lost_update", records({**BEGUN, "replay": "6"}, *apart[1:])).passed


GIVEN_UP = {"event": "unanswered", "round": 1, "phase": "train", "clients": ["a"]}
RESUME = {"event": "resume", "run_id": "8", "resumed_from": "7", "round": 1, "resumed": 1}


@pytest.mark.parametrize("between", [(GIVEN_UP, RESUME), (RESUME, GIVEN_UP)], ids=["before", "after"])
def test_replies_that_waited_when_a_run_was_interrupted_are_given_up(between: tuple[Event, ...]) -> None:
    """The second reply of a waits, and a third message is on its way, when the run is interrupted."""
    journal = (
        *(BEGUN, dispatch(1, "a", "b"), message("reply", 1, "a"), update("a")),
        *(dispatch(1, "a", more=True), message("reply", 1, "a"), dispatch(1, "a", more=True)),
        *between,
        *(dispatch(2, "a"), message("reply", 2, "a"), update("a")),
        *(message("reply", 1, "b"), update("b")),
    )
    verdict = judge("no_lost_update", records(*journal, FINISHED))
    assert verdict.passed and verdict.found == "all 5 have one, 1 of them are unanswered"
    # What is passed over after it is still found, with its line.
    verdict = judge("no_lost_update", records(*journal[:-3], ended(2), *journal[-2:], FINISHED))
    assert verdict.against == ("journal.jsonl:11",)


@pytest.mark.parametrize("status", ["stopped", "failed", "running", "diverged"])
def test_what_was_on_its_way_when_a_run_ended_early_is_lost(status: str) -> None:
    on_its_way = {"event": "unanswered", "round": 1, "phase": "train", "clients": ["b"]}
    verdict = judge("no_lost_update", records(BEGUN, *ROUND[:2], on_its_way, status=status))
    assert not verdict.passed and verdict.against == ("journal.jsonl:2",)
    ending = {"stopped": "was stopped", "failed": "has failed", "running": "goes on"}.get(status, status)
    assert verdict.found == f"1 of 2 messages have no outcome (the run {ending})"
    assert judge("no_lost_update", records(BEGUN, *ROUND, status=status)).passed  # nothing was on its way


@pytest.mark.parametrize(
    ("text", "passed", "found", "against"),
    [
        ("discarded <= 1", True, "1", ()),
        ("discarded == 0", False, "1", ("journal.jsonl:6",)),
        ("discarded{client=a} == 0", True, "0", ()),
        ("discarded{reason=max_staleness} == 0", False, "1", ("journal.jsonl:6",)),
    ],
)
def test_discarded_updates_are_counted(text: str, passed: bool, found: str, against: tuple[str, ...]) -> None:
    verdict = judge(text, records(*BUFFERED, FINISHED))
    assert (verdict.passed, verdict.found, verdict.against) == (passed, found, against)


# Restarts.

RESTARTED = [
    of_agent(1, "c1-0", "scenario", do="kill", entry=1, holds=True, seconds=0.5),
    of_agent(2, "c1-0", "container restarted"),
    of_agent(3, "c2-0", "scenario", do="leave", entry=2, holds=True),
    of_agent(4, "c2-0", "scenario", do="join", entry=3, holds=True),
    of_agent(5, "c2-0", "container restarted"),  # it comes back
    of_agent(6, "c1-1", "container restarted"),
    of_agent(7, "c1-1", "container restarted"),
    of_agent(8, "c1-1", "restart", holds=True),  # limits were applied anew
]


@pytest.mark.parametrize(
    ("text", "passed", "found", "against"),
    [
        ("restarts == {c1-0: 1, c1-1: 2}", True, "c1-0: 1, c1-1: 2", ()),
        ("restarts == {c1-0: 1}", False, "c1-0: 1, c1-1: 2", ("events.jsonl:6", "events.jsonl:7")),
        ("restarts == {c1-0: 2, c1-1: 2}", False, "c1-0: 1, c1-1: 2", ("events.jsonl:2",)),
        ("restarts == {c1-0: 1, c1-1: 2, c2-0: 1}", False, "c1-0: 1, c1-1: 2, c2-0: 0", ()),
        ("restarts == {c1-0: 1, c1-1: 2, c2-0: 0}", True, "c1-0: 1, c1-1: 2", ()),
        ("restarts == {}", False, "c1-0: 1, c1-1: 2", tuple(f"events.jsonl:{n}" for n in (2, 6, 7))),
        ("restarts == 0", False, "3", tuple(f"events.jsonl:{n}" for n in (2, 6, 7))),
        ("restarts{client=c1-*} <= 3", True, "3", ()),
        ("restarts{client=c2-*} == 0", True, "0", ()),
        ("restarts{client=c1-0} < 1", False, "1", ("events.jsonl:2",)),
    ],
)
def test_restarts_are_counted(text: str, passed: bool, found: str, against: tuple[str, ...]) -> None:
    verdict = judge(text, records(BEGUN, FINISHED, events=RESTARTED))
    assert (verdict.passed, verdict.found, verdict.against) == (passed, found, against)


def test_restarts_count_by_when_they_were_not_by_when_they_were_noticed() -> None:
    events = [
        of_agent(1, "c1-0", "container restarted", started=START - 3),  # before the run
        of_agent(2, "c2-0", "scenario", do="leave", entry=2, holds=True),
        of_agent(3, "c2-0", "container restarted", started=START + 1.5),  # before it left
        of_agent(4, "c2-0", "container restarted", started=START + 3.5),  # it comes back
        of_agent(5, "c1-1", "container restarted", started=START + 4.5),
        of_agent(6, "c1-1", "container restarted", started=START + 4.5),  # told twice
    ]
    verdict = judge("restarts == {c1-1: 1, c2-0: 1}", records(BEGUN, FINISHED, events=events))
    assert (verdict.passed, verdict.found) == (True, "c1-1: 1, c2-0: 1")
    assert judge("restarts < 2", records(BEGUN, FINISHED, events=events)).against == (
        "events.jsonl:3",
        "events.jsonl:5",
    )


def test_the_event_of_a_restart_is_that_of_the_agent() -> None:
    assert verdicts.RESTARTED == reconciler.RESTARTED and verdicts.RESTARTED in timeline.MARKS


@pytest.mark.parametrize("text", ["restarts == {}", "restarts == 0"])
def test_without_restarts_there_are_none_and_without_agents_nobody_knows(text: str) -> None:
    assert judge(text, records(BEGUN, FINISHED, events=[of_agent(1, "a", "oom", kills=1)])).passed
    assert judge(text, records(BEGUN, FINISHED)).found == "not known"


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("restarts == {c1-0: 1, c1-1: 2}", False),
        ("restarts == 3", False),
        ("restarts{client=c1-*} == 3", True),
        ("restarts{client=c[23]-*} == 0", False),
        ("limits_verified", False),
        ("lateness.max <= 1", False),
        ("recovery(kill) <= 0 rounds", False),
        ("rounds == 0", True),
    ],
)
def test_of_clients_whose_agent_did_not_answer_nothing_is_known(text: str, passed: bool) -> None:
    """c3 has clients, c4 has none."""
    journal = (BEGUN, {**dispatch(0, "c1-0"), "at": 0}, {**message("reply", 0, "c1-0"), "at": 9}, FINISHED)
    told = {"entries": [{"lateness": 0.1}]}
    known = records(*journal, events=[{"lateness": 0.1, **event} for event in RESTARTED], scenario=told)
    assert judge(text, known).passed
    verdict = judge(text, replace(known, silent={"c3": ["c3-0", "c3-1"], "c4": []}))
    assert verdict.passed is passed
    assert passed or (verdict.found, verdict.against) == ("not known for c3", ())


# Recovery.


def answers(*missing: tuple[int, str], rounds: int = 5) -> list[Event]:
    """A run in which round n begins at second 100 n; a answers 10 s after that, and b 20 s."""
    journal: list[Event] = [BEGUN]
    for number in range(1, rounds + 1):
        journal.append({**dispatch(number, "a", "b"), "at": 100.0 * number})
        for client, seconds in (("a", 10.0), ("b", 20.0)):
            event = (
                failure(number, client, "no")
                if (number, client) in missing
                else message("reply", number, client)
            )
            journal.append({**event, "at": 100.0 * number + seconds})
    return [*journal, {**FINISHED, "at": 100.0 * rounds + 50}]


def over(at: float, client: str, do: str, entry: int = 1) -> list[Event]:
    """An entry at second 205, and its end."""
    first = of_agent(205, client, "scenario", do=do, entry=entry, holds=True, seconds=0.5)
    return [first, of_agent(at, client, "scenario ended", do=do, entry=entry, holds=True, seconds=0.5)]


@pytest.mark.parametrize(
    ("missing", "end", "text", "passed", "found"),
    [
        ([], 215.5, "recovery(pause) <= 0 rounds", True, "0 rounds, b after entry 1"),
        ([(2, "b")], 215.5, "recovery(pause) <= 1 rounds", True, "1 round, b after entry 1"),
        ([(2, "b")], 215.5, "recovery(pause) < 1 round", False, "1 round, b after entry 1"),
        ([(2, "b"), (3, "b")], 215.5, "recovery(pause) <= 1 rounds", False, "2 rounds, b after entry 1"),
        ([(2, "b")], 310.5, "recovery(pause) <= 10 seconds", True, "10 seconds, b after entry 1"),
        ([(2, "b")], 310.5, "recovery(pause) <= 9.9 s", False, "10 seconds, b after entry 1"),
        ([(2, "b")], 310.5, "recovery(pause) == 0 rounds", True, "0 rounds, b after entry 1"),
    ],
)
def test_recovery_is_how_long_a_client_does_not_answer_after_an_effect(
    missing: list[tuple[int, str]], end: float, text: str, passed: bool, found: str
) -> None:
    verdict = judge(text, records(*answers(*missing), events=over(end, "b", "pause")))
    assert (verdict.passed, verdict.found) == (passed, found)
    assert bool(verdict.against) != passed and set(verdict.against[-1:]) <= {"events.jsonl:2"}


def test_of_several_clients_and_entries_the_slowest_counts() -> None:
    events = [*over(215, "a", "partition"), *over(215, "b", "partition"), *over(410, "a", "partition", 4)]
    found = records(*answers((3, "a"), (4, "a")), events=events)
    verdict = judge("recovery(partition) <= 1 rounds", found)
    assert verdict.found == "3 rounds, a after entry 1"
    line = next(n for n, event in found.journal if event["event"] == "reply" and event["round"] == 5)
    assert verdict.against == (f"journal.jsonl:{line}", "events.jsonl:2")
    assert judge("recovery(partition) <= 3 rounds", found).passed


@pytest.mark.parametrize(
    ("events", "kind", "rounds"),
    [
        # A kill is over as soon as it has happened.
        ([of_agent(215, "b", "scenario", do="kill", entry=1, holds=True, seconds=10.0)], "kill", 1),
        (over(215, "b", "throttle"), "throttle", 1),
        ([over(0, "b", "leave")[0], of_agent(315, "b", "scenario", do="join", entry=2)], "leave", 0),
        ([over(0, "b", "pause")[0], of_agent(315, "b", "scenario", do="undo", entry=2)], "pause", 0),
        ([over(0, "b", "throttle")[0], of_agent(215, "b", "undo")], "throttle", 1),
        ([over(0, "b", "leave")[0], of_agent(215, "b", "scenario ended", do="undo", entry=0)], "leave", 1),
    ],
    ids=["kill", "throttle", "leave and join", "undo", "throttle.yml undo", "released"],
)
def test_each_kind_of_entry_ends_in_its_way(events: list[Event], kind: str, rounds: int) -> None:
    found = records(*answers((2, "b")), events=events)
    assert judge(f"recovery({kind}) == {rounds} rounds", found).passed
    assert not judge(f"recovery({kind}) == {rounds + 1} rounds", found).passed


def test_a_reply_from_before_the_process_died_is_no_recovery() -> None:
    """The agent began at second 215; b answered at 220; the process was dead at 225."""
    killed = of_agent(225, "b", "scenario", do="kill", entry=1, holds=True, seconds=10.0)
    verdict = judge("recovery(kill) <= 0 rounds", records(*answers(), events=[killed]))
    assert (verdict.passed, verdict.found) == (False, "1 round, b after entry 1")
    assert judge("recovery(kill) == 95 seconds", records(*answers(), events=[killed])).passed


def test_what_never_recovered_does_not_hold() -> None:
    gone = records(*answers(*((number, "b") for number in range(2, 6))), events=over(215, "b", "pause"))
    verdict = judge("recovery(pause) <= 9 rounds", gone)
    assert (verdict.passed, verdict.found) == (False, "b has not answered after entry 1")
    assert verdict.against == ("events.jsonl:2",)
    lasting = records(*answers(), events=over(215, "b", "pause")[:1])
    verdict = judge("recovery(pause) <= 9 rounds", lasting)
    assert (verdict.passed, verdict.found) == (False, "entry 1 lasted for b until the run ended")
    assert (
        judge("recovery(pause) <= 9 s", records(*answers(), events=[])).found
        == "not known: no pause happened"
    )
    assert judge("recovery(pause) <= 9 s", records(*answers())).found == "not known"


REFUSED = of_agent(205, "a", "scenario", do="throttle", entry=1, holds=False, verified=None, refused=True)
NOT_KILLED = of_agent(205, "a", "scenario", do="kill", entry=1, holds=False, verified=None)


@pytest.mark.parametrize("event", [REFUSED, NOT_KILLED], ids=["throttle", "kill"])
def test_an_entry_that_was_not_done_to_a_client_is_none_that_lasted(event: Event) -> None:
    other = {**event, "client": "b", "holds": True, "verified": {"killed": True}, "refused": False}
    events = [event, other, of_agent(215, "b", "undo")]
    verdict = judge(f"recovery({event['do']}) <= 9 rounds", records(*answers(), events=events))
    assert (verdict.passed, verdict.found) == (False, "entry 1 was not done to a")
    assert verdict.against == ("events.jsonl:1",)


def test_limits_of_a_client_that_does_not_run_are_done() -> None:
    """It gets them when it starts; so they may last, and may be over."""
    first = of_agent(205, "b", "scenario", do="throttle", entry=1, holds=False, verified=None)
    verdict = judge("recovery(throttle) <= 9 rounds", records(*answers(), events=[first]))
    assert verdict.found == "entry 1 lasted for b until the run ended"
    ended = [first, over(215, "b", "throttle")[1]]
    assert judge("recovery(throttle) <= 0 rounds", records(*answers(), events=ended)).passed


def test_a_reply_that_was_refused_is_no_answer() -> None:
    journal = answers()
    [second] = [
        place for place, event in enumerate(journal) if event.get("round") == 2 and event.get("client") == "b"
    ]
    journal.insert(second + 1, {**failure(2, "b", "odd", code=-2), "at": 221})
    verdict = judge("recovery(pause) == 1 rounds", records(*journal, events=over(215, "b", "pause")))
    assert verdict.passed
