"""The reader of cgroups says the same of the same limits under v1, v2 and hybrid, and fits this kernel."""

import os
import time
from pathlib import Path

import pytest

from coldframe import cgroups
from coldframe.cgroups import CONTROLLERS
from tests.unit.trees import mountinfo, paths_of, write

ID = "4f" * 32
V1 = {
    "cpu/cpu.cfs_quota_us": "50000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpu/cpu.stat": "nr_periods 200\nnr_throttled 50\nthrottled_time 900000000\n",
    "cpuacct/cpuacct.usage": "12500000000\n",
    "cpuacct/cpuacct.stat": "user 900\nsystem 350\n",
    "cpuset/cpuset.effective_cpus": "0-2,5\n",
    "memory/memory.limit_in_bytes": "536870912\n",
    "memory/memory.usage_in_bytes": "400000000\n",
    "memory/memory.max_usage_in_bytes": "450000000\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 150000000\ntotal_rss 7\ntotal_cache 8\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory/cgroup.procs": "41\n12\n",
    "pids/pids.max": "256\n",
    "pids/pids.current": "17\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": (
        "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\n8:16 Read 1\n8:16 Write 2\nTotal 12291\n"
    ),
}
V2 = {
    "cgroup.controllers": "cpuset cpu memory pids\n",
    "cpu.max": "50000 100000\n",
    "cpu.stat": (
        "usage_usec 12500000\nuser_usec 9000000\nsystem_usec 3500000\n"
        "nr_periods 200\nnr_throttled 50\nthrottled_usec 900000\n"
    ),
    "cpuset.cpus.effective": "0-2,5\n",
    "memory.max": "536870912\n",
    "memory.current": "400000000\n",
    "memory.peak": "450000000\n",
    "memory.stat": "anon 7\nfile 8\ninactive_file 150000000\n",
    "memory.events": "low 0\noom 5\noom_kill 3\n",
    "pids.max": "256\n",
    "pids.current": "17\n",
    "cgroup.procs": "41\n12\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n",
}
PRESSURE = (
    "some avg10=1.50 avg60=0.70 avg300=0.10 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"
)


def v1_tree(root: Path, group: str) -> None:
    write(root, {name.replace("/", f"/{group}/", 1): text for name, text in V1.items()})


def v1_lines(group: str) -> str:
    names = ["name=systemd", "pids", "memory", "cpuset", "blkio", "cpu,cpuacct"]
    return "".join(f"{9 - i}:{name}:/{group}\n" for i, name in enumerate(names)) + f"0::/{group}\n"


def machine(root: Path, version: str, group: str, top: str = "/") -> cgroups.Hierarchies:
    """Make a machine whose process 41 is in a group; of its hierarchies what is below `top` is mounted."""
    shown, cgroup = group.removeprefix(top.strip("/")).strip("/"), root / "cgroup"
    if version == "v2":
        write(cgroup / shown, V2 | {"cpu.pressure": PRESSURE})
        mounts = mountinfo(cgroup, top=top)
    else:
        v1_tree(cgroup, shown)
        mounts = mountinfo(cgroup, CONTROLLERS, None, top)
    if version == "hybrid":
        write(cgroup / "unified" / shown, {"cpu.pressure": PRESSURE})
        mounts = mountinfo(cgroup, CONTROLLERS, "unified", top)
    files = {"self/mountinfo": mounts, "41/cgroup": paths_of(group, 2 if version == "v2" else 1)}
    write(root / "proc", files | {"41/cmdline": "python3", "1/cgroup": "0::/init.scope\n"})
    return cgroups.mounted(cgroup, root / "proc")


def tree(root: Path, version: str) -> cgroups.Cgroup:
    """Make a tree with one container and return its group."""
    if version == "v2":
        write(root / f"docker/{ID}", V2 | {"cpu.pressure": PRESSURE})
        write(root, {"cgroup.controllers": "cpu memory\n"})
        return cgroups.own(root, f"0::/docker/{ID}\n")
    v1_tree(root, f"docker/{ID}")
    if version == "hybrid":
        write(root / "unified", {"cgroup.controllers": "\n", f"docker/{ID}/cpu.pressure": PRESSURE})
    return cgroups.own(root, v1_lines(f"docker/{ID}"))


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_the_same_limits_read_the_same_under_every_version(tmp_path: Path, version: str) -> None:
    group = tree(tmp_path, version)
    assert group.version == (2 if version == "v2" else 1)
    assert group.cpu_limit() == 0.5
    assert group.cpu_usage_seconds() == 12.5
    assert group.cpu_periods() == (200, 50)
    assert group.cpuset_count() == 4
    assert group.memory_limit() == 512 << 20
    assert group.memory_usage() == 400_000_000
    assert group.memory_peak() == 450_000_000
    assert group.working_set() == 250_000_000
    assert group.oom_kills() == 3
    assert (group.pids_limit(), group.pids_current()) == (256, 17)
    assert group.cpu_quota() == (50_000, 100_000)
    assert group.cpu_use() == cgroups.CpuUse(12.5, 9.0, 3.5, 200, 50, 0.9)
    assert group.memory_use() == cgroups.MemoryUse(400_000_000, 250_000_000, 7, 8)
    assert group.processes() == [41, 12]
    assert group.block_bytes() == (4097, 8194)


