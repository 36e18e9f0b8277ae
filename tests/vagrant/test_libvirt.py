"""The same with virtual machines: `make test-libvirt`, for machines with time.

Their box is made here; COLDFRAME_VAGRANT_BOX names another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.image import ensure_box
from tests.hosts.shell import as_root, call
from tests.vagrant.cluster import FEDERATION, Cluster

# Without the processor's help everything takes 20 to 40 times as long.
PATIENCE = 3600
TRAINING = {
    "rounds": 1,
    "dataset": "synthetic",
    "max_samples": 64,
    "fraction_evaluate": 0,
    "round_timeout": PATIENCE,
    "wait_timeout": PATIENCE,
}
VARIABLES = {
    "fl_monitoring": False,
    "fl_server_start_timeout": PATIENCE,
    "docker_engine_start_timeout": PATIENCE,
}
ONE_CLIENT = {"min_train_clients": 1, "min_evaluate_clients": 1, "min_available_clients": 1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server and one machine with a client, as virtual machines."""
    box = os.environ.get("COLDFRAME_VAGRANT_BOX") or str(ensure_box())
    clone = Cluster.clone(tmp_path_factory.mktemp("libvirt"))
    before = pools()
    try:
        settings = {"provider": "libvirt", "clients": 1, "memory": 2048, "box": box, "variables": VARIABLES}
        with clone.standing(settings, {**TRAINING, **ONE_CLIENT}) as cluster:
            yield cluster
    finally:
        forget_box(Path(box).stem)
        for pool in pools() - before:
            virsh("pool-destroy", pool)
            virsh("pool-undefine", pool)


def virsh(*arguments: str) -> list[str]:
    """Run a command of libvirt's; the words that it printed."""
    return call(as_root(["virsh", "--connect", "qemu:///system", *arguments])).stdout.split()


def pools() -> set[str]:
    """Where libvirt keeps disks; Vagrant makes one if there is none."""
    return set(virsh("pool-list", "--all", "--name"))


def forget_box(name: str) -> None:
    """Remove libvirt's copy of a box of ours, which Vagrant leaves there for the next machine."""
    for pool in pools():
        for volume in virsh("vol-list", "--pool", pool)[3:]:
            if volume.startswith(f"coldframe-VAGRANTSLASH-{name}_"):
                virsh("vol-delete", "--pool", pool, volume)


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
