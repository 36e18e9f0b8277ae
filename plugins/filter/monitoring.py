"""Filters of the monitoring: what Prometheus is to ask, and the names that certificates bear."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any


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


def coldframe_targets(
    machines: Iterable[str], hostvars: Mapping[str, Any], server: str
) -> dict[str, list[dict[str, Any]]]:
    """What Prometheus is to ask, by job, as its file_sd wants it.

    Parameters
    ----------
    machines : iterable of str
        Inventory names; ``hostvars`` of each holds ``coldframe_address``, ``coldframe_ports``, and
        ``coldframe_federation``.
    server : str
        The machine whose gateway publishes the FL exporter.
    """

    def target(machine: str, port: str) -> dict[str, Any]:
        variables = hostvars[machine]
        address = str(variables["coldframe_address"])
        host = f"[{address}]" if ":" in address else address
        return {
            "targets": [f"{host}:{variables['coldframe_ports'][port]}"],
            "labels": {"federation": variables["coldframe_federation"], "machine": machine},
        }

    names = list(machines)
    return {
        "node": [target(name, "node_exporter_port") for name in names],
        "containers": [target(name, "container_exporter_port") for name in names],
        "fl": [target(server, "fl_metrics_port")],
    }


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "coldframe_certificate_names": coldframe_certificate_names,
            "coldframe_targets": coldframe_targets,
        }
