"""Limits of the link: rates by the interface's counters, delay, jitter and loss by ping."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

from tests.kernel.inside.tools import (
    CONTAINER,
    NETWORK,
    device,
    docker,
    pid,
    queues,
    running,
    set_limits,
    sh,
    undo,
    until,
)

WINDOWS, SECONDS = 3, 1.5
BLOCK = bytes(1 << 16)


def rates(down: int, up: int) -> dict[str, Any]:
    """Measure how quick both directions are: without limits, with them, and by which discipline."""
    gateway = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", NETWORK)
    free = measure(gateway)
    answer, stands = set_limits({"down": down, "up": up}), queues(pid())
    return {
        "free": free,
        "limited": measure(gateway),
        "said": answer,
        "queues": stands,
        "undone": undo(),
        "queues_undone": queues(pid()),
    }


def measure(gateway: str) -> dict[str, list[float]]:
    """Return the rates of both directions, one after the other, in bit/s by the interface's counters."""
    near = Path("/sys/class/net") / device(pid()) / "statistics"
    # What the client receives, its device has sent.
    ways = {
        "down": (near / "tx_bytes", "exec busybox nc {} {} >/dev/null"),
        "up": (near / "rx_bytes", "exec busybox nc {} {} </dev/zero"),
    }
    found = {}
    for way, (counter, line) in ways.items():
        with socket.create_server((gateway, 0)) as server:
            threading.Thread(target=serve, args=(server, way), daemon=True).start()
            with running("busybox", "sh", "-c", line.format(gateway, server.getsockname()[1])):
                wait_for(counter, read(counter) + 4 * len(BLOCK))
                found[way] = [window(counter) for _ in range(WINDOWS)]
    return found


def serve(server: socket.socket, way: str) -> None:
    """Send to who connects, or receive, until it goes away."""
    connection, _ = server.accept()
    with connection:
        try:
            while True:
                if way == "down":
                    connection.sendall(BLOCK)
                elif not connection.recv(len(BLOCK)):
                    return
        except OSError:
            pass  # the client was ended


def wait_for(counter: Path, count: int) -> None:
    """Wait until data flows, and what may be sent at once has been sent."""
    until(lambda: read(counter) >= count, "data flows")


def read(counter: Path) -> int:
    """Return a counter."""
    return int(counter.read_text())


def window(counter: Path) -> float:
    """Return the rate over a while, in bit/s."""
    begin, first = time.monotonic(), read(counter)
    time.sleep(SECONDS)
    last, end = read(counter), time.monotonic()
    return (last - first) * 8 / (end - begin)


def netem(delay: float, jitter: float, loss: float, count: int) -> dict[str, Any]:
    """Measure a link by ping: as it is, with a delay alone, with jitter and loss beside it."""
    address = docker(
        "inspect", "--format", f"{{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}", CONTAINER
    )
    free = ping(address, 200)
    set_limits({"delay": delay})
    delayed = ping(address, 200)
    answer, stands = set_limits({"delay": delay, "jitter": jitter, "loss": loss}), queues(pid())
    return {
        "free": free,
        "delayed": delayed,
        "all": ping(address, count),
        "said": answer,
        "queues": stands,
        "undone": undo(),
        "queues_undone": queues(pid()),
    }


def ping(address: str, count: int) -> dict[str, Any]:
    """Return how many were sent, and the times of those that came back in seconds."""
    printed = sh("ping", "-n", "-i", "0.01", "-W", "3", "-c", str(count), address, check=False)
    times = [float(value) / 1000 for value in re.findall(r"time=([\d.]+) ms", printed)]
    sent = re.search(r"(\d+) packets transmitted", printed)
    return {"sent": int(sent[1]) if sent else 0, "times": times}
