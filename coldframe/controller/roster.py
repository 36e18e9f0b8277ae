"""The roster from the inventory, the run config from variables, and tables from rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from coldframe.controller import profiles
from coldframe.controller.app import flatten
from coldframe.controller.settings import (
    CLIENT,
    RUN_CONFIG_KEYS,
    SERVER_MEMORY,
    cast_value,
    nearest,
)
from coldframe.limits import CPU_FLOOR, LIMITS, SHAPING
from coldframe.units import format_size, parse_size

CLIENT_COUNT = 1
CLIENT_MEMORY = "1g"
CLIENT_PIDS = 256
CPU_SHARE = 0.8  # of a machine's cores go to its clients: the engine, the server and ssh need the rest
CLIENT_KEYS = ("name", "profile", *LIMITS)


def default_cpu(cores: float, clients: int) -> float:
    """The CPU limit, in cores, of each of a machine's `clients` where the inventory gives none."""
    return max(CPU_FLOOR, round(min(1.0, CPU_SHARE * cores / clients), 2))


def machine_cores(variables: Mapping[str, Any]) -> int | None:
    """The number of cores of a machine as far as its variables tell."""
    probed = variables.get("machine_facts") or {}
    facts = variables.get("ansible_facts") or {}
    cores = probed.get("cpus") or facts.get("processor_nproc") or facts.get("processor_vcpus")
    return int(cores) if cores else None


