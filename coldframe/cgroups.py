"""The one reader and writer of cgroup files: limits, and what the kernel says of use, throttling, pressure.

Standard library only. Works with cgroup v1, v2 and the hybrid of both; every function takes the mount point
(`/sys/fs/cgroup`) and `/proc`, so that tests can hand in trees of their own.
"""

import errno
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio")
UNLIMITED = 1 << 62  # v1 writes "no memory limit" as the largest multiple of the page size in 63 bits
USER_HZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuUse:
    """What a group has used of the CPU since it was made; all in seconds but for the two counts.

    Attributes
    ----------
    periods, throttled_periods : int
        Enforcement periods, and those in which the group was throttled.
    throttled : float
        Summed over CPUs: no share of anything.
    """

    usage: float
    user: float
    system: float
    periods: int
    throttled_periods: int
    throttled: float


@dataclass(frozen=True)
class MemoryUse:
    """What is charged to a group now, in bytes."""

    usage: int
    working_set: int
    rss: int
    cache: int


@dataclass(frozen=True)
class Cgroup:
    """Where one control group's files are.

    Attributes
    ----------
    controllers : dict[str, pathlib.Path]
        v1: directory by controller (`cpu`, `cpuacct`, `cpuset`, `memory`, `pids`, `blkio`); empty under v2.
    unified : pathlib.Path or None
        v2: the group's directory. Beside v1 controllers (hybrid) it holds the pressure files only.
    """

    controllers: dict[str, Path]
    unified: Path | None

    @property
    def version(self) -> int:
        """1 where any controller is mounted the old way, else 2."""
        return 1 if self.controllers else 2

    def _text(self, controller: str, v1: str, v2: str) -> str | None:
        folder = self.controllers.get(controller) if self.controllers else self.unified
        return None if folder is None else read_file(f"{folder}/{v1 if self.controllers else v2}")

    def _number(self, controller: str, v1: str, v2: str) -> int | None:
        text = self._text(controller, v1, v2)
        try:
            return int(text) if text is not None else None
        except ValueError:  # "max"
            return None

    def _table(self, controller: str, v1: str, v2: str) -> dict[str, int]:
        text = self._text(controller, v1, v2) or ""
        pairs = (line.split() for line in text.splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def cpu_limit(self) -> float | None:
        """Return the CPU quota in cores, or None where there is none."""
        found = self.cpu_quota()
        return found[0] / found[1] if found else None

    def cpu_quota(self) -> tuple[int, int] | None:
        """Return CPU quota and period in microseconds, or None where there is no quota."""
        if self.controllers:
            quota = self._number("cpu", "cpu.cfs_quota_us", "")
            period = self._number("cpu", "cpu.cfs_period_us", "")
            return (quota, period) if quota and period and quota > 0 else None
        words = (self._text("cpu", "", "cpu.max") or "max").split()
        return (int(words[0]), int(words[1])) if words[0] != "max" else None

    def cpu_usage_seconds(self) -> float | None:
        """Return the CPU time used so far, in seconds."""
        if self.controllers:
            nanoseconds = self._number("cpuacct", "cpuacct.usage", "")
            return None if nanoseconds is None else nanoseconds / 1e9
        microseconds = self._table("cpu", "", "cpu.stat").get("usage_usec")
        return None if microseconds is None else microseconds / 1e6

    def cpu_periods(self) -> tuple[int, int]:
        """Return how many enforcement periods there were, and in how many of them the group was throttled.

        The share of throttled periods is the ratio of two differences of these. Throttled *time* is no share
        of anything: the kernel sums it over CPUs.
        """
        stat = self._table("cpu", "cpu.stat", "cpu.stat")
        return stat.get("nr_periods", 0), stat.get("nr_throttled", 0)

    def cpu_use(self) -> CpuUse | None:
        """Return all that is known of the CPU time used so far, or None where the group is gone."""
        usage, stat = self.cpu_usage_seconds(), self._table("cpu", "cpu.stat", "cpu.stat")
        if usage is None:
            return None
        if self.controllers:
            ticks = self._table("cpuacct", "cpuacct.stat", "")
            user, system = (ticks.get(name, 0) / USER_HZ for name in ("user", "system"))
            throttled = stat.get("throttled_time", 0) / 1e9
        else:
            user, system = (stat.get(f"{name}_usec", 0) / 1e6 for name in ("user", "system"))
            throttled = stat.get("throttled_usec", 0) / 1e6
        periods = stat.get("nr_periods", 0), stat.get("nr_throttled", 0)
        return CpuUse(usage, user, system, *periods, throttled)

    def cpuset_count(self) -> int | None:
        """Return how many CPUs the group may run on."""
        text = self._text("cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective")
        return count_cpus(text) if text and text.strip() else None

    def memory_limit(self) -> int | None:
        """Return the memory limit in bytes, or None where there is none."""
        limit = self._number("memory", "memory.limit_in_bytes", "memory.max")
        return None if limit is None or limit > UNLIMITED else limit

    def may_swap(self) -> bool:
        """Return whether the group may swap what its memory limit does not let it keep."""
        if not self.controllers:
            return (self._text("memory", "", "memory.swap.max") or "0").strip() != "0"
        both = self._number("memory", "memory.memsw.limit_in_bytes", "")
        return both is not None and both > (self._number("memory", "memory.limit_in_bytes", "") or 0)

    def hard_memory_limit(self) -> int | None:
        """Return the memory limit if it limits swap too: else more than it can be in use."""
        return None if self.may_swap() else self.memory_limit()

    def memory_usage(self) -> int | None:
        """Return the memory charged to the group in bytes, page cache included."""
        return self._number("memory", "memory.usage_in_bytes", "memory.current")

    def memory_peak(self) -> int | None:
        """Return the most that memory_usage has ever been (v2: since Linux 5.19)."""
        return self._number("memory", "memory.max_usage_in_bytes", "memory.peak")

    def memory_use(self) -> MemoryUse | None:
        """Return how much memory is charged to the group, and what for; None where the group is gone."""
        usage = self.memory_usage()
        if usage is None:
            return None
        stat = self._table("memory", "memory.stat", "memory.stat")
        if self.controllers:
            inactive, rss, cache = (
                stat.get(f"total_{name}", 0) for name in ("inactive_file", "rss", "cache")
            )
        else:
            inactive, rss, cache = (stat.get(name, 0) for name in ("inactive_file", "anon", "file"))
        return MemoryUse(usage, max(0, usage - inactive), rss, cache)

    def working_set(self) -> int | None:
        """Return the memory in use without the file pages that the kernel would drop first; never below 0."""
        use = self.memory_use()
        return use.working_set if use else None

    def oom_kills(self) -> int:
        """Return how many processes of the group the kernel has killed for want of memory."""
        return self._table("memory", "memory.oom_control", "memory.events").get("oom_kill", 0)

    def pids_limit(self) -> int | None:
        """Return the limit on processes and threads, or None where there is none."""
        return self._number("pids", "pids.max", "pids.max")

    def pids_current(self) -> int | None:
        """Return the number of processes and threads."""
        return self._number("pids", "pids.current", "pids.current")

    def set_cpu_limit(self, cores: float | None, period: int) -> None:
        """Set the CPU quota, or take it away with None.

        Raises
        ------
        OSError
            If the kernel refuses, as for every limit, or lets this process write nothing here.
        """
        quota = None if cores is None else round(cores * period)
        if not self.controllers:
            self._write("cpu", "cpu.max", f"{'max' if quota is None else quota} {period}")
            return
        if self._number("cpu", "cpu.cfs_period_us", "") != period:
            self._write("cpu", "cpu.cfs_period_us", str(period))
        self._write("cpu", "cpu.cfs_quota_us", str(-1 if quota is None else quota))

    def set_memory_limit(self, size: int | None) -> None:
        """Set the memory limit in bytes without any swap beside it, or take it away with None."""
        if not self.controllers:
            # Both files are there wherever the controller is, but for kernels without swap.
            if self._text("memory", "", "memory.swap.max") is not None:
                self._write("memory", "memory.swap.max", "max" if size is None else "0")
            self._write("memory", "memory.max", "max" if size is None else str(size))
            return
        # Memory and swap together may at no moment be less than memory alone.
        both = self._number("memory", "memory.memsw.limit_in_bytes", "")
        names = ["memory.limit_in_bytes"] if both is None else ["memory.memsw.limit_in_bytes"]
        if both is not None:
            names.insert(1 if size is None or size >= both else 0, "memory.limit_in_bytes")
        for name in names:
            self._write("memory", name, str(-1 if size is None else size))

    def set_pids_limit(self, count: int | None) -> None:
        """Set the limit on processes and threads, or take it away with None."""
        self._write("pids", "pids.max", "max" if count is None else str(count))

    def _write(self, controller: str, name: str, text: str) -> None:
        folder = self.controllers.get(controller) if self.controllers else self.unified
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, f"the kernel has no controller {controller} here")
        # No O_CREAT: in a group that has just gone there is nothing to write to.
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def processes(self) -> list[int]:
        """Return the ids of the group's processes, as this process's own pid namespace numbers them."""
        # Any controller knows; that of memory is there wherever there are limits.
        text = self._text("memory", "cgroup.procs", "cgroup.procs") or ""
        return [int(line) for line in text.split()]

    def block_bytes(self) -> tuple[int, int]:
        """Return the bytes that the group has read from and written to block devices."""
        if not self.controllers:
            words = (self._text("io", "", "io.stat") or "").split()
            pairs = [word.split("=") for word in words if "=" in word]
            return _sum(pairs, "rbytes"), _sum(pairs, "wbytes")
        text = self._text("blkio", "blkio.throttle.io_service_bytes_recursive", "") or ""
        lines = [line.split()[1:] for line in text.splitlines()]
        return _sum(lines, "Read"), _sum(lines, "Write")

    def pressure(self, resource: str) -> dict[str, dict[str, float]] | None:
        """Return pressure stall information, or None where the kernel has none for the group.

        Parameters
        ----------
        resource : str
            `cpu`, `memory` or `io`.

        Returns
        -------
        dict
            `some` and `full`, each with avg10, avg60, avg300 (percent) and total (microseconds).
        """
        # Unreadable (EOPNOTSUPP) where PSI is switched off.
        text = read_file(f"{self.unified}/{resource}.pressure") if self.unified else None
        if text is None:
            return None
        return {
            kind: {key: float(value) for key, value in (pair.split("=") for pair in pairs)}
            for kind, *pairs in (line.split() for line in text.splitlines())
        }


