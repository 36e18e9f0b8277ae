"""Monitoring that is turned off goes away, and no client notices.

The last of the tests that share the federation of test_monitoring.py.
"""

from __future__ import annotations

import json

from tests.cluster.lab import sh
from tests.cluster.watch import FEDERATION, PORT, PORTS, WatchedLab


def starts(watched: WatchedLab) -> dict[str, tuple[str, str]]:
    """Each client's container, and when it was started."""
    label = f"label=coldframe.federation={FEDERATION}"
    found = {}
    for host in (watched.server, watched.machine):
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
    ports += [("c1", PORTS["node"]), ("c1", PORTS["containers"])]
    assert all(answers(watched, machine, port) for machine, port in ports)
    before = starts(watched)
    assert len(before) == 4
    watched.must("site.yml", train="false", dataset="synthetic", fl_monitoring="false")
    for name in ("server", "c1"):
        listed = sh(watched.hosts[name], "docker ps -a --filter label=coldframe.monitoring=true -q")
        assert listed == "", name
    assert [(machine, port) for machine, port in ports if answers(watched, machine, port)] == []
    assert answers(watched, "server", PORT)
    assert starts(watched) == before
    status = watched.must("status.yml", fl_monitoring="false").output
    assert f":{PORTS['prometheus']}" not in status
