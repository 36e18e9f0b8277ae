"""Limits on a kernel with unified control groups and netem: set by the agent, read and measured by others.

A virtual machine runs Debian's kernel and engine, a client and the agent as containers with the arguments of
the roles, and a machine in a container (a test host) with systemd. Their files are the machine's own /usr,
bound into each: no image is unpacked. What is asserted was read in the machine by `tests/kernel/inside/`,
from the kernel's files, by ping and from the engine; nothing of it by `coldframe/`.
"""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.hosts.image import ROOT
from tests.kernel.conftest import KEY
from tests.kernel.machine import ARCHITECTURE, Machine

pytestmark = pytest.mark.skipif(
    platform.machine() != ARCHITECTURE,
    reason=f"the virtual machine is made for {ARCHITECTURE}, and this machine is {platform.machine()}",
)

MB = 1 << 20
PERIOD = 100_000  # microseconds
BASELINE = {
    "cpu.max": "100000 100000",
    "memory.max": str(256 * MB),
    "memory.swap.max": "0",
    "pids.max": "256",
}
Show = Callable[[str], None]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The machine, with the code under test and the exporter's libraries in it."""
    with Machine() as running:
        running.copy(
            ROOT, ["coldframe", "tests/__init__.py", "tests/hosts", "tests/kernel", "vagrant/machine"]
        )
        # Its extension is for every Python 3 (abi3); the rest is Python.
        running.copy(Path(psutil.__file__).parents[1], ["psutil", "prometheus_client"])
        yield running


@pytest.fixture(scope="module")
def stand(machine: Machine) -> dict[str, Any]:
    """A client at its baseline and the agent; what kernel and engine they have."""
    found: dict[str, Any] = machine.ask("stand")
    return found


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Show:
    """Keep a line for the end of the run."""
    return lambda line: record_property(KEY, line)


def test_the_machine_has_unified_control_groups(machine: Machine, stand: dict[str, Any], show: Show) -> None:
    show(
        f"control groups v{stand['version']} ({stand['file_system']}), driver {stand['driver']}, "
        f"kernel {stand['kernel']}, engine {stand['engine']}, {machine.accelerator}, "
        f"booted in {machine.boot_seconds:.0f} s"
    )
    assert stand["file_system"] == "cgroup2fs"
    assert (stand["version"], stand["driver"]) == ("2", "systemd")
    assert {"cpu", "memory", "pids", "io", "cpuset"} <= set(stand["controllers"])


@pytest.mark.usefixtures("stand")
def test_a_cpu_limit_holds_and_bites_while_the_process_runs(machine: Machine, show: Show) -> None:
    steps = [0.5, 0.2]
    found = machine.ask("cpu", steps=steps)
    for step in found["steps"]:
        used = step["usage_usec"] / (step["nr_periods"] * PERIOD)
        show(f"cpu: asked {step['asked']:g} cores, used {used:.3f} over {step['nr_periods']} periods")
        assert step["limits"]["cpu.max"] == f"{round(step['asked'] * PERIOD)} {PERIOD}"
        assert step["said"]["holds"]
        assert step["said"]["verified"]["cpu"] == step["asked"]
        # By periods, not by the clock. Two processes want all of it; of the twenty periods, those at both
        # ends are counted whole and seen in part.
        assert step["asked"] * 0.8 <= used <= step["asked"] * 1.2
        assert step["nr_throttled"] > 0
    # Who waits for its quota is stalled.
    assert found["stalled"] > 0
    assert found["same_process"]
    assert found["drift"] == []
    assert found["undone"]["holds"]
    assert found["limits"] == BASELINE


@pytest.mark.usefixtures("stand")
def test_memory_is_limited_a_kill_is_seen_and_less_than_in_use_is_refused(
    machine: Machine, show: Show
) -> None:
    limit, use, below = 96 * MB, 64 * MB, 48 * MB
    found = machine.ask("memory", limit=limit, use=use, below=below)
    show(f"memory: asked {limit >> 20} MB, {found['killed']} OOM kill of who took {2 * limit >> 20} MB")
    assert found["said"]["holds"]
    assert found["limits"] == {**BASELINE, "memory.max": str(limit)}
    assert found["code"] == 137
    assert found["killed"] >= 1
    assert found["recorded"][0]["client"] == "vm-0"
    assert sum(event["kills"] for event in found["recorded"]) >= found["killed"]
    # Under version 2 the kernel kills at once who uses more than a new limit: so it is not even tried.
    assert found["used"] > below
    assert "in use" in found["refused"]["refused"]["vm-0"][0]
    assert found["kept"] == found["limits"]
    assert found["unharmed"]
    assert found["forced"]["holds"]
    assert found["below_use"]["memory.max"] == str(below)
    assert found["undone"]["holds"]


