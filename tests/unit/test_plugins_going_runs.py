"""Which runs are going, as preflight learns it from a machine."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import machine_facts

SERVER = {"name": "lab-server", "running": True}


def database(root: Path, *ends: str | None) -> None:
    """A SuperLink's database with tasks that ended then, or have not."""
    path = root / "lab" / "server" / "superlink.db"
    path.parent.mkdir(parents=True)
    link = sqlite3.connect(path)
    link.execute("CREATE TABLE task (run_id INTEGER, finished_at TEXT)")
    link.executemany("INSERT INTO task VALUES (?, ?)", enumerate(ends))
    link.commit()
    link.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What commands were called; the SuperLink says that run 8 is going."""
    calls: list[tuple[str, ...]] = []

    def command(*words: str) -> tuple[int, str, str]:
        calls.append(words)
        runs = [{"run_id": "8", "status": "running"}, {"run_id": "7", "status": "finished"}]
        return 0, f"a line before\n{json.dumps(runs)}\n", ""

    monkeypatch.setattr(machine_facts, "command", command)
    return calls


def going(root: Path, *containers: dict[str, Any]) -> list[str]:
    """What is found of the federation lab."""
    return machine_facts.going_runs(str(root), "lab", list(containers))


def test_the_superlink_is_asked_only_where_a_run_may_be_going(tmp_path: Path, asked: list[Any]) -> None:
    """To ask it takes seconds, for every verb."""
    database(tmp_path, "then", "then")
    assert going(tmp_path) == going(tmp_path, {**SERVER, "running": False}) == going(tmp_path, SERVER) == []
    assert asked == []


@pytest.mark.parametrize("readable", [True, False])
def test_runs_that_have_not_ended_are_named(tmp_path: Path, asked: list[Any], readable: bool) -> None:
    """Also where the database is not as we know it."""
    if readable:
        database(tmp_path, "then", None)
    assert going(tmp_path, SERVER) == ["8"]
    assert asked == [("docker", "exec", "lab-server", "python3", "-m", "coldframe.server.control", "runs")]


def test_a_superlink_that_does_not_answer_in_time_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database(tmp_path, "then", None, None)
    monkeypatch.setattr(machine_facts, "command", lambda *_words: (124, "", "did not answer"))
    assert going(tmp_path, SERVER) == ["1", "2"]
