"""Says where more was asked of a run's machines than they have: its times are theirs then, not its limits'.

It comes from what the machines said at the run's start, and from the agents' events: limits of the run's
clients, quotas of other federations' clients, and the load average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coldframe.controller.records import Event

ROUNDING = 1e-6


def reasons(
    inventory: Mapping[str, Any], events: Sequence[Event], first: float, alone: bool = True
) -> list[str] | None:
    """Say for each machine what exceeded its cores; None where nobody knows.

    Parameters
    ----------
    inventory
        Content of `inventory.json`: clients with the limits that held when the run began, and machines with
        `cores`, and as far as somebody looked at the start, `load` and `other_cpu`.
    events
        The agents' events of the run's time.
    first
        Unix time of the run's start.
    alone
        Whether no run of the same federation came right before: else the load average is that run's.
    """
    machines = [machine for machine in inventory.get("machines", []) if machine.get("cores")]
    clients = [client for client in inventory.get("clients", []) if held(client) is not None]
    known = {client.get("machine") for client in clients}
    judged = [m for m in machines if m["name"] in known or m.get("load") is not None]
    if not judged:
        return None
    found = []
    for machine in judged:
        here = [client for client in clients if client.get("machine") == machine["name"]]
        mine = {client["name"]: held(client) or 0.0 for client in here}
        looked = machine if alone else {**machine, "load": None}
        found += of_machine(looked, mine, events, first)
    return found


def of_machine(
    machine: Mapping[str, Any], limits: Mapping[str, float], events: Sequence[Event], first: float
) -> list[str]:
    """Say what exceeded the cores of one machine; `limits` are the CPU limits of its clients at the start."""
    name, cores = machine["name"], float(machine["cores"])
    others = float(machine.get("other_cpu") or 0.0)
    found = []
    now = dict(limits)
    steps = [(first, sum(now.values()))]
    for event in sorted(events, key=lambda event: float(event["time"])):
        if event["client"] in now and "cpu" in (event.get("verified") or {}):
            value = event["verified"]["cpu"]
            # Without a limit it may use all cores.
            now[event["client"]] = cores if value is None or value < 0 else float(value)
            steps.append((float(event["time"]), sum(now.values())))
    beside = f", those of other federations to {others:.4g}" if others else ""
    over = next(((at, own) for at, own in steps if own + others > cores + ROUNDING), None)
    if over and limits:
        after = "" if over[0] <= first else f" {over[0] - first:.1f} s after its start"
        found.append(
            f"{name}: the CPU limits of the run's clients added up to {over[1]:.4g} cores{beside}{after}, "
            f"and it has {cores:g}"
        )
    load = machine.get("load")
    if load is not None and load > cores:
        found.append(f"{name}: its load average was {load:.4g} before the run, and it has {cores:g} cores")
    return found


def others_cpu(facts: Mapping[str, Any], federation: str) -> float | None:
    """How many cores the clients of other federations may use on a machine; one without a limit, all."""
    if "docker" not in facts:
        return None
    limits = [
        item.get("cpu") or float(facts.get("cpus") or 0)
        for item in facts["docker"].get("containers", [])
        if item.get("running") and item.get("role") == "client" and item["federation"] != federation
    ]
    return round(sum(limits), 4)


def held(client: Mapping[str, Any]) -> float | None:
    """Give a client's CPU limit at the start: as it was read, else as it was deployed."""
    for limits in (client, client.get("baseline") or {}):
        if limits.get("cpu") is not None:
            return float(limits["cpu"])
    return None
