"""Every verb on one host, by the Python that runs these tests; no torch and no flwr is needed here.

scripts/test_python313.sh runs them with another Python and ansible-core than the rest of the suite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.lab import Lab, Play
from tests.hosts import Hosts
from tests.hosts.seeds import fl_seed

CLIENTS = ["server-0", "server-1"]
CPU = 0.4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One host, which is server and holds two clients."""
    with Hosts(names=["server"], seed=fl_seed()) as hosts:
        lab = Lab(hosts, tmp_path_factory.mktemp("lab"))
        lab.write_inventory(2, ["server"], fl_client_cpu=CPU)
        yield lab


@pytest.fixture
def federation(lab: Lab) -> Lab:
    """The same with its federation standing."""
    if not lab.deployed:
        play = lab.must("site.yml", train="false", dataset="synthetic")
        assert play.changed["server"] > 0
        lab.deployed.add("coldframe")
        nothing_is_deprecated(play)
    return lab


def nothing_is_deprecated(play: Play) -> None:
    """The next release of Ansible will run this too."""
    assert "DEPRECATION" not in play.output, play.output


def report(federation: Lab) -> dict[str, dict[str, Any]]:
    """What status.yml says of each client."""
    return {item["client"]: item for item in federation.status()["clients"]}


def cores(federation: Lab) -> list[float | None]:
    """How many cores the kernel grants the clients."""
    return [federation.kernel(federation.server, f"coldframe-{client}").cpu for client in CLIENTS]


def test_a_blank_host_can_be_checked(lab: Lab) -> None:
    if lab.deployed:
        lab.must("teardown.yml", purge="true")
        lab.deployed.clear()
    play = lab.must("site.yml", "--check", "--diff", train="false", dataset="synthetic")
    nothing_is_deprecated(play)
    assert lab.on_server("ls /var/lib/coldframe 2>/dev/null", check=False) == ""


def test_a_second_deployment_changes_nothing(federation: Lab) -> None:
    for more in ({}, {"redeploy": "true"}):
        play = federation.must("site.yml", train="false", dataset="synthetic", **more)
        assert set(play.changed.values()) == {0}, play.output


def test_status_shows_every_client(federation: Lab) -> None:
    play = federation.must("status.yml")
    nothing_is_deprecated(play)
    assert all(name in play.output for name in CLIENTS)
    clients = report(federation)
    assert sorted(clients) == CLIENTS
    assert all(client["limits_hold"] for client in clients.values())


def test_throttle_changes_one_client_and_takes_it_back(federation: Lab) -> None:
    play = federation.must("throttle.yml", cpu="0.1", clients="server-1")
    nothing_is_deprecated(play)
    assert cores(federation) == [CPU, 0.1]
    assert report(federation)["server-1"]["cpu_verified"] == 0.1
    federation.must("throttle.yml", undo="true")
    assert cores(federation) == [CPU, CPU]


def test_run_trains_and_its_results_are_here(federation: Lab) -> None:
    play = federation.must("run.yml", rounds="2", dataset="synthetic", max_samples="900")
    nothing_is_deprecated(play)
    summary = federation.summary()
    assert (summary["status"], summary["rounds"], summary["clients"]) == ("completed", 2, 2)
    latest = federation.results / "latest"
    assert len((latest / "clients.csv").read_text().splitlines()) == 1 + 2 * 2 * 2  # rounds, clients, phases
    assert (latest / "model.pt").stat().st_size > 0
    assert "<svg" in (latest / "report.html").read_text()


def test_a_wrong_variable_is_refused_with_the_nearest_name(federation: Lab) -> None:
    play = federation.play("run.yml", roundz="3")
    assert play.code != 0
    assert "roundz is no variable of run.yml -> did you mean rounds?" in " ".join(play.output.split())


def test_teardown_leaves_nothing(federation: Lab) -> None:
    """It comes last: it takes the federation down."""
    play = federation.must("teardown.yml", purge="true")
    nothing_is_deprecated(play)
    federation.deployed.clear()
    left = federation.on_server(
        "docker ps --all --quiet; docker network ls --quiet --filter label=coldframe.federation;"
        " ls -A /var/lib/coldframe 2>/dev/null || true"
    )
    assert left == ""
