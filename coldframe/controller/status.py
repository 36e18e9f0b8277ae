"""What status.yml shows and what a run is registered with, from the answers of machines and server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from coldframe.controller.certificates import CERTIFICATE_DAYS
from coldframe.controller.oversubscription import others_cpu
from coldframe.controller.records import natural
from coldframe.controller.roster import coldframe_status_table
from coldframe.controller.settings import EARLIER, POLICY, RUN, SETTINGS
from coldframe.controller.throttle_text import text_of
from coldframe.limits import LIMITS
from coldframe.units import format_size

SHOWN_RUNS = 5
CALL = (
    *EARLIER,
    "wait",
    "resume_changed",
    "app",
    "app_data",
    "concurrent",
    "interrupt",
)  # of run.yml, and no setting of a run of our app


def coldframe_with_keys(
    roster: Iterable[Mapping[str, Any]], hostvars: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The roster as the server registers it: name, machine, partition_id, and the public key that the
    machine made; in check mode none is made."""
    return [
        {
            **{key: client[key] for key in ("name", "machine", "partition_id")},
            "public_key": hostvars[client["machine"]]["fl_pki_public_keys"].get(client["name"]),
        }
        for client in roster
    ]


def coldframe_inventory(
    registered: Iterable[Mapping[str, Any]],
    roster: Iterable[Mapping[str, Any]],
    groups: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Any],
    federation: str = "",
) -> dict[str, Any]:
    """What a run stood on: the clients as they are registered, with the limits that the inventory gives
    them, and the machines as preflight found them.

    Parameters
    ----------
    federation : str
        The run's, where preflight was at its start: then what else the machines did is kept, `load`,
        how many containers of other federations ran, and how many cores their clients could use. Empty where
        nobody looked at that time: all three are None.
    """
    limits = {client["name"]: client for client in roster}
    clients = [
        {
            **client,
            **{key: limits.get(client["name"], {}).get(key) for key in (*LIMITS, "profile")},
        }
        for client in registered
    ]
    machines = []
    for name in groups["fl_machines"]:
        facts = hostvars[name].get("machine_facts") or {}
        said = (hostvars[name].get("coldframe_engine_version") or {}).get("stdout_lines") or []
        engine, server_memory = (str(line).strip() for line in [*said, "", ""][:2])
        roles = [role for role in ("server", "clients", "monitor") if name in groups.get(f"fl_{role}", [])]
        machines.append(
            {
                "name": name,
                "roles": roles,
                "cores": facts.get("cpus"),
                "memory": facts.get("memory_total"),
                "architecture": facts.get("arch"),
                "system": (facts.get("os") or {}).get("pretty_name"),
                "kernel": facts.get("kernel"),
                "docker": engine or (facts.get("docker") or {}).get("version"),
                "server_memory": int(server_memory) if server_memory.isdecimal() else None,
                "cgroup": (facts.get("cgroup") or {}).get("version"),
                "load": facts.get("load") if federation else None,
                "other_containers": others(facts, federation) if federation else None,
                "other_cpu": others_cpu(facts, federation) if federation else None,
            }
        )
    return {"clients": clients, "machines": machines}


def others(facts: Mapping[str, Any], federation: str) -> int | None:
    """How many containers of other federations run on a machine."""
    if "docker" not in facts:
        return None
    containers = facts["docker"].get("containers", [])
    return sum(bool(item.get("running")) and item["federation"] != federation for item in containers)