def test_a_controller_that_does_not_know_the_container_gives_nothing_of_the_machine(tmp_path: Path) -> None:
    found = machine(tmp_path, "v1", f"docker/{ID}")
    write(tmp_path, {"cgroup/blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 999\n"})
    lines = [line for line in paths_of(f"docker/{ID}", 1).splitlines() if "blkio" not in line]
    write(tmp_path, {"proc/41/cgroup": "\n".join([*lines, "2:blkio:/"])})
    group = found.of_container(ID, 41)
    assert group is not None
    assert group.block_bytes() == (0, 0)
    assert group.cpu_limit() == 0.5


@pytest.mark.parametrize("version", ["v2", "hybrid"])
def test_pressure_is_read_where_the_unified_tree_has_it(tmp_path: Path, version: str) -> None:
    pressure = tree(tmp_path, version).pressure("cpu")
    assert pressure == {
        "some": {"avg10": 1.5, "avg60": 0.7, "avg300": 0.1, "total": 1234.0},
        "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 5.0},
    }


def test_pressure_is_none_where_there_is_none(tmp_path: Path) -> None:
    assert tree(tmp_path / "a", "v1").pressure("cpu") is None
    assert tree(tmp_path / "b", "v2").pressure("io") is None


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_what_is_set_is_read_and_none_takes_it_away(tmp_path: Path, version: str) -> None:
    group = tree(tmp_path, version)
    group.set_cpu_limit(0.1, 100_000)
    group.set_memory_limit(700 << 20)
    group.set_pids_limit(99)
    assert group.cpu_quota() == (10_000, 100_000)
    assert (group.memory_limit(), group.pids_limit()) == (700 << 20, 99)
    group.set_cpu_limit(None, 100_000)
    group.set_pids_limit(None)
    assert (group.cpu_limit(), group.pids_limit()) == (None, None)


@pytest.mark.parametrize(
    ("before", "after", "order"),
    [(512, 700, ["memsw", "limit"]), (512, 300, ["limit", "memsw"]), (512, None, ["memsw", "limit"])],
)
def test_memory_alone_is_never_more_than_memory_with_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int | None, order: list[str]
) -> None:
    """The kernel refuses that: a greater limit goes to both first."""
    group = tree(tmp_path, "v1")
    write(tmp_path / f"memory/docker/{ID}", {"memory.memsw.limit_in_bytes": str(before << 20)})
    written: list[str] = []
    keep = cgroups.Cgroup._write

    def note(group: cgroups.Cgroup, controller: str, name: str, text: str) -> None:
        written.append(name.split(".")[1].split("_")[0])
        keep(group, controller, name, text)

    monkeypatch.setattr(cgroups.Cgroup, "_write", note)
    group.set_memory_limit(None if after is None else after << 20)
    assert written == order


def test_swap_goes_with_the_memory_limit(tmp_path: Path) -> None:
    group = tree(tmp_path, "v2")
    swap = tmp_path / f"docker/{ID}/memory.swap.max"
    swap.write_text("max")
    group.set_memory_limit(300 << 20)
    assert swap.read_text() == "0"
    group.set_memory_limit(None)
    assert swap.read_text() == "max"


@pytest.mark.parametrize(("swap", "hard"), [("0\n", 512 << 20), ("max\n", None), ("4096\n", None)])
def test_memory_limit_beside_which_a_group_may_swap_is_none(
    tmp_path: Path, swap: str, hard: int | None
) -> None:
    """As systemd leaves it when `docker update` has changed the CPU limit alone."""
    group = tree(tmp_path, "v2")
    write(tmp_path / f"docker/{ID}", {"memory.swap.max": swap})
    assert group.hard_memory_limit() == hard
    assert group.memory_limit() == 512 << 20


