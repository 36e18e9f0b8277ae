"""Limits as values: what wins, what differs, what is refused, and the commands that mend it."""

from __future__ import annotations

from typing import Any

import pytest

from coldframe import limits

BASELINE = {"cpu": 0.4, "memory": 1 << 30, "pids": 256}
NOTHING = {"rate": None, "delay": 0.0, "jitter": 0.0, "loss": 0.0}


def values(asked: limits.Asked) -> dict[str, Any]:
    """The values alone."""
    return {key: entry["value"] for key, entry in asked.items()}


def test_what_is_asked_for_lies_over_the_baseline_and_a_trace_over_both() -> None:
    asked = limits.ask({}, {"cpu": 0.1}, stamp=1)
    wanted = limits.desired(BASELINE, asked, {"down": 5, "cpu": 0.2})
    assert (wanted["cpu"], wanted["memory"], wanted["down"], wanted["up"]) == (0.2, 1 << 30, 5, None)
    assert wanted["online"] is True
    assert limits.desired(BASELINE, asked)["cpu"] == 0.1


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_two_requests_at_once_end_in_the_later_whichever_comes_first(order: tuple[int, int]) -> None:
    requests = {1: {"cpu": 0.1, "memory": 1}, 2: {"cpu": 0.2, "memory": 2}}
    asked: limits.Asked = {}
    for number in order:
        asked = limits.ask(asked, requests[number], stamp=100.0 + number)
    assert values(asked) == requests[2]


@pytest.mark.parametrize("order", ["set first", "undo first"])
def test_undo_beats_what_began_before_it_and_not_what_began_after(order: str) -> None:
    later = limits.ask({}, {"cpu": 0.2}, stamp=3)
    both = limits.ask(later, {"memory": 1}, stamp=1)
    assert values(limits.undo(both, stamp=2)) == {"cpu": 0.2}
    assert limits.concurrent(1, 2)
    assert not limits.concurrent(3, 2)


def test_stamp_of_a_clock_that_is_wrong_blocks_nobody() -> None:
    ahead = limits.ask({}, {"cpu": 0.1}, stamp=1e6 + 3600)
    assert values(limits.ask(ahead, {"cpu": 0.2}, stamp=1e6)) == {"cpu": 0.2}


def test_limit_for_a_time_gives_way_to_what_it_covered() -> None:
    asked = limits.ask({}, {"cpu": 0.3}, stamp=1)
    asked = limits.ask(asked, {"cpu": 0.1, "memory": 5}, stamp=2, until=50)
    asked = limits.ask(asked, {"cpu": 0.05}, stamp=3, until=60)
    assert limits.next_expiry(asked) == 50
    assert values(limits.expire(asked, 55)) == {"cpu": 0.05}
    assert values(limits.expire(asked, 60)) == {"cpu": 0.3}
    assert limits.next_expiry(limits.expire(asked, 60)) is None


def test_later_limit_without_end_ends_the_earlier_for_good() -> None:
    asked = limits.ask({}, {"cpu": 0.1}, stamp=1, until=50)
    asked = limits.ask(asked, {"cpu": 0.2}, stamp=2)
    assert values(limits.expire(asked, 99)) == {"cpu": 0.2}


