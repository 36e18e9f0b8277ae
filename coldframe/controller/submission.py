"""What a run stood on when it was submitted: the limits that the agents had read, and what was typed.

`submitted.json` lies in the run's directory on the server, so that it is the same whoever collects the run:

- `variables`: those of run.yml that describe the run
- `settings`: those of the run that its app does not get: see `coldframe.recording.settings`
- `clients`: name, machine, partition_id, profile, the limits that the kernel held, `desired`, `baseline`, and
  `read_at` (unix time of the client's machine)
- `machines`, `federation`, `server`, `versions`
- `scenario`: of a run that has one its name, text, what its entries are, and what it asserts
- `experiment`: of a run of an experiment its name, point, factors, seed, repetition and key

A run that was submitted with Flower's own command has no such note. Then the agents tell at the collection
what they read now and what has changed since the run began.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coldframe import limits
from coldframe.controller.records import Event

CAUSE = "in force"  # of the event, at a run's start, of a limit that is not the baseline's


def read(folder: Path) -> dict[str, Any]:
    """Return the note that was made when the run was submitted; an older version has made none."""
    path = folder / "submitted.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def at_start(
    clients: Iterable[Mapping[str, Any]], events: Sequence[Event], first: float
) -> list[dict[str, Any]]:
    """Return the clients with the limits that held when the run began: as they were read before it, and then
    as the agents' events changed them."""
    found = []
    for client in clients:
        now = {**client, "desired": dict(client["desired"])}
        for event in events:
            changed = event["client"] == client["name"] and event.get("verified")
            if changed and client["read_at"] <= event["time"] < first:
                now |= {key: value for key, value in event["verified"].items() if key in limits.LIMITS}
                now["desired"] |= event["requested"]
        found.append(now)
    return found


def looking_back(
    clients: Iterable[Mapping[str, Any]], events: Sequence[Event], first: float
) -> list[dict[str, Any]]:
    """Return the clients with the limits that held when the run began, from what was read after it.

    What nobody has changed since then held. What was changed is what the last change before the run says; if
    the agents know of none, it is None, and its name is in ``unknown``.
    """
    found = []
    for client in clients:
        then = {**client, "desired": dict(client["desired"]), "unknown": []}
        for key in limits.LIMITS:
            own = [
                item
                for item in events
                if item["client"] == client["name"] and key in (item.get("requested") or {})
            ]
            if not any(item["time"] >= first for item in own):
                continue
            before = next((item for item in reversed(own) if item["time"] < first), {})
            if before.get("verified"):
                then[key], then["desired"][key] = before["verified"][key], before["requested"][key]
            else:
                then[key] = then["desired"][key] = None
                then["unknown"].append(key)
        found.append(then)
    return found


def in_force(clients: Iterable[Mapping[str, Any]], first: float) -> list[Event]:
    """Return an event for each client that did not have its baseline when the run began."""
    events = []
    for client in clients:
        baseline = limits.desired(client["baseline"], {})
        held = {key: client[key] for key in limits.LIMITS}
        if not client["running"]:
            continue
        other = {**limits.differences(baseline, held), **limits.differences(client["desired"], baseline)}
        keys = [key for key in limits.LIMITS if key in other and key not in client.get("unknown", ())]
        if keys:
            requested = {key: client["desired"].get(key) for key in keys}
            events.append(
                {
                    "time": first,
                    "client": client["name"],
                    "cause": CAUSE,
                    "requested": requested,
                    "verified": {key: held[key] for key in keys},
                    "holds": not limits.differences(requested, held),
                    "baseline": {key: baseline[key] for key in keys},
                }
            )
    return events


def inventory(
    noted: Mapping[str, Any], clients: Iterable[Mapping[str, Any]], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of `inventory.json`: what was noted, and what is found now where that says more.

    Parameters
    ----------
    noted
        The note of the submission.
    clients
        Its clients as they were when the run began.
    found
        The inventory at the time of the collection.
    """
    known = {item["name"]: item for item in found.get("clients", [])}
    aside = ("desired", "read_at", "running", "unknown")
    held = {
        client["name"]: {key: value for key, value in client.items() if key not in aside}
        for client in clients
    }
    for name, item in known.items():  # where no agent answered, only the deployment's limits are known
        unread = {**dict.fromkeys(limits.LIMITS), "baseline": {key: item.get(key) for key in limits.LIMITS}}
        held[name] = {**item, **held.get(name, unread)}
    machines = {item["name"]: item for item in found.get("machines", [])}
    return {
        "federation": noted["federation"],
        "server": noted["server"],
        "clients": list(held.values()),
        "machines": [
            {**item, "docker": item["docker"] or machines.get(item["name"], {}).get("docker")}
            for item in noted["machines"]
        ],
    }
