"""The same with virtual machines: `make test-libvirt`, for machines with libvirt and time.

COLDFRAME_VAGRANT_BOX names another box than the one in config.example.rb, for where that is out of reach.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.vagrant.cluster import FEDERATION, Cluster

# Without the processor's help everything takes 20 to 40 times as long.
PATIENCE = 3600
TRAINING = {"rounds": 2, "dataset": "synthetic", "round_timeout": PATIENCE, "wait_timeout": PATIENCE}
ONE_CLIENT = {"min_train_clients": 1, "min_evaluate_clients": 1, "min_available_clients": 1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server and one machine with a client, as virtual machines."""
    settings: dict[str, object] = {"provider": "libvirt", "clients": 1}
    if box := os.environ.get("COLDFRAME_VAGRANT_BOX"):
        settings["box"] = box
    clone = Cluster.clone(tmp_path_factory.mktemp("libvirt"))
    with clone.standing(settings, {**TRAINING, **ONE_CLIENT}) as cluster:
        yield cluster


def test_virtual_machines_train_are_throttled_and_go(cluster: Cluster) -> None:
    """`vagrant up` ends in a finished run, throttle.yml reaches the machine, destroy leaves none."""
    assert cluster.first_up.count("Running provisioner: site") == 1
    assert cluster.summary()["status"] == "completed"
    cluster.play("throttle.yml", "-e", "cpu=0.5")
    ssh = ["ssh", "client1", "-c", f"sudo docker exec {FEDERATION}-client1-0 cat /sys/fs/cgroup/cpu.max"]
    assert cluster.must(*ssh).split()[:2] == ["50000", "100000"]
    cluster.must("destroy", "-f")
    assert cluster.must("status").count("not created (libvirt)") == 2
    assert not cluster.inventory.exists()
