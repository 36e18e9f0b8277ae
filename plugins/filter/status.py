"""Filters of status.yml and of the registration: they join what machines and server said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from plugins.filter.roster import coldframe_status_table
from plugins.module_utils.variables import format_size

CPU_TOLERANCE = 0.005  # cores; a quota is written in microseconds per period
SHOWN_RUNS = 5


def coldframe_with_keys(
    roster: Iterable[Mapping[str, Any]], hostvars: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The roster as the server registers it: name, machine, partition_id, and the public key that the
    machine made."""
    return [
        {
            **{key: client[key] for key in ("name", "machine", "partition_id")},
            "public_key": hostvars[client["machine"]]["fl_pki_public_keys"][client["name"]],
        }
        for client in roster
    ]


def holds(desired: Mapping[str, Any], verified: Mapping[str, Any]) -> bool:
    """Whether the kernel's limits are those asked for."""
    return abs((verified.get("cpu") or 0) - (desired.get("cpu") or 0)) <= CPU_TOLERANCE and all(
        verified.get(name) == desired.get(name) for name in ("memory", "pids")
    )


def client_row(
    name: str, machine: str, found: Mapping[str, Any], online: Mapping[str, str]
) -> dict[str, Any]:
    """One client: what was asked for (desired), what the kernel says (verified), what it uses."""
    state, verified = found.get("state") or {}, found.get("verified")
    desired = state.get("desired", {})
    return {
        "client": name,
        "machine": machine,
        "partition": state.get("partition_id"),
        "online": online.get(name, "unregistered"),
        "cpu_desired": desired.get("cpu"),
        "cpu_verified": verified and verified["cpu"],
        "memory_desired": desired.get("memory"),
        "memory_verified": verified and verified["memory"],
        "limits_hold": bool(verified) and holds(desired, verified or {}),
        "memory_used": verified and verified["memory_usage"],
        "throttled": verified and f"{verified['throttled_share']:.0%}",
        "oom_kills": verified and verified["oom_kills"],
    }


def coldframe_status(
    machines: Iterable[str],
    hostvars: Mapping[str, Any],
    nodes: Iterable[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All that stands: machines, clients and the newest runs.

    Parameters
    ----------
    machines : iterable of str
        Inventory names; ``hostvars`` of each holds ``coldframe_containers`` and ``coldframe_kernel``.
    nodes, runs : sequences of dict
        Answers of ``coldframe.control nodes`` and ``runs``.
    """
    online = {node["name"]: node["status"] for node in nodes if "name" in node}
    clients, rows = [], []
    for machine in machines:
        containers = hostvars[machine].get("coldframe_containers", [])
        answer = hostvars[machine].get("coldframe_kernel", {}).get("stdout_lines") or ["{}"]
        found = json.loads(answer[-1])
        clients += [client_row(name, machine, found[name], online) for name in sorted(found)]
        server = next((item for item in containers if item["role"] == "server"), None)
        rows.append(
            {
                "machine": machine,
                "address": hostvars[machine].get("coldframe_address"),
                "server": server and server["status"],
                "clients": sum(item["role"] == "client" for item in containers),
                "running": sum(
                    item["role"] == "client" and item["state"] == "running" for item in containers
                ),
            }
        )
    return {"machines": rows, "clients": clients, "runs": list(runs)}


def asked_and_held(client: Mapping[str, Any], limit: str) -> str:
    """A limit as asked for, and what the kernel says where that is something else."""
    asked, held = client[f"{limit}_desired"], client[f"{limit}_verified"]
    texts = [
        format_size(value) if limit == "memory" and value else str(value or "none") for value in (asked, held)
    ]
    return texts[0] if texts[0] == texts[1] else " but ".join(texts)


def coldframe_status_text(status: Mapping[str, Any]) -> list[str]:
    """The status for people: lines of tables."""
    clients = [
        {
            "client": client["client"],
            "partition": client["partition"],
            "state": client["online"],
            "cpu": asked_and_held(client, "cpu"),
            "memory": asked_and_held(client, "memory"),
            "limits": "hold in the kernel" if client["limits_hold"] else "DO NOT HOLD",
            "memory_used": client["memory_used"],
            "throttled": client["throttled"],
            "OOM_kills": client["oom_kills"],
        }
        for client in status["clients"]
    ]
    runs = [
        {
            "run": run["run_id"],
            "status": run["sub_status"] or run["status"],
            "app": run["app"],
            "submitted": run["submitted"][:19].replace("T", " "),
            "finished": run["finished"][:19].replace("T", " "),
        }
        for run in status["runs"][:SHOWN_RUNS]
    ]
    return [
        f"Federation {status['federation']}   gateway {status['gateway']}   "
        f"server certificate until {status['certificate_expires']}",
        "",
        *coldframe_status_table(status["machines"]).splitlines(),
        "",
        *coldframe_status_table(clients).splitlines(),
        "",
        *(coldframe_status_table(runs).splitlines() or ["No run yet: type ansible-playbook run.yml"]),
    ]


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "coldframe_with_keys": coldframe_with_keys,
            "coldframe_status": coldframe_status,
            "coldframe_status_text": coldframe_status_text,
        }
