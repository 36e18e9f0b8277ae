"""Monitoring that is turned off goes away, and no client notices; later modules go without it."""

from __future__ import annotations

import json

from tests.cluster.federation import CLIENTS, FEDERATION, PORT, write_inventory
from tests.cluster.lab import LISTENING, sh
from tests.cluster.watch import PORTS, WatchedLab


def starts(watched: WatchedLab) -> dict[str, tuple[str, str]]:
    """Each client's container, and when it was started."""
    label = f"label=coldframe.federation={FEDERATION}"
    found = {}
    for host in watched.hosts:
        ids = sh(host, f"docker ps -q --filter {label} --filter label=coldframe.role=client").split()
        for item in json.loads(sh(host, f"docker inspect {' '.join(ids)}")):
            found[item["Name"]] = (item["Id"], item["State"]["StartedAt"])
    return found


def answers(watched: WatchedLab, machine: str, port: int) -> bool:
    """Whether anything listens there, seen from the neighbour."""
    neighbour = watched.hosts["c1" if machine == "server" else "server"]
    code = sh(neighbour, f"curl -sk -o /dev/null https://{watched.hosts[machine].address}:{port}/; echo $?")
    return code.strip() != "7"  # curl's word for a refused connection


def test_monitoring_turned_off_is_gone_and_no_client_was_touched(watched: WatchedLab) -> None:
    ports = [("server", port) for port in PORTS.values()]
    ports += [(machine, PORTS[job]) for machine in ("c1", "c2") for job in ("node", "containers")]
    assert all(answers(watched, machine, port) for machine, port in ports)
    before = starts(watched)
    assert len(before) == len(CLIENTS)
    watched.monitoring = False
    write_inventory(watched)
    watched.must("site.yml", train="false", dataset="synthetic")
    for host in watched.hosts:
        listed = sh(host, "docker ps -a --filter label=coldframe.monitoring=true -q")
        assert listed == "", host.name
    assert [(machine, port) for machine, port in ports if answers(watched, machine, port)] == []
    assert answers(watched, "server", PORT)
    listening = {host.name: set(map(int, sh(host, LISTENING).split())) for host in watched.hosts}
    # The server's container was not made anew: the engine goes on to publish the port of the metrics, and
    # nothing is behind it.
    assert listening == {"server": {22, PORT, PORTS["fl"]}, "c1": {22}, "c2": {22}}
    assert starts(watched) == before
    status = watched.must("status.yml").output
    assert f":{PORTS['prometheus']}" not in status
