"""The files themselves: nothing of one developer's machine, and every file says what it is."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.static.repository import ROOT, files, load, task_files, tasks_in

LONGEST = 650  # lines of a file that people write

# In pieces, so that this file does not hold what it looks for.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("ftp", "debian", "org"),
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry-1", "docker", "io"),
        ("proxy", "golang", "org"),
    )
]
DEVELOPERS = [
    "/" + "/".join(parts) for parts in (("work",), ("tmp", "cf"), ("tmp", "flw"), ("opt", "wheels"))
]
PYTHON = [path for path in files() if path.suffix == ".py"]


def texts() -> list[tuple[str, str]]:
    """Give name and content of every text file."""
    found = []
    for path in files():
        content = path.read_bytes()
        if b"\0" not in content:
            found.append((str(path.relative_to(ROOT)), content.decode("utf-8")))
    return found


def holding(pattern: str) -> list[str]:
    """Name the files that hold a pattern, with the line."""
    return [
        f"{name}:{number}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize("host", REGISTRIES)
def test_no_registry_is_named(host: str) -> None:
    assert holding(rf"\b{re.escape(host)}\b") == [], "mirrors come from the machine's own configuration"


@pytest.mark.parametrize("folder", DEVELOPERS)
def test_no_path_of_a_developers_machine(folder: str) -> None:
    assert holding(rf"(?<![\w.-]){re.escape(folder)}(?!\w)") == []


def test_patterns_find_what_they_look_for() -> None:
    assert len(texts()) > 20
    assert holding(r"^# Coldframe$") == ["README.md:1"]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_file_says_in_its_first_line_what_it_is(path: Path) -> None:
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert words, "no docstring"
    assert words.splitlines()[0].endswith("."), "its first line is no whole sentence"


def test_no_file_is_too_long_to_read() -> None:
    long = {
        name: len(text.splitlines())
        for name, text in texts()
        if name.endswith((".py", ".yml", ".sh", ".j2")) and len(text.splitlines()) > LONGEST
    }
    assert long == {}


def test_text_files_end_in_a_line_and_hold_no_tabs_at_line_ends() -> None:
    assert [name for name, text in texts() if text and not text.endswith("\n")] == []
    assert [
        name for name, text in texts() if re.search(r"[ \t]+$", text, re.M) and not name.endswith(".svg")
    ] == []


def test_scripts_can_be_executed() -> None:
    scripts = [path for path in files() if path.read_bytes()[:2] == b"#!"]
    assert len(scripts) > 3
    modules = ROOT / "plugins" / "modules"  # Ansible starts them, and copies them without their mode
    assert [path for path in scripts if not os.access(path, os.X_OK) and path.parent != modules] == []


def test_playbooks_find_the_group_variables() -> None:
    link = ROOT / "playbooks" / "group_vars"
    assert link.is_symlink(), "ansible looks for group_vars beside an imported playbook"
    assert link.resolve() == ROOT / "group_vars"


def test_picture_of_the_architecture_is_made_of_its_source() -> None:
    digest = hashlib.sha256((ROOT / "docs" / "architecture.dot").read_bytes()).hexdigest()
    picture = (ROOT / "docs" / "img" / "architecture.svg").read_text(encoding="utf-8")
    assert f"<!-- sha256 of architecture.dot: {digest} -->" in picture, "type docs/render.sh"
    assert "docs/img/architecture.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_federations_directories_are_removed_only_where_its_name_is_checked_first() -> None:
    """An empty name would make them those of all federations."""
    whole = re.compile(r"\{\{ coldframe_(controller_)?state \}\}")
    removing = {
        task.path.name
        for path in task_files()
        for task in tasks_in(path)
        if "absent" in str(task.keys) and whole.search(str(task.keys.get("ansible.builtin.file", {})))
    }
    assert removing
    for play in load(ROOT / "playbooks" / "teardown.yml"):
        first, *others = (task["ansible.builtin.import_tasks"] for task in play["tasks"])
        assert first == "tasks/named.yml"
        removing -= {Path(name).name for name in others}
    assert removing == set()


@pytest.mark.parametrize(
    ("words", "unknown"),
    [(["ROUND=2"], "ROUND"), (["ROUNDS=2", "CLIENTS=4", "ARGS=-e purge=true -e yes=true"], "")],
    ids=["misspelt", "known"],
)
def test_make_refuses_a_variable_that_it_does_not_know(words: list[str], unknown: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "--dry-run", "up", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if unknown:
        assert done.returncode != 0
        assert f"{unknown} is no variable of this Makefile -> type make up" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
