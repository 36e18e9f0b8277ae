"""Nothing that tests reads control groups of version 1 alone."""

from __future__ import annotations

import re
from pathlib import Path

from tests.controlgroups import FILES
from tests.static.repository import ROOT, files

# A name of version 1, and what a reader of both has for version 2.
TWINS = {
    r"cpu\.cfs_quota_us|cpu\.cfs_period_us": "cpu.max",
    r"cpuacct": "usage_usec",
    r"memory\.limit_in_bytes": "memory.max",
    r"memory\.usage_in_bytes": "memory.current",
    r"max_usage_in_bytes": "memory.peak",
    r"memory\.oom_control": "memory.events",
    r"total_(rss|cache)|total_inactive_file": "anon",
    r"freezer\.state": "cgroup.freeze",
    r"cgroup/(cpu|memory|pids|blkio|freezer|\*)/": "cgroup.controllers",
}
READERS = {"tests/controlgroups.py", "tests/hosts/hosts.py"}  # they know both versions
FAKES = "tests/unit/"  # trees of files, made for the code under test


def v1_only(name: str, text: str) -> list[str]:
    """Names of version 1 in a file that has no business with them, or lacks their twins."""
    found = []
    for pattern, twin in TWINS.items():
        for match in re.finditer(pattern, text):
            both = twin in text and (name in READERS or name.startswith((FAKES, "benchmarks/")))
            if not both:
                found.append(f"{name}: {match[0]} (version 2 has {twin}): use tests/controlgroups.py")
    return found


def test_a_path_of_version_1_alone_is_found() -> None:
    assert v1_only("tests/cluster/test_new.py", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    assert v1_only("tests/cluster/test_new.py", "cpu.max or cpu.cfs_quota_us")
    assert v1_only("tests/kernel/test_new.py", "cat /sys/fs/cgroup/memory/tasks")
    assert v1_only("benchmarks/new.py", "memory.limit_in_bytes")
    assert not v1_only("benchmarks/new.py", "memory.limit_in_bytes or memory.max")
    assert {path for pair in FILES.values() for path in pair if v1_only("tests/a.py", path)} == {
        v1 for _, v1 in FILES.values() if not v1.endswith((".stat", "pids.max", "pids.current"))
    }


def test_no_file_reads_version_1_alone() -> None:
    """README's second command has to pass on a distribution of today, whose control groups are version 2."""
    names = {str(path.relative_to(ROOT)): path for path in files()}
    read = {
        name: path.read_text(errors="replace")
        for name, path in names.items()
        if name.startswith(("tests/", "benchmarks/", "scripts/", "vagrant/")) and path != Path(__file__)
    }
    assert "tests/controlgroups.py" in read
    assert [line for name, text in read.items() for line in v1_only(name, text)] == []
