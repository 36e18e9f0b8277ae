"""A trace is played by the clock."""

from __future__ import annotations

import pytest

from coldframe.agent.replay import Replay

ROWS = {"a": [{"seconds": 0, "cpu": 1}, {"seconds": 10, "cpu": 2}], "b": [{"seconds": 0, "cpu": 3}]}


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (99.9, None),
        (100, ({"cpu": 1}, 100.0)),
        (109.9, ({"cpu": 1}, 100.0)),
        (110, ({"cpu": 2}, 110.0)),
        (120, None),
    ],
)
def test_row_holds_until_the_next(now: float, found: object) -> None:
    assert Replay(ROWS, start=100, length=20).row("a", now) == found


def test_clients_that_the_trace_does_not_name_have_no_row() -> None:
    assert Replay(ROWS, start=100, length=20).row("c", 105) is None


def test_speed_shortens_the_clock() -> None:
    replay = Replay(ROWS, start=100, length=20, speed=10)
    assert replay.row("a", 101) == ({"cpu": 2}, 101.0)
    assert replay.over(102)
    assert not replay.over(101.9)


def test_loop_begins_again() -> None:
    replay = Replay(ROWS, start=100, length=20, loop=True)
    assert replay.row("a", 121) == ({"cpu": 1}, 120.0)
    assert replay.row("a", 131) == ({"cpu": 2}, 130.0)
    assert not replay.over(1e9)
    assert replay.next_change(121) == 130
    assert replay.next_change(131) == 140


def test_next_change_is_the_next_row_of_any_client_or_the_end() -> None:
    replay = Replay(ROWS, start=100, length=20)
    assert [replay.next_change(now) for now in (50, 100, 110, 120)] == [100, 110, 120, None]
