"""Beneath a ClientApp, in the process of its task: flwr's own steps with ours before and after them.

Done only where COLDFRAME_SCRATCH names a directory of the machine's disk, as in a client's container.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from coldframe import cgroups
from coldframe.recording import apps, files, flower, task_note, threads, torchvision_import
from coldframe.recording.task_log import BEGIN
from coldframe.supervise import say


def main() -> None:
    """Run flwr's own command with the recording beneath it."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    install(Task.announce)
    flwr_clientapp()


def install(begin: Callable[[Task], None] = lambda _task: None) -> None:
    """Put what is ours around flwr's steps of a task; `begin` is called when it knows its run."""
    torchvision_import.install()
    scratch = os.environ.get("COLDFRAME_SCRATCH")
    if scratch and flower.is_known("clientapp"):
        Task(Path(scratch), begin).install()


class Task:
    """The one task of this process; `scratch` is the directory that this client may write to."""

    def __init__(self, scratch: Path, begin: Callable[[Task], None]) -> None:
        self.scratch = scratch
        self.begin = begin
        self.work: Path | None = None
        self.run_id, self.fab_hash = "", ""
        self.context: Context | None = None
        self.figures: dict[str, float] = {}

    def install(self) -> None:
        """Take the place of flwr's functions."""
        from flwr.supernode.runtime import run_clientapp

        pull, unpack = run_clientapp.pull_task_input, run_clientapp.install_from_fab
        call, push = ClientApp.__call__, run_clientapp.push_message

        @functools.wraps(pull)
        def pull_task_input(*args: Any, **kwargs: Any) -> Any:
            found = pull(*args, **kwargs)
            self.context, self.run_id, self.fab_hash = found[1], str(found[2].run_id), found[3].hash_str
            self.note(found[0])
            self.begin(self)
            return found

        @functools.wraps(unpack)
        def install_from_fab(*args: Any, **kwargs: Any) -> Any:
            try:
                self.enter()
            except OSError as error:  # a full disk: an app that writes nothing trains all the same
                say(f"no directory for the app's files: {error}")
            threads.apply()  # before the app imports what starts them
            if self.context is not None:
                apps.enter(self.fab_hash, self.context)
            return unpack(*args, **kwargs)

        @functools.wraps(call)
        def call_app(app: ClientApp, message: Message, context: Context) -> Message:
            meter = Meter()
            try:
                return call(app, message, context)
            finally:
                self.figures = meter.figures()
                if self.work is not None:
                    files.check(self.work)

        @functools.wraps(push)
        def push_message(client: Any, message: Message, *args: Any, **kwargs: Any) -> None:
            self.add_figures(message)
            push(client, message, *args, **kwargs)

        run_clientapp.pull_task_input = pull_task_input
        run_clientapp.install_from_fab = install_from_fab
        run_clientapp.push_message = push_message
        ClientApp.__call__ = call_app  # type: ignore[method-assign, assignment]

    def announce(self) -> None:
        """Say in the container's log that the output of a task begins here."""
        print(BEGIN.format(self.run_id), file=sys.stderr, flush=True)

    def note(self, message: Message) -> None:
        """Note for the machine's agent which task begins; a scenario of the run goes by that."""
        try:
            task_note.write(self.scratch, task_note.of_message(self.run_id, message))
        except OSError as error:  # a full disk
            say(f"the agent is not told of the task: {error}")

    def enter(self) -> None:
        """Go to the run's directory."""
        runs = self.scratch / "runs"
        if (runs / self.run_id).exists():
            os.utime(runs / self.run_id)  # it is in use: others are forgotten first
        else:
            (runs / self.run_id).mkdir(parents=True)
            files.forget_old(runs)
        self.work = files.enter(runs, self.run_id, self.scratch / "home")

    def add_figures(self, reply: Message) -> None:
        """Add the figures of the task to a reply, in a copy: the app may keep its own."""
        if not reply.has_content() or flower.SYSTEM_RECORD in reply.content:
            return
        reply.content = RecordDict({**reply.content, flower.SYSTEM_RECORD: ConfigRecord(dict(self.figures))})


class Meter:
    """Measures the work of an app from now on, by clock, process and control group."""

    def __init__(self) -> None:
        self.group = cgroups.own()
        self.started, self.cpu, self.periods = time.monotonic(), cpu_seconds(), self.group.cpu_periods()
        self.waited = self.waiting()

    def waiting(self) -> float | None:
        """Return the seconds so far in which a thread of this client waited for the CPU."""
        pressure = self.group.pressure("cpu")
        return None if pressure is None else pressure["some"]["total"] / 1e6

    def figures(self) -> dict[str, float]:
        """Return the figures: seconds, bytes, cores; -1 where unlimited or unknown."""
        seconds = time.monotonic() - self.started
        periods, throttled = self.group.cpu_periods()
        limit, memory, waited = self.group.cpu_limit(), self.group.memory_limit(), self.waiting()
        known = self.waited is not None and waited is not None
        torch = sys.modules.get("torch")
        return {
            "cpu_limit": -1.0 if limit is None else limit,
            "memory_limit": -1 if memory is None else memory,
            "threads": torch.get_num_threads() if torch else threads.allowed(),
            "train_seconds": seconds,
            "task_seconds": process_seconds(),
            "cpu_pressure": (waited - self.waited) / max(seconds, 1e-9) if known else -1.0,  # type: ignore[operator]
            "throttled_share": (throttled - self.periods[1]) / max(1, periods - self.periods[0]),
            "memory_peak": self.group.memory_peak() or -1,
            "cpu_seconds": cpu_seconds() - self.cpu,
        }


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


def process_seconds() -> float:
    """Return the seconds since this process began: each message has one, so all that it took until now."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
