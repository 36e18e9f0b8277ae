"""Traces: what may be replayed, what is made from a seed, and what is read of others' data."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import traces
from coldframe.controller.trace_file import read_trace

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
        ("0,c1-0,0.5,", "0,c1-0,0,5,", "row 1 of the trace has 6 cells, and there are 5 columns"),
        ("1mbit,0\n", "1mbit,0,\n", "row 3 of the trace has 6 cells"),
        ("30,c1-0,0.1,1mbit,0", "30;c1-0;0.1;1mbit;0", "row 3 of the trace has 1 of 5 cells"),
        ("30,c1-0,0.1,1mbit,0", "30,c1-0", "row 3 of the trace has 2 of 5 cells"),
        ("client,cpu,down", "client,cpu,cpu", "has the column cpu twice: leave one out"),
        ("client,cpu,down", "client,,down", "unknown column (no name)"),
        ("30,c1-0", '30,"c1-0', "cannot be read"),
        ("60,c1-0", "6e9,c1-0", "seconds=6e9 is no number from 0 to"),
        ("60,c1-0", "nan,c1-0", "seconds=nan is no number"),
    ],
)
def test_trace_that_cannot_be_replayed_says_why(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError) as error:
        read_trace(save(tmp_path, GOOD.replace(old, new, 1)), CLIENTS)
    assert words in str(error.value)
    assert ": " in str(error.value)


def encoded(text: str) -> list[bytes]:
    """The same text as spreadsheets write it."""
    return [text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("\n", "\r\n").encode()]


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_trace_of_a_spreadsheet_is_read_like_any_other(tmp_path: Path, separator: str, form: int) -> None:
    expected = read_trace(save(tmp_path, GOOD), CLIENTS)
    (tmp_path / "t.csv").write_bytes(encoded(GOOD.replace(",", separator))[form])
    assert read_trace(tmp_path / "t.csv", CLIENTS) == expected


def test_decimal_comma_is_read_where_it_is_one(tmp_path: Path) -> None:
    expected = read_trace(save(tmp_path, GOOD), CLIENTS)
    semicolons = GOOD.replace(",", ";").replace("0.5;10mbit", "0,5;10,0mbit")
    assert read_trace(save(tmp_path, semicolons), CLIENTS) == expected
    assert read_trace(save(tmp_path, GOOD.replace("0.25", '"0,25"')), CLIENTS) == expected
    with pytest.raises(ValueError, match=r"cpu=1,500 can mean 1\.500 or 1500: write one of these"):
        read_trace(save(tmp_path, semicolons.replace("0.25", "1,500")), CLIENTS)


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


def test_pickle_of_fedscale_that_holds_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"active": [0], "inactive": [5], "finish_time": 10}
    path = tmp_path / "trace"
    for content, words in (
        (b"", "it is no pickle of plain values"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is no pickle of plain values"),
        (pickle.dumps({1: good})[:-9], "it is no pickle of plain values"),
        (pickle.dumps(None), "it is no dictionary by client"),
        (pickle.dumps({}), "it is no dictionary by client"),
        (pickle.dumps([good]), "it is no dictionary by client"),
        (pickle.dumps({1: None}), "client 1 lacks active, inactive or finish_time in seconds"),
        (pickle.dumps({1: good, "b": {"active": [0]}}), "client 'b' lacks"),
        (pickle.dumps({1: {**good, "active": 5}}), "client 1 lacks"),
        (pickle.dumps({1: {**good, "active": ["x"]}}), "client 1 lacks"),
        (pickle.dumps({1: {**good, "finish_time": None}}), "client 1 lacks"),
        (pickle.dumps({1: {**good, "finish_time": 0}}), "client 1 has a finish_time of 0"),
        (pickle.dumps({1: {**good, "active": [-5]}}), "client 1 has a time that is negative or no number"),
        (pickle.dumps({1: {**good, "inactive": [float("nan")]}}), "client 1 has a time"),
    ):
        path.write_bytes(content)
        assert traces.main(["fedscale", str(path), "--clients", "a"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"traces: {path} cannot be used: ") and words in error
        assert error.count("\n") == 1


def test_spans_that_overlap_or_pass_the_end_make_one_series(tmp_path: Path) -> None:
    spans: traces.Spans = [(50, 1300000.5), (10, 20), (20, 30), (15, 25)]
    trace = through_csv(traces.availability(["c1-0"], [spans], 1234567.5, seed=0), tmp_path)
    series = [(row["seconds"], row["online"]) for row in trace.rows["c1-0"]]
    assert series == [(0, False), (10, True), (30, False), (50, True), (1234567.5, False)]


def write_flash(path: Path, *lines: str) -> Path:
    """Write a file of FLASH's with one device; a line is a second of the day, a space, and a state."""
    times = [
        f"2020-03-29 {int(second) // 3600:02}:{int(second) // 60 % 60:02}:{int(second) % 60:02}"
        for second in (line.split()[0] for line in lines)
    ]
    messages = "\n".join(f"{time}\t{line.split()[1]}" for time, line in zip(times, lines, strict=True))
    (path / "f.json").write_text(json.dumps({"7": {"model": "A", "messages": f"{messages}\nnonsense"}}))
    return path / "f.json"


