"""Vagrant makes machines, the verbs work on them, and nothing is left: for real where they are containers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlgroups import read
from tests.hosts import fl_seed
from tests.hosts.hosts import free_subnets
from tests.hosts.shell import docker
from tests.vagrant.cluster import FEDERATION, Cluster, planted

CLIENTS = ("client1", "client2")
# Small enough to be over soon; what the model learns, and from which data, is another test's affair.
TRAINING = {"rounds": 1, "dataset": "synthetic", "max_samples": 600}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A fresh clone."""
    return Cluster.clone(tmp_path_factory.mktemp("vagrant"))


def virtualbox(folder: Path, command: str) -> Path:
    """Make a folder with the one program that Vagrant asks to find out about VirtualBox."""
    program = folder / "VBoxManage"
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("provider", ["virtualbox", "libvirt", "docker"])
def test_configuration_is_valid_for(provider: str, clone: Cluster, tmp_path: Path) -> None:
    """Vagrant looks at the block of one provider at a time."""
    clone.configure(provider=provider)
    done = clone.vagrant("validate", path=virtualbox(tmp_path, "echo 7.0.20r163906"))
    assert (done.code, done.text.strip()) == (0, "Vagrantfile validated successfully.")


MISTAKES: list[tuple[dict[str, object], str, str]] = [
    ({"addresses": ["10.9.8.7", "192.168.56.3", "192.168.56.4"]}, "10.9.8.7", "from 192.168.56.2 to"),
    ({"clients": 9, "network": "192.168.56.0/28"}, "network", "write a larger one"),
    ({"provider": "virtualbox"}, "virtualbox is not installed", "install VirtualBox"),
    ({"provider": "hyperv"}, "hyperv", "virtualbox, libvirt, docker"),
    ({"client": 3}, "client is no setting", "clients"),
    ({"memory": "much"}, "memory", "write memory: 3072"),
    ({"box": "gone.box"}, "gone.box is no file", "tests.hosts box"),
]


def test_no_clients_is_one_clear_message_before_anything_is_made(clone: Cluster) -> None:
    """`vagrant up` refuses a wrong override with what to write instead, and makes nothing."""
    clone.configure(provider="docker", clients=0)
    done = clone.vagrant("up")
    assert done.code != 0
    [message] = [line for line in done.text.splitlines() if line.startswith("vagrant/config.rb: ")]
    assert "clients: 0" in message
    assert "write clients: 2" in message
    assert len(done.text.split("\n\n")) == 2, done.text  # Vagrant's own sentence, and ours
    assert not clone.inventory.exists()
    assert clone.containers() == {}


def test_mistake_is_one_clear_message(clone: Cluster, tmp_path: Path) -> None:
    """Each wrong override is refused in one line, with what to write instead; a right one is not."""
    right: dict[str, object] = {"provider": "docker"}
    lines = clone.refusals(
        [right, *({**right, **settings} for settings, _, _ in MISTAKES)],
        path=virtualbox(tmp_path, "echo The vboxdrv kernel module is not loaded"),
    )
    assert lines.pop(0) is None
    for (settings, problem, remedy), message in zip(MISTAKES, lines, strict=True):
        assert message is not None, settings
        assert message.startswith("vagrant/config.rb: ")
        assert problem in message
        assert remedy in message
        assert "\n" not in message


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server and two machines of clients, containers of this machine's engine."""
    network = random.choice([subnet for subnet in free_subnets() if subnet.startswith("10.213.")])
    # The monitoring is another test's affair, and so is the way of the image to machines that lack it.
    settings = {
        "provider": "docker",
        "clients": len(CLIENTS),
        "network": network,
        "variables": {"fl_monitoring": False},
        "create_args": planted(fl_seed()),
    }
    with Cluster.clone(tmp_path_factory.mktemp("vagrant-up")).standing(settings, TRAINING) as cluster:
        yield cluster


