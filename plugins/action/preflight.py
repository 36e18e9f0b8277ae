"""Checks a verb's variables, the inventory, controller and machines, and reports every finding at once."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError, AnsiblePromptNoninteractive
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from coldframe.controller import certificates, checks, commands, purge, throttle, training_set
from coldframe.controller import description as described
from coldframe.controller.checks import Machine
from coldframe.controller.misplaced import misplaced
from coldframe.controller.monitoring import PORT, coldframe_ports
from coldframe.controller.records import folders_of
from coldframe.controller.roster import build_roster, coldframe_run_config
from coldframe.controller.settings import (
    CONNECTION,
    EARLIER,
    INVENTORY,
    RUN_CONFIG_KEYS,
    VERBS,
    Finding,
    cast,
    cast_inventory,
    check_clients,
    check_names,
    vault_remedy,
)
from coldframe.machine import standing
from fl import data

display = Display()

ROOT = Path(__file__).resolve().parents[2]
ROLES = "roles/*/defaults/main.yml"
GROUPS = ("fl_server", "fl_clients", "fl_monitor")
FEDERATION = "coldframe"
PROVISIONAL = ("partition_id", "num_partitions")  # the server's machine gives the ids, and remembers them
# What a deployment is made from, besides the variables.
SOURCES = ("site.yml", "coldframe", "group_vars", "playbooks", "plugins", "roles")
DATA_SOURCES = ("fl/data.py", "fl/folders.py", "fl/formats.py", "fl/sources.py", "roles/fl_data")
LINK = Finding(
    "group_vars is not loaded: playbooks/group_vars is no link to ../group_vars in this checkout",
    "type ln -sfn ../group_vars playbooks/group_vars",
)


STANDS = "The federation stands as described: nothing to deploy (-e redeploy=true looks at everything anew)."


def names_on_disk(root: Path, *patterns: str) -> set[str]:
    """Every variable that files define; those of roles and group_vars an ``-e`` may override."""
    names: set[str] = set()
    for pattern in patterns:
        for path in root.glob(pattern):
            names.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return names


def given_values(
    hostvars: Mapping[str, Any], machine: str, names: Iterable[str]
) -> tuple[dict[str, Any], list[Finding]]:
    """The values that a machine's variables have for `names`; a finding for each that cannot be templated."""
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    variables = hostvars[machine]
    for name in names:
        try:
            if name in variables:
                values[name] = variables[name]
        except AnsibleError as error:
            remedy = vault_remedy(str(error)) or "mend it in the inventory"
            findings.append(Finding(f"{name} cannot be evaluated ({error})", remedy, machine))
    return values, findings