def read_file(path: str) -> str | None:
    """Return the text of a small file, or None where it cannot be read; a third of Path.read_text's time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(descriptor, 16384):
            parts.append(part)
        return b"".join(parts).decode()
    except OSError:  # the group has just gone
        return None
    finally:
        os.close(descriptor)


def _sum(pairs: list[list[str]], name: str) -> int:
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name)


def count_cpus(ranges: str) -> int:
    """Count the CPUs of a list such as `0-3,8`."""
    bounds = [part.split("-") for part in ranges.strip().split(",")]
    return sum(int(bound[-1]) - int(bound[0]) + 1 for bound in bounds)


@dataclass(frozen=True)
class Mount:
    """Where a hierarchy of control groups is mounted.

    Attributes
    ----------
    folder : pathlib.Path
        The mount point.
    top : str
        The group that is seen there, as `/proc/PID/cgroup` would write it: `/`, unless a part is mounted.
    """

    folder: Path
    top: str

    def of(self, path: str) -> Path | None:
        """Return the directory of a group that has a process; None where the mount does not show it."""
        top = self.top.rstrip("/")
        # A path such as /../x is a group outside of this process's cgroup namespace.
        if ".." in path.split("/") or not f"{path}/".startswith(f"{top}/"):
            return None
        return self.folder / path[len(top) + 1 :]


@dataclass(frozen=True)
class Hierarchies:
    """The hierarchies that are mounted, and `/proc`, which says where in them a process is.

    Whatever an engine makes of its settings (another parent, systemd's slices and scopes, a user's session),
    the kernel knows where a container's main process is. Paths are read as this process's own cgroup
    namespace has them, so it has to be the machine's where containers are looked for.

    Attributes
    ----------
    mounts : dict[str, Mount]
        By controller; the empty name is the unified hierarchy.
    """

    mounts: dict[str, Mount]
    proc: Path

    def of_container(self, container_id: str, pid: int) -> Cgroup | None:
        """Return the control group of a container by one of its processes; None where it is gone.

        The container's id is a part of its group's name, whichever driver made it. So a process that got
        the number of one that has ended is not mistaken for it, and where the main process has moved to a
        group of its own below, the container's is found.
        """
        folders = {}
        for names, path in self._paths(pid):
            group = _group_of(container_id, path)
            for name in names:
                mount = self.mounts.get(name)
                folder = mount.of(group) if mount and group else None
                if folder:
                    folders[name] = folder
        unified = folders.pop("", None)
        # A hybrid's unified hierarchy holds no limits: without the others it would be taken for version 2.
        hybrid = any(self.mounts)
        return Cgroup(folders, unified) if folders or (unified and not hybrid) else None

    def why_none(self, container_id: str, pid: int) -> str | None:
        """Say why a container whose process runs has no control group; None where the process is gone."""
        paths = sorted({path for _, path in self._paths(pid)})
        if not paths or not read_file(f"{self.proc}/{pid}/cmdline"):  # that of a zombie is empty
            return None
        own = [path for path in paths if _group_of(container_id, path)]
        if own:
            return (
                f"its control group {own[0]} is in none of the hierarchies that the agent sees: type "
                "ansible-playbook site.yml -e redeploy=true -e train=false, and see that the machine has "
                "mounted them at /sys/fs/cgroup"
            )
        return (
            f"the engine has given it no control group of its own (its process {pid} is in {paths[-1]}), so "
            "nothing can limit it: docker info names the Cgroup Driver, which has to be systemd or cgroupfs"
        )

    def processes(self, container_ids: Collection[str]) -> dict[str, int]:
        """Return a process of each container that runs, by the container's id: a look at every process."""
        found: dict[str, int] = {}
        wanted = set(container_ids)
        for entry in self.proc.iterdir() if wanted else ():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            parts = {part for _, path in self._paths(pid) for part in path.split("/")}
            for container_id in wanted & {_container_in(part) for part in parts}:
                found.setdefault(container_id, pid)
        return found

    def _paths(self, pid: int) -> list[tuple[list[str], str]]:
        """Return the controllers of each hierarchy, and where a process is in it."""
        lines = (line.split(":", 2) for line in (read_file(f"{self.proc}/{pid}/cgroup") or "").splitlines())
        return [(line[1].split(","), line[2]) for line in lines if len(line) == 3]


