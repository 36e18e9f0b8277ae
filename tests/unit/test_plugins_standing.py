"""Tests of coldframe/machine/standing.py: whatever a deployment wrote and somebody changed is noticed."""

import os
import time
from pathlib import Path

import pytest

from coldframe.machine import standing


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """A federation's directory as a deployment leaves it, at work."""
    for name in (
        *("ca/ca.crt", "keys/one-0", "clients/one-0.json", "gateway/nginx.conf", "server/clients.json"),
        *(
            "server/superlink.db",
            "data/mnist/train_x.npy",
            "scratch/one-0/runs/7/app/files/a.npz",
            "agent/limits/one-0.json",
            "prometheus/data/wal",
            "prometheus/config/x.yml",
        ),
        *("events.jsonl", "logs/one.log", "files/clients/one-0/a.npz"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "server/superlink.db",
        "data/mnist/train_x.npy",  # it has a digest of its own
        "scratch/one-0/runs/7/app/files/a.npz",
        "agent/limits/one-0.json",
        "prometheus/data/wal",
        "events.jsonl",
        "logs/one.log",
        "files/clients/one-0/a.npz",
    ],
)
def test_work_is_no_change(federation: Path, name: str) -> None:
    before = standing.files_digest(federation)
    (federation / name).write_text("it goes on")
    (federation / "server" / "runs").mkdir()
    (federation / standing.RECORD).write_text("{}")
    assert standing.files_digest(federation) == before


@pytest.mark.parametrize(
    "name",
    ["ca/ca.crt", "keys/one-0", "gateway/nginx.conf", "server/clients.json", "prometheus/config/x.yml"],
)
def test_whatever_is_done_to_a_file_is_a_change(federation: Path, name: str) -> None:
    path = federation / name
    seen = {standing.files_digest(federation)}
    path.chmod(0o400)
    seen.add(standing.files_digest(federation))
    path.chmod(0o600)
    path.write_text("another")
    seen.add(standing.files_digest(federation))
    path.unlink()
    seen.add(standing.files_digest(federation))
    assert len(seen) == 4


def test_a_file_more_is_a_change(federation: Path) -> None:
    before = standing.files_digest(federation)
    (federation / "clients" / "two-0.json").write_text("{}")
    assert standing.files_digest(federation) != before


def test_data_set_is_known_by_its_files(tmp_path: Path) -> None:
    assert standing.data_digest(tmp_path / "mnist") == ""
    (tmp_path / "train_x.npy").write_bytes(b"12345")
    os.utime(tmp_path / "train_x.npy", (1, 1))
    before = standing.data_digest(tmp_path)
    assert standing.data_digest(tmp_path) == before
    (tmp_path / "train_x.npy").write_bytes(b"54321")
    assert standing.data_digest(tmp_path) != before


@pytest.mark.parametrize("replaced", [False, True])
def test_data_set_that_keeps_its_sizes_and_times_is_known_by_its_files(
    tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "train_x.npy"
    path.write_bytes(b"12345")
    os.utime(path, (1, 1))
    before = standing.data_digest(tmp_path)
    time.sleep(0.02)  # the kernel's clock of files goes in steps of some milliseconds
    if replaced:
        path.rename(tmp_path.parent / "old")
    path.write_bytes(b"54321")
    os.utime(path, (1, 1))
    assert standing.data_digest(tmp_path) != before


def test_sources_are_what_is_written_not_what_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "roles" / "__pycache__").mkdir(parents=True)
    (tmp_path / "site.yml").write_text("a")
    (tmp_path / "roles" / "x.yml").write_text("b")
    names = ("site.yml", "roles")
    before = standing.sources_digest(tmp_path, names)
    (tmp_path / "roles" / "__pycache__" / "x.pyc").write_text("c")
    assert standing.sources_digest(tmp_path, names) == before
    (tmp_path / "roles" / "x.yml").write_text("c")
    assert standing.sources_digest(tmp_path, names) != before


FOUND = {"files": "f", "data": "d", "containers": ["a running healthy", "b running"], "images": []}


@pytest.mark.parametrize(
    ("change", "plan", "federation_stands", "data_stands"),
    [
        ({}, "p", True, True),
        ({}, "q", False, False),
        ({"files": "g"}, "p", False, True),
        ({"data": "e"}, "p", True, False),
        ({"data": ""}, "p", True, False),
        ({"containers": ["a running", "b running"]}, "p", False, True),
        ({"containers": ["a running healthy"]}, "p", False, True),
        ({"images": ["grafana"]}, "p", False, True),
    ],
)
def test_a_machine_stands_if_nothing_differs(
    change: dict[str, object], plan: str, federation_stands: bool, data_stands: bool
) -> None:
    noted = {**FOUND, "plan": "p", "data_plan": "p"}
    assert standing.stands(noted, {**FOUND, **change}, plan) is federation_stands
    assert standing.data_stands(noted, {**FOUND, **change}, plan) is data_stands


def test_what_was_broken_when_it_was_noted_does_not_stand() -> None:
    broken = {**FOUND, "containers": ["a exited"]}
    assert not standing.stands({**broken, "plan": "p"}, broken, "p")


def test_without_a_note_nothing_stands(tmp_path: Path) -> None:
    assert standing.read_record(tmp_path) == {}
    (tmp_path / standing.RECORD).write_text("{torn")
    assert standing.read_record(tmp_path) == {}
    assert not standing.stands({}, {}, "")
    assert not standing.data_stands({}, {}, "")


def test_only_the_servers_health_counts() -> None:
    """Clients are looked at once a minute: right after their start nobody knows."""
    server, client = ("a", "fl:1", "running", "server"), ("b", "fl:1", "running", "client")
    assert standing.describe(*server, "Up 3 minutes (healthy)") == "a fl:1 running healthy"
    assert standing.describe(*server, "Up 1 second (health: starting)") == "a fl:1 running"
    assert standing.describe(*client, "Up 2 minutes (healthy)") == "b fl:1 running"
