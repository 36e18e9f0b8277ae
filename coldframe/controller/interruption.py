"""What a deployment would do to a running run, from what tasks returned in check mode."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

# The parts that a run uses; monitoring is none of them.
USED = ("server", "client", "agent")
# What docker_container changes in a container that goes on.
IN_PLACE = {"memory", "memory_swap"}
# What docker_container says of a container that it only makes, or starts.
HARMLESS = {"exists", "running"}
LONG = 100  # characters


def coldframe_harm(machines: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What would be changed of the containers that a run uses, a line for each.

    Parameters
    ----------
    machines : sequence of str
        Names of the federation's machines.
    hostvars : mapping
        Their variables: what the roles' tasks have registered; `coldframe_moved`, pairs of name and part; and
        the server's `coldframe_registered_file`, with the clients that are registered.
    """
    lines: list[str] = []
    for machine in machines:
        known = hostvars[machine]
        moved = [name for name, part in known.get("coldframe_moved", []) if part in USED]
        lines += [f"{name} on {machine} would be removed" for name in moved]
        for part in ("server", "agent"):
            lines += of_container(f"the {part} on {machine}", known.get(f"__fl_{part}_made", {}))
        lines += of_clients(machine, known.get("__fl_client_made", {}))
        lines += of_state(machine, known.get("__fl_client_files", {}))
    return lines + of_those_left_out(machines, hostvars)


def of_those_left_out(machines: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Clients that are registered and whose machine has left the inventory: they would be unregistered."""
    files = [
        hostvars[machine].get("coldframe_registered_file", {}).get("content", "") for machine in machines
    ]
    clients = [client for text in files if text for client in json.loads(base64.b64decode(text))]
    return [
        f"client {client['name']} would be unregistered ({client['machine']} is not in the inventory)"
        for client in clients
        if client["machine"] not in machines
    ]


def of_container(what: str, made: Mapping[str, Any]) -> Iterator[str]:
    """What docker_container would do, and why."""
    difference = made.get("diff", {})
    before, after = difference.get("before", {}), difference.get("after", {})
    names = after.keys() - HARMLESS
    if "image_name" in names:
        names -= {"image"}  # an id, of which the name says it better
    if made.get("changed") and names:
        words = [changed(name, before.get(name), after[name]) for name in sorted(names)]
        how = "would get another limit" if names <= IN_PLACE else "would be recreated"
        yield f"{what} {how} ({'; '.join(words)})"


def changed(name: str, before: Any, after: Any) -> str:
    """One value before and after, where it is short."""
    text = f"{name} {before} -> {after}"
    return text if len(text) <= LONG else name


def of_clients(machine: str, made: Mapping[str, Any]) -> Iterator[str]:
    """What client_containers would do to clients that stand, and why; new ones harm nobody."""
    for client, action in made.get("actions", {}).items():
        if action == "remove":
            yield f"client {client} on {machine} would be removed"
        if action == "recreate":
            words = made.get("differences", {}).get(client, [])
            yield f"client {client} on {machine} would be recreated ({'; '.join(words) or 'its network'})"


def of_state(machine: str, written: Mapping[str, Any]) -> Iterator[str]:
    """What clients that stay would find changed in their state files: limits, and how the data is divided,
    which restarts the SuperNode."""
    for item in written.get("diff", []):
        path = PurePath(item["before_header"])
        if path.suffix != ".json" or not item["before"] or item["after"] == "absent":
            continue
        was, now = flat(json.loads(item["before"])), flat(json.loads(item["after"]))
        names = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
        words = [changed(key, was.get(key), now.get(key)) for key in names]
        if words:
            yield f"client {path.stem} on {machine} would change ({'; '.join(words)})"


def flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state file's values, its limits among them."""
    return {**state, **state.get("baseline", {}), "baseline": None}


def coldframe_interruption(going: Sequence[str], harm: Sequence[str], typed: str = "") -> str:
    """The message for a deployment that would harm a running run: the changes, and what to type.

    Parameters
    ----------
    typed : str
        What a verb about the same federation needs besides its own variables, with a space before it.
    """
    runs = f"Run {going[0]} is" if len(going) == 1 else f"The runs {', '.join(going)} are"
    return "\n".join(
        [
            f"{runs} running, and this deployment would change what is in use:",
            *(f"  - {line}" for line in harm),
            f"Wait for the end, stop it with ansible-playbook run.yml{typed} -e stop={going[0]}, "
            "or go on with -e interrupt=true.",
            "Nothing was changed.",
        ]
    )
