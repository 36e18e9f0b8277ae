"""What the static tests read the repository with: its files, its YAML, and the tasks in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent for path in (ROOT / "roles").glob("*/tasks"))
TASK_LISTS = ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always")


def files() -> list[Path]:
    """Give every file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in sorted(set(listed.split("\0"))) if name and (ROOT / name).is_file()]


class Loader(yaml.SafeLoader):
    """Reads Ansible's YAML: its own tags, such as !unsafe, stand for their plain content."""


Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


def load(path: Path) -> Any:
    """Read a YAML file."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


@dataclass(frozen=True)
class Task:
    """A task, and the file that it stands in."""

    path: Path
    keys: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}: {self.keys.get('name', 'a task without a name')}"


def tasks_in(path: Path) -> Iterator[Task]:
    """Yield every task of a playbook or task file, those in blocks too, but not the blocks."""
    yield from (Task(path, keys) for keys in walk(load(path) or []))


def walk(content: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the tasks below a list of plays, blocks and tasks."""
    for item in content:
        below = [key for key in TASK_LISTS if key in item]
        if not below and "hosts" not in item:
            yield item
        for key in below:
            yield from walk(item[key] or [])


def task_files() -> list[Path]:
    """Give the playbooks, and the files of tasks and handlers of every role."""
    playbooks = [
        *ROOT.glob("*.yml"),
        *(ROOT / "playbooks").glob("*.yml"),
        *(ROOT / "playbooks").glob("tasks/*.yml"),
    ]
    return sorted([*playbooks, *ROOT.glob("roles/*/tasks/**/*.yml"), *ROOT.glob("roles/*/handlers/*.yml")])