@pytest.mark.usefixtures("stand")
def test_a_limit_on_processes_holds(machine: Machine, show: Show) -> None:
    limit = 64
    found = machine.ask("pids", limit=limit)
    show(f"pids: asked {limit}, at most {found['peak']}, {found['refused']} refused")
    assert found["said"]["holds"]
    assert found["limits"] == {**BASELINE, "pids.max": str(limit)}
    assert found["code"] == 0
    assert found["error"] == 11  # EAGAIN
    assert limit - 8 < found["count"] < limit
    assert found["peak"] <= limit
    assert found["refused"] >= 1


@pytest.mark.usefixtures("stand")
def test_a_frozen_client_stands_still_and_takes_limits(machine: Machine) -> None:
    found = machine.ask("freeze", cores=0.4)
    assert found["frozen"] == [1, 0]
    assert found["used"] == 0
    assert found["said"]["holds"]
    assert found["limits"]["cpu.max"] == "40000 100000"
    assert found["undone"]["holds"]


@pytest.mark.usefixtures("stand")
def test_both_rates_hold_by_the_interface_counters(machine: Machine, show: Show) -> None:
    asked = {"down": 8_000_000, "up": 4_000_000}
    found = machine.ask("rates", **asked, windows=2, seconds=1.5)
    for way, rate in asked.items():
        (free,), limited = found["free"][way], found["limited"][way]
        show(
            f"{way}: asked {rate / 1e6:g} Mbit/s, measured {max(limited) / 1e6:.2f} "
            f"(without: {free / 1e6:.0f})"
        )
        assert any("tbf" in line and f"rate {rate // 1_000_000}Mbit" in line for line in found["queues"][way])
        assert free > 2 * rate
        # The kernel sends no more, but for a burst; a busy machine sends less in some window: so the best.
        assert max(limited) <= rate * 1.1
        assert max(limited) >= rate * 0.75
    assert found["said"]["holds"]
    assert found["said"]["verified"]["down"] == pytest.approx(asked["down"], rel=1e-3)
    assert not any("tbf" in line for lines in found["queues_undone"].values() for line in lines)


@pytest.mark.usefixtures("stand")
def test_delay_jitter_and_loss_are_what_ping_sees(machine: Machine, show: Show) -> None:
    delay, jitter, loss, count = 0.1, 0.02, 5.0, 1000
    found = machine.ask("netem", delay=delay, jitter=jitter, loss=loss, count=count)
    free, delayed, times = found["free"]["times"], found["delayed"]["times"], found["all"]["times"]
    base, middle = statistics.median(free), statistics.median(delayed)
    show(
        f"delay: asked {delay * 1e3:g} ms, ping's median {middle * 1e3:.1f}, least {min(delayed) * 1e3:.1f} "
        f"(without: {base * 1e3:.1f}, {min(free) * 1e3:.1f})"
    )
    # Each way waits for half of the delay, and no packet goes early: that is exact. An emulated machine may
    # be late at any moment; most packets are not: 15 ms beside what ping takes without a delay.
    assert min(delayed) >= delay
    assert middle <= delay + base + 0.015
    assert len(free) == found["free"]["sent"]
    assert len(delayed) == found["delayed"]["sent"]

    # Each way adds a value that is equally probable within half of the jitter on both sides. The sum of two
    # such has the shape of a triangle and a standard deviation of jitter / sqrt(6). It is taken from the
    # quartiles (0.586 of the jitter lies between them), which a few late packets do not move.
    first, _, third = statistics.quantiles(times, n=4)
    spread = third - first
    expected_spread = (2 - math.sqrt(2)) * jitter
    show(
        f"jitter: asked {jitter * 1e3:g} ms, quartiles "
        f"{spread * 1e3:.1f} ms apart, expected {expected_spread * 1e3:.1f}"
    )
    assert min(times) >= delay - jitter
    assert min(times) < delay
    assert expected_spread * 0.6 <= spread <= expected_spread * 1.8

    # A ping is lost on either way. The count is binomial: five standard deviations are missed once in two
    # million runs.
    expected = 1 - (1 - loss / 100) ** 2
    lost = 1 - len(times) / found["all"]["sent"]
    deviation = math.sqrt(expected * (1 - expected) / count)
    show(
        f"loss: asked {loss:g} % each way, that is {expected:.2%} of pings; measured {lost:.2%} "
        f"of {found['all']['sent']} (standard deviation {deviation:.2%})"
    )
    assert found["all"]["sent"] == count
    assert abs(lost - expected) <= 5 * deviation

    assert found["said"]["holds"]
    for way in ("down", "up"):
        assert any("netem" in line and "loss 5%" in line for line in found["queues"][way]), found["queues"]
    assert not any("netem" in line for lines in found["queues_undone"].values() for line in lines)


ALL = {
    "cpu": 0.4,
    "memory": 200 * MB,
    "pids": 200,
    "down": 8_000_000,
    "up": 4_000_000,
    "delay": 0.04,
    "loss": 2.0,
}
HELD = {
    "cpu.max": "40000 100000",
    "memory.max": str(200 * MB),
    "memory.swap.max": "0",
    "pids.max": "200",
}


