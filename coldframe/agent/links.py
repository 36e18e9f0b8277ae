"""The network of a machine's clients: reads and sets how both ends of each client's link are shaped.

A client's eth0 is one end of a pair of virtual interfaces; the other, its *device*, stands in the machine's
own network namespace. A queue works on what an interface sends: so download is shaped on the device, upload
on eth0.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coldframe import limits
from coldframe.agent import netlink

INSIDE = "eth0"
NET = Path("/sys/class/net")
TIMEOUT = 10  # seconds

Ways = tuple[dict[str, Any], dict[str, Any]]  # download and upload
NOTHING: Ways = (limits.parse_qdiscs([]), limits.parse_qdiscs([]))


class LinkError(Exception):
    """tc or ip refused, or the client has no network."""


def run(command: list[str], text: str = "") -> str:
    """Run a command that reads a text; return its output."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise LinkError(f"{' '.join(command)}: {error}") from error
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


def device_of(pid: int, proc: Path = Path("/proc"), net: Path = NET) -> str:
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


def tc(prefix: list[str], device: str, calls: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Change the disciplines of an interface and return what stands there then, all in one process.

    Parameters
    ----------
    prefix : list of str
        What puts the command into another network namespace.
    calls : sequence
        As `limits.shape` returns them.
    """
    lines = [" ".join(call) for call in [*calls, ["qdisc", "show", "dev", device]]]
    listed = json.loads(run([*prefix, "tc", "-j", "-batch", "-"], "\n".join([*lines, ""])))
    return limits.parse_qdiscs(listed)


def number(device: str, net: Path = NET) -> int:
    """Return the number of an interface."""
    try:
        return int((net / device / "ifindex").read_text())
    except OSError as error:
        raise LinkError(f"the interface {device} is gone: {error}") from error


def one_end(
    pid: int | None, device: str, wanted: Mapping[str, Any] | None = None, kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Shape what an interface sends, if that is wanted, and return what is done there then.

    Parameters
    ----------
    pid : int, optional
        A process in whose network namespace the interface stands.
    wanted : mapping
        As `limits.one_way` returns it.
    kinds : sequence
        The disciplines of ours that stand there.
    """
    prefix, net = ([], NET) if pid is None else (within(pid), Path(f"/proc/{pid}/root{NET}"))
    calls = [] if wanted is None else limits.shape(device, wanted, kinds)
    rate = 0 if wanted is None else int(wanted["rate"] or 0)
    delayed = wanted is not None and any(wanted[key] for key in limits.NETEM)
    if delayed or "netem" in kinds or rate // 8 > netlink.GREATEST:
        return tc(prefix, device, calls)
    try:
        with netlink.Route(pid) as route:
            index = number(device, net)
            if rate:
                route.limit(index, rate, limits.burst(rate), limits.LATENCY)
            elif calls:
                route.unlimit(index)
            found = route.disciplines(index)
    except OSError as error:
        raise LinkError(f"{device}: {error.strerror or error}") from error
    # What netem does, tc knows.
    return tc(prefix, device) if "netem" in found else limits.only_rate(found.get("tbf"))


def read(pid: int, device: str) -> Ways:
    """Return what the kernel does with a client's download and upload, as `limits.parse_qdiscs` says it."""
    return one_end(None, device), one_end(pid, INSIDE)


def online(device: str, net: Path = NET) -> bool:
    """Return whether the machine's end of a link is up."""
    try:
        return bool(int((net / device / "flags").read_text(), 16) & 1)
    except OSError as error:
        raise LinkError(f"the interface {device} is gone: {error}") from error


def write(pid: int, device: str, wanted: Mapping[str, Any], ways: Ways) -> Ways:
    """Shape both directions of a client's link, which do `ways` now, and connect or cut it; return what they
    do then."""
    down, up = (limits.one_way(wanted, way) for way in ("down", "up"))
    done = (
        one_end(None, device, down, ways[0]["kinds"]),
        one_end(pid, INSIDE, up, ways[1]["kinds"]),
    )
    if online(device) != bool(wanted["online"]):
        run(["ip", "link", "set", "dev", device, "up" if wanted["online"] else "down"])
    return done


def counters(device: str, net: Path = NET) -> tuple[int, int]:
    """Return how many bytes a client has received and sent: what its device sent and received."""
    statistics = net / device / "statistics"
    return int((statistics / "tx_bytes").read_text()), int((statistics / "rx_bytes").read_text())