@pytest.mark.parametrize(
    ("lines", "spans"),
    [
        # available while locked, charging and on Wi-Fi
        (
            "0 battery_charged_on|10 wifi|20 screen_lock|60 4G|120 wifi|180 battery_charged_off",
            [(20, 60), (120, 180)],
        ),
        # whatever the screen does
        ("0 battery_charged_on|10 wifi|20 screen_off|90 screen_on", []),
        ("0 battery_charged_on|10 wifi|20 screen_lock|30 screen_on|90 screen_unlock", [(20, 90)]),
        # in any case of letters
        ("0 BATTERY_CHARGED_ON|10 WIFI|20 Screen_Lock|60 unknown", [(20, 60)]),
        ("0 battery_charged_on|10 Wifi|20 screen_lock|60 Unknown", [(20, 60)]),
        ("0 battery_charged_on|10 wifi|20 screen_lock|60 5g", [(20, 60)]),
        # other states change nothing; states of one second count in the file's order
        ("0 battery_charged_on|10 wifi|20 screen_lock|30 battery_low|40 88.0%|60 screen_unlock", [(20, 60)]),
        ("0 battery_charged_on|0 wifi|20 screen_unlock|20 screen_lock|60 2G|60 wifi", [(20, 60)]),
        # what has not ended with the last line is not known to last
        ("0 battery_charged_on|10 wifi|20 screen_lock|60 88.0%", []),
    ],
)
def test_availability_of_flash_follows_flashs_own_rule(
    tmp_path: Path, lines: str, spans: list[tuple[float, float]]
) -> None:
    path = write_flash(tmp_path, *lines.split("|"))
    assert traces.flash(path)[0] == [spans]


def test_length_of_flash_is_from_its_first_line_to_its_last_in_any_time_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 29 March 2020 European clocks went from two to three o'clock."""
    path = write_flash(tmp_path, "3600 wifi", "14400 4G")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert traces.flash(path)[1] == 10800
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("null", "it is no JSON object by device"),
        ("[]", "it is no JSON object by device"),
        ('{"7": null}', "device '7' has no text named messages"),
        ('{"7": {"messages": ["a"]}}', "device '7' has no text named messages"),
        ('{"7": {"messages": "no time"}}', "it has no line that begins with a time"),
        ('{"7": {"messages": "2020-01-29 00:00:00\\twifi"}}', "all its lines are of the same second"),
    ],
)
def test_file_of_flash_that_is_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (tmp_path / "f.json").write_text(content)
    assert traces.main(["flash", str(tmp_path / "f.json"), "--clients", "a"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("walk --low 20mbit --high 1mbit", "--low 2e+07 bit/s is not from 1kbit to --high"),
        ("walk --low 0mbit", "--low 0 bit/s is not from 1kbit"),
        ("walk --low 1bit", "--low 1 bit/s is not from 1kbit"),
        ("walk --low -1mbit", "expected one argument"),
        ("walk --low=-1mbit", "-1mbit is not a rate: write it like 10mbit"),
        ("walk --low infmbit", "infmbit is not a rate"),
        ("walk --minutes 0", "--minutes 0 is not from 0.0833 to 10080 minutes"),
        ("walk --minutes -1", "--minutes -1 is not from"),
        ("walk --minutes 0.01", "--minutes 0.01 is not from"),
        ("diurnal --hours 0", "--hours 0 is not from 0.25 to 8784 hours"),
        ("diurnal --hours -3", "--hours -3 is not from"),
        ("diurnal --hours nan", "--hours nan is not from"),
        ("diurnal --hours inf", "--hours inf is not from"),
        ("diurnal --clients=a,,b", "'a,,b' has a name that is empty or there twice"),
        ("diurnal --clients=a,a", "'a,a' has a name that is empty or there twice"),
    ],
)
def test_trace_that_cannot_be_made_says_why(
    capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    kind, *arguments = command.split()
    try:
        code = traces.main([kind, "--clients", "c1-0", *arguments])
    except SystemExit as end:  # argparse's
        code = int(str(end.code))
    captured = capsys.readouterr()
    assert code and words in captured.err and not captured.out


def test_made_traces_end_at_the_length_asked_for(tmp_path: Path) -> None:
    assert through_csv(traces.diurnal(CLIENTS, 0.3, seed=1), tmp_path).length == 0.3 * 3600
    assert through_csv(traces.walk(CLIENTS, 0.11, seed=1, low=1e3, high=1e3), tmp_path).length == 6.6


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
