"""What a deployment is made from, as digests, and whether what stands was made from the same."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coldframe.controller import certificates, checks, description, preflight, training_set
from coldframe.controller.checks import Machine
from coldframe.controller.preflight import ROOT, Preflight
from coldframe.controller.settings import INVENTORY, VERBS
from coldframe.machine import standing

PROVISIONAL = ("partition_id", "num_partitions")  # the server's machine gives the ids, and remembers them
# What a deployment is made from, besides the variables.
SOURCES = ("site.yml", "coldframe", "group_vars", "playbooks", "plugins", "roles")
DATA_SOURCES = ("fl/data.py", "fl/folders.py", "fl/formats.py", "fl/sources.py", "roles/fl_data")


def shown(it: Preflight) -> list[dict[str, Any]]:
    """Return the roster without what preflight cannot know."""
    return [{key: value for key, value in client.items() if key not in PROVISIONAL} for client in it.roster]


def plan(it: Preflight, check: bool) -> dict[str, Any]:
    """Return what site.yml or run.yml makes: its digests, its description, and whether it stands already.

    A finding is added where it would replace the data of a run that has not ended.
    """
    state = it.path("coldframe_controller_state")
    found = digests(it)
    found |= current(it.machines, found, state)
    if it.call.verb != "site" and it.stood and not it.here and not found["data_folder"]:
        # Another controller has chosen the data, from a folder that is not here.
        found["data_standing"] = all(_holds_data(machine) for machine in it.machines)
    lost = [] if found["data_standing"] else _data_replaced(it.machines, found["data_plan"])
    if it.going and lost and not it.values["interrupt"]:
        it.findings.append(checks.data_of_runs(it.going, lost, str(it.values["dataset"])))
    federation = str(it.settings.get("fl_federation", preflight.FEDERATION))
    found["description"] = description.describe(
        federation, it.machines, shown(it), it.usual, it.call.extra, time.time()
    )
    anew = it.values.get("redeploy") or it.values.get("rotate_keys") or check
    if anew and it.call.verb == "site":
        found["data_standing"] = False
    renew = int(str(it.variable("fl_pki_renew_days") or certificates.CERTIFICATE_DAYS))
    server = it.server
    monitored = [m.name for m in it.machines if server and preflight.is_monitored(m, server)]
    metrics = server is not None and server.name in monitored
    lasting = certificates.certificates_last(state / "pki", renew, datetime.now(UTC), monitored, metrics)
    found["standing"] &= lasting and not anew and it.call.verb == "site"
    return found


def digests(it: Preflight) -> dict[str, Any]:
    """Digests of all that the federation, and the run's data set if it has one, are made from."""
    names = sorted({*INVENTORY, *preflight.names_on_disk(ROOT, preflight.ROLES), "ansible_host"})
    given = {
        machine.name: [
            sorted(machine.groups),
            (machine.facts or {}).get("address"),
            preflight.given_values(it.call.hostvars, machine.name, names)[0],
        ]
        for machine in it.machines
    }
    typed = {name: value for name, value in it.call.extra.items() if name not in VERBS["site"]}
    sources = standing.sources_digest(ROOT, SOURCES)
    run, folder = it.values, training_set.data_folder(it.settings, it.call.base)
    # Changed files are other data, whatever their folder is called.
    from fl import data  # it imports numpy, for those verbs alone that deploy

    content = data.content_of(run["dataset"], folder if training_set.trains_ours(run) else None)
    made_from = [run["dataset"], content, it.settings.get("fl_data_source")]
    made_from.append(standing.sources_digest(ROOT, DATA_SOURCES))
    return {
        "plan": standing.digest_of([sources, given, it.roster, typed]),
        "data_plan": "" if run["app"] else standing.digest_of(made_from),
        "data_folder": str(folder or ""),
    }


def current(machines: Iterable[Machine], deployment: Mapping[str, str], state: Path) -> dict[str, bool]:
    """Say whether the federation stands as its last deployment left it, and whether the data set does."""
    noted = [(m.facts or {}).get("deployment") or {"noted": {}, "found": {}} for m in machines]
    here = {"noted": standing.read_record(state), "found": standing.look(state)}
    plan, data_plan = deployment["plan"], deployment["data_plan"]
    return {
        "standing": all(standing.stands(item["noted"], item["found"], plan) for item in [*noted, here]),
        "data_standing": not data_plan
        or all(standing.data_stands(item["noted"], item["found"], data_plan) for item in noted),
    }


def _holds_data(machine: Machine) -> bool:
    """Whether the machine has the data set that its last deployment noted, whatever that was made from."""
    deployment = (machine.facts or {}).get("deployment") or {"noted": {}, "found": {}}
    noted = deployment["noted"].get("data")
    return bool(noted) and noted == deployment["found"].get("data")


def _data_replaced(machines: Iterable[Machine], data_plan: str) -> list[str]:
    """The machines that have the data set as noted, but from another plan than this."""
    return [
        machine.name
        for machine in machines
        if data_plan and _holds_data(machine)
        if (machine.facts or {})["deployment"]["noted"].get("data_plan") != data_plan
    ]


def checkout() -> dict[str, Any]:
    """Which commit this checkout is of, and whether nothing in it has been changed since."""
    if not shutil.which("git"):
        return {"commit": None, "clean": None}
    head, changes = (
        subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    if head.returncode or changes.returncode:
        return {"commit": None, "clean": None}
    return {"commit": head.stdout.strip(), "clean": not changes.stdout.strip()}
