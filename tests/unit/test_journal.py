"""The journal is appended line by line, survives a torn end, and never holds what JSON cannot say."""

import json
import multiprocessing
from pathlib import Path

import pytest

from coldframe.recording.journal import Journal, Tail, read_journal, read_lines


def test_events_come_back_in_order_with_their_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs/7/journal.jsonl")
    journal.append("waiting", missing=["lab-1"], seconds=2.5)
    journal.append("run_finished", status="completed", error=None)
    first, second = read_journal(journal.path)
    assert first == {"time": first["time"], "event": "waiting", "missing": ["lab-1"], "seconds": 2.5}
    assert second["time"] >= first["time"] > 1.6e9


def test_an_event_can_be_read_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for count in range(1, 4):
        journal.append("round", round=count)
        assert len(read_journal(journal.path)) == count


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append("round", round=1)
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        events = read_journal(path)
        assert [event["round"] for event in events] == [1] * (2 if cut == len(whole) - 1 else 1)


def test_an_event_has_the_number_of_its_line_whatever_was_torn_before(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "b\n[1]\n{"event": "c"}\n{"ev')
    assert read_lines(path) == [(1, {"event": "a"}), (4, {"event": "c"})]
    assert read_lines(tmp_path / "none") == []


def test_a_new_writer_does_not_continue_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append("round", round=1)
    with path.open("ab") as file:
        file.write(b'{"time": 1, "event": "rou')
    Journal(path).append("round", round=2)
    assert [event["round"] for event in read_journal(path)] == [1, 2]


def test_numbers_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("round", loss=float("nan"), phases={"train": float("inf")}, histogram={3: [1, 2]})
    line = json.loads(journal.path.read_text(), parse_constant=lambda word: f"bad {word}")
    assert line["loss"] is None
    assert line["phases"] == {"train": None}
    assert line["histogram"] == {"3": [1, 2]}


def test_a_journal_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal.jsonl") == []


def _write(path: Path, name: str) -> None:
    journal = Journal(path)
    for count in range(200):
        journal.append("reply", client=name, count=count, filler="x" * 500)


def test_two_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writers = [multiprocessing.Process(target=_write, args=(path, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read_journal(path)
    for name in ("a", "b"):
        assert [event["count"] for event in events if event["client"] == name] == list(range(200))


def test_a_tail_gives_each_event_once_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    tail = Tail(path)
    assert tail.new() == []
    path.write_bytes(b'{"event": "a"}\n{"event": "b')
    assert tail.new() == [{"event": "a"}]
    assert tail.fresh
    with path.open("ab") as file:
        file.write(b'"}\ntorn\n{"event": "c"}\n')
    assert tail.new() == [{"event": "b"}, {"event": "c"}]
    assert not tail.fresh
    assert tail.new() == []


def test_a_tail_gives_a_long_file_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldframe.recording.journal.AT_ONCE", 40)
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps({"number": number}) + "\n" for number in range(10)))
    tail = Tail(path)
    pieces = []
    while piece := tail.new():
        pieces.append([entry["number"] for entry in piece])
    assert [number for piece in pieces for number in piece] == list(range(10))
    assert len(pieces) > 2


def test_a_tail_begins_anew_where_the_file_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b"}\n')
    tail = Tail(path)
    tail.new()
    path.write_text('{"event": "c"}\n')
    assert tail.new() == [{"event": "c"}]
    assert tail.fresh
