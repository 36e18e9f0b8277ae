"""What is said to the kernel and what it answers, in a network namespace of its own; tc is the witness."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coldframe.agent import links, netlink

LO = 1
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("tc"),
    reason="rates by netlink are not tested: that needs root, and tc",
)


@pytest.fixture
def pid() -> Iterator[int]:
    """A process in a network namespace of its own."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.communicate()


def said_by_tc(pid: int) -> list[dict[str, Any]]:
    """What tc says of the interface."""
    shown = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "tc", "-j", "qdisc", "show", "dev", "lo"],
        capture_output=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return found


def shaped(rate: int | None) -> dict[str, Any]:
    """One direction of a link with no more than a rate."""
    return {"rate": rate, "delay": 0, "jitter": 0, "loss": 0}


def test_rate_is_set_changed_and_taken_away(pid: int) -> None:
    with netlink.Route(pid) as route:
        route.limit(LO, 10_000_000, 16384, 0.1)
        assert route.disciplines(LO) == {"tbf": 10_000_000}
        (found,) = said_by_tc(pid)
        assert (found["kind"], found["handle"]) == ("tbf", "1:")
        assert found["options"] == {"rate": 1_250_000, "burst": pytest.approx(16384, abs=1), "lat": 100_000}
        route.limit(LO, 2_000_000_000, 2_500_000, 0.1)
        assert said_by_tc(pid)[0]["options"]["rate"] == 250_000_000
        route.unlimit(LO)
        assert "tbf" not in route.disciplines(LO)
    assert "tbf" not in {item["kind"] for item in said_by_tc(pid)}


def test_kernels_refusal_is_an_error(pid: int) -> None:
    with netlink.Route(pid) as route, pytest.raises(OSError, match="No such device"):
        route.limit(99, 10_000_000, 16384, 0.1)


def namespaces() -> set[Path]:
    """The network namespaces of this process's threads."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            found.add((task / "ns/net").readlink())
    return found


def test_nobody_elses_namespace_changes(pid: int) -> None:
    """The thread that asks for another namespace's socket stays in its own."""
    own = Path("/proc/self/ns/net").readlink()
    with netlink.Route(pid), netlink.Route():
        end = time.monotonic() + 5
        # The thread that entered it has ended for Python before it has for the kernel.
        while (found := namespaces()) != {own} and time.monotonic() < end:
            time.sleep(0.01)
    assert found == {own}


def test_process_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        netlink.Route(1 << 22)


def test_link_says_the_same_whichever_way_it_was_asked(pid: int) -> None:
    """Rates that tc alone can set are read as well; one end of a link is shaped, changed and freed."""
    kinds: tuple[str, ...] = ()
    for rate in (10_000_000, 40_000_000_000, 5_000_000):
        done = links.one_end(pid, "lo", shaped(rate), kinds)
        kinds = done["kinds"]
        assert (done["rate"], done["kinds"]) == (rate, ("tbf",))
        assert links.one_end(pid, "lo") == done == links.tc(links.within(pid), "lo")
    assert links.one_end(pid, "lo", shaped(None), ["tbf"])["kinds"] == ()