def client_entries(variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a machine's variables say of each of its clients, one dictionary per client."""
    listed = variables.get("fl_client_list")
    if listed is not None:
        return [dict(entry) for entry in listed]
    return [{} for _ in range(int(variables.get("fl_client_count", CLIENT_COUNT)))]


def build_roster(
    machines: Iterable[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    partitions: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """The clients of all machines, in the order of the inventory.

    Parameters
    ----------
    machines : iterable of str
        Names of the machines of the group ``fl_clients``.
    hostvars : mapping
        Every machine's variables.
    partitions : mapping, optional
        Partition ids handed out before, by client name. They stay; a new client gets the next unused one.

    Returns
    -------
    list of dict
        name, machine, partition_id, num_partitions, cpu (cores; None where neither the inventory nor the
        machine tells), memory (bytes), pids, profile; and down, up (bit/s), delay, jitter (seconds), loss
        (percent) where they are limited. ``num_partitions`` is the highest id in use + 1: where a client was
        taken out in between, its share of the data leaves with it.
    """
    roster: list[dict[str, Any]] = []
    owners: dict[str, str] = {}
    for machine in machines:
        for client in clients_of(machine, hostvars[machine]):
            name = client["name"]
            if name in owners:
                raise ValueError(
                    f"two clients are called {name} (machines {owners[name]} and {machine}): "
                    "give one of them another name in fl_client_list"
                )
            owners[name] = machine
            roster.append(client)

    ids = {str(name): int(number) for name, number in (partitions or {}).items()}
    following = max(ids.values(), default=-1) + 1
    for client in roster:
        if client["name"] not in ids:
            ids[client["name"]] = following
            following += 1
        client["partition_id"] = ids[client["name"]]
    total = max((client["partition_id"] for client in roster), default=-1) + 1
    return [{**client, "num_partitions": total} for client in roster]


def clients_of(machine: str, variables: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a machine's clients, but for what depends on those of other machines: see `build_roster`."""
    entries = client_entries(variables)
    cores = machine_cores(variables)
    fallback = default_cpu(cores, len(entries)) if cores and entries else None
    for k, entry in enumerate(entries):
        name = str(_first(entry.get("name"), f"{machine}-{k}"))
        if unknown := [key for key in entry if key not in CLIENT_KEYS]:
            raise ValueError(
                f"client {name} of machine {machine} has the unknown key {unknown[0]}: "
                f"fl_client_list takes {', '.join(CLIENT_KEYS)}"
            )
        if not re.fullmatch(CLIENT["name"].pattern, name):
            raise ValueError(
                f"{name!r} is no name for a client: use letters, digits, '-', '_' and '.', at most 63, "
                f"and begin with a letter or digit (fl_client_list of machine {machine})"
            )
        profile = str(_first(entry.get("profile"), variables.get("fl_client_profile"), "")) or None
        given = client_limits(name, profile, entry, variables)
        default = {"cpu": fallback, "memory": CLIENT_MEMORY, "pids": CLIENT_PIDS}
        values = {key: _first(given.get(key), default.get(key)) for key in LIMITS}
        yield {
            "name": name,
            "machine": str(machine),
            "cpu": None if values["cpu"] is None else float(values["cpu"]),
            "memory": parse_size(values["memory"]),
            "pids": int(values["pids"]),
            "profile": profile,
            # A delay of zero is none: how one that a profile has is left out.
            **{key: values[key] for key in SHAPING if values[key]},
        }


def client_limits(
    name: str, profile: str | None, entry: Mapping[str, Any], variables: Mapping[str, Any]
) -> dict[str, Any]:
    """The limits that the inventory gives a client: those of its profile, but for the ones that are given."""
    limits = profile_of(name, profile, variables) if profile else {}
    given = {key: _first(entry.get(key), variables.get(f"fl_client_{key}")) for key in LIMITS}
    given = {key: value for key, value in given.items() if value is not None}
    return limits | given | {key: cast_value(CLIENT[key], given[key]) for key in SHAPING if key in given}


def profile_of(name: str, profile: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's limits on the machine of a client."""
    table, reference = profiles.known()
    table = variables.get("coldframe_profiles") or table
    for part in (word.strip() for word in profile.split(",")):
        if part not in table:
            near = nearest(part, table)
            remedy = f"did you mean {near}?" if near else profiles.known_names(table)
            raise ValueError(f"client {name} has the profile {part}, which is not known: {remedy}")
    speed = profiles.speed_of(variables.get("machine_facts"))
    return profiles.on_machine(profiles.profile_limits(profile, table), reference, speed)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def coldframe_roster(
    machines: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    partitions: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """`build_roster` for playbooks: every client has a CPU limit, else the filter fails."""
    try:
        roster = build_roster(machines, hostvars, partitions)
    except (ValueError, TypeError) as error:
        raise AnsibleFilterError(f"the roster cannot be made: {error}") from error
    for client in roster:
        if client["cpu"] is None:
            raise AnsibleFilterError(
                f"the number of cores of machine {client['machine']} is not known, so {client['name']} has "
                "no default CPU limit: gather facts of that machine before, or set fl_client_cpu"
            )
    return roster


def coldframe_server_memory(given: object, machine: int) -> int:
    """The bytes that the server's container may use: what is given, or half of the machine's memory.

    Rounded, since what the kernel keeps for itself differs from one start of a machine to the next.

    >>> coldframe_server_memory("", 8254390272) >> 20
    3904
    """
    if given:
        return parse_size(given)
    return max(SERVER_MEMORY, int(machine) // 2 >> 26 << 26)


def run_config(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run config that Flower gets for the typed variables of ``run.yml``.

    Dictionaries become JSON, since Flower's run config is flat. Another app (``app``) gets its ``run_config``
    alone.
    """
    given = flatten(run.get("run_config") or {})
    if run.get("app"):
        return given
    config = {key: _flat(run[name]) for name, key in RUN_CONFIG_KEYS.items() if run.get(name) is not None}
    return {**config, **given}


def _flat(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping | list) else value


def coldframe_status_table(rows: Sequence[Mapping[str, Any]], indent: int = 0) -> str:
    """Rows as an aligned text table with a heading; columns stand in the order in which rows first name them.

    Values of ``memory*`` and ``*_bytes`` are shown as sizes, numbers stand on the right, nothing is ``-``.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    texts = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    heads = [column.replace("_", " ") for column in columns]
    widths = [max(len(line[i]) for line in [heads, *texts]) for i in range(len(columns))]
    right = [
        all(
            isinstance(row.get(column), int | float | None) and not isinstance(row.get(column), bool)
            for row in rows
        )
        for column in columns
    ]
    lines = (
        "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True))
        for line in [heads, *texts]
    )
    return "\n".join((" " * indent + line).rstrip() for line in lines)


def _cell(column: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        sized = column.startswith("memory") or column.endswith("_bytes")
        return format_size(value) if sized else f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)


def coldframe_state_files(clients: Iterable[Mapping[str, Any]], federation: str) -> dict[str, str]:
    """The state file of each client, content by name: who it is, and what limits the inventory gives it."""
    files = {}
    for client in clients:
        identity = {
            key: client[key] for key in ("name", "machine", "partition_id", "num_partitions", "profile")
        }
        baseline = {key: client[key] for key in LIMITS if key in client}
        content = {**identity, "federation": federation, "baseline": baseline}
        files[f"{client['name']}.json"] = json.dumps(content, indent=1, sort_keys=True) + "\n"
    return files
