"""Tests of the tree module: many paths in one call, and nothing touched that is as it should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ME = str(os.getuid())


@pytest.fixture
def tree(tmp_path: Path) -> Any:
    """Run the module on a directory of the test's; its answer."""

    def run(*entries: dict[str, Any], umask: int = -1, **more: Any) -> dict[str, Any]:
        entries = tuple({"owner": ME, **entry} for entry in entries)
        arguments = {"root": str(tmp_path / "root"), "entries": entries, **more}
        done = subprocess.run(
            [sys.executable, "-m", "plugins.modules.tree", json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            umask=umask,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        answer["changed_paths"] = [
            os.path.relpath(path, tmp_path / "root") for path in answer.get("changed_paths", [])
        ]
        return answer

    return run


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_modes_do_not_depend_on_the_machines_umask(tree: Any, tmp_path: Path, umask: int) -> None:
    """A container's user has to read these files, and pass the directories above them."""
    kept = {"path": "deep/below/events", "mode": "0644", "content": "", "keep": True}
    files = {"path": "deep/below/clients", "mode": "0755", "files": {"a.json": "{}"}}
    tree(files, kept, {"path": "deep/below/key", "mode": "0400", "content": "k"}, umask=umask)
    modes = {
        str(path.relative_to(tmp_path / "root")): path.stat().st_mode & 0o777
        for path in (tmp_path / "root").rglob("*")
    }
    assert modes == {
        **dict.fromkeys(("deep", "deep/below", "deep/below/clients"), 0o755),
        **dict.fromkeys(("deep/below/clients/a.json", "deep/below/events"), 0o644),
        "deep/below/key": 0o400,
    }
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o755


WANTED = (
    {"path": "", "mode": "0755"},
    {"path": "config/rules", "mode": "0700", "files": {"a.yml": "a\n", "b.yml": "b\n"}, "exclusive": "*.yml"},
    {"path": "config/secret", "mode": "0400", "content": "x\n"},
)


def test_makes_what_is_missing_and_then_finds_it_made(tree: Any, tmp_path: Path) -> None:
    first = tree(*WANTED)
    assert first["changed_paths"] == [
        *(".", "config/rules", "config/rules/a.yml", "config/rules/b.yml", "config/secret")
    ]
    secret = tmp_path / "root" / "config" / "secret"
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("x\n", 0o400)
    assert (tmp_path / "root" / "config" / "rules").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "root" / "config" / "rules" / "b.yml").stat().st_mode & 0o777 == 0o644
    again = tree(*WANTED)
    assert (again["changed"], again["changed_paths"]) == (False, [])


def test_changes_what_differs_and_removes_what_is_too_much(tree: Any, tmp_path: Path) -> None:
    tree(*WANTED)
    config = tmp_path / "root" / "config"
    (config / "rules" / "old.yml").write_text("left over")
    (config / "rules" / "readme").write_text("of somebody else")
    (config / "rules" / "a.yml").chmod(0o600)
    (config / "secret").chmod(0o600)
    (config / "secret").write_text("y\n")
    answer = tree(*WANTED)
    assert answer["changed_paths"] == ["config/rules/a.yml", "config/rules/old.yml", "config/secret"]
    assert (config / "secret").read_text() == "x\n"
    assert sorted(path.name for path in (config / "rules").iterdir()) == ["a.yml", "b.yml", "readme"]
    assert tree(*WANTED[:2], {**WANTED[2], "content": "z\n"})["changed_paths"] == ["config/secret"]


def test_check_mode_tells_and_changes_nothing(tree: Any, tmp_path: Path) -> None:
    answer = tree(*WANTED, _ansible_check_mode=True, _ansible_diff=True)
    assert answer["changed"]
    assert not (tmp_path / "root").exists()
    assert {"before": "", "after": "x\n"}.items() <= answer["diff"][-1].items()
    tree(*WANTED)
    assert not tree(*WANTED, _ansible_check_mode=True)["changed"]


def test_what_is_kept_is_made_once(tree: Any, tmp_path: Path) -> None:
    kept = {"path": "log", "mode": "0644", "content": "", "keep": True}
    assert tree({"path": "", "mode": "0755"}, kept)["changed_paths"] == [".", "log"]
    (tmp_path / "root" / "log").write_text("an event\n")
    answer = tree({"path": "", "mode": "0755"}, kept)
    assert not answer["changed"]
    assert (tmp_path / "root" / "log").read_text() == "an event\n"


def test_what_is_not_valid_is_not_written(tree: Any, tmp_path: Path) -> None:
    entry = {"path": "f", "mode": "0644", "validate": "grep -q good %s"}
    tree({"path": "", "mode": "0755"}, {**entry, "content": "good 1\n"})
    answer = tree({**entry, "content": "bad\n"})
    assert answer["failed"]
    assert f"{tmp_path}/root/f would not be valid" in answer["msg"]
    assert (tmp_path / "root" / "f").read_text() == "good 1\n"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["f"]


def test_a_file_in_a_directorys_place_is_an_error(tree: Any, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("in the way")
    answer = tree({"path": "", "mode": "0755"})
    assert answer["failed"]
    assert "move it out of the way" in answer["msg"]


@pytest.mark.parametrize(
    ("planted", "entry"),
    [
        ("runs", {"path": "runs", "mode": "0777"}),
        ("runs", {"path": "runs/7", "mode": "0777"}),
        ("runs", {"path": "runs", "mode": "0777", "files": {"a": "x"}}),
        ("list", {"path": "list", "mode": "0666", "content": "x"}),
        ("list", {"path": "list", "mode": "0666", "content": "secret"}),
    ],
    ids=["a directory", "a parent", "a directory with files", "a file", "a file that is as it should be"],
)
def test_a_link_that_a_container_planted_is_not_followed(
    tree: Any, tmp_path: Path, planted: str, entry: dict[str, Any]
) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir(mode=0o700)
    root.mkdir()
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o600)
    (root / planted).symlink_to(outside if planted == "runs" else outside / "secret")
    answer = tree(entry)
    assert "is a symbolic link" in answer["msg"]
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (outside.stat().st_mode & 0o777, (outside / "secret").stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_root_itself_may_be_a_link(tree: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    assert tree(*WANTED)["changed"] is True
    assert (tmp_path / "disk" / "config" / "secret").read_text() == "x\n"