def test_up_ends_in_a_finished_run(cluster: Cluster) -> None:
    """A fresh clone and `vagrant up`: machines, deployment, once, and a run; then where the inventory is.

    By the Python of the variable PYTHON, where it is set: make test-vagrant sets it to Debian 13's."""
    asked = os.environ.get("PYTHON")
    if asked:
        version = subprocess.run([asked, "-V"], capture_output=True, text=True, check=True).stdout
        assert cluster.call(".venv/bin/python", "-V").text == version
    assert cluster.first_up.count("Running provisioner: site") == 1
    assert "round 1/1" in cluster.first_up
    assert f"-i {cluster.inventory}" in cluster.first_up
    summary = cluster.summary()
    found = (summary["status"], summary["dataset"], summary["clients"])
    assert found == ("completed", TRAINING["dataset"], len(CLIENTS))
    assert len(summary["round_seconds"]) == TRAINING["rounds"]
    assert {client["machine"] for client in cluster.status()["clients"]} == set(CLIENTS)


def test_throttle_reaches_all_machines_from_the_root(cluster: Cluster) -> None:
    """`ansible-playbook throttle.yml -i <the inventory>` halves the clients, as their kernel says."""
    cluster.play("throttle.yml", "-e", "cpu=0.5")
    assert {quota(cluster, machine) for machine in CLIENTS} == {0.5}


def quota(cluster: Cluster, machine: str) -> float:
    """The cores that the kernel grants a machine's only client."""
    cores = read(lambda command: cluster.inside(machine, command), f"{FEDERATION}-{machine}-0").cpu
    assert cores is not None
    return cores


def processes(cluster: Cluster) -> set[str]:
    """What of the machines' own containers changes when one is made anew or started again."""
    command = "docker ps --quiet | xargs docker inspect --format '{{.Id}} {{.State.StartedAt}}'"
    return {
        line for machine in cluster.containers() for line in cluster.inside(machine, command).splitlines()
    }


def test_provision_with_another_training_changes_nothing_else(cluster: Cluster) -> None:
    """`vagrant provision` runs the new training on the federation that stands."""
    before = processes(cluster)
    cluster.configure(**cluster.settings, run={**TRAINING, "rounds": 2, "seed": 7})
    output = cluster.must("provision")
    assert output.count("Running provisioner: site") == 1
    summary = cluster.summary()
    assert (summary["status"], summary["seed"], len(summary["round_seconds"])) == ("completed", 7, 2)
    assert processes(cluster) == before
    assert quota(cluster, "client1") == 0.5


def test_halt_and_up_bring_the_federation_back(cluster: Cluster) -> None:
    """All machines stop and start; no playbook runs, and the clients are back with their limits."""
    before = cluster.containers()
    cluster.must("halt")
    states = {docker("inspect", "--format", "{{.State.Status}}", one) for one in before.values()}
    assert states == {"exited"}
    output = cluster.must("up")
    assert "Running provisioner" not in output
    assert cluster.containers() == before
    end = time.monotonic() + 300
    while {client["online"] for client in cluster.status()["clients"]} != {"online"}:
        assert time.monotonic() < end, cluster.status()
        time.sleep(2)
    assert {quota(cluster, machine) for machine in CLIENTS} == {0.5}
    cluster.play("run.yml", "-e", json.dumps(TRAINING))
    assert cluster.summary()["status"] == "completed"


def test_destroy_leaves_nothing(cluster: Cluster) -> None:
    """No container, volume, network or file; results are the user's and stay."""
    containers = cluster.containers()
    described = [docker("inspect", "--format", "{{json .}}", one) for one in containers.values()]
    volumes = docker("volume", "ls", "--quiet").split()
    mine = [name for name in volumes if any(name in text for text in described)]
    assert len(mine) == len(containers) == 1 + len(CLIENTS)
    cluster.must("destroy", "-f")
    assert cluster.containers() == {}
    assert set(docker("volume", "ls", "--quiet").split()) & set(mine) == set()
    assert cluster.settings["network"] not in docker("network", "ls", "--format", "{{.Name}}")
    left = [path for path in (cluster.checkout / "vagrant" / ".vagrant").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} <= {"rgloader"}  # Vagrant's own, whatever is up
    assert not cluster.state.exists()
    assert cluster.summary()["status"] == "completed"