class ActionModule(ActionBase):
    """Gathers what the checks need; returns what they find."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _spec, args = self.validate_argument_spec(
            {"verb": {"type": "str", "required": True, "choices": sorted(VERBS)}}
        )
        verb = args["verb"]
        groups, hostvars = task_vars["groups"], task_vars["hostvars"]
        names = [str(name) for name in groups.get("fl_machines", [])]
        extra = {str(name): value for name, value in load_extra_vars(self._loader).items()}

        findings, told = misplaced(verb, extra)
        others = [name for name in extra if name not in told]
        findings += check_names(verb, others, names_on_disk(ROOT, ROLES, "group_vars/all/*.yml"))
        warnings: list[str] = []
        machines, raw, found = _machines(names, groups, hostvars, extra)
        findings += found
        server = next((m for m in machines if "fl_server" in m.groups), machines[0] if machines else None)

        given = dict(extra)
        if server:
            given, found = given_values(hostvars, server.name, VERBS[verb])
            findings += found
            if not hostvars[server.name].get("coldframe_group_vars_loaded"):
                findings.append(LINK)
        values, found = cast(verb, {name: value for name, value in given.items() if name not in told})
        findings += _placed(found, extra, server.name if server else "", VERBS[verb])
        usual = _usual(machines, server, hostvars)
        stood, here = _described(verb, machines, server, hostvars)
        verb_arguments = " ".join(commands.addressing(extra))
        site_arguments = " ".join(commands.addressing({**stood.typed, **extra}, "site.yml"))
        asked, machines = machines, stood.follow(machines, extra, here)
        server = next((m for m in machines if server and m.name == server.name), None)
        findings += checks.check_controller(values, server.settings if server else {}, Path.cwd())
        warnings += checks.warn_foreign_app(values, extra, RUN_CONFIG_KEYS)

        limited = bool(context.CLIARGS.get("subset"))
        # These may look at a part of the machines; every other verb needs the whole federation.
        if not (verb in ("throttle", "calibrate") and limited):
            findings += checks.check_shape(machines)
        if limited and verb in ("site", "run", "teardown"):
            findings.append(
                Finding(f"{verb}.yml is about the whole federation, and --limit hides a part", "leave it out")
            )
        roster: list[dict[str, Any]] = stood.clients_of(machines)
        clients_here: int | None = None
        oversubscribed = False
        # Numbers that are none were found above; a roster made from them would only repeat that.
        if not any(finding.machine or finding.problem.startswith("fl_client") for finding in findings):
            try:
                holders = [m.name for m in machines if "fl_clients" in m.groups]
                planned = build_roster(holders, stood.repeat(raw, extra))
                if stood:
                    site = " ".join(f"ansible-playbook site.yml {site_arguments} -e train=false".split())
                    found = stood.differences(asked, groups, extra, planned, site)
                    follows = verb == "throttle" or (verb == "run" and not any(map(values.get, EARLIER)))
                    findings += found if follows else []
                    warnings += [] if follows else map(str, found)
                else:
                    roster = planned
                clients_here = len(roster) if holders else None
            except ValueError as error:
                problem, _, remedy = str(error).rpartition(": ")
                findings.append(Finding(problem, remedy))
        if verb in ("site", "run"):
            findings += check_clients(values, clients_here)
            findings += checks.check_addresses(machines)
            # A partitioner or an argument that is unknown was found above.
            if server and not any(finding.problem.startswith("partitioner") for finding in findings):
                cache = Path(str(hostvars[server.name].get("coldframe_cache", ""))).expanduser()
                folder = training_set.data_folder(server.settings, Path.cwd())
                findings += training_set.check_training_set(values, folder, len(roster), cache / "data")

        # An earlier run can be fetched or stopped, too, while other machines than the server are away.
        spared = server.name if server and any(values.get(name) for name in EARLIER) else ""
        for finding in checks.check_answers(machines):
            if verb in ("status", "teardown") or (spared and finding.machine != spared):
                warnings.append(str(finding))
            else:
                findings.append(finding)
        answered = [m for m in machines if m.facts]
        going = [run for m in answered for run in (m.facts or {}).get("runs", [])]
        findings += checks.check_runs(verb, values, going, verb_arguments)
        monitor = next((m.name for m in machines if "fl_monitor" in m.groups), server.name if server else "")
        if verb == "site":
            findings += checks.check_identity(answered)
            builder = str(
                (server.settings.get("fl_image_builder") if server else "") or (server.name if server else "")
            )
            findings += checks.check_architectures(answered, builder)
            if builder not in (names := [machine.name for machine in machines]):
                problem = f"fl_image_builder={builder} is no machine of the inventory"
                findings.append(Finding(problem, f"name one of {', '.join(names)}"))
        # site.yml renews it by itself.
        if verb in ("run", "throttle", "status") and server:
            state = Path(str(hostvars[server.name].get("coldframe_controller_state", ""))).expanduser()
            warnings += certificates.warn_certificate(state / "pki" / "server.crt", datetime.now(UTC))
        for machine in answered:
            clients = [client for client in roster if client["machine"] == machine.name]
            if verb == "site":
                findings += checks.check_clock(machine)
                findings += checks.check_platform(machine)
                findings += checks.check_disk(machine)
                findings += checks.check_memory(machine, clients)
                findings += checks.check_limits(machine, clients)
                warnings += checks.warn_profiles(machine, clients)
                warnings += checks.warn_platform(machine)
                common = server.settings.get("fl_federation", FEDERATION) if server else FEDERATION
                federation = machine.settings.get("fl_federation", common)
                findings += checks.check_ports(
                    machine, federation, _ports(machine, server, monitor, hostvars)
                )
            if verb in ("site", "run"):
                over = checks.warn_cpu(machine, clients)
                oversubscribed = oversubscribed or bool(over)
                warnings += over
        requests: dict[str, Any] = {}
        if verb == "throttle" and not findings and server:
            profiles, reference = (
                hostvars[server.name][name] for name in ("coldframe_profiles", "coldframe_reference_speed")
            )
            requests, found, warned = throttle.plan(values, roster, answered, profiles, reference, Path.cwd())
            findings += found
            warnings += warned

        # Ansible's own warnings stay with the result, unseen where hosts that are "ok" are not displayed.
        told_before = {**stood.typed, **extra}
        for warning in warnings:
            text = commands.complete(f"[WARNING]: {warning}", told_before)
            display.display(text, color=C.COLOR_WARN, stderr=True)
        if findings:
            message = commands.complete(f"{checks.render(findings)}\n\nNothing was changed.", told_before)
            return {**result, "failed": True, "changed": False, "msg": message}
        if values.get("purge") and not values["yes"] and not self._task.check_mode and server:
            refusal = _consent(values, answered, hostvars[server.name], server.settings)
            if refusal:
                return {**result, "failed": True, "changed": False, "msg": refusal}
        shown = [{k: v for k, v in client.items() if k not in PROVISIONAL} for client in roster]
        run_config = coldframe_run_config(values, oversubscribed) if verb in ("site", "run") else {}
        deployment: dict[str, Any] = {}
        if verb in ("site", "run") and server:
            state = Path(str(hostvars[server.name]["coldframe_controller_state"])).expanduser()
            deployment = _deployment(machines, roster, values, extra, hostvars)
            deployment |= _standing(machines, deployment, state)
            if verb == "run" and stood and not here and not deployment["data_folder"]:
                # Another controller has chosen the data, from a folder that is not here.
                deployment["data_standing"] = all(_holds_data(machine) for machine in machines)
            lost = [] if deployment["data_standing"] else _data_replaced(machines, deployment["data_plan"])
            if going and lost and not values["interrupt"]:
                message = checks.render([checks.data_of_runs(going, lost, str(values["dataset"]))])
                return {
                    **result,
                    "failed": True,
                    "changed": False,
                    "msg": f"{message}\n\nNothing was changed.",
                }
            name = str(server.settings.get("fl_federation", FEDERATION))
            deployment["description"] = described.describe(name, machines, shown, usual, extra, time.time())
            anew = values.get("redeploy") or values.get("rotate_keys") or self._task.check_mode
            if anew or verb == "run":
                deployment["standing"] = False
            if anew and verb == "site":
                deployment["data_standing"] = False
            renew = hostvars[server.name].get("fl_pki_renew_days", certificates.CERTIFICATE_DAYS)
            if not certificates.certificates_last(state / "pki", int(str(renew)), datetime.now(UTC)):
                deployment["standing"] = False
            if deployment["standing"]:
                display.display(STANDS)
        return {
            **result,
            "changed": False,
            "run": values,
            "run_config": run_config,
            "roster": shown,
            "oversubscribed": oversubscribed,
            **deployment,
            "requests": requests,
            "going": going,
            "checkout": _checkout() if verb in ("site", "run") else {},
            "verb_arguments": verb_arguments,
            "site_arguments": site_arguments,
            "run_arguments": " ".join(commands.of_the_run(extra)),
            "to_set": described.to_set(asked, machines, usual),
            "stood": dict(stood.typed),
            "stamp": time.time(),
            "warned": warnings,
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


def _consent(
    values: Mapping[str, Any],
    answered: Sequence[Machine],
    variables: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """Name what purge=true deletes, and ask for a yes; why it is refused, or nothing."""
    state = variables["coldframe_controller_state"]
    results = settings.get("fl_results_dir") or variables["coldframe_results_directory"]
    federation = str(variables["coldframe_federation"])
    lost = purge.losses(
        federation,
        folders_of(Path(str(results)).expanduser(), federation),
        [machine.name for machine in answered],
        Path(str(variables["coldframe_state"])),
        Path(str(state)).expanduser(),
    )
    lines = "\n".join(lost)
    try:
        answer = display.prompt_until(f"{lines}\nType yes to delete all of it: ")
    except AnsiblePromptNoninteractive:
        more = " -e interrupt=true" if values["interrupt"] else ""
        return f"{lines}\n\nTo delete all of it, type {purge.COMMAND}{more}\nNothing was changed."
    return "" if answer.strip() == b"yes" else "It was not answered with yes. Nothing was changed."


def _ports(
    machine: Machine, server: Machine | None, monitor: str, hostvars: Mapping[str, Any]
) -> dict[str, int]:
    """What the machine is to listen on, by the variable that moves it."""
    ports: dict[str, int] = {}
    if server is None:
        return ports
    monitoring = machine.settings.get("fl_monitoring", server.settings.get("fl_monitoring", True))
    planned = coldframe_ports(machine.name, hostvars, [server.name])
    if machine is server:
        ports["fl_port"] = machine.settings.get("fl_port", PORT)
    wanted = []
    if monitoring:
        wanted = ["node_exporter_port", "container_exporter_port"]
        wanted += ["fl_metrics_port"] if machine is server else []
        wanted += ["prometheus_port"] if machine.name == monitor else []
        # With grafana_directory there is a Grafana of the user's own, which may well have that port.
        own = machine.settings.get("grafana_directory")
        wanted += ["grafana_port"] if machine.name == monitor and not own else []
    return ports | {name: planned[name] for name in wanted}


def _machines(
    names: list[str], groups: Mapping[str, list[str]], hostvars: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[list[Machine], dict[str, dict[str, Any]], list[Finding]]:
    """The machines, their variables as the roster wants them, and the findings about those variables."""
    machines: list[Machine] = []
    raw: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    limited = bool(context.CLIARGS.get("subset"))
    for name in names:
        values, found = given_values(
            hostvars,
            name,
            [
                *INVENTORY,
                *CONNECTION,
                "machine_facts",
                "ansible_connection",
            ],
        )
        findings += found
        settings, found = cast_inventory(values)
        # One -e reaches every machine: say it once.
        findings += [finding for finding in _placed(found, extra, name) if finding not in findings]
        facts = values.get("machine_facts")
        if facts is None and limited:
            continue  # left out by --limit
        answered = isinstance(facts, Mapping) and "time" in facts
        machines.append(
            Machine(
                name=name,
                groups=frozenset(group for group in GROUPS if name in groups.get(group, [])),
                settings=settings,
                facts=facts if answered else None,
                failure=""
                if answered or not facts
                else str(facts.get("msg", "")).removeprefix("Task failed: "),
                host=settings.get("ansible_host", ""),
                port=settings.get("ansible_port", 22),
                local=values.get("ansible_connection") == "local",
                login=_login(name, values),
            )
        )
        raw[name] = {**values, "machine_facts": facts if answered else None}
    return machines, raw, findings


def _placed(
    findings: Iterable[Finding], extra: Mapping[str, Any], machine: str, about: Iterable[str] = ()
) -> list[Finding]:
    """Findings about a machine's variables: what was not typed stands in the inventory, and is mended there.

    Parameters
    ----------
    about : iterable of str
        The variables that findings may be about, where they may be about several together, too.
    """
    placed = []
    for finding in findings:
        found = re.match(r"(\w+)(?=\[|=| is empty)", finding.problem)
        name = found[1] if found else ""
        if not machine or name in extra or (about and name not in about):
            placed.append(finding)
        else:
            remedy = finding.remedy.replace("type -e ", "write in the inventory ").replace(" or -e ", " or ")
            placed.append(Finding(finding.problem, remedy, machine))
    return placed


def _deployment(
    machines: list[Machine],
    roster: list[dict[str, Any]],
    run: Mapping[str, Any],
    extra: Mapping[str, Any],
    hostvars: Mapping[str, Any],
) -> dict[str, Any]:
    """Digests of all that the federation, and the run's data set if it has one, are made from."""
    names = sorted({*INVENTORY, *names_on_disk(ROOT, ROLES), "ansible_host"})
    given = {
        m.name: [sorted(m.groups), (m.facts or {}).get("address"), given_values(hostvars, m.name, names)[0]]
        for m in machines
    }
    typed = {name: value for name, value in extra.items() if name not in VERBS["site"]}
    sources = standing.sources_digest(ROOT, SOURCES)
    server = next(m for m in machines if "fl_server" in m.groups)
    folder = training_set.data_folder(server.settings, Path.cwd())
    # Changed files are other data, whatever their folder is called.
    content = data.content_of(run["dataset"], folder if training_set.trains_ours(run) else None)
    made_from = [run["dataset"], content, server.settings.get("fl_data_source")]
    made_from.append(standing.sources_digest(ROOT, DATA_SOURCES))
    return {
        "plan": standing.digest_of([sources, given, roster, typed]),
        "data_plan": "" if run["app"] else standing.digest_of(made_from),
        "data_folder": str(folder or ""),
    }


