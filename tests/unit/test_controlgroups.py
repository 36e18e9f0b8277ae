"""The tests' own reader of control groups reads both versions."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.controlgroups import Kernel, command, parse, read

V1 = """== cpu/cpu.cfs_period_us
100000
== cpu/cpu.cfs_quota_us
40000
== cpu/cpu.stat
nr_periods 12
nr_throttled 3
throttled_time 900
== cpuacct/cpuacct.usage
1500000000
== memory/memory.limit_in_bytes
1073741824
== memory/memory.max_usage_in_bytes
700
== memory/memory.stat
rss 1
total_rss 300
total_cache 100
== memory/memory.usage_in_bytes
500
== pids/pids.current
9
== pids/pids.max
256
"""
V2 = """== cpu.max
40000 100000
== cpu.stat
usage_usec 1500000
nr_periods 12
nr_throttled 3
== memory.current
500
== memory.max
1073741824
== memory.peak
700
== memory.stat
anon 300
file 100
== pids.current
9
== pids.max
256
"""


def test_both_versions_say_the_same() -> None:
    shared = (0.4, 1 << 30, 500, 700, 300, 100, 256, 9, 1.5, 12, 3)
    assert parse(V1) == Kernel(1, *shared)
    assert parse(V2) == Kernel(2, *shared)


def test_no_limit_is_none() -> None:
    v1 = V1.replace("40000", "-1").replace("1073741824", "9223372036854771712").replace("256", "max")
    v2 = V2.replace("40000", "max").replace("1073741824", "max").replace("256", "max")
    for text in (v1, v2):
        kernel = parse(text)
        assert (kernel.cpu, kernel.memory, kernel.pids) == (None, None, None)


def test_no_control_groups_are_no_limits() -> None:
    with pytest.raises(ValueError, match="no control groups"):
        parse("")


def test_the_command_prints_what_is_there() -> None:
    """In a real shell, with this process in the place of a container."""

    def run(text: str) -> str:
        return subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True).stdout

    asked: list[str] = []
    with pytest.raises(ValueError, match="no control groups"):
        read(lambda text: asked.append(text) or "", "it's")
    assert command("it's") == asked[0]
    here = re.sub(r"cd .*/root/sys/fs/cgroup", "cd /proc/self", asked[0]).replace("cpu.max", "comm")
    assert re.match(r"== comm\n\w+\n", run(here))