def coldframe_submission(
    plan: Mapping[str, Any],
    groups: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Any],
    who: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run stands on, for its records: what was typed, and the limits that the agents read.

    They have read them for preflight, or after the deployment where there was one in the same call.

    Parameters
    ----------
    plan : mapping
        The result of preflight.
    who : mapping
        ``federation``, ``server`` and ``versions``.
    """
    clients = []
    for machine in groups["fl_clients"]:
        facts = hostvars[machine].get("machine_facts") or {}
        deployed = hostvars[machine].get("__fl_agent_status") or {}
        answer = deployed if "clients" in deployed else facts.get("agent") or {}
        for name, found in sorted(answer.get("clients", {}).items()):
            state, verified = found["state"], found["verified"] or {}
            clients.append(
                {
                    **{key: state.get(key) for key in ("machine", "partition_id", "profile")},
                    **{limit: verified.get(limit) for limit in LIMITS},
                    **{"name": name, "desired": found["desired"], "baseline": state["baseline"]},
                    **{"running": found["verified"] is not None, "read_at": facts["time"]},
                }
            )
    run = plan["run"]
    # Of our own training's variables nothing reaches another app.
    given = (name for name in ("app_data", "scenario", *POLICY) if run[name] != RUN[name].default)
    of_app = ["app", "run_config", *given]
    names = of_app if run["app"] else [n for n in RUN if n not in CALL]
    machines = coldframe_inventory([], [], groups, hostvars, who["federation"])["machines"]
    return {
        **who,
        "variables": {name: run[name] for name in names},
        "settings": {**{name: run[name] for name in SETTINGS}, "oversubscribed": plan["oversubscribed"]},
        "clients": clients,
        "machines": machines,
        "experiment": plan.get("experiment_note"),
        "scenario": {key: plan["scenario"][key] for key in ("name", "text", "entries", "asserts")}
        if plan.get("scenario")
        else None,
    }


def coldframe_before(moment: str, seconds: float) -> str:
    """A moment so many seconds earlier, both as ISO 8601.

    >>> coldframe_before("2026-11-24T10:00:00+00:00", 600)
    '2026-11-24T09:50:00+00:00'
    """
    return (datetime.fromisoformat(moment.replace("Z", "+00:00")) - timedelta(seconds=seconds)).isoformat()


def client_row(
    name: str, machine: str, found: Mapping[str, Any], online: Mapping[str, str]
) -> dict[str, Any]:
    """One client: what was asked for (desired), what the kernel says (verified), what it uses."""
    state, desired = found.get("state") or {}, found.get("desired") or {}
    verified, use = found.get("verified"), found.get("use") or {}
    share = use.get("throttled_share")
    return {
        "client": name,
        "machine": machine,
        "partition": state.get("partition_id"),
        "online": online.get(name, "unregistered"),
        **{
            f"{limit}_{what}": (values or {}).get(limit)
            for limit in ("cpu", "memory", "pids", "down", "up")
            for what, values in (("desired", desired), ("verified", verified))
        },
        "limits_hold": bool(found.get("holds")),
        "revert_at": found.get("revert_at"),
        "memory_used": use.get("memory"),
        "throttled": None if share is None else f"{share:.0%}",
        "oom_kills": use.get("oom_kills"),
    }


def coldframe_missed(machines: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """The machines whose containers preflight has not seen: they, or their engines, did not answer it."""

    def seen(docker: Mapping[str, Any]) -> bool:
        return docker["kind"] == "docker" and bool(docker["version"] or not docker["installed"])

    facts = {name: hostvars[name].get("machine_facts") or {} for name in machines}
    return [name for name, found in facts.items() if "docker" not in found or not seen(found["docker"])]


def coldframe_server_seen(facts: Any, federation: str) -> dict[str, Any]:
    """The running container of a federation's server, of what preflight has found on its machine; without
    fields but for an empty `image` where there is none, or where its image has lost its name."""
    containers = facts.get("docker", {}).get("containers", []) if isinstance(facts, Mapping) else []
    for item in containers:
        if item["name"] == f"{federation}-server" and item["running"] and "sha256:" not in item["image"]:
            return dict(item)
    return {"image": ""}


def found_on(host: Mapping[str, Any], federation: str) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """A machine's containers of a federation, and its agent's answer."""
    if "coldframe_containers" in host:
        return host["coldframe_containers"], host.get("coldframe_agent") or {}
    facts = host.get("machine_facts") or {}
    containers = (facts.get("docker") or {}).get("containers", [])
    return [item for item in containers if item["federation"] == federation], facts.get("agent") or {}


def coldframe_status(
    machines: Iterable[str],
    hostvars: Mapping[str, Any],
    nodes: Iterable[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    addresses: Sequence[Mapping[str, Any]] = (),
    federation: str = "",
) -> dict[str, Any]:
    """All that stands: machines, clients and the newest runs.

    Parameters
    ----------
    machines : iterable of str
        Inventory names; ``hostvars`` of each holds ``machine_facts``, or, where preflight could not look,
        ``coldframe_containers`` and ``coldframe_agent``, the agent's answer.
    nodes, runs : sequences of dict
        Answers of ``coldframe.server.control nodes`` and ``runs``.
    addresses : sequence of dict
        What one can open in a browser: ``name``, ``role`` (of the container that has to be there), ``url``,
        ``user``, ``password_file``.
    federation : str
        Whose containers are shown.
    """
    online = {node["name"]: node["status"] for node in nodes if "name" in node}
    clients, rows = [], []
    roles: set[str] = set()
    for machine in machines:
        containers, agent = found_on(hostvars[machine], federation)
        roles |= {item["role"] for item in containers}
        there: dict[str, Any] = {item["client"]: {} for item in containers if item["role"] == "client"}
        answer = agent.get("clients") or {} if there else {}
        found = {**there, **answer}
        clients += [client_row(name, machine, found[name], online) for name in sorted(found, key=natural)]
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
    return {
        "machines": rows,
        "clients": clients,
        "runs": list(runs),
        "addresses": [
            {key: value for key, value in address.items() if key != "role"}
            for address in addresses
            if address["role"] in roles
        ],
    }


def until(moment: str) -> str:
    """A certificate's end for people, with what to do where it is near."""
    end = datetime.fromisoformat(moment)
    days = (end - datetime.now(UTC)).days
    near = ", renew it: ansible-playbook site.yml -e train=false" if days < CERTIFICATE_DAYS else ""
    return f"{end:%Y-%m-%d} ({days} days{near})"