def mounted(root: Path = ROOT, proc: Path = Path("/proc")) -> Hierarchies:
    """Return the hierarchies that are mounted at or below a directory, by the kernel's list of mounts."""
    mounts: dict[str, Mount] = {}
    for line in (read_file(f"{proc}/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(" "), right.split(" ", 2)
        folder = Path(_plain(fields[4]))
        if kind not in ("cgroup", "cgroup2") or not folder.is_relative_to(root):
            continue
        names = [""] if kind == "cgroup2" else [word for word in options.split(",") if word in CONTROLLERS]
        for name in names:
            mounts.setdefault(name, Mount(folder, _plain(fields[3])))
    return Hierarchies(mounts, proc)


def _plain(text: str) -> str:
    """Return a path of mountinfo without its escapes, such as a space's."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _container_in(part: str) -> str:
    """Return the id in a group's name: as cgroupfs names it, or systemd (`docker-ID.scope`)."""
    return part.removesuffix(".scope").rpartition("-")[2]


def _group_of(container_id: str, path: str) -> str:
    """Return the path of a container's group from that of a process in it; empty where it is in none."""
    parts = path.split("/")
    for number, part in enumerate(parts):
        if _container_in(part) == container_id:
            return "/".join(parts[: number + 1])
    return ""


def own(root: Path = ROOT, lines: str | None = None) -> Cgroup:
    """Return the control group of this process.

    In a container with a cgroup namespace its paths read `/`, and the mount shows the container's own group.
    In one without, they are the host's paths, while the mount may still show the container's group alone:
    then the top of the mount is the group.

    Parameters
    ----------
    lines : str, optional
        The content of `/proc/self/cgroup`.
    """
    paths = {}
    for line in (lines if lines is not None else Path("/proc/self/cgroup").read_text()).splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path.lstrip("/")
    return _group(root, paths)


def _group(root: Path, paths: dict[str, str]) -> Cgroup:
    controllers = {
        name: _inside(root / name, path)
        for name, path in paths.items()
        if name in CONTROLLERS and (root / name).is_dir()
    }
    # Hybrid systems mount v2 beside the v1 controllers; with no v1 controller the root itself is v2.
    unified = root / "unified" if controllers else root
    has_unified = "" in paths and (unified / "cgroup.controllers").is_file()
    return Cgroup(controllers, _inside(unified, paths[""]) if has_unified else None)


def _inside(mount: Path, path: str) -> Path:
    # A path such as /../x means a group outside of our cgroup namespace: nothing of it is visible.
    folder = mount / path
    return folder if ".." not in Path(path).parts and folder.is_dir() else mount


def threads(limit: float | None, cpus: int | None = None) -> int:
    """Return how many threads suit a CPU limit: max(1, floor(limit)), no more than there are CPUs to run on.

    More threads than the quota's whole cores are throttled by turns and lose 22 to 40 % of the work done.
    """
    available = min(cpus or os.cpu_count() or 1, len(os.sched_getaffinity(0)))
    return available if limit is None else max(1, min(int(limit), available))
