"""What apps print is kept, bounded, and found again by run."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from coldframe.recording import output
from coldframe.recording.output import BoundedFile, copy_output
from coldframe.recording.task_log import BEGIN, END, of_run


def test_small_output_is_kept_whole(tmp_path: Path) -> None:
    file = BoundedFile(tmp_path / "logs" / "a.log", limit=4000)
    for k in range(10):
        file.write(f"line {k}\n".encode())
    file.close()
    assert (tmp_path / "logs" / "a.log").read_text() == "".join(f"line {k}\n" for k in range(10))


@pytest.mark.parametrize("step", [1, 7, 5000])
def test_of_large_output_first_and_last_lines_are_kept(tmp_path: Path, step: int) -> None:
    path, lines = tmp_path / "a.log", [f"this is line {k}" for k in range(5000)]
    file = BoundedFile(path, limit=4000)
    for start in range(0, len(lines), step):
        file.write("".join(f"{line}\n" for line in lines[start : start + step]).encode())
        assert path.stat().st_size <= 4100
    file.close()
    kept = path.read_text().splitlines()
    notes = [line for line in kept if "left out" in line]
    whole = [line for line in kept if "left out" not in line]
    assert len(notes) == 1 and whole[:50] == lines[:50] and whole[-40:] == lines[-40:]
    assert set(whole) <= set(lines), "no line is cut"


def test_output_without_line_ends_is_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = BoundedFile(path, limit=4000)
    for _ in range(40):
        file.write(b"x" * 1000)
    file.close()
    assert path.stat().st_size <= 4100


def test_a_full_disk_does_not_hold_up_who_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_self: BoundedFile, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BoundedFile, "write", no_space)
    source, writer = os.pipe()
    reader, also = os.pipe()
    copier = threading.Thread(target=copy_output, args=(source, BoundedFile(tmp_path / "a.log"), also))
    copier.start()
    for _ in range(3):
        os.write(writer, b"still here\n")
    os.close(writer)
    copier.join(5)
    os.close(also)
    assert os.read(reader, 100) == b"still here\n" * 3
    os.close(reader)


def test_output_is_renamed_to_its_run_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / output.UNCLAIMED / "one.log"
    file = BoundedFile(path)
    file.write(b"before\n")
    monkeypatch.setenv(output.VARIABLE, str(path))
    output.claim(tmp_path, 7)
    file.write(b"after\n")
    file.close()
    assert (tmp_path / "runs" / "7" / "logs" / "serverapp.log").read_text() == "before\nafter\n"
    assert output.VARIABLE not in os.environ
    output.claim(tmp_path, 8)  # one that nobody records
    assert not (tmp_path / "runs" / "8").exists()


def test_the_tasks_of_one_run_are_found_in_a_containers_log() -> None:
    log = [
        "2026-11-30T01:00:00.1Z INFO : the node starts",
        f"2026-11-30T01:00:01.1Z {BEGIN.format(11)}",
        "2026-11-30T01:00:01.2Z loss 0.5",
        f"2026-11-30T01:00:02.1Z {END}",
        f"2026-11-30T01:00:03.1Z {BEGIN.format(12)}",
        "2026-11-30T01:00:03.2Z of another run",
        "2026-11-30T01:00:03.3Z its process was killed",
        f"2026-11-30T01:00:04.1Z {BEGIN.format(11)}",
        "2026-11-30T01:00:04.2Z loss 0.4",
    ]
    assert [line.split("Z ")[1] for line in of_run(log, "11")] == [
        BEGIN.format(11),
        "loss 0.5",
        BEGIN.format(11),
        "loss 0.4",
    ]
