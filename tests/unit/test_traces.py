"""Traces: what may be replayed, what is made from a seed, and what is read of others' data."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import traces
from plugins.module_utils.traces import read_trace

CLIENTS = ["c1-0", "c1-1"]
GOOD = """# a walk
seconds,client,cpu,down,online
0,c1-0,0.5,10mbit,1
0,c1-1,0.25,5mbit,1
30,c1-0,0.1,1mbit,0
60,c1-0,0.5,10mbit,1
"""


def save(path: Path, text: str) -> Path:
    """Write a trace."""
    (path / "t.csv").write_text(text)
    return path / "t.csv"


def test_trace_is_read_by_client_and_typed(tmp_path: Path) -> None:
    trace = read_trace(save(tmp_path, GOOD), CLIENTS)
    assert trace.length == 60
    assert trace.rows["c1-0"][1] == {"seconds": 30.0, "cpu": 0.1, "down": 1_000_000, "online": False}
    assert len(trace.rows["c1-1"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0,c1-0,0.5", "5,c1-0,0.5", "the trace has a gap: c1-0 begins at second 5"),
        ("30,c1-0,0.1,1mbit", "30,c1-0,,1mbit", "the trace has a gap: row 3 of the trace has no cpu"),
        ("30,c1-0", "70,c1-0", "time does not go on for c1-0"),
        ("0,c1-1", "0,c1-9", "names the client c1-9, which is not among those chosen: did you mean"),
        ("10mbit,1\n0", "fast,1\n0", "down=fast is not a rate"),
        ("0.25", "0", "cpu=0 is not a number"),
        ("0,c1-1,0.25,5mbit,1", "0,c1-1,0.25,5mbit,maybe", "online=maybe is neither 0 nor 1"),
        ("seconds,client,cpu", "seconds,client,cqu", "unknown column cqu: did you mean cpu?"),
        ("30,c1-0,0.1,1mbit,0\n60,c1-0,0.5,10mbit,1\n", "", "has no duration"),
        ("seconds,client", "when,client", "unknown column when"),
    ],
)
def test_trace_that_cannot_be_replayed_says_why(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError) as error:
        read_trace(save(tmp_path, GOOD.replace(old, new, 1)), CLIENTS)
    assert words in str(error.value)
    assert ": " in str(error.value)


def through_csv(rows: list[dict[str, Any]], path: Path) -> Any:
    """Write what was made, and read it as throttle.yml does."""
    text = io.StringIO()
    traces.write(rows, text)
    return read_trace(save(path, text.getvalue()), CLIENTS)


def test_diurnal_trace_has_more_clients_by_night(tmp_path: Path) -> None:
    many = [f"c{k}" for k in range(200)]
    rows = traces.diurnal(many, 24, seed=1)
    online = dict.fromkeys(many, 0)
    counts = {}
    for hour in (3, 15):
        for row in sorted(rows, key=lambda row: row["seconds"]):
            if row["seconds"] <= hour * 3600:
                online[row["client"]] = row["online"]
        counts[hour] = sum(online.values())
    assert counts[3] > 2 * counts[15]
    assert through_csv(traces.diurnal(CLIENTS, 24, seed=1), tmp_path).length == 24 * 3600


def test_walk_stays_within_its_bounds(tmp_path: Path) -> None:
    trace = through_csv(traces.walk(CLIENTS, 10, seed=3, low=1e6, high=2e7), tmp_path)
    rates = [row["down"] for row in trace.rows["c1-0"]]
    assert len(set(rates)) > 50
    assert 0.99e6 <= min(rates) < max(rates) <= 2.01e7


def test_one_seed_makes_one_trace() -> None:
    made = [traces.walk(CLIENTS, 5, seed, 1e6, 2e7) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert traces.diurnal(CLIENTS, 24, 1) == traces.diurnal(CLIENTS, 24, 1) != traces.diurnal(CLIENTS, 24, 2)


def test_availability_of_fedscale_is_read(tmp_path: Path) -> None:
    data = {
        1: {"model": "A", "duration": 5, "active": [10, 50], "inactive": [20, 60], "finish_time": 100},
        2: {"model": "B", "duration": 5, "active": [0], "inactive": [100], "finish_time": 100},
    }
    (tmp_path / "trace").write_bytes(pickle.dumps(data))
    spans, length = traces.fedscale(tmp_path / "trace")
    assert (spans, length) == ([[(10.0, 20.0), (50.0, 60.0)], [(0.0, 100.0)]], 100.0)
    trace = through_csv(traces.availability(CLIENTS, spans, length, seed=0), tmp_path)
    series = [[(row["seconds"], row["online"]) for row in rows] for rows in trace.rows.values()]
    first = [(0, False), (10, True), (20, False), (50, True), (60, False), (100, False)]
    assert sorted(series) == sorted([first, [(0, True), (100, False)]])


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/coldframe-was-here",)


def test_pickle_that_would_run_something_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace").write_bytes(pickle.dumps({1: Evil()}))
    assert traces.main(["fedscale", str(tmp_path / "trace"), "--clients", "a"]) == 1
    assert "only plain lists" in capsys.readouterr().err
    assert not Path("/tmp/coldframe-was-here").exists()


def test_availability_of_flash_is_read(tmp_path: Path) -> None:
    lines = [
        "2020-01-29 00:00:00\tbattery_charged_on",
        "2020-01-29 00:00:10\twifi",
        "2020-01-29 00:00:20\tscreen_off",
        "2020-01-29 00:01:00\t4G",
        "nonsense",
        "2020-01-29 00:02:00\twifi",
        "2020-01-29 00:03:00\tbattery_charged_off",
    ]
    (tmp_path / "f.json").write_text(json.dumps({"7": {"model": "A", "messages": "\n".join(lines)}}))
    assert traces.flash(tmp_path / "f.json") == ([[(20.0, 60.0), (120.0, 180.0)]], 180.0)


def test_command_writes_a_trace_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "walk",
        "--clients",
        ",".join(CLIENTS),
        "--minutes",
        "1",
        "--low",
        "1mbit",
        "--high",
        "2mbit",
    ]
    assert traces.main(arguments) == 0
    trace = read_trace(save(tmp_path, capsys.readouterr().out), CLIENTS)
    assert trace.length == 60
    with pytest.raises(ValueError, match="fewer than the 2 clients"):
        traces.availability(CLIENTS, [[(0, 1)]], 10, 0)
