"""One lab for all cluster tests: three hosts, made once and removed at the end, also after a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.three import write_inventory
from tests.cluster.watch import FEDERATION, WatchedLab
from tests.hosts import Hosts
from tests.hosts.hosts import load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the faults come last: the main job begins with blank hosts."""
    items.sort(key=lambda item: item.path.name == "test_faults.py")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Hosts `server`, `c1` and `c2` with blank engines; the inventory names the first two, unless a test
    writes another. COLDFRAME_HOSTS=<prefix> takes a standing set (make hosts), for the inner loop."""
    directory: Path = tmp_path_factory.mktemp("lab")
    standing = os.environ.get("COLDFRAME_HOSTS")
    if standing:
        lab = Lab(load(standing), directory)
        lab.write_inventory()
        yield lab
        return
    with Hosts(names=["server", "c1", "c2"]) as hosts:
        lab = Lab(hosts, directory)
        lab.write_inventory()
        yield lab


@pytest.fixture(scope="module")
def three_hosts(lab: Lab) -> Iterator[None]:
    """The inventory of all three hosts; other modules find their own again, and nothing standing."""
    write_inventory(lab)
    yield
    lab.clear()
    lab.write_inventory()


@pytest.fixture
def federation(lab: Lab) -> Lab:
    """The lab with its inventory's federation standing."""
    lab.deploy()
    return lab


@pytest.fixture(scope="session")
def watched(lab: Lab) -> Iterator[WatchedLab]:
    """A monitored federation with clients on both hosts; the second host joined when the first stood.

    Whoever needs the machines' CPU for other things takes it down with ``lab.clear()``.
    """
    lab.clear()
    watched = WatchedLab(lab.hosts, lab.directory, lab.deployed)
    watched.write(["server"])
    watched.must("site.yml", train="false", dataset="synthetic")
    lab.deployed.add(FEDERATION)
    watched.before = watched.container(watched.server, f"{FEDERATION}-prometheus")
    watched.write(["server", "c1"])
    watched.must("site.yml", train="false", dataset="synthetic")
    yield watched
    lab.clear()
