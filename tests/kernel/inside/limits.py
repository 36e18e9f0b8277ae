"""Limits of the control group: set live, read back, and what they do to who uses more."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.kernel.inside.tools import (
    CONTAINER,
    Group,
    docker,
    events,
    pid,
    running,
    set_limits,
    undo,
    until,
)

PERIODS = 30  # of 0.1 s
# Fills memory, keeps it, and says so by a file.
HOLD = "import time; held = b'x' * {size}; open('/tmp/held', 'w').close(); time.sleep(999)"
# Starts processes until the kernel refuses, and says how many there were.
FORK = """
import os, signal, time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(99)
            os._exit(0)
        count += 1
except OSError as error:
    print(count, error.errno)
os.killpg(0, signal.SIGKILL)
"""


def wait_for_periods(group: Group, count: int) -> None:
    """Wait until the kernel has counted so many periods of a group."""
    until(lambda: group.table("cpu.stat")["nr_periods"] >= count, "periods")


def cpu(steps: list[float]) -> dict[str, Any]:
    """Let two processes burn, change the limit under them, and count what they use by periods."""
    main = pid()
    group, found = Group(main), []
    stalled = group.stalled("cpu")
    with running("busybox", "sh", "-c", "while :; do :; done", count=2):
        for cores in steps:
            answer = set_limits({"cpu": cores})
            before = group.table("cpu.stat")
            wait_for_periods(group, before["nr_periods"] + PERIODS)
            after = group.table("cpu.stat")
            delta = {key: after[key] - before[key] for key in ("usage_usec", "nr_periods", "nr_throttled")}
            found.append({"asked": cores, "said": answer, "limits": group.limits(), **delta})
    return {
        "steps": found,
        "stalled": group.stalled("cpu") - stalled,
        "undone": undo(),
        "limits": group.limits(),
        "same_process": pid() == main,
    }


def memory(limit: int, use: int, below: int) -> dict[str, Any]:
    """Set a limit, use more, then go below what is used: refused, and with force done."""
    group = Group(pid())
    answer, limits = set_limits({"memory": limit}), group.limits()
    kills = group.table("memory.events")["oom_kill"]
    more = HOLD.format(size=2 * limit)
    command = ["docker", "exec", CONTAINER, "python3", "-c", more]
    code = subprocess.run(command, check=False, capture_output=True).returncode
    killed = group.table("memory.events")["oom_kill"] - kills
    recorded = until(lambda: events("oom"), "the agent writes down the kill")
    with running("python3", "-c", HOLD.format(size=use)):
        until(lambda: docker("exec", CONTAINER, "busybox", "ls", "/tmp") == "held", "the memory is in use")
        used, kills = int(group.text("memory.current")), group.table("memory.events")["oom_kill"]
        refused, kept = set_limits({"memory": below}), group.limits()
        unharmed = group.table("memory.events")["oom_kill"] == kills
        forced, below_use = set_limits({"memory": below}, force=True), group.limits()
        until(lambda: group.table("memory.events")["oom_kill"] > kills, "the kernel kills who uses more")
    return {
        "said": answer,
        "limits": limits,
        "code": code,
        "killed": killed,
        "recorded": recorded,
        "used": used,
        "refused": refused,
        "kept": kept,
        "unharmed": unharmed,
        "forced": forced,
        "below_use": below_use,
        "undone": undo(),
    }


def pids(limit: int) -> dict[str, Any]:
    """Set a limit and start processes until the kernel refuses."""
    group = Group(pid())
    answer, limits = set_limits({"pids": limit}), group.limits()
    hit = group.table("pids.events")["max"]
    with running("busybox", "sleep", "99"):
        printed = docker("exec", CONTAINER, "python3", "-c", FORK, check=False)
        refused = group.table("pids.events")["max"] - hit
    count, error = map(int, printed.split())
    return {
        "said": answer,
        "limits": limits,
        "count": count,
        "error": error,
        "refused": refused,
        "peak": int(group.text("pids.peak")),
        "undone": undo(),
    }


def freeze(cores: float) -> dict[str, Any]:
    """Pause a client that burns: it stands still, takes limits, and goes on under them."""
    group = Group(pid())
    with running("busybox", "sh", "-c", "while :; do :; done"):
        docker("pause", CONTAINER)
        frozen = group.table("cgroup.events")["frozen"]
        before = group.table("cpu.stat")["usage_usec"]
        answer, limits = set_limits({"cpu": cores}), group.limits()
        used = group.table("cpu.stat")["usage_usec"] - before
        docker("unpause", CONTAINER)
        thawed = group.table("cgroup.events")["frozen"]
        now = group.table("cpu.stat")["usage_usec"]
        until(lambda: group.table("cpu.stat")["usage_usec"] > now, "it goes on")
    return {
        "frozen": [frozen, thawed],
        "used": used,
        "said": answer,
        "limits": limits,
        "undone": undo(),
    }
