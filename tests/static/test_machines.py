"""Deployments do not depend on how a machine's owner has set it up: its engine, its umask, its proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.static.repository import ROOT, Task, load, task_files, tasks_in

CONTAINER = "community.docker.docker_container"
DOCKER_RUN = re.compile(r"docker[\s,\]\['\"-]+run\b")
# Fetched from the internet, which many machines reach through a proxy alone.
FROM_OUTSIDE = {"Repository | Fetch the key of its packages"}
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


def test_no_call_to_a_machine_of_the_federation_goes_through_a_proxy() -> None:
    """https_proxy stands in the environment of many companies' machines and images."""
    every = list(tasks_with("ansible.builtin.uri"))
    outside = [(task, options) for task, options in every if task.keys.get("name") in FROM_OUTSIDE]
    assert len(outside) == len(FROM_OUTSIDE)
    assert [str(task) for task, options in outside if options.get("use_proxy") is False] == []
    asked = [item for item in every if item not in outside]
    assert asked
    assert [str(task) for task, options in asked if options.get("use_proxy") is not False] == []
    for role, container, own in (
        ("fl_client", "__fl_client_container", "__fl_client_unproxied"),
        ("fl_server", "__fl_server_container", "127.0.0.1"),
        ("grafana", "__grafana_container", "*"),
    ):
        values = load(ROOT / "roles" / role / "vars" / "main.yml")
        environment = values[container]["env"]
        assert own in environment["no_proxy"] and environment["NO_PROXY"] == environment["no_proxy"]
    assert "fl_client_superlink" in load(ROOT / "roles/fl_client/vars/main.yml")["__fl_client_unproxied"]


def test_no_mode_depends_on_an_umask() -> None:
    """077 is the umask of many companies' machines: what it made could not be read in a container."""
    lacking = []
    for module in (
        "copy",
        "template",
        "file",
        "get_url",
        "assemble",
        "unarchive",
        "lineinfile",
        "blockinfile",
    ):
        for task, options in tasks_with(f"ansible.builtin.{module}"):
            wanted = {"mode"} if options.get("state") != "absent" else set()
            if module == "copy" and str(options["dest"]).endswith("/"):
                wanted.add("directory_mode")  # it makes the directory too
            lacking += [f"{task} lacks {name}" for name in wanted - options.keys()]
    # What rsync makes of the controller's files, for a container or a user in one.
    for task, options in tasks_with("ship"):
        pushed = options.get("mode") != "pull" and options.get("recursive")
        if pushed and "--chmod=D755,F644" not in options.get("rsync_opts", []):
            lacking.append(f"{task} lacks --chmod")
    assert lacking == []