def assert_shaped(queues: dict[str, list[str]]) -> None:
    """Both ends hold the shaping of ALL: half of the delay each, the loss, and their own rate."""
    for way, rate in (("down", "8Mbit"), ("up", "4Mbit")):
        netem, tbf = queues[way]
        assert netem.startswith("qdisc netem"), queues
        assert "delay 20ms" in netem
        assert "loss 2%" in netem
        assert tbf.startswith("qdisc tbf"), queues
        assert f"rate {rate}" in tbf


@pytest.mark.usefixtures("stand")
def test_all_limits_are_set_verified_kept_over_a_reload_and_undone(machine: Machine) -> None:
    found = machine.ask("set_and_undo", limits=ALL)
    assert found["before"]["limits"] == BASELINE
    assert found["said"]["holds"]
    assert found["said"]["changed"]
    assert found["during"]["limits"] == HELD
    assert_shaped(found["during"]["queues"])
    assert found["status"]["holds"]
    assert {key: found["status"]["verified"][key] for key in ALL} == pytest.approx(ALL, rel=1e-3)
    assert found["told"] == {"CpuQuota": 40_000, "Memory": 200 * MB, "PidsLimit": 200}
    assert found["undone"]["holds"]
    assert found["after"] == found["before"]


@pytest.mark.usefixtures("stand")
def test_limits_with_an_end_expire_by_themselves(machine: Machine, show: Show) -> None:
    found = machine.ask("expiry", limits=ALL, duration=3)
    recorded = found["recorded"][-1]
    late = recorded["time"] - found["said"]["revert_at"]
    show(f"expiry: asked after 3 s, recorded {late:.2f} s after that")
    assert found["during"]["limits"] == HELD
    assert_shaped(found["during"]["queues"])
    assert recorded["client"] == "vm-0"
    assert recorded["holds"]
    assert late >= 0
    assert found["after"] == found["before"]


@pytest.mark.usefixtures("stand")
def test_limits_outlive_a_restart_of_the_agent(machine: Machine) -> None:
    passing = {"pids": 100}
    # Long enough that the agent has stopped before the end, emulated and beside other work.
    found = machine.ask("agent_restart", limits=ALL, passing=passing, duration=15)
    alone, back = found["alone"], found["back"]
    assert alone["limits"] == {**HELD, "pids.max": "100"}  # nobody is there to end it
    assert_shaped(alone["queues"])
    assert back["limits"] == HELD
    assert_shaped(back["queues"])
    assert back["pid"] == found["before"]["pid"]
    assert found["status"]["holds"]
    assert found["undone"]["holds"]
    assert found["after"] == found["before"]


@pytest.mark.usefixtures("stand")
def test_limits_come_back_after_a_restart_of_the_client(machine: Machine) -> None:
    found = machine.ask("client_restart", limits=ALL)
    before, after = found["before"], found["after"]
    assert after["pid"] != before["pid"]
    assert after["limits"] == before["limits"] == HELD
    assert_shaped(after["queues"])
    assert found["status"]["holds"]
    assert found["undone"]["holds"]
    assert found["bare"]["limits"] == BASELINE


@pytest.mark.usefixtures("stand")
def test_the_exporter_shows_what_the_engine_shows(machine: Machine, show: Show) -> None:
    found = machine.ask("exporter")
    page, (before, after) = found["exporter"], found["kernel"]
    for name, value in found["engine"].items():
        show(f"{name}: exporter {page[name]:.6g}, engine {value:.6g}")
    assert len(found["engine"]) == 6
    # The client rests; what lies between the two readings is the time that both take.
    assert {name: page[name] for name in found["engine"]} == pytest.approx(found["engine"], rel=0.02)
    for name, first in before.items():
        scale = 1e6 if name.endswith("_seconds_total") else 1
        assert first <= round(page[name] * scale) <= after[name], name
    assert page["container_pressure_cpu_waiting_seconds_total"] > 0
    assert page["fl_client_limits_hold"] == 1
    assert page["fl_client_limit_verified:cpu"] == 1
    assert page["fl_client_limit_verified:memory"] == 256 * MB


def test_a_machine_in_a_container_runs_systemd_and_an_engine(
    machine: Machine, stand: dict[str, Any], show: Show
) -> None:
    cores = 0.5
    found = machine.ask("host", cores=cores, periods=30)
    used = found["usage_usec"] / (found["nr_periods"] * PERIOD)
    show(f"host: systemd {found['state']}; asked {cores:g} cores in its engine, used {used:.3f}")
    assert found["state"] == "running", found["failed"]
    assert found["driver"] == "systemd"
    # machine's group / host's group / its system.slice / the container's scope
    assert found["nested"] >= 3
    assert found["cpu_max"] == "50000 100000"
    assert cores * 0.8 <= used <= cores * 1.2
    assert found["nr_throttled"] > 0
    # `tests.hosts` wakes what is paused in a host before it removes it.
    assert found["frozen"] == [1, 0]
    assert found["left"] == []