def server_memory(status: Mapping[str, Any]) -> list[str]:
    """The server's memory limit and use as lines for people; none where the server did not say."""
    limit, used = status.get("server_memory_limit"), status.get("server_memory_used")
    if used is None:
        return []
    return [f"Server: uses {format_size(used)} of {format_size(limit) if limit else 'unlimited'} memory"]


def asked_and_held(client: Mapping[str, Any], limit: str) -> str:
    """A limit as asked for, and what the kernel says where that is something else."""
    texts = [text_of(limit, client[f"{limit}_{what}"]) for what in ("desired", "verified")]
    return texts[0] if texts[0] == texts[1] else " but ".join(texts)


def shown_progress(run: Mapping[str, Any]) -> dict[str, str]:
    """Round and accuracy of a run that goes on, for people; nothing where its journal does not tell."""
    number, rounds, accuracy = (run.get(key) for key in ("round", "rounds", "accuracy"))
    return {
        "round": "" if number is None else str(number) if rounds is None else f"{number}/{rounds}",
        "accuracy": "" if accuracy is None else f"{accuracy:.4f}",
    }


def coldframe_status_text(status: Mapping[str, Any]) -> list[str]:
    """The status for people: lines of tables."""
    shaped = [way for way in ("down", "up") if any(client[f"{way}_desired"] for client in status["clients"])]
    clients = [
        {
            "client": client["client"],
            "partition": client["partition"],
            "state": client["online"],
            "cpu": asked_and_held(client, "cpu"),
            "memory": asked_and_held(client, "memory"),
            **{way: asked_and_held(client, way) for way in shaped},
            "limits": "hold in the kernel" if client["limits_hold"] else "DO NOT HOLD",
            "memory_used": client["memory_used"],
            "throttled": client["throttled"],
            "OOM_kills": client["oom_kills"],
        }
        for client in status["clients"]
    ]
    going = any(run["status"] == "running" for run in status["runs"][:SHOWN_RUNS])
    runs = [
        {
            "run": run["run_id"],
            "status": run["sub_status"] or run["status"],
            **{name: shown_progress(run)[name] for name in ("round", "accuracy") if going},
            "app": run["app"],
            "submitted": run["submitted"][:19].replace("T", " "),
            "finished": run["finished"][:19].replace("T", " "),
        }
        for run in status["runs"][:SHOWN_RUNS]
    ]
    return [
        f"Federation {status['federation']}   gateway {status['gateway']}   runtime: {status['runtime']}",
        f"Certificates: server until {until(status['certificate_expires'])}, "
        f"authority until {until(status['authority_expires'])}",
        *server_memory(status),
        "",
        *coldframe_status_table(status["machines"]).splitlines(),
        "",
        *coldframe_status_table(clients).splitlines(),
        "",
        *(coldframe_status_table(runs).splitlines() or ["No run yet: type ansible-playbook run.yml"]),
        *(["", *coldframe_status_table(status["addresses"]).splitlines()] if status["addresses"] else []),
    ]