@pytest.mark.parametrize(
    ("key", "asked", "held", "same"),
    [
        ("cpu", 0.1, 0.1, True),
        ("cpu", 0.1, 0.1004, True),
        ("cpu", 0.1, 0.11, False),
        ("cpu", 0.1, None, False),
        ("memory", (1 << 29) + 100, 1 << 29, True),  # pages
        ("memory", 1 << 29, 1 << 30, False),
        ("pids", 64, 64, True),
        ("pids", 64, 65, False),
        ("down", 10_000_000, 10_000_000, True),
        ("down", 1_000_001, 1_000_000, True),  # bytes per second
        ("down", 10_000_000, 9_000_000, False),
        ("down", None, 10_000_000, False),
        ("delay", 0.05, 0.05, True),
        ("delay", 0.05, None, False),
        ("loss", 1.0, 1.0, True),
        ("online", True, False, False),
        ("online", False, False, True),
    ],
)
def test_differences_know_what_a_kernel_rounds(key: str, asked: Any, held: Any, same: bool) -> None:
    assert limits.differences({key: asked}, {key: held}) == ({} if same else {key: asked})


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"cpu": 0.0}, "type -e cpu=0.05"),
        ({"cpu": 2.5}, "the machine's 2 cores"),
        ({"memory": 320 << 20}, "-e memory=331m"),
        ({"pids": 10}, "40 processes"),
        ({"down": 4}, "type -e down=1kbit"),
        ({"delay": 0.05}, "netem"),
        ({"loss": 1.0, "jitter": 0.0}, "netem"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_type(wanted: dict[str, Any], word: str) -> None:
    use = {"memory": 300 << 20, "pids": 40}
    [text] = limits.refusals(wanted, use, cores=2, netem=False)
    assert word in text


def test_force_goes_below_what_is_in_use() -> None:
    use = {"memory": 300 << 20, "pids": 40}
    assert limits.refusals({"memory": 1 << 20, "pids": 1}, use, 2, False, force=True) == []
    assert limits.refusals({"memory": 330 << 20, "pids": 72, "cpu": 2, "delay": 0.1}, use, 2, True) == []
    assert limits.refusals({"memory": 1 << 20}, {}, 2, True) == []  # it does not run


def test_engine_is_told_quota_and_period_and_memory_with_swap() -> None:
    assert limits.engine_update({"cpu": 0.25, "memory": 7, "pids": 9}) == {
        **{"CpuPeriod": 100_000, "CpuQuota": 25_000},
        **{"Memory": 7, "MemorySwap": 7, "PidsLimit": 9},
    }
    assert limits.engine_update({"cpu": None, "memory": None, "pids": None}) == {
        **{"CpuPeriod": 100_000, "CpuQuota": -1},
        **{"Memory": -1, "MemorySwap": -1, "PidsLimit": -1},
    }
    assert limits.engine_update({"down": 5}) == {}


TBF = {
    "kind": "tbf",
    "handle": "1:",
    "root": True,
    "options": {"rate": 1250000, "burst": 16384, "lat": 100000},
}
NETEM = {
    "kind": "netem",
    "handle": "2:",
    "root": True,
    "options": {"limit": 10000, "delay": {"delay": 0.025, "jitter": 0.005}, "loss-random": {"loss": 0.01}},
}


def test_answer_of_tc_is_read() -> None:
    assert limits.parse_qdiscs([{"kind": "noqueue", "handle": "0:", "root": True}])["kinds"] == ()
    assert limits.parse_qdiscs([TBF]) == {**NOTHING, "rate": 10_000_000, "kinds": ("tbf",)}
    both = limits.parse_qdiscs([NETEM, {**TBF, "handle": "3:", "parent": "2:1"}])
    assert both == {
        **{"rate": 10_000_000, "delay": 0.025, "jitter": 0.005, "loss": 1.0, "kinds": ("netem", "tbf")}
    }
    assert limits.both_ways(both, both) | {"kinds": None} == {
        **{"down": 10_000_000, "up": 10_000_000, "delay": 0.05, "jitter": 0.01, "loss": 1.0, "kinds": None}
    }


def test_rate_alone_is_a_bucket_that_is_changed_in_place() -> None:
    wanted = limits.one_way({"down": 10_000_000}, "down")
    fresh, again = (limits.shape("veth1", wanted, kinds) for kinds in ((), ("tbf",)))
    assert fresh == again
    [call] = fresh
    assert " ".join(call).startswith(
        "qdisc replace dev veth1 root handle 1: tbf rate 10000000bit burst 16384"
    )


def test_delay_and_rate_stand_one_in_the_other() -> None:
    wanted = limits.one_way({"up": 1_000_000, "delay": 0.05, "jitter": 0.01, "loss": 1.0}, "up")
    outer, inner = (" ".join(call) for call in limits.shape("eth0", wanted, ()))
    assert "root handle 2: netem limit 10000 delay 25000us 5000us loss 1%" in outer
    assert "parent 2:1 handle 3: tbf rate 1000000bit" in inner


def test_what_stands_is_removed_before_something_else_takes_its_place() -> None:
    assert limits.shape("eth0", limits.one_way({}, "up"), ("tbf",)) == [
        ["qdisc", "del", "dev", "eth0", "root"]
    ]
    assert limits.shape("eth0", limits.one_way({}, "up"), ()) == []
    calls = limits.shape("eth0", limits.one_way({"up": 8000}, "up"), ("netem", "tbf"))
    assert [call[1] for call in calls] == ["del", "replace"]


def test_burst_grows_with_the_rate() -> None:
    [call] = limits.shape("eth0", limits.one_way({"up": 1_000_000_000}, "up"), ())
    assert call[call.index("burst") + 1] == "1250000"


def test_engines_words_are_understood_and_zero_is_none() -> None:
    told = limits.engine_update({"cpu": 0.1, "memory": 700 << 20, "pids": 99})
    assert limits.engine_limits(told) == {"cpu": 0.1, "memory": 700 << 20, "pids": 99}
    nothing = {"CpuQuota": 0, "Memory": 0, "PidsLimit": None}
    assert limits.engine_limits(nothing) == dict.fromkeys(limits.CONTROL_GROUP)
    assert limits.engine_limits(limits.engine_update(dict.fromkeys(limits.CONTROL_GROUP))) == (
        dict.fromkeys(limits.CONTROL_GROUP)
    )
