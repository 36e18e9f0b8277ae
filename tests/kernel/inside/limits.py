"""Limits of the control group: set live, read back, and what they do to who uses more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.kernel.inside.tools import (
    CONTAINER,
    Group,
    begin,
    docker,
    end,
    events,
    pid,
    running,
    set_limits,
    told,
    undo,
    until,
    written,
)

PERIODS = 20  # of 0.1 s
# Fills memory, keeps it, and says so by a file.
HOLD = "import time; held = b'x' * {size}; open('/tmp/held', 'w').close(); time.sleep(999)"
# Starts processes until the kernel refuses, says how many there were and why no more, and ends them.
FORK = """
import os, signal, time
started = []
try:
    while len(started) < 500:
        child = os.fork()
        if child == 0:
            time.sleep(999)
            os._exit(0)
        started.append(child)
except OSError as error:
    with open('/tmp/forked', 'w') as file:
        print(len(started), error.errno, file=file)
for child in started:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
BURN = "while :; do :; done"


def wait_for_periods(group: Group, count: int) -> None:
    """Wait until the kernel has counted so many periods of a group."""
    until(lambda: group.table("cpu.stat")["nr_periods"] >= count, "periods")


def cpu(steps: list[float]) -> dict[str, Any]:
    """Let two processes burn, change the limit under them, and count what they use by periods."""
    main = pid()
    group, found = Group(main), []
    stalled = group.stalled("cpu")
    with running(BURN, BURN):
        for cores in steps:
            answer, limits = set_limits({"cpu": cores}), group.limits()
            before = group.table("cpu.stat")
            wait_for_periods(group, before["nr_periods"] + PERIODS)
            after = group.table("cpu.stat")
            delta = {key: after[key] - before[key] for key in ("usage_usec", "nr_periods", "nr_throttled")}
            found.append({"asked": cores, "said": answer, "limits": limits, **delta})
        # Systemd writes all of a group's values when the engine is told of one, and no limit on swap.
        until(lambda: told()["CpuQuota"] == round(steps[-1] * 100_000), "the engine is told")
        until(lambda: group.text("memory.swap.max") == "0", "nothing may be swapped after that")
    return {
        "steps": found,
        "stalled": group.stalled("cpu") - stalled,
        "undone": undo(),
        "limits": group.limits(),
        "same_process": pid() == main,
        "drift": events("drift"),
    }


def memory(limit: int, use: int, below: int) -> dict[str, Any]:
    """Set a limit, use more, then go below what is used: refused, and with force done."""
    group = Group(pid())
    answer, limits = set_limits({"memory": limit}), group.limits()
    kills = group.table("memory.events")["oom_kill"]
    code = end(begin("python3", "-c", HOLD.format(size=2 * limit)))
    killed = group.table("memory.events")["oom_kill"] - kills
    recorded = until(lambda: events("oom"), "the agent writes down the kill")
    with running(f'python3 -c "{HOLD.format(size=use)}"'):
        until(written("held").exists, "the memory is in use")
        used, kills = int(group.text("memory.current")), group.table("memory.events")["oom_kill"]
        refused, kept = set_limits({"memory": below}), group.limits()
        unharmed = group.table("memory.events")["oom_kill"] == kills
        # The kernel may kill again before the memory of the first is free: not the main process, with
        # which the group would go.
        spare = Path(f"/proc/{pid()}/oom_score_adj")
        before = spare.read_text()
        spare.write_text("-1000")
        forced, below_use = set_limits({"memory": below}, force=True), group.limits()
        until(lambda: group.table("memory.events")["oom_kill"] > kills, "the kernel kills who uses more")
        spare.write_text(before)
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
    code = end(begin("python3", "-c", FORK))
    refused = group.table("pids.events")["max"] - hit
    count, error = map(int, written("forked").read_text().split())
    return {
        "said": answer,
        "limits": limits,
        "code": code,
        "count": count,
        "error": error,
        "refused": refused,
        "peak": int(group.text("pids.peak")),
        "undone": undo(),
    }


def freeze(cores: float) -> dict[str, Any]:
    """Pause a client that burns: it stands still, takes limits, and goes on under them."""
    group = Group(pid())
    with running(BURN):
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
