"""The module client_files: what ClientApps have written is put together as root, and no link is followed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import client_files

ROOT = Path(__file__).parents[2]


def work(scratch: Path, client: str, run: str = "7") -> Path:
    """Make the working directory of a client's app."""
    path = scratch / client / "runs" / run / "app" / "files"
    path.mkdir(parents=True)
    return path


def play(scratch: Path, dest: Path, **more: Any) -> dict[str, Any]:
    """Run the module; return its answer."""
    given = {"scratch": str(scratch), "run_id": "7", "dest": str(dest), **more}
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": given})
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "plugins.modules.client_files",
            arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def below(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if not found.is_dir())


def test_regular_files_of_the_run_are_linked_by_client_and_the_rest_is_named(tmp_path: Path) -> None:
    scratch, dest = tmp_path / "scratch", tmp_path / "files"
    one, two = work(scratch, "c1-0"), work(scratch, "c1-1")
    (one / "deep").mkdir()
    (one / "deep" / "state.npz").write_bytes(b"1" * 100)
    (one / "huge").write_bytes(b"1" * 2000)
    (one / "passwd").symlink_to("/etc/passwd")
    (one / "all").symlink_to("/etc")
    os.mkfifo(one / "pipe")
    (two / "note").write_text("2")
    work(scratch, "c1-2")  # it has written nothing
    (work(scratch, "c1-3", run="8") / "of another run").touch()
    for _ in range(2):  # as often as one likes
        answer = play(scratch, dest, limit=2000)
    assert answer["clients"] == {"c1-0": 1, "c1-1": 1} and not answer["changed"]
    assert below(dest) == ["clients/c1-0/deep/state.npz", "clients/c1-1/note", "left_out.json"]
    assert (dest / "clients" / "c1-0" / "deep" / "state.npz").stat().st_nlink == 2, "no copy"
    left_out = json.loads((dest / "left_out.json").read_text())
    assert sorted(left_out) == ["c1-0"]
    assert {"huge", "passwd", "pipe"} <= set(left_out["c1-0"]) <= {"all", "huge", "passwd", "pipe"}
    assert "0.00 GB are collected" in left_out["c1-0"]["huge"], "half of the limit: two clients have written"
    assert dest.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_where_nothing_was_written(tmp_path: Path) -> None:
    work(tmp_path / "scratch", "c1-0")
    (tmp_path / "files").mkdir()  # of an earlier collection
    for scratch in (tmp_path / "scratch", tmp_path / "none"):
        assert play(scratch, tmp_path / "files")["clients"] == {}
        assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("part", ["c1-0", "c1-0/runs", "c1-0/runs/7", "c1-0/runs/7/app/files"])
def test_a_directory_that_is_a_link_is_not_gone_through(tmp_path: Path, part: str) -> None:
    elsewhere = tmp_path / "elsewhere" / "runs" / "7" / "app" / "files"
    elsewhere.mkdir(parents=True)
    (elsewhere / "secret").touch()
    link = tmp_path / "scratch" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere" / Path(part).relative_to("c1-0"))
    assert (tmp_path / "scratch" / "c1-0" / "runs" / "7" / "app" / "files" / "secret").exists()
    assert play(tmp_path / "scratch", tmp_path / "files")["clients"] == {}


def test_what_becomes_a_link_meanwhile_is_not_collected(tmp_path: Path) -> None:
    directory = work(tmp_path / "scratch", "c1-0")
    (directory / "file").write_text("x")
    with client_files.opened(directory) as descriptor:
        chosen, _ = client_files.choose(client_files.look(descriptor), 1000, 10)
        (directory / "file").unlink()
        (directory / "file").symlink_to("/etc/passwd")
        client_files.link(descriptor, chosen, tmp_path / "files")
    assert chosen == {"file"} and below(tmp_path / "files") == []


def test_names_that_are_no_text_and_many_files(tmp_path: Path) -> None:
    directory = work(tmp_path / "scratch", "c1-0")
    for number in range(150):
        (directory / f"{number}").touch()
    (directory / os.fsdecode(b"\xff")).touch()
    answer = play(tmp_path / "scratch", tmp_path / "files", most=1)
    assert answer["clients"] == {"c1-0": 1}
    left_out = json.loads((tmp_path / "files" / "left_out.json").read_text())["c1-0"]
    assert left_out["..."] == "and 50 more" and len(left_out) == 101
    assert "of this client, 1 files are collected" in left_out.values()


def test_a_run_is_a_number(tmp_path: Path) -> None:
    assert "run_id=../8 is no run" in play(tmp_path, tmp_path / "files", run_id="../8")["msg"]