@pytest.mark.parametrize(("both", "hard"), [(512, 512 << 20), (700, None)])
def test_memory_limit_of_v1_is_one_of_memory_and_swap(tmp_path: Path, both: int, hard: int | None) -> None:
    group = tree(tmp_path, "v1")
    write(tmp_path / f"memory/docker/{ID}", {"memory.memsw.limit_in_bytes": str(both << 20)})
    assert group.hard_memory_limit() == hard


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_kernel_without_swap_holds_the_memory_limit(tmp_path: Path, version: str) -> None:
    assert tree(tmp_path, version).hard_memory_limit() == 512 << 20


def test_group_that_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    group = tree(tmp_path, "v2")
    (tmp_path / f"docker/{ID}/pids.max").unlink()
    with pytest.raises(FileNotFoundError):
        group.set_pids_limit(9)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_no_limit_is_none(tmp_path: Path, version: str) -> None:
    group = tree(tmp_path, version)
    if version == "v1":
        unlimited = {
            "cpu/cpu.cfs_quota_us": "-1\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "pids/pids.max": "max\n",
        }
        write(tmp_path, {n.replace("/", f"/docker/{ID}/", 1): text for n, text in unlimited.items()})
    else:
        unlimited = {"cpu.max": "max 100000\n", "memory.max": "max\n", "pids.max": "max\n"}
        write(tmp_path / f"docker/{ID}", unlimited)
    assert group.cpu_limit() is None
    assert group.memory_limit() is None
    assert group.pids_limit() is None


def test_the_working_set_is_never_below_zero(tmp_path: Path) -> None:
    group = tree(tmp_path, "v2")
    write(tmp_path / f"docker/{ID}", {"memory.stat": "inactive_file 999999999\n"})
    assert group.working_set() == 0


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_in_a_container_the_top_of_the_mount_is_the_own_group(tmp_path: Path, version: str) -> None:
    """With a cgroup namespace the paths read /; without one they name folders that the mount hides."""
    if version == "v1":
        write(tmp_path, V1)
        lines = [v1_lines(""), v1_lines(f"docker/{ID}"), v1_lines("../../elsewhere")]
    else:
        write(tmp_path, V2)
        lines = ["0::/\n", f"0::/docker/{ID}\n", "0::/../../elsewhere\n"]
    for text in lines:
        group = cgroups.own(tmp_path, text)
        assert group.cpu_limit() == 0.5
        assert group.memory_limit() == 512 << 20


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
@pytest.mark.parametrize(
    ("group", "top"),
    [
        (f"docker/{ID}", "/"),
        (f"system.slice/docker-{ID}.scope", "/"),
        (f"lab/clients/{ID}", "/"),  # cgroup-parent
        (f"lab.slice/lab-clients.slice/docker-{ID}.scope", "/"),
        (f"user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope", "/"),  # rootless
        (f"docker/{'ab' * 32}/docker/{ID}", "/"),  # an engine in a container
        (f"docker/{'ab' * 32}/docker/{ID}", f"/docker/{'ab' * 32}"),  # which sees its own part alone
    ],
)
def test_a_container_is_found_wherever_its_engine_puts_it(
    tmp_path: Path, version: str, group: str, top: str
) -> None:
    """Tried: with a cgroup-parent in daemon.json the limits of all clients "did not hold"."""
    found = machine(tmp_path, version, group, top).of_container(ID, 41)
    assert found is not None
    assert found.version == (2 if version == "v2" else 1)
    assert found.cpu_limit() == 0.5
    assert found.memory_usage() == 400_000_000
    assert (found.pressure("cpu") is None) == (version == "v1")
    found.set_cpu_limit(0.1, 100_000)
    assert found.cpu_limit() == 0.1


