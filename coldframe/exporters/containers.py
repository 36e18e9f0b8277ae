"""Shows what a machine's containers use, and what limits their clients have, to Prometheus.

cAdvisor's names and labels, from the control groups, and what cAdvisor cannot know: who the client is, what
limits are asked for and hold, why they changed. It asks no engine: names and labels are in the files of
deployment and agent. `python3 -m coldframe.exporters.containers STATE FEDERATION CGROUPS PORT SECRETS`
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coldframe import cgroups, limits
from coldframe.exporters import exposition
from coldframe.exporters.exposition import Families, Page, labels
from coldframe.recording.journal import Tail

RESOURCES = ("cpu", "memory", "io")
DIRECTIONS = ("receive", "transmit")
# Column of /proc/PID/net/dev, by direction and what is counted.
NET_COLUMNS = {
    "receive": {"bytes": 0, "packets": 1, "errors": 2, "packets_dropped": 3},
    "transmit": {"bytes": 8, "packets": 9, "errors": 10, "packets_dropped": 11},
}
CAUSES = (
    *("throttle", "undo", "expiry", "trace", "trace_ended", "scenario", "scenario_ended"),
    *("drift", "restart", "inventory", "start"),
)
OTHER = "other"

FAMILIES: Families = {
    "container_last_seen": ("gauge", "Unix time at which the container was last seen by the exporter."),
    "container_start_time_seconds": ("gauge", "Unix time at which the container was started."),
    "container_cpu_usage_seconds_total": ("counter", "CPU time used."),
    "container_cpu_user_seconds_total": ("counter", "CPU time used in user mode."),
    "container_cpu_system_seconds_total": ("counter", "CPU time used in kernel mode."),
    "container_cpu_cfs_periods_total": ("counter", "Enforcement periods."),
    "container_cpu_cfs_throttled_periods_total": ("counter", "Enforcement periods with throttling."),
    "container_cpu_cfs_throttled_seconds_total": ("counter", "Throttled time, summed over CPUs."),
    "container_spec_cpu_quota": ("gauge", "CPU quota in microseconds per period; absent without a limit."),
    "container_spec_cpu_period": ("gauge", "CPU period in microseconds; absent without a limit."),
    "container_memory_usage_bytes": ("gauge", "Memory in use, page cache included."),
    "container_memory_working_set_bytes": ("gauge", "Memory in use without inactive file pages."),
    "container_memory_rss": ("gauge", "Anonymous memory in bytes."),
    "container_memory_cache": ("gauge", "Page cache in bytes."),
    "container_memory_max_usage_bytes": ("gauge", "Most memory ever in use."),
    "container_spec_memory_limit_bytes": ("gauge", "Memory limit; 0 is none."),
    "container_oom_events_total": ("counter", "Processes killed for want of memory since the start."),
    "container_fs_reads_bytes_total": ("counter", "Bytes read from block devices."),
    "container_fs_writes_bytes_total": ("counter", "Bytes written to block devices."),
    "container_processes": ("gauge", "Processes."),
    "container_threads": ("gauge", "Processes and threads."),
    **{
        f"container_network_{way}_{what}_total": ("counter", f"{what.replace('_', ' ')}, {way}.".capitalize())
        for way in DIRECTIONS
        for what in NET_COLUMNS[way]
    },
    **{
        f"container_pressure_{resource}_{how}_seconds_total": (
            "counter",
            f"Time in which {who} waited for {resource} (pressure stall information).",
        )
        for resource in RESOURCES
        for how, who in (("waiting", "some task"), ("stalled", "every task"))
    },
    "fl_client_info": ("gauge", "The clients of the machine."),
    "fl_client_running": ("gauge", "Whether the client's container runs."),
    "fl_client_online": ("gauge", "Whether it runs and no trace has cut its link."),
    "fl_client_limit_desired": ("gauge", "Limit that is asked for: cores, bytes, count, bit/s, s, ratio."),
    "fl_client_limit_verified": ("gauge", "The same as the kernel holds it."),
    "fl_client_limit_baseline": ("gauge", "The same as the inventory gives it."),
    "fl_client_limits_hold": ("gauge", "Whether the kernel holds all that is asked for."),
    "fl_client_limit_changes_total": ("counter", "Changes of the client's limits, by cause."),
    "fl_client_oom_kills_total": ("counter", "Processes killed for want of memory, over all restarts."),
    "fl_exporter_scrape_seconds": ("gauge", "How long it took to make this page."),
    **exposition.EXPIRY,
}


class JsonFiles:
    """A directory of JSON files, each read anew only when it has changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._read: dict[str, tuple[int, dict[str, Any]]] = {}

    def content(self) -> dict[str, dict[str, Any]]:
        """Return what the files hold, by name; one that cannot be read is left out."""
        found = {}
        try:
            entries = list(os.scandir(self.directory))
        except OSError:
            entries = []
        for entry in entries:
            if not entry.name.endswith(".json"):
                continue
            name = entry.name[:-5]
            with contextlib.suppress(OSError, ValueError):
                changed = entry.stat().st_mtime_ns
                known = self._read.get(name)
                if known is None or known[0] != changed:
                    known = (changed, json.loads(Path(entry.path).read_text()))
                found[name] = known
        self._read = found
        return {name: content for name, (_, content) in found.items()}


