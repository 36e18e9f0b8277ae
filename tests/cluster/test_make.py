"""The Makefile's targets in a fresh clone, on test hosts."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import ROOT, Lab
from tests.cluster.pair import pair


def make(checkout: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run make there and return what it printed."""
    result = subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def clone(target: Path) -> Path:
    """Clone what is committed, as a newcomer would get it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server that also monitors, and a machine of clients."""
    with pair(tmp_path_factory.mktemp("make")) as lab:
        lab.write_inventory(fl_monitoring=True)
        yield lab


def test_make_up_and_down_in_a_fresh_clone(lab: Lab, tmp_path: Path) -> None:
    """make up CLIENTS=2 ROUNDS=1 with its monitoring, once more, and make down; ARGS sends it to the lab."""
    checkout = clone(tmp_path / "coldframe")
    arguments = f"ARGS=-i {lab.inventory} -e dataset=synthetic -e max_samples=900"
    output = make(checkout, lab.environment(), "up", "CLIENTS=2", "ROUNDS=1", arguments)
    assert "round 1/1" in output
    assert "accuracy" in output
    assert "What to type next" in output
    assert lab.summary()["clients"] == 2
    assert "coldframe-prometheus" in lab.on_server("docker ps --format '{{.Names}}'")

    again = make(checkout, lab.environment(), "up", "CLIENTS=2", "ROUNDS=2", arguments)
    assert "round 2/2" in again
    make(checkout, lab.environment(), "down", f"ARGS=-i {lab.inventory} -e purge=true -e yes=true")
    for host in (lab.server, lab.machine):
        assert host.run("docker ps -aq --filter label=coldframe.federation").stdout.strip() == ""


def test_make_hosts_prints_an_inventory(tmp_path: Path) -> None:
    """make hosts N=2 makes hosts to play with, make hosts-down removes them."""
    prefix = f"mk{secrets.token_hex(2)}"
    environment = dict(os.environ)
    try:
        output = make(ROOT, environment, "hosts", "N=2", f"PREFIX={prefix}")
        assert "fl_server" in output
        assert "ansible_host" in output
    finally:
        make(ROOT, environment, "hosts-down", f"PREFIX={prefix}")
    docker = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
    left = subprocess.run(
        [docker, "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    assert prefix not in left.stdout