def test_hierarchies_are_where_the_kernel_says_that_they_are_mounted(tmp_path: Path) -> None:
    """With two controllers in one, as most machines have it, and a space in the path."""
    v1_tree(tmp_path / "a tree", f"docker/{ID}")
    (tmp_path / "a tree/cpu").rename(tmp_path / "a tree/cpu,cpuacct")
    for file in (tmp_path / f"a tree/cpuacct/docker/{ID}").iterdir():
        file.rename(tmp_path / f"a tree/cpu,cpuacct/docker/{ID}" / file.name)
    names = ("cpu,cpuacct", "memory", "pids")
    write(tmp_path / "proc", {"self/mountinfo": mountinfo(tmp_path / "a tree", names, None)})
    write(tmp_path / "proc", {"41/cgroup": f"3:cpu,cpuacct:/docker/{ID}\n2:memory:/docker/{ID}\n"})
    group = cgroups.mounted(tmp_path / "a tree", tmp_path / "proc").of_container(ID, 41)
    assert group is not None
    assert (group.cpu_limit(), group.cpu_usage_seconds()) == (0.5, 12.5)
    assert group.pids_limit() is None


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_a_main_process_in_a_group_of_its_own_has_its_containers_limits(tmp_path: Path, version: str) -> None:
    found = machine(tmp_path, version, f"docker/{ID}")
    inner = paths_of(f"docker/{ID}/init.scope", 2 if version == "v2" else 1)
    write(tmp_path / "proc", {"41/cgroup": inner})
    group = found.of_container(ID, 41)
    assert group is not None and group.cpu_limit() == 0.5


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_a_container_that_is_gone_has_no_group(tmp_path: Path, version: str) -> None:
    """Nor has one whose process's number another process has now."""
    found = machine(tmp_path, version, f"docker/{ID}")
    assert found.of_container("ab" * 32, 41) is None
    assert found.of_container(ID, 42) is None
    assert found.why_none(ID, 42) is None


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_a_container_without_a_group_says_why(tmp_path: Path, version: str) -> None:
    found = machine(tmp_path, version, "user.slice/user-1000.slice/session-2.scope")
    assert found.of_container(ID, 41) is None
    why = found.why_none(ID, 41)
    assert why is not None and "session-2.scope" in why and "Cgroup Driver" in why
    outside = paths_of(f"../../lab/{ID}", 2 if version == "v2" else 1)
    write(tmp_path / "proc", {"41/cgroup": outside})
    assert found.of_container(ID, 41) is None
    assert "redeploy=true" in (found.why_none(ID, 41) or "")
    write(tmp_path / "proc", {"41/cmdline": ""})  # it has just ended
    assert found.why_none(ID, 41) is None


def test_a_group_of_the_unified_hierarchy_alone_is_none_where_limits_are_in_the_others(
    tmp_path: Path,
) -> None:
    found = machine(tmp_path, "hybrid", f"docker/{ID}")
    write(tmp_path / "proc", {"41/cgroup": f"4:memory:/\n0::/docker/{ID}\n"})
    assert found.of_container(ID, 41) is None


def test_a_process_of_each_container_is_found_among_all_of_the_machine(tmp_path: Path) -> None:
    found = machine(tmp_path, "v2", f"docker/{ID}")
    other = "ab" * 32
    write(tmp_path / "proc", {"77/cgroup": f"0::/lab.slice/docker-{other}.scope/inner\n", "uptime": "1"})
    assert found.processes([ID, other, "cd" * 32]) == {ID: 41, other: 77}
    assert found.processes([]) == {}


def test_files_that_vanish_with_their_container_are_no_error(tmp_path: Path) -> None:
    group = tree(tmp_path, "v2")
    for file in (tmp_path / f"docker/{ID}").iterdir():
        file.unlink()
    assert group.cpu_limit() is None
    assert group.cpu_usage_seconds() is None
    assert group.cpu_periods() == (0, 0)
    assert group.working_set() is None
    assert group.oom_kills() == 0


@pytest.mark.parametrize(("ranges", "count"), [("0", 1), ("0-3", 4), ("0-1,4,6-7\n", 5)])
def test_cpu_lists_are_counted(ranges: str, count: int) -> None:
    assert cgroups.count_cpus(ranges) == count


@pytest.mark.parametrize(
    ("limit", "cpus", "expected"),
    [(0.25, 8, 1), (1.0, 8, 1), (1.9, 8, 1), (2.0, 8, 2), (3.5, 2, 2), (None, 3, 3)],
)
def test_threads_are_the_whole_cores_of_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, cpus: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    assert cgroups.threads(limit, cpus) == expected


def test_this_kernels_own_figures_are_plausible() -> None:
    group = cgroups.own()
    before = group.cpu_usage_seconds()
    assert before is not None
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = group.cpu_usage_seconds()
    assert after is not None and after - before >= 0.15
    usage, working = group.memory_usage(), group.working_set()
    assert usage is None or (working is not None and 0 <= working <= usage)
    assert 1 <= cgroups.threads(group.cpu_limit(), group.cpuset_count()) <= (os.cpu_count() or 1)
