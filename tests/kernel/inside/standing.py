"""What stands: limits over undo, expiry, restarts of agent and client; and the exporter beside the engine."""

from __future__ import annotations

import re
import ssl
import time
import urllib.request
from base64 import b64encode
from typing import Any

from tests.kernel.inside.stand import HARDENED, IMAGE, OURS, answers, labels
from tests.kernel.inside.tools import (
    AGENT,
    CLIENT,
    CONTAINER,
    EXPORTER,
    FEDERATION,
    NETWORK,
    STATE,
    Group,
    docker,
    engine,
    events,
    pid,
    queues,
    set_limits,
    sh,
    status,
    told,
    undo,
    until,
)

PORT, PASSWORD = 9101, "exporter"


def held() -> dict[str, Any]:
    """Return what the kernel holds for the client now."""
    process = pid()
    return {"limits": Group(process).limits(), "queues": queues(process), "pid": process}


def set_and_undo(limits: dict[str, float]) -> dict[str, Any]:
    """Set all limits at once, let systemd read its units anew, and undo."""
    before = held()
    answer, during = set_limits(limits), held()
    says = status()
    until(lambda: told()["CpuQuota"] == round(limits["cpu"] * 100_000), "the engine is told")
    # systemd owns the control groups, and reads its units anew then.
    sh("systemctl", "daemon-reload")
    until(lambda: held() == during, "the limits hold after that")
    return {
        "before": before,
        "said": answer,
        "during": during,
        "status": says,
        "told": told(),
        "undone": undo(),
        "after": held(),
    }


def expiry(limits: dict[str, float], duration: float) -> dict[str, Any]:
    """Set limits for a while and wait until they are gone by themselves."""
    before = held()
    answer, during = set_limits(limits, duration=duration), held()
    recorded = until(lambda: events("expiry"), "the limits end")
    return {"before": before, "said": answer, "during": during, "recorded": recorded, "after": held()}


def agent_restart(limits: dict[str, float], passing: dict[str, float], duration: float) -> dict[str, Any]:
    """Stop the agent while one limit has an end: all stay until it is back, which ends that one alone."""
    before, seen = held(), len(events("expiry"))
    set_limits(limits)
    end = set_limits(passing, duration=duration)["revert_at"]
    docker("stop", "--time=30", AGENT)
    until(lambda: time.time() > end, "the time of the limit that passes is over")
    alone = held()
    docker("start", AGENT)
    until(lambda: len(events("expiry")) > seen and answers(), "the agent is back")
    return {
        "before": before,
        "alone": alone,
        "back": held(),
        "status": status(),
        "undone": undo(),
        "after": held(),
    }


def client_restart(limits: dict[str, float]) -> dict[str, Any]:
    """Restart the client: another process, another link, the same limits."""
    set_limits(limits)
    before = held()
    docker("restart", CONTAINER)
    until(lambda: events("restart"), "the agent has met the new process")
    until(answers, "the limits hold")
    after = held()
    return {"before": before, "after": after, "status": status(), "undone": undo(), "bare": held()}


def exporter() -> dict[str, Any]:
    """Read the exporter's page, and between two readings of the kernel's own files the engine's figures."""
    start_exporter()
    group, found = Group(pid()), {}
    first = counters(group)
    page = until(scrape, "the exporter answers")
    last = counters(group)
    stats = engine(f"/containers/{CONTAINER}/stats?stream=false&one-shot=true")
    for line in page.splitlines():
        match = re.match(rf'(\w+)\{{.*client="{CLIENT}".*\}} (\S+)$', line)
        if match:
            found[
                match[1] + ("" if 'limit="' not in line else ":" + line.split('limit="')[1].split('"')[0])
            ] = float(match[2])
    network = stats["networks"]["eth0"]
    return {
        "exporter": found,
        "kernel": [first, last],
        "engine": {
            "container_cpu_usage_seconds_total": stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            "container_memory_usage_bytes": stats["memory_stats"]["usage"],
            "container_spec_memory_limit_bytes": stats["memory_stats"]["limit"],
            "container_threads": stats["pids_stats"]["current"],
            "container_network_receive_bytes_total": network["rx_bytes"],
            "container_network_transmit_bytes_total": network["tx_bytes"],
        },
    }


def counters(group: Group) -> dict[str, int]:
    """Return what has to lie on both sides of the exporter's value."""
    return {
        "container_pressure_cpu_waiting_seconds_total": group.stalled("cpu"),
        "container_oom_events_total": group.table("memory.events")["oom_kill"],
        "container_cpu_cfs_throttled_periods_total": group.table("cpu.stat")["nr_throttled"],
    }


def start_exporter() -> None:
    """Start the exporter with the arguments of `roles/container_exporter`, under a certificate made here."""
    secrets = STATE / "monitoring"
    secrets.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=vm"]
    files = ["-keyout", str(secrets / "machine.key"), "-out", str(secrets / "machine.crt")]
    sh("openssl", "req", "-x509", *key, *files)
    (secrets / "users").write_text(f"prometheus:{sh('openssl', 'passwd', '-6', PASSWORD)}\n")
    (STATE / "containers").mkdir()
    sh("chown", "-R", "10001", str(secrets))
    shared = [
        f"{STATE}/{name}:/state/{name}:ro"
        for name in ("clients", "agent/limits", "containers", "events.jsonl")
    ]
    shared += [f"{secrets}:/etc/coldframe:ro", "/sys/fs/cgroup:/host/cgroup:ro"]
    docker(
        *(
            "run",
            "--detach",
            f"--name={EXPORTER}",
            f"--network={NETWORK}",
            "--pid=host",
            "--cgroupns=host",
            "--userns=host",
            "--user=10001:10001",
        ),
        *(
            f"--publish={PORT}:{PORT}",
            "--memory=128m",
            "--memory-swap=128m",
            *HARDENED,
            *labels("container_exporter"),
        ),
        *(*OURS, *(f"--volume={volume}" for volume in shared), IMAGE),
        *(
            "python3",
            "-m",
            "coldframe.exporters.containers",
            "/state",
            FEDERATION,
            "/host/cgroup",
            str(PORT),
            "/etc/coldframe",
        ),
    )


def scrape() -> str | None:
    """Return the exporter's page, or None while it starts."""
    context = ssl.create_default_context(cafile=STATE / "monitoring/machine.crt")
    context.check_hostname = False
    login = b64encode(f"prometheus:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(
        f"https://127.0.0.1:{PORT}/metrics", headers={"Authorization": f"Basic {login}"}
    )
    try:
        with urllib.request.urlopen(request, context=context) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError:
        raise
    except OSError:
        return None
