"""The container exporter says of a made-up machine what its files say, under cgroup v1 and v2."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coldframe.cgroups import CONTROLLERS
from coldframe.exporters.containers import CAUSES, FAMILIES, Exporter
from tests.unit.test_cgroups import ID, PRESSURE, V1, V2
from tests.unit.trees import mountinfo, paths_of, write

NET = """Inter-|   Receive  |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier
    lo:  999   9  0  0  0  0  0  0   999   9  0  0  0  0  0  0
  eth0: 1000  10  1  2  0  0  0  0  3000  30  3  4  0  0  0  0
"""
IDENTITY = {
    "name": "c1-0",
    "machine": "c1",
    "partition_id": 4,
    "num_partitions": 5,
    "profile": "phone-low",
    "baseline": {"cpu": 0.5, "memory": 512 << 20, "pids": 256},
}
DESIRED = {**IDENTITY["baseline"], "down": 10_000_000, "up": None, "delay": 0.05, "jitter": None, "loss": 1.0}  # type: ignore[dict-item]
LINK = {"down": 10_000_000, "up": None, "delay": 0.05, "jitter": None, "loss": 1.0, "online": True}

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Machine:
    """A made-up machine with one client."""

    def __init__(self, root: Path, version: str, group: str = f"docker/{ID}") -> None:
        self.state, self.tree, self.proc = root / "state", root / "cgroup", root / "proc"
        self.version = int(version[1])
        if version == "v2":
            write(self.tree, {"cgroup.controllers": "cpu memory\n"})
            write(self.tree / group, V2 | {f"{what}.pressure": PRESSURE for what in ("cpu", "memory", "io")})
        else:
            write(self.tree, {name.replace("/", f"/{group}/", 1): text for name, text in V1.items()})
            write(
                self.tree / "unified",
                {"cgroup.controllers": "\n", f"{group}/cpu.pressure": PRESSURE},
            )
        v1 = mountinfo(self.tree, CONTROLLERS, "unified")
        write(self.proc, {"self/mountinfo": mountinfo(self.tree) if version == "v2" else v1})
        write(self.proc, {"1/net/dev": NET, "12/net/dev": NET, "1/cgroup": paths_of("", self.version)})
        self.process(12, group)
        self.identity(IDENTITY)
        self.asked({"container_id": ID, "desired": DESIRED, "link": LINK})
        self.exporter = Exporter(self.state, "lab", self.tree, self.proc)

    def process(self, pid: int, group: str) -> None:
        """Let a process run in a control group."""
        write(self.proc, {f"{pid}/cgroup": paths_of(group, self.version)})

    def file(self, name: str, content: Any) -> None:
        write(self.state, {name: json.dumps(content)})
        later = (self.state / name).stat().st_mtime_ns + 1_000_000
        os.utime(self.state / name, ns=(later, later))

    def identity(self, content: Any) -> None:
        self.file("clients/c1-0.json", content)

    def asked(self, content: Any) -> None:
        self.file("agent/limits/c1-0.json", {"link_pid": 12, **content})

    def event(self, **content: Any) -> None:
        with (self.state / "events.jsonl").open("a") as file:
            file.write(json.dumps({"client": "c1-0", **content}) + "\n")

    def samples(self) -> Samples:
        """A scrape: by metric, by labels."""
        found: Samples = {}
        for family in text_string_to_metric_families(self.exporter.page()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found


@pytest.fixture(params=["v1", "v2"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


def one(samples: Samples, name: str, **labels: str) -> float:
    """The value of the only sample with these labels."""
    found = [value for key, value in samples[name].items() if labels.items() <= dict(key).items()]
    assert len(found) == 1, samples[name]
    return found[0]


def test_what_a_container_uses_is_there_under_cadvisors_names(machine: Machine) -> None:
    samples = machine.samples()
    expected = {
        "container_cpu_usage_seconds_total": 12.5,
        "container_cpu_user_seconds_total": 9.0,
        "container_cpu_system_seconds_total": 3.5,
        "container_cpu_cfs_periods_total": 200,
        "container_cpu_cfs_throttled_periods_total": 50,
        "container_cpu_cfs_throttled_seconds_total": 0.9,
        "container_spec_cpu_quota": 50_000,
        "container_spec_cpu_period": 100_000,
        "container_memory_usage_bytes": 400_000_000,
        "container_memory_working_set_bytes": 250_000_000,
        "container_memory_rss": 7,
        "container_memory_cache": 8,
        "container_memory_max_usage_bytes": 450_000_000,
        "container_spec_memory_limit_bytes": 512 << 20,
        "container_oom_events_total": 3,
        "container_fs_reads_bytes_total": 4097,
        "container_fs_writes_bytes_total": 8194,
        "container_processes": 2,
        "container_threads": 17,
        "container_pressure_cpu_waiting_seconds_total": 0.001234,
        "container_pressure_cpu_stalled_seconds_total": 5e-6,
        "container_network_receive_bytes_total": 1000,
        "container_network_receive_packets_total": 10,
        "container_network_receive_errors_total": 1,
        "container_network_receive_packets_dropped_total": 2,
        "container_network_transmit_bytes_total": 3000,
        "container_network_transmit_packets_dropped_total": 4,
    }
    assert {name: one(samples, name) for name in expected} == expected
    labels = dict(next(iter(samples["container_cpu_usage_seconds_total"])))
    assert labels == {
        "id": f"/docker/{ID}",
        "name": "lab-c1-0",
        "image": "",
        "role": "client",
        "client": "c1-0",
        "partition": "4",
        "cpu": "total",
    }
    assert dict(next(iter(samples["container_network_receive_bytes_total"])))["interface"] == "eth0"


def test_who_the_client_is_and_what_limits_it_has(machine: Machine) -> None:
    samples = machine.samples()
    assert one(samples, "fl_client_info", client="c1-0", partition="4", profile="phone-low") == 1
    assert one(samples, "fl_client_running") == 1
    assert one(samples, "fl_client_online") == 1
    assert one(samples, "fl_client_limits_hold") == 1
    limits = {"cpu": 0.5, "memory": 512 << 20, "pids": 256, "down": 10_000_000, "delay": 0.05, "loss": 0.01}
    for what in ("desired", "verified"):
        assert len(samples[f"fl_client_limit_{what}"]) == len(limits)  # none for a limit that is not there
        for limit, value in limits.items():
            assert one(samples, f"fl_client_limit_{what}", limit=limit) == value
    assert len(samples["fl_client_limit_baseline"]) == 3


def test_a_limit_that_the_kernel_does_not_hold_is_told(machine: Machine) -> None:
    machine.asked({"container_id": ID, "desired": {**DESIRED, "cpu": 0.2}, "link": LINK})
    samples = machine.samples()
    assert one(samples, "fl_client_limits_hold") == 0
    assert one(samples, "fl_client_limit_desired", limit="cpu") == 0.2
    assert one(samples, "fl_client_limit_verified", limit="cpu") == 0.5
    machine.asked({"container_id": ID, "desired": DESIRED, "link": {**LINK, "down": None}})
    assert one(machine.samples(), "fl_client_limits_hold") == 0


def test_what_was_read_of_another_process_is_not_verified(machine: Machine) -> None:
    """The container was restarted, and no agent has looked at its new link."""
    machine.asked({"container_id": ID, "desired": DESIRED, "link": LINK, "link_pid": 11})
    samples = machine.samples()
    assert one(samples, "fl_client_limits_hold") == 0
    assert "down" not in {dict(key)["limit"] for key in samples["fl_client_limit_verified"]}


def test_a_client_whose_link_a_trace_has_cut_runs_and_is_not_online(machine: Machine) -> None:
    cut = {"container_id": ID, "desired": {**DESIRED, "online": False}, "link": {**LINK, "online": False}}
    machine.asked(cut)
    samples = machine.samples()
    assert one(samples, "fl_client_running") == 1
    assert one(samples, "fl_client_online") == 0
    assert one(samples, "fl_client_limits_hold") == 1


def test_changes_and_kills_are_counted_from_zero_by_cause(machine: Machine) -> None:
    samples = machine.samples()
    assert set(samples["fl_client_limit_changes_total"].values()) == {0}
    assert len(samples["fl_client_limit_changes_total"]) == len(CAUSES) + 1
    assert one(samples, "fl_client_oom_kills_total") == 0
    machine.event(cause="throttle")
    machine.event(cause="trace ended")
    machine.event(cause="something new")
    machine.event(cause="oom", kills=2)
    machine.event(cause="container restarted")
    machine.samples()
    machine.event(cause="throttle")
    samples = machine.samples()
    counted = {cause: one(samples, "fl_client_limit_changes_total", cause=cause) for cause in CAUSES}
    assert counted == {**dict.fromkeys(CAUSES, 0), "throttle": 2, "trace_ended": 1}
    assert one(samples, "fl_client_limit_changes_total", cause="other") == 1
    assert one(samples, "fl_client_oom_kills_total") == 2


def test_a_container_that_is_gone_is_not_shown_and_its_successor_is(machine: Machine) -> None:
    machine.samples()
    new = "ab" * 32
    for folder in list(machine.tree.glob(f"**/docker/{ID}")):
        folder.rename(folder.with_name(new))
    machine.process(12, f"docker/{new}")
    samples = machine.samples()
    assert "container_cpu_usage_seconds_total" not in samples
    assert one(samples, "fl_client_running") == 0
    assert one(samples, "fl_client_online") == 0
    assert one(samples, "fl_client_limits_hold") == 0
    assert "fl_client_limit_verified" not in samples
    machine.asked({"container_id": new, "desired": DESIRED, "link": LINK})
    assert one(machine.samples(), "container_cpu_usage_seconds_total", id=f"/docker/{new}") == 12.5


def test_containers_without_a_client_bear_the_names_that_the_deployment_wrote(machine: Machine) -> None:
    listed = {"id": ID, "name": "lab-server", "image": "coldframe/fl:1", "role": "server", "client": ""}
    machine.file("containers/containers.json", {"containers": [listed]})
    (machine.state / "agent/limits/c1-0.json").unlink()
    labels = dict(next(iter(machine.samples()["container_processes"])))
    assert labels == {**listed, "id": f"/docker/{ID}", "partition": ""}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_container_is_found_wherever_its_engine_puts_it(tmp_path: Path, version: str) -> None:
    machine = Machine(tmp_path, version, f"lab.slice/lab-clients.slice/docker-{ID}.scope")
    samples = machine.samples()
    assert one(samples, "container_cpu_usage_seconds_total", id=f"/docker/{ID}") == 12.5
    assert one(samples, "fl_client_limits_hold") == 1


def test_a_container_in_the_machines_own_network_has_no_figures_of_it(machine: Machine) -> None:
    (machine.proc / "12/net/dev").unlink()
    (machine.proc / "12/net/dev").hardlink_to(machine.proc / "1/net/dev")
    assert "container_network_receive_bytes_total" not in machine.samples()


def test_no_limit_has_no_quota_and_a_memory_limit_of_zero(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "v2")
    write(machine.tree / f"docker/{ID}", {"cpu.max": "max 100000\n", "memory.max": "max\n"})
    samples = machine.samples()
    assert "container_spec_cpu_quota" not in samples
    assert "container_spec_cpu_period" not in samples
    assert one(samples, "container_spec_memory_limit_bytes") == 0


def test_every_metric_is_described_and_a_half_written_file_is_passed_over(machine: Machine) -> None:
    write(machine.state, {"clients/c1-1.json": "{", "agent/limits/c1-1.new": "{}"})
    samples = machine.samples()
    assert set(samples) - set(FAMILIES) == {name for name in samples if name.startswith("process_")}
    assert all(words.endswith(".") for _, words in FAMILIES.values())
