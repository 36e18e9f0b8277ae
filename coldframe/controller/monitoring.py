"""Ports of a federation, the targets of Prometheus, and the names in certificates."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Where nothing else is said. Another fl_port moves the others with it.
PORTS = {
    "fl_port": 9092,
    "fl_metrics_port": 9093,
    "prometheus_port": 9090,
    "node_exporter_port": 9100,
    "container_exporter_port": 9101,
    "grafana_port": 3000,
}


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def coldframe_certificate_names(names: Iterable[str]) -> list[str]:
    """Names as a certificate has them, those of the loopback too.

    >>> coldframe_certificate_names(["192.0.2.1"])
    ['IP:192.0.2.1', 'DNS:localhost', 'IP:127.0.0.1']
    """
    found = [f"{'IP' if is_address(str(name)) else 'DNS'}:{name}" for name in names]
    return list(dict.fromkeys([*found, "DNS:localhost", "IP:127.0.0.1"]))


def coldframe_host(address: str) -> str:
    """An address as a URL has it: one of IPv6 stands in brackets."""
    return f"[{address}]" if ":" in str(address) else str(address)


def coldframe_ports(machine: str, hostvars: Mapping[str, Any], servers: Sequence[str]) -> dict[str, int]:
    """What a machine listens on, by the variable that moves it.

    A value that is no number counts as none: preflight says so of it.

    Parameters
    ----------
    servers : sequence of str
        The group fl_server; the ports follow fl_port of the first of it.
    """
    first = PORTS["fl_port"]
    moved = whole(hostvars[servers[0]].get("fl_port") if servers else None, first) - first
    usual = {name: port + moved for name, port in PORTS.items()}
    if usual["grafana_port"] < 1024:  # below a low fl_port there is no room for a port so far away
        usual["grafana_port"] = usual["fl_port"] - 3
    given = hostvars[machine]
    return {name: whole(given.get(name), port) for name, port in usual.items()}


def whole(value: object, default: int) -> int:
    """A value as a whole number; the default if it is none."""
    return int(str(value)) if str(value).isdecimal() else default


def coldframe_targets(
    machines: Iterable[str], hostvars: Mapping[str, Any], server: str, federation: str
) -> dict[str, list[dict[str, Any]]]:
    """What Prometheus is to ask, by job, as its file_sd wants it.

    Parameters
    ----------
    machines : iterable of str
        Inventory names; ``hostvars`` of each holds ``coldframe_address``.
    server : str
        The machine whose gateway publishes the FL exporter.
    """

    def target(machine: str, port: str) -> dict[str, Any]:
        host = coldframe_host(hostvars[machine]["coldframe_address"])
        return {
            "targets": [f"{host}:{coldframe_ports(machine, hostvars, [server])[port]}"],
            "labels": {"federation": federation, "machine": machine},
        }

    names = list(machines)
    return {
        "node": [target(name, "node_exporter_port") for name in names],
        "containers": [target(name, "container_exporter_port") for name in names],
        "fl": [target(server, "fl_metrics_port")],
    }


def coldframe_target_files(targets: Mapping[str, Any]) -> dict[str, str]:
    """The files that Prometheus reads its targets from, content by name, of the targets by job."""
    return {
        f"{job}.json": json.dumps(found, indent=1, sort_keys=True) + "\n" for job, found in targets.items()
    }
