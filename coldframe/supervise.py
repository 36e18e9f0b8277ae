"""Keep a container's few processes running: start them, restart what dies, stop all on SIGTERM.

A child is a command, or a Python function that runs in a fork of the supervisor and so shares what the
supervisor has imported: the imports are paid for once, in time and in memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

RESTART_DELAY = 1.0  # s between a child's death and its next start
MAX_RESTARTS = (
    5  # in RESTART_WINDOW; more means that restarting does not help: the container's policy takes over
)
RESTART_WINDOW = 60.0  # s
# One thread while importing: OpenMP and BLAS libraries start their pools as they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
GRACE = 8.0  # s between SIGTERM and SIGKILL; below Docker's own 10 s


class Forked:
    """A function running in a forked process, with the part of `subprocess.Popen` that is used here."""

    def __init__(self, name: str, function: Callable[[list[str]], None], arguments: list[str]) -> None:
        self.returncode: int | None = None
        # A lock that another thread holds at this moment would stay locked in the child.
        if (threads := thread_count()) != 1:
            raise RuntimeError(f"the supervisor has {threads} threads: it must not fork")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = exit_status(lambda: self._begin(name, function, arguments))
            finally:
                os._exit(code)

    def _begin(self, name: str, function: Callable[[list[str]], None], arguments: list[str]) -> None:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        Path("/proc/self/comm").write_text(name)  # for top; the command line is the supervisor's
        sys.argv[1:] = arguments
        function(arguments)

    def poll(self) -> int | None:
        """Return how the process ended, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL, unless the process has been seen to be gone."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raise `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.01)
        return code


def exit_status(function: Callable[[], object]) -> int:
    """Run what a forked process does, and return the exit status that Python would end it with.

    What Python would print of an exception, or of the text of a `sys.exit`, is printed; nothing is raised.
    """
    status = 0
    try:
        function()
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code
        elif end.code is not None:
            status = 1
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    return status & 0xFF


def keep_freed_memory(megabytes: int | None = None) -> None:
    """Have malloc keep what is freed instead of giving it back to the kernel and taking it again.

    By default (mallopt(3)) each step of the CNN returns some 10 MB and faults them in again: a tenth to a
    fifth of its CPU time; and a SuperNode makes 3,700 page faults per message of 5 MB, with this a dozen.

    Parameters
    ----------
    megabytes : int, optional
        How much to keep, for a process that lives on: then all its threads take from one heap. A task keeps
        all, for it ends soon.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the greatest that glibc takes
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1 if megabytes is None else megabytes << 20)
    if megabytes is not None:
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Have malloc give the kernel all that is free, wherever it lies."""
    ctypes.CDLL(None).malloc_trim(0)


def thread_count() -> int:
    """Return the number of threads of this process, those of C libraries included."""
    return len(list(Path("/proc/self/task").iterdir()))


@dataclass
class Child:
    """One supervised process; ``environment`` is added to the supervisor's own.

    With a ``function``, ``command`` is what it gets as arguments; without, it is the command to run. One that
    is not ``vital`` is left alone when it dies too often: the others go on without it.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    function: Callable[[list[str]], None] | None = None
    vital: bool = True
    process: subprocess.Popen[bytes] | Forked | None = None
    started: float = 0.0
    restarts: deque[float] = field(default_factory=deque)

    def start(self) -> None:
        """Start the process in a session of its own, so that its children can be ended with it."""
        if self.function is not None:
            self.process = Forked(self.name, self.function, self.command)
        else:
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
    """Run ``children`` until SIGTERM (returns 0) or until a vital one dies too often (returns 1).

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
                if not child.vital:
                    child.process = None
                    continue
                stopping, code = True, 1
                break
            time.sleep(RESTART_DELAY)
            child.start()
    for child in reversed(children):
        child.signal(signal.SIGTERM)
    for child in reversed(children):
        child.stop()
    return code