def _standing(machines: list[Machine], deployment: Mapping[str, str], state: Path) -> dict[str, bool]:
    """Say whether the federation stands as its last deployment left it, and whether the data set does."""
    noted = [(m.facts or {}).get("deployment") or {"noted": {}, "found": {}} for m in machines]
    here = {"noted": standing.read_record(state), "found": standing.look(state)}
    plan, data_plan = deployment["plan"], deployment["data_plan"]
    return {
        "standing": all(standing.stands(item["noted"], item["found"], plan) for item in [*noted, here]),
        "data_standing": not data_plan
        or all(standing.data_stands(item["noted"], item["found"], data_plan) for item in noted),
    }


def _usual(
    machines: Iterable[Machine], server: Machine | None, hostvars: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What other verbs see of each machine where nothing sets it."""
    common = server.settings if server else {}
    return {
        machine.name: {
            "fl_port": common.get("fl_port", PORT),
            "fl_monitoring": common.get("fl_monitoring", True),
            **coldframe_ports(machine.name, hostvars, [server.name] if server else []),
        }
        for machine in machines
    }


def _described(
    verb: str, machines: list[Machine], server: Machine | None, hostvars: Mapping[str, Any]
) -> tuple[described.Description, bool]:
    """What a verb follows, and whether this controller has deployed it; site.yml follows nothing."""
    if verb == "site" or server is None:
        return described.Description(), False
    found, plan = described.newest(machines, str(server.settings.get("fl_federation", FEDERATION)))
    state = Path(str(hostvars[server.name].get("coldframe_controller_state", ""))).expanduser()
    return found, bool(found) and standing.read_record(state).get("plan") == plan


def _checkout() -> dict[str, Any]:
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


def _login(name: str, values: Mapping[str, Any]) -> str:
    """What to type to reach the machine by hand; nothing for the controller itself."""
    if values.get("ansible_connection") == "local":
        return ""
    port = f"-p {values['ansible_port']} " if values.get("ansible_port") else ""
    user = f"{values['ansible_user']}@" if values.get("ansible_user") else ""
    return f"ssh {port}{user}{values.get('ansible_host', name)}"
