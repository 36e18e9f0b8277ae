"""Keep a container's few processes running: start them, restart what dies, stop all on SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

RESTART_DELAY = 1.0  # s between a child's death and its next start
MAX_RESTARTS = (
    5  # in RESTART_WINDOW; more means that restarting does not help: the container's policy takes over
)
RESTART_WINDOW = 60.0  # s
GRACE = 8.0  # s between SIGTERM and SIGKILL; below Docker's own 10 s


@dataclass
class Child:
    """One supervised process; ``environment`` is added to the supervisor's own."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: deque[float] = field(default_factory=deque)

    def start(self) -> None:
        """Start the process in a session of its own, so that its children can be ended with it."""
        self.process = subprocess.Popen(
            self.command, env={**os.environ, **self.environment}, start_new_session=True
        )
        self.started = time.monotonic()

    def signal(self, number: int) -> None:
        """Send a signal to the process and all of its session's group; one that is gone is fine."""
        if self.process is not None and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return

    def stop(self, grace: float = GRACE) -> None:
        """End the process: SIGTERM, and SIGKILL after ``grace`` seconds."""
        self.signal(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(grace)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self.process.wait()


def say(text: str) -> None:
    """Write one line to the container's log."""
    print(f"coldframe: {text}", file=sys.stderr, flush=True)


def supervise(
    children: list[Child],
    tick: Callable[[], None] = lambda: None,
    interval: float = 0.5,
) -> int:
    """Run ``children`` until SIGTERM (returns 0) or until one of them dies too often (returns 1).

    Parameters
    ----------
    children : list of Child
        Started in this order.
    tick : callable
        Called every ``interval`` seconds, for instance to watch a file and stop a child, which is then
        restarted.
    interval : float
        Seconds between two looks at the children.
    """
    stopping = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    code = 0
    for child in children:
        child.start()
    while not stopping:
        time.sleep(interval)
        tick()
        for child in children:
            if stopping or child.process is None or child.process.poll() is None:
                continue
            now = time.monotonic()
            child.restarts.append(now)
            while child.restarts and now - child.restarts[0] > RESTART_WINDOW:
                child.restarts.popleft()
            say(f"{child.name} ended with code {child.process.returncode}")
            if len(child.restarts) > MAX_RESTARTS:
                say(f"{child.name} ended {len(child.restarts)} times in {RESTART_WINDOW:.0f} s: giving up")
                stopping, code = True, 1
                break
            time.sleep(RESTART_DELAY)
            child.start()
    for child in reversed(children):
        child.signal(signal.SIGTERM)
    for child in reversed(children):
        child.stop()
    return code
