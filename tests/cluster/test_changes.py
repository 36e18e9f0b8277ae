"""What changes a federation, takes parts of it away, or takes it down: the last tests of their lane.

The first deploys the federation where none stands; each says what it leaves behind.
"""

from __future__ import annotations

import json
import time

import yaml

from tests.cluster.federation import (
    CLIENTS,
    COUNTS,
    CPU,
    EVERYBODY,
    FEDERATION,
    containers,
    turned_away,
    write_inventory,
)
from tests.cluster.lab import SAMPLES, Lab, sh
from tests.cluster.watch import WatchedLab


def test_teardown_purges_only_this_federation(federation: Lab) -> None:
    """A second federation on the same engines comes and goes; the first does not notice."""
    before = federation.container(federation.machine, "coldframe-c1-0")["State"]["StartedAt"]
    second = {"fl_federation": "second", "fl_port": "9192", "fl_client_count": "1", "fl_client_cpu": "0.2"}
    federation.must("site.yml", rounds="1", dataset="synthetic", max_samples="900", **second)
    assert federation.summary()["status"] == "completed"
    assert "second-c1-0" in federation.on_machine("docker ps --format '{{.Names}}'")
    # A key that is good there is no good here.
    assert turned_away(federation, "/var/lib/coldframe/second/keys/c1-0")

    throttled = federation.must("throttle.yml", cpu="0.15", clients="c1-0", fl_federation="second")
    assert "c1-0" in throttled.output and "holds" in throttled.output
    for name, cpu in (("second", 0.15), ("coldframe", CPU)):
        assert federation.kernel(federation.machine, f"{name}-c1-0").cpu == cpu

    play = federation.must("teardown.yml", purge="true", yes="true", fl_federation="second")
    assert max(play.changed.values()) > 0
    for host in federation.hosts:
        assert "second" not in sh(
            host, "docker ps --all --format '{{.Names}}'; docker network ls; ls /var/lib/coldframe"
        )
    assert federation.container(federation.machine, "coldframe-c1-0")["State"]["StartedAt"] == before
    assert federation.run()["status"] == "completed"
    again = federation.must("teardown.yml", purge="true", yes="true", fl_federation="second")
    assert set(again.changed.values()) == {0}


def clients(lab: Lab) -> dict[str, str]:
    """Which container each client is, and since when it runs; the server's too."""
    return {name.rpartition("coldframe-")[2]: line for name, line in containers(lab).items()}


def ids(lab: Lab) -> dict[str, int]:
    """The partition id of every client that has ever been one."""
    found: dict[str, int] = json.loads(lab.on_server("cat /var/lib/coldframe/coldframe/partitions.json"))
    return found


