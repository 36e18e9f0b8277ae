"""The network of a machine's clients: reads and sets what tc does on both ends of each client's link.

A client's eth0 is one end of a pair of virtual interfaces; the other, its *device*, stands in the machine's
own network namespace. A queue works on what an interface sends: so download is shaped on the device, upload
on eth0.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coldframe import limits

INSIDE = "eth0"
TIMEOUT = 10  # seconds


class LinkError(Exception):
    """tc or ip refused, or the client has no network."""


def run(command: list[str]) -> str:
    """Run a command; return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise LinkError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def within(pid: int) -> list[str]:
    """Return the words that put a command into the network namespace of a process."""
    return ["nsenter", "-t", str(pid), "-n"]


def has_netem() -> bool:
    """Return whether the kernel can delay and lose packets: it tries, in a network namespace of its own."""
    try:
        run(["unshare", "-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    except LinkError:
        return False
    return True


def device_of(pid: int, proc: Path = Path("/proc"), net: Path = Path("/sys/class/net")) -> str:
    """Return the name of the machine's end of a client's link."""
    try:
        index = (proc / str(pid) / "root/sys/class/net" / INSIDE / "iflink").read_text().strip()
    except OSError as error:
        raise LinkError(f"process {pid} has no {INSIDE}: {error}") from error
    for device in net.iterdir():
        try:
            if (device / "ifindex").read_text().strip() == index:
                return device.name
        except OSError:
            continue  # gone meanwhile, or no interface
    raise LinkError(f"no interface of this machine has the number {index}")


def read(pid: int, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the kernel does with a client's download and upload, as `limits.parse_qdiscs` says it."""
    down = run(["tc", "-j", "qdisc", "show", "dev", device])
    up = run([*within(pid), "tc", "-j", "qdisc", "show", "dev", INSIDE])
    return limits.parse_qdiscs(json.loads(down)), limits.parse_qdiscs(json.loads(up))


def online(device: str, net: Path = Path("/sys/class/net")) -> bool:
    """Return whether the machine's end of a link is up."""
    return bool(int((net / device / "flags").read_text(), 16) & 1)


def write(pid: int, device: str, wanted: Mapping[str, Any]) -> None:
    """Shape both directions of a client's link, and connect or cut it."""
    down, up = read(pid, device)
    for call in limits.shape(device, limits.one_way(wanted, "down"), down["kinds"]):
        run(["tc", *call])
    for call in limits.shape(INSIDE, limits.one_way(wanted, "up"), up["kinds"]):
        run([*within(pid), "tc", *call])
    if online(device) != bool(wanted["online"]):
        run(["ip", "link", "set", "dev", device, "up" if wanted["online"] else "down"])


def counters(device: str, net: Path = Path("/sys/class/net")) -> tuple[int, int]:
    """Return how many bytes a client has received and sent: what its device sent and received."""
    statistics = net / device / "statistics"
    return int((statistics / "tx_bytes").read_text()), int((statistics / "rx_bytes").read_text())
