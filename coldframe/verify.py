"""Reads from the kernel what limits a machine's clients have and what they use: JSON.

    python3 -m coldframe.verify CGROUP_ROOT CLIENTS_DIRECTORY NAME=CONTAINER_ID...

Runs in a container of the FL image with the machine's /sys/fs/cgroup and the state files mounted, so that
a machine needs no Python of ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from coldframe import cgroups


def read(container_id: str, root: Path) -> dict[str, Any] | None:
    """Return limits and use of one container; None where the kernel knows no such control group.

    Returns
    -------
    dict
        ``cpu`` (cores), ``memory`` (bytes), ``pids``: limits, None where there is none; ``memory_usage``
        (bytes),
        ``cpu_seconds``, ``throttled_share`` (share of scheduler periods in which the quota ran out, since
        the start),
        ``oom_kills``.
    """
    group = cgroups.of_container(container_id, root)
    if group is None:
        return None
    periods, throttled = group.cpu_periods()
    return {
        "cpu": group.cpu_limit(),
        "memory": group.memory_limit(),
        "pids": group.pids_limit(),
        "memory_usage": group.working_set(),
        "cpu_seconds": group.cpu_usage_seconds(),
        "throttled_share": throttled / periods if periods else 0.0,
        "oom_kills": group.oom_kills(),
    }


def main(arguments: list[str]) -> int:
    """Print a JSON object by client name: ``desired`` (None without a state file), ``verified`` (None if
    it does not run)."""
    root, directory = Path(arguments[0]), Path(arguments[1])
    clients: dict[str, dict[str, Any]] = {
        path.stem: {"state": json.loads(path.read_text()), "verified": None}
        for path in directory.glob("*.json")
    }
    for pair in arguments[2:]:
        name, _, container_id = pair.partition("=")
        clients.setdefault(name, {"state": None})["verified"] = read(container_id, root)
    print(json.dumps(clients))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
