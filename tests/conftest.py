"""Keeps the two lanes of `make test` off each other's feet: a test that measures has the machine to itself.

Each test of a deployment holds a lock while it runs: one that is marked `measures` alone, any other together
with those of the other lane. Before it takes the lock it passes a gate, which a test that measures keeps shut
while it waits: else the other lane could go on without end.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.hosts.shell import cache

DEPLOYMENTS = {"cluster", "kernel", "vagrant"}
HERE = Path(__file__).parent


@contextmanager
def opened(name: str) -> Iterator[IO[str]]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as handle:
        yield handle


@contextmanager
def turn(alone: bool) -> Iterator[None]:
    """Wait until no other lane is in the way: none that measures, or none at all."""
    mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with opened("machine") as machine:
        with opened("gate") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(machine, mode)
        yield


class Turns:
    """The turn that this lane has now, if any: tests that measure one after the other share one."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.alone = False

    def begin(self, alone: bool) -> None:
        if not (alone and self.alone):
            self.stack.enter_context(turn(alone))
            self.alone = alone

    def end(self) -> None:
        self.stack.close()
        self.alone = False


TURNS = Turns()


def measures(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("measures") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Hold the lock from the first fixture of a test to the last."""
    if item.path.relative_to(HERE).parts[0] not in DEPLOYMENTS:
        return (yield)
    TURNS.begin(measures(item))
    try:
        return (yield)
    finally:
        if not (measures(item) and measures(nextitem)):
            TURNS.end()


class FailuresAtOnce:
    """Prints why a test failed when it fails: the tests of a lane go on for half an hour after it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the failure under the test's line."""
        if report.failed:
            self.config.get_terminal_writer().line(f"\n{report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    """Print failures at once where tests take minutes."""
    if config.getoption("verbose") > 0:
        config.pluginmanager.register(FailuresAtOnce(config))