@dataclass
class Container:
    """A container of the federation, with what need not be found out at each scrape."""

    id: str
    labels: str
    client: str = ""
    group: cgroups.Cgroup | None = None
    pid: int = 0
    started: float | None = None
    own_network: bool = False


class Exporter:
    """Makes the page.

    Parameters
    ----------
    root : Path
        The federation's directory, as deployment and agent write it.
    tree, proc : Path
        The machine's `/sys/fs/cgroup` and `/proc`.
    certificates : mapping
        Those whose end is shown, by name.
    """

    def __init__(
        self,
        root: Path,
        federation: str,
        tree: Path = cgroups.ROOT,
        proc: Path = Path("/proc"),
        certificates: dict[str, Path] | None = None,
    ) -> None:
        self.federation, self.proc = federation, proc
        self.hierarchies = cgroups.mounted(tree, proc)
        self.identities = JsonFiles(root / "clients")
        self.asked = JsonFiles(root / "agent" / "limits")
        self.deployed = JsonFiles(root / "containers")
        self.events = Tail(root / "events.jsonl")
        self.changes: Counter[tuple[str, str]] = Counter()
        self.kills: Counter[str] = Counter()
        self.containers: dict[str, Container] = {}
        self.expiry = exposition.Expiry(certificates or {})
        self.process = exposition.own_process()

    def page(self) -> str:
        """Return the metrics as they are now."""
        begin = time.perf_counter()
        page = Page(FAMILIES)
        identities, asked = self.identities.content(), self.asked.content()
        self._read_events()
        running = {}
        containers = self._containers(identities, asked)
        self._find(containers)
        for container in containers:
            if self._container(page, container) and container.client and container.group:
                running[container.client] = container.group
        for name, identity in identities.items():
            self._client(page, name, identity, asked.get(name, {}), running.get(name))
        self.expiry.add(page)
        page.add("fl_exporter_scrape_seconds", "", time.perf_counter() - begin)
        return page.text() + self.process()

    # --- who there is -------------------------------------------------------------------------------------

    def _containers(
        self, identities: dict[str, dict[str, Any]], asked: dict[str, dict[str, Any]]
    ) -> list[Container]:
        known = {
            item["id"]: item for items in self.deployed.content().values() for item in items["containers"]
        }
        for name, item in asked.items():
            # The agent sees at once a container that was made anew since the deployment wrote its list.
            if item.get("container_id") and item["container_id"] not in known:
                known[item["container_id"]] = {
                    "id": item["container_id"],
                    "name": f"{self.federation}-{name}",
                    "image": "",
                    "role": "client",
                    "client": name,
                }
        found = []
        for container_id, item in known.items():
            client = item["client"]
            partition = identities.get(client, {}).get("partition_id", "") if client else ""
            text = labels(
                {
                    "id": f"/docker/{container_id}",
                    "name": item["name"],
                    "image": item["image"],
                    "role": item["role"],
                    "client": client,
                    "partition": partition,
                }
            )
            kept = self.containers.get(container_id)
            if kept is None or kept.labels != text:
                kept = Container(container_id, text, client)
            found.append(kept)
        self.containers = {container.id: container for container in found}
        return found

    def _read_events(self) -> None:
        more = True
        while more:
            events = self.events.new()
            more = bool(events)
            if self.events.fresh:
                self.changes.clear()
                self.kills.clear()
            for event in events:
                client, cause = str(event.get("client")), str(event.get("cause")).replace(" ", "_")
                if cause == "oom":
                    self.kills[client] += int(event.get("kills", 1))
                elif cause != "container_restarted":  # no change of limits
                    self.changes[client, cause if cause in CAUSES else OTHER] += 1

    # --- what they use ------------------------------------------------------------------------------------

    def _find(self, containers: list[Container]) -> None:
        """Find the control groups that are not known yet, all by one look at the machine's processes."""
        lost = {container.id: container for container in containers if container.group is None}
        for container_id, pid in self.hierarchies.processes(lost).items():
            lost[container_id].group = self.hierarchies.of_container(container_id, pid)

    def _container(self, page: Page, container: Container) -> bool:
        group = container.group
        use, processes = (group.cpu_use(), group.processes()) if group else (None, [])
        if group is None or use is None or not processes:
            container.group = None
            return False
        text, add = container.labels, page.add
        self._meet(container, processes)
        add("container_last_seen", text, round(time.time(), 3))
        add("container_start_time_seconds", text, container.started)
        add("container_cpu_usage_seconds_total", f'{text},cpu="total"', use.usage)
        add("container_cpu_user_seconds_total", text, use.user)
        add("container_cpu_system_seconds_total", text, use.system)
        add("container_cpu_cfs_periods_total", text, use.periods)
        add("container_cpu_cfs_throttled_periods_total", text, use.throttled_periods)
        add("container_cpu_cfs_throttled_seconds_total", text, use.throttled)
        quota = group.cpu_quota()
        if quota:
            add("container_spec_cpu_quota", text, quota[0])
            add("container_spec_cpu_period", text, quota[1])
        memory = group.memory_use()
        if memory:
            add("container_memory_usage_bytes", text, memory.usage)
            add("container_memory_working_set_bytes", text, memory.working_set)
            add("container_memory_rss", text, memory.rss)
            add("container_memory_cache", text, memory.cache)
        add("container_memory_max_usage_bytes", text, group.memory_peak())
        add("container_spec_memory_limit_bytes", text, group.memory_limit() or 0)
        add("container_oom_events_total", text, group.oom_kills())
        read, written = group.block_bytes()
        add("container_fs_reads_bytes_total", text, read)
        add("container_fs_writes_bytes_total", text, written)
        add("container_processes", text, len(processes))
        add("container_threads", text, group.pids_current())
        for resource in RESOURCES:
            pressure = group.pressure(resource)
            if pressure:
                for how, kind in (("waiting", "some"), ("stalled", "full")):
                    if kind in pressure:
                        name = f"container_pressure_{resource}_{how}_seconds_total"
                        add(name, text, pressure[kind]["total"] / 1e6)
        if container.own_network:
            self._network(page, container)
        return True

    def _meet(self, container: Container, processes: list[int]) -> None:
        """Find out once per start what does not change while the container runs."""
        pid = min(processes)
        if pid == container.pid:
            return
        container.pid, container.started, container.own_network = pid, None, False
        with contextlib.suppress(psutil.Error):
            container.started = psutil.Process(pid).create_time()
        with contextlib.suppress(OSError):
            # One network has one inode: with the machine's own network, its figures are no container's.
            theirs, machines = ((self.proc / str(of) / "net/dev").stat().st_ino for of in (pid, 1))
            container.own_network = theirs != machines

    def _network(self, page: Page, container: Container) -> None:
        text = cgroups.read_file(f"{self.proc}/{container.pid}/net/dev") or ""
        for line in text.splitlines()[2:]:
            device, _, counters = line.partition(":")
            device, columns = device.strip(), counters.split()
            if device == "lo":
                continue
            more = f'{container.labels},interface="{device}"'
            for way, places in NET_COLUMNS.items():
                for what, place in places.items():
                    page.add(f"container_network_{way}_{what}_total", more, int(columns[place]))

    # --- whose they are -----------------------------------------------------------------------------------

    def _client(
        self,
        page: Page,
        name: str,
        identity: dict[str, Any],
        asked: dict[str, Any],
        group: cgroups.Cgroup | None,
    ) -> None:
        own = labels({"client": name})
        info = {
            "client": name,
            "partition": identity["partition_id"],
            "profile": identity.get("profile") or "",
        }
        page.add("fl_client_info", labels(info), 1)
        page.add("fl_client_running", own, int(group is not None))
        desired = asked.get("desired") or limits.desired(identity["baseline"], {})
        verified: dict[str, Any] = {}
        if group is not None:
            link = asked.get("link") if asked.get("link_pid") in group.processes() else None
            link = link or {"online": desired.get("online")}
            verified = {
                **link,
                "cpu": group.cpu_limit(),
                "memory": group.hard_memory_limit(),
                "pids": group.pids_limit(),
            }
        online = group is not None and verified.get("online") is not False
        page.add("fl_client_online", own, int(online))
        holds = group is not None and not limits.differences(desired, verified)
        page.add("fl_client_limits_hold", own, int(holds))
        for what, values in (
            ("desired", desired),
            ("verified", verified),
            ("baseline", identity["baseline"]),
        ):
            for limit in limits.LIMITS:
                value = values.get(limit)
                if value is not None:
                    number = float(value) / 100 if limit == "loss" else value
                    page.add(f"fl_client_limit_{what}", f'{own},limit="{limit}"', number)
        for cause in (*CAUSES, OTHER):
            page.add("fl_client_limit_changes_total", f'{own},cause="{cause}"', self.changes[name, cause])
        page.add("fl_client_oom_kills_total", own, self.kills[name])


def main(arguments: list[str]) -> int:
    """Serve the federation whose directory and name are given, until the end."""
    root, federation, tree, port, secrets = arguments
    directory = Path(secrets)
    certificate = directory / "machine.crt"
    exporter = Exporter(Path(root), federation, Path(tree), certificates={"machine": certificate})
    server = exposition.Server(
        ("", int(port)),
        exporter.page,
        exposition.Guard(directory / "users"),
        exposition.Identity(certificate, directory / "machine.key"),
    )
    print(f"container exporter: shows the containers of federation {federation}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
