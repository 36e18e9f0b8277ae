"""Deployments do not depend on how a machine's owner has set it up: its engine, its umask, its proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.static.repository import ROOT, Task, task_files, tasks_in

CONTAINER = "community.docker.docker_container"
DOCKER_RUN = re.compile(r"docker[\s,\]\['\"-]+run\b")
USERNS = re.compile(r"--userns[\s,=]+host")


def tasks_with(module: str) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Yield the tasks that use a module, with its options."""
    for path in task_files():
        for task in tasks_in(path):
            if module in task.keys:
                yield task, task.keys[module]


def test_users_in_containers_are_those_of_the_machine() -> None:
    """With userns-remap in daemon.json, files that the play gave to a container's user would not be its own,
    and the engine refuses a container in the machine's own network or process namespace."""
    made = [(task, options) for task, options in tasks_with(CONTAINER) if "image" in options]
    assert len(made) >= 6
    assert [str(task) for task, options in made if options.get("userns_mode") != "host"] == []
    texts = {path: path.read_text() for path in [*task_files(), *ROOT.glob("roles/*/vars/*.yml")]}
    running = {path for path, text in texts.items() if DOCKER_RUN.search(text)}
    assert len(running) >= 4
    assert [
        str(path.relative_to(ROOT))
        for path in running
        if len(DOCKER_RUN.findall(texts[path])) != len(USERNS.findall(texts[path]))
    ] == []


def test_who_looks_for_control_groups_sees_the_machines_names_of_them() -> None:
    """/proc/PID/cgroup is written as seen from the reader's control group namespace."""
    readers = [
        (task, options)
        for task, options in tasks_with(CONTAINER)
        if any("/sys/fs/cgroup" in str(volume) for volume in options.get("volumes", []))
    ]
    assert len(readers) == 2
    for task, options in readers:
        assert (options["pid_mode"], options["cgroupns_mode"]) == ("host", "host"), task
