"""Whether the machines find one another by the names that the inventory gives them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError

from coldframe.controller.checks import LOOPBACK, Machine
from coldframe.controller.settings import Finding


def check_resolution(machines: Sequence[Machine], monitor: str) -> list[Finding]:
    """Clients find the server, and the monitor finds everybody.

    A name that is an alias in the controller's configuration of ssh, or stands in a hosts file, leads the
    controller to a machine and its containers nowhere: they ask DNS alone.

    Parameters
    ----------
    monitor : str
        The machine that Prometheus is on; empty where there is none.
    """
    findings = []
    for target in machines:
        for asking in machines:
            needs = ("fl_server" in target.groups and "fl_clients" in asking.groups) or asking.name == monitor
            found = (asking.facts or {}).get("resolved", {}).get(target.address)
            # A machine reaches its own containers by the engine's network.
            if not needs or asking is target or found in (None, "dns", "unknown"):
                continue
            own = (target.facts or {}).get("address") or "192.0.2.10"
            what = f"{target.address}, the address of {target.name}"
            why = "stands in its hosts file alone, which containers do not read"
            problem = f"{what}, {why}" if found == "hosts" else f"it cannot resolve {what}"
            remedy = (
                f"set fl_address of {target.name} in the inventory to what all machines reach, such as {own}"
            )
            findings.append(Finding(problem, remedy, asking.name))
            break  # the others lack it too
    return findings


def names_to_resolve(addresses: Sequence[str]) -> list[str]:
    """Return those of some addresses that are names.

    >>> names_to_resolve(["fl.example.org", "192.0.2.1", "localhost", "fl.example.org"])
    ['fl.example.org']
    """
    names = [text for text in addresses if not LOOPBACK.fullmatch(text) and not is_address(text)]
    return list(dict.fromkeys(names))


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def coldframe_names(machines: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """The names, not addresses, by which the machines of an inventory find one another."""
    given = []
    for machine in machines:
        try:
            known = hostvars[machine]
            local = known.get("ansible_connection") == "local"
            address = known.get("fl_address") or known.get("ansible_host") or ("" if local else machine)
        except AnsibleError:
            continue  # preflight says what is wrong with it
        given.append(str(address))
    return names_to_resolve([address for address in given if address])