def test_client_joins_while_a_machine_leaves(federation: Lab) -> None:
    """A client joins c1 while c2 is no machine for clients any more. Who stays keeps container and partition
    id, and all of them train. Without monitoring, of which c2 would keep a part.

    A user edits the inventory and types ansible-playbook -i <inventory> site.yml.
    """
    federation.monitoring = False
    write_inventory(federation)
    federation.must("site.yml", train="false", dataset="synthetic")
    before, given = clients(federation), ids(federation)
    assert given.keys() == CLIENTS.keys()

    write_inventory(federation, counts={**COUNTS, "c1": 3})
    inventory = yaml.safe_load(federation.inventory.read_text())
    del inventory["fl_machines"]["children"]["fl_clients"]["hosts"]["c2"]
    federation.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
    federation.must("site.yml", train="false", dataset="synthetic")
    assert sh(federation.hosts["c2"], "docker ps --all --quiet") == ""
    now = clients(federation)
    assert now.items() > {name: before[name] for name in ("server-0", "c1-0", "c1-1", "server")}.items()
    assert now.keys() & {*CLIENTS, "c1-2"} == {"server-0", "c1-0", "c1-1", "c1-2"}
    assert ids(federation) == {**given, "c1-2": max(given.values()) + 1}
    # The part of the one that left is nobody's: c1-2 has the fifth of five.
    summary = federation.run(min_train_clients="4", min_available_clients="4")
    assert (summary["clients"], summary["failures"]) == (4, [])
    replied = {event["client"] for event in federation.journal() if event["event"] == "reply"}
    assert replied == {"server-0", "c1-0", "c1-1", "c1-2"}
    sizes = {sum(event["class_counts"]) for event in federation.journal() if event["event"] == "partition"}
    assert sizes == {SAMPLES // 5}


def test_teardown_without_purge_keeps_the_state(federation: WatchedLab) -> None:
    """Containers go; partition ids, keys and results stay, and a new deployment finds them.

    It is made without c2, which joins when the others stand, before c1 in the inventory, while a client of c1
    leaves: who stays keeps its container, and who comes back has its old id. The new machine is a target
    without a restart of Prometheus, which has not been told to read its configuration again either."""
    given = ids(federation)
    if not federation.results.joinpath("latest").exists():  # alone, it finds no run
        federation.run()
    federation.must("throttle.yml", cpu="0.2", clients="c1-0")
    federation.must("teardown.yml")
    for host in federation.hosts:
        assert sh(host, "docker ps --all --quiet").strip() == ""
        # A federation that is deployed again begins without throttles.
        assert "agent" not in sh(host, f"ls /var/lib/coldframe/{FEDERATION}").split()
    assert federation.results.joinpath("latest").exists()
    federation.monitoring = True
    write_inventory(federation, ["server", "c1"], counts={**COUNTS, "c1": 3})
    federation.must("site.yml", train="false", dataset="synthetic")
    prometheus = federation.container(federation.server, f"{FEDERATION}-prometheus")
    before, joins = clients(federation), time.time()
    assert "c1-2" in before
    write_inventory(federation, ["server", "c2", "c1"])
    federation.must("site.yml", train="false", dataset="synthetic")
    now = clients(federation)
    assert now.items() > {name: before[name] for name in ("server-0", "c1-0", "c1-1", "server")}.items()
    assert now.keys() & {*CLIENTS, "c1-2"} == CLIENTS.keys()
    assert ids(federation) == {"c1-2": max(given.values()) + 1, **given}
    federation.wait_for("all clients", lambda: federation.online() == set(CLIENTS), 60)
    assert federation.kernel(federation.machine, f"{FEDERATION}-c1-0").cpu == CPU

    def found() -> set[tuple[str, str]]:
        # Not the samples that c2's last containers have left.
        up = federation.query(f"up == 1 and timestamp(up) > {joins}")
        return {(labels["machine"], labels["job"]) for labels, _ in up}

    federation.wait_for("the new targets", lambda: {("c2", "node"), ("c2", "containers")} <= found())
    after = federation.container(federation.server, f"{FEDERATION}-prometheus")
    for key in ("Id", "RestartCount"):
        assert after[key] == prometheus[key]
    assert after["State"]["StartedAt"] == prometheus["State"]["StartedAt"]
    assert federation.value("prometheus_config_last_reload_success_timestamp_seconds") < joins
    summary = federation.run(**EVERYBODY)
    assert (summary["clients"], summary["failures"]) == (len(CLIENTS), [])
    write_inventory(federation)


def test_purge_leaves_nothing(federation: Lab) -> None:
    """Containers, networks, images, data, keys, calibrations and results are gone, here and there."""
    federation.on_machine("echo '{}' >/var/lib/coldframe/calibration.json")
    federation.must("teardown.yml", purge="true", yes="true")
    federation.deployed.clear()
    for host in federation.hosts:
        left = sh(
            host,
            "docker ps --all --quiet; docker network ls --quiet --filter label=coldframe.federation;"
            " docker image ls --quiet 'coldframe/*'; ls -A /var/lib/coldframe 2>/dev/null",
        )
        assert left.split() == []
    assert not list(federation.results.glob("2*"))
    assert not (federation.directory / "state" / "coldframe" / "coldframe").exists()
