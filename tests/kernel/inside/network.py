"""Limits of the link: rates by the interface's counters, delay, jitter and loss by ping."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernel.inside.tools import (
    CONTAINER,
    NETWORK,
    device,
    engine,
    pid,
    queues,
    running,
    set_limits,
    sh,
    undo,
    until,
)

BLOCK = bytes(1 << 16)
# What the client does that receives or sends: its device's counters say how quick that is.
WAYS = {"down": ("tx_bytes", "nc {} {} >/dev/null"), "up": ("rx_bytes", "nc {} {} </dev/zero")}


def rates(down: int, up: int, windows: int, seconds: float) -> dict[str, Any]:
    """Measure how quick both directions are, without limits and with them."""
    main = pid()
    address = engine(f"/networks/{NETWORK}")["IPAM"]["Config"][0]["Gateway"]
    with flowing(address):
        free = measure(main, 1, seconds)
    answer, stands = set_limits({"down": down, "up": up}), queues(main)
    with flowing(address):
        limited = measure(main, windows, seconds)
    return {
        "free": free,
        "limited": limited,
        "said": answer,
        "queues": stands,
        "undone": undo(),
        "queues_undone": queues(main),
    }


@contextlib.contextmanager
def flowing(address: str) -> Iterator[None]:
    """Let data flow both ways between this machine and the client, as much as there is room for."""
    commands = []
    with contextlib.ExitStack() as stack:
        for way, (_, line) in WAYS.items():
            server = stack.enter_context(socket.create_server((address, 0)))
            threading.Thread(target=serve, args=(server, way), daemon=True).start()
            commands.append(f"busybox {line.format(address, server.getsockname()[1])}")
        with running(*commands):
            yield


def measure(process: int, windows: int, seconds: float) -> dict[str, list[float]]:
    """Return the rates of both directions over some windows, in bit/s by the interface's counters."""
    near = Path("/sys/class/net") / device(process) / "statistics"
    counters = {way: near / name for way, (name, _) in WAYS.items()}
    before = {way: read(counter) for way, counter in counters.items()}
    until(lambda: all(read(counters[way]) - before[way] > 2 * len(BLOCK) for way in counters), "data flows")
    found: dict[str, list[float]] = {way: [] for way in counters}
    for _ in range(windows):
        first = {way: (read(counter), time.monotonic()) for way, counter in counters.items()}
        time.sleep(seconds)
        for way, counter in counters.items():
            count, moment = first[way]
            found[way].append((read(counter) - count) * 8 / (time.monotonic() - moment))
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


def read(counter: Path) -> int:
    """Return a counter."""
    return int(counter.read_text())


def netem(delay: float, jitter: float, loss: float, count: int) -> dict[str, Any]:
    """Measure a link by ping: as it is, with a delay alone, with jitter and loss beside it."""
    networks = engine(f"/containers/{CONTAINER}/json")["NetworkSettings"]["Networks"]
    address = networks[NETWORK]["IPAddress"]
    free = ping(address, 100)
    set_limits({"delay": delay})
    delayed = ping(address, 100)
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
    printed = sh("ping", "-n", "-i", "0.005", "-W", "3", "-c", str(count), address, check=False)
    times = [float(value) / 1000 for value in re.findall(r"time=([\d.]+) ms", printed)]
    sent = re.search(r"(\d+) packets transmitted", printed)
    return {"sent": int(sent[1]) if sent else 0, "times": times}
