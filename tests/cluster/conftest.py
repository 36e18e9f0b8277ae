"""The hosts and the federation that the tests of lane A share, and the order of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.federation import write_inventory
from tests.cluster.lab import sh
from tests.cluster.watch import WatchedLab
from tests.hosts import Hosts
from tests.hosts.hosts import load
from tests.hosts.seeds import fl_seed

# In the order that costs least: what makes hosts of its own, then blank hosts; what takes the federation down
# comes last. No module needs the order: each deploys what it does not find standing.
ORDER = (
    "test_hosts.py",
    "test_make.py",
    "test_registry.py",
    "test_blank_hosts.py",
    "test_main_job.py",
    "test_monitoring.py",
    "test_monitoring_dashboards.py",
    "test_monitoring_grafana.py",
    "test_monitoring_off.py",
    "test_throttle.py",
    "test_experiment.py",
    "test_faults.py",
    "test_changes.py",
)
LANE_A = set(ORDER[3:])  # those that share a federation; two federations at once are too much for two cores
BLANK = {"test_blank_hosts.py", "test_main_job.py"}  # their hosts have never seen a deployment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which lane a test belongs to, and put the tests into their order."""
    for item in items:
        lane = "lane_a" if item.path.name in LANE_A else "lane_b"
        item.add_marker(lane)
    places = {name: place for place, name in enumerate(ORDER)}
    items.sort(key=lambda item: places.get(item.path.name, -1))


# An engine whose containers are not where most engines have them, and a umask of 077 for all that plays do:
# limits hold and files are readable all the same. The driver for systemd, which engines have under control
# groups v2, takes a slice.
ELSEWHERE = """
parent=/lab/nested
[ ! -f /sys/fs/cgroup/cgroup.controllers ] || parent=lab-nested.slice
mkdir -p /etc/docker
printf '{"cgroup-parent": "%s"}\\n' "$parent" >/etc/docker/daemon.json
umask 0337
printf 'Defaults umask=0077, umask_override\\n' >/etc/sudoers.d/umask
"""


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedLab]:
    """Hosts `server`, `c1` and `c2` and the inventory of the federation. Their engines are blank where a
    module that is about blank hosts is among the tests; else they have the FL image.

    COLDFRAME_HOSTS=<prefix> takes a standing set (make hosts), for the inner loop."""
    directory: Path = tmp_path_factory.mktemp("lab")
    standing = os.environ.get("COLDFRAME_HOSTS")
    if standing:
        lab = WatchedLab(load(standing), directory)
        write_inventory(lab)
        yield lab
        lab.clear()
        return
    blank = any(item.path.name in BLANK for item in request.session.items)
    with Hosts(names=["server", "c1", "c2"], seed=None if blank else fl_seed()) as hosts:
        sh(hosts["c2"], ELSEWHERE)
        lab = WatchedLab(hosts, directory)
        write_inventory(lab)
        yield lab


@pytest.fixture(scope="module")
def federation(lab: WatchedLab) -> WatchedLab:
    """The lab with the federation standing, monitored or not."""
    lab.deploy(dataset="synthetic")
    return lab


@pytest.fixture(scope="module")
def watched(lab: WatchedLab) -> WatchedLab:
    """The lab with the federation standing and monitored. A deployment of three hosts takes half as long
    without: test_monitoring_off.py turns it off when nobody needs it any more."""
    if not lab.monitoring:
        lab.monitoring = True
        write_inventory(lab)
        lab.deployed.clear()
    lab.deploy(dataset="synthetic")
    return lab
