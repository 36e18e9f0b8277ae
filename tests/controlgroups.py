"""What the kernel says of a container's control groups, version 1 or 2: the tests' own witness.

It shares no code with ``coldframe/cgroups.py``, which is under test. The files are read on the container's
machine through ``/proc/<pid>/root``: nothing runs inside the container, so its counters stay as they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

# By quantity: where version 2 and version 1 have it, below the container's own /sys/fs/cgroup.
FILES = {
    "cpu quota": ("cpu.max", "cpu/cpu.cfs_quota_us"),
    "cpu period": ("cpu.max", "cpu/cpu.cfs_period_us"),
    "cpu statistics": ("cpu.stat", "cpu/cpu.stat"),
    "cpu time": ("cpu.stat", "cpuacct/cpuacct.usage"),
    "memory limit": ("memory.max", "memory/memory.limit_in_bytes"),
    "memory use": ("memory.current", "memory/memory.usage_in_bytes"),
    "memory peak": ("memory.peak", "memory/memory.max_usage_in_bytes"),
    "memory statistics": ("memory.stat", "memory/memory.stat"),
    "processes limit": ("pids.max", "pids/pids.max"),
    "processes": ("pids.current", "pids/pids.current"),
}
# Version 1 writes "no limit" as the largest multiple of the page size in 63 bits.
NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Kernel:
    """What the kernel grants a container, and what the container has used; None means no limit.

    Attributes
    ----------
    version
        Of the control groups that hold the limits: 1 or 2.
    cpu
        Cores.
    memory, memory_used, memory_peak, anonymous, cached
        Bytes: the limit, all that is charged and the most that ever was, and of that what no file backs and
        what files do. Version 2 tells the most since kernel 5.19.
    pids, pids_used
        Processes and threads.
    cpu_seconds
        CPU time used since the container was started.
    periods, throttled
        Enforcement periods of the CPU limit, and those in which it was reached.
    """

    version: int
    cpu: float | None
    memory: int | None
    memory_used: int
    memory_peak: int | None
    anonymous: int
    cached: int
    pids: int | None
    pids_used: int
    cpu_seconds: float
    periods: int
    throttled: int


def command(container: str) -> str:
    """Return the shell command, for root on the container's machine, whose output ``parse`` reads."""
    paths = sorted({path for pair in FILES.values() for path in pair})
    pid = f"$(docker inspect --format '{{{{.State.Pid}}}}' {shlex.quote(container)})"
    return (
        f"cd /proc/{pid}/root/sys/fs/cgroup &&"
        f' for f in {" ".join(paths)}; do [ ! -r $f ] || {{ echo "== $f"; cat $f; }}; done'
    )


def parse(output: str) -> Kernel:
    """Read what the command has printed.

    Raises
    ------
    ValueError
        If it holds neither version's files.
    """
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith("== "):
            lines = found[line.removeprefix("== ")] = []
        else:
            lines.append(line)
    version = 2 if "cpu.max" in found else 1
    if FILES["cpu quota"][2 - version] not in found:
        raise ValueError(f"there are no control groups in:\n{output}")

    def text(quantity: str) -> str:
        return " ".join(found[FILES[quantity][2 - version]])

    def limit(quantity: str) -> int | None:
        word = text(quantity)
        return None if word == "max" or int(word) >= NO_LIMIT else int(word)

    def table(quantity: str) -> dict[str, int]:
        pairs = (line.split() for line in found[FILES[quantity][2 - version]])
        return {name: int(value) for name, value in pairs}

    statistics = table("cpu statistics")
    if version == 2:
        quota, period = text("cpu quota").split()
        cpu = None if quota == "max" else int(quota) / int(period)
        seconds = statistics["usage_usec"] / 1e6
    else:
        cpu = None if int(text("cpu quota")) < 0 else int(text("cpu quota")) / int(text("cpu period"))
        seconds = int(text("cpu time")) / 1e9
    return Kernel(
        version=version,
        cpu=cpu,
        memory=limit("memory limit"),
        memory_used=int(text("memory use")),
        memory_peak=int(text("memory peak")) if FILES["memory peak"][2 - version] in found else None,
        anonymous=table("memory statistics")["anon" if version == 2 else "total_rss"],
        cached=table("memory statistics")["file" if version == 2 else "total_cache"],
        pids=limit("processes limit"),
        pids_used=int(text("processes")),
        cpu_seconds=seconds,
        periods=statistics.get("nr_periods", 0),
        throttled=statistics.get("nr_throttled", 0),
    )


def read(run: Callable[[str], str], container: str) -> Kernel:
    """Return what the kernel says of a container; ``run`` runs a command on its machine as root."""
    return parse(run(command(container)))
