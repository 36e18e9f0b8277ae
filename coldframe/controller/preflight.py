"""Checks a verb's variables, the inventory, controller and machines, and collects every finding."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError

from coldframe.controller import (
    app,
    certificates,
    check_app_data,
    checks,
    commands,
    experiment_plan,
    resolution,
    throttle,
    training_set,
)
from coldframe.controller.checks import Machine
from coldframe.controller.description import Description, newest
from coldframe.controller.experiment import Experiment
from coldframe.controller.misplaced import misplaced
from coldframe.controller.monitoring import coldframe_ports
from coldframe.controller.records import folders_of
from coldframe.controller.resume import check_resume
from coldframe.controller.roster import build_roster
from coldframe.controller.round_policy import check_policy
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

ROOT = Path(__file__).resolve().parents[2]
ROLES = "roles/*/defaults/main.yml"
GROUPS = ("fl_server", "fl_clients", "fl_monitor")
FEDERATION = "coldframe"
# Verbs about results alone, in which no machine takes part: the variable that they need, and what to type.
RESULTS = {
    "compare": ("runs", "type -e runs=RUN_ID,RUN_ID, or the names of folders in results/"),
    "export": ("run", "type -e run=RUN_ID, the name of a folder in results/, or that of an experiment"),
}
LINK = Finding(
    "group_vars is not loaded: playbooks/group_vars must be a link to ../group_vars",
    "type ln -sfn ../group_vars playbooks/group_vars",
)


@dataclass(frozen=True)
class Call:
    """What a verb was called with.

    Attributes
    ----------
    extra : mapping
        The variables of ``-e``.
    groups, hostvars : mapping
        The inventory's, as Ansible has them.
    limited : bool
        Whether ``--limit`` hides machines.
    base : Path
        The directory that relative paths begin from.
    """

    verb: str
    extra: Mapping[str, Any]
    groups: Mapping[str, list[str]]
    hostvars: Mapping[str, Any]
    limited: bool
    base: Path


@dataclass
class Preflight:
    """What is known of a call, and what has been found.

    Attributes
    ----------
    values : dict
        Every variable of the verb, typed.
    asked, machines : list of Machine
        With the settings that the inventory gives them now, and with those that they were deployed with.
    raw : dict
        The machines' variables as the roster wants them.
    usual : dict
        By machine, the settings that other verbs see where nothing sets them.
    stood, here : Description, bool
        What stands, and whether this controller has deployed it.
    clients : int, optional
        How many clients the inventory makes; None where it cannot be told.
    requests : dict
        What to ask of the agents: of throttle.yml by machine; of an experiment the limits by point, machine
        and client.
    scenarios : dict
        What becomes of the run's scenario, as `scenario.for_run` says it: of run.yml and site.yml by an empty
        name, of an experiment by point.
    packed : dict
        The packed app of the user's: `path`, `commit`, `clean`; empty where our own is to run.
    """

    call: Call
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    asked: list[Machine] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    raw: dict[str, dict[str, Any]] = field(default_factory=dict)
    usual: dict[str, dict[str, Any]] = field(default_factory=dict)
    stood: Description = field(default_factory=Description)
    here: bool = False
    roster: list[dict[str, Any]] = field(default_factory=list)
    clients: int | None = None
    packed: dict[str, Any] = field(default_factory=dict)
    oversubscribed: bool = False
    going: list[str] = field(default_factory=list)
    requests: dict[str, Any] = field(default_factory=dict)
    experiment: Experiment | None = None
    scenarios: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def server(self) -> Machine | None:
        """The server's machine; any where no machine is in the group."""
        first = self.machines[0] if self.machines else None
        return next((machine for machine in self.machines if "fl_server" in machine.groups), first)

    @property
    def answered(self) -> list[Machine]:
        """The machines that answered."""
        return [machine for machine in self.machines if machine.facts]

    @property
    def deploys(self) -> bool:
        """Whether the verb deploys or trains."""
        return self.call.verb in ("site", "run", "experiment")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The server's settings."""
        return self.server.settings if self.server else {}

    def variable(self, name: str) -> Any:
        """A variable of the server's, as Ansible has it."""
        return self.call.hostvars[self.server.name].get(name, "") if self.server else ""

    def path(self, name: str) -> Path:
        """A path on the controller that a variable holds."""
        return Path(str(self.variable(name))).expanduser()

    @property
    def results(self) -> Path:
        """The folder of all results; a relative one is in the checkout."""
        given = self.settings.get("fl_results_dir") or self.variable("coldframe_results_directory")
        return ROOT / Path(str(given)).expanduser()

    @property
    def verb_arguments(self) -> str:
        """What to type with every other verb, to address the same federation."""
        return " ".join(commands.addressing(self.call.extra))

    @property
    def site_arguments(self) -> str:
        """What to type with site.yml, to deploy the same again."""
        return " ".join(commands.addressing({**self.stood.typed, **self.call.extra}, "site.yml"))


def run(call: Call) -> Preflight:
    """Check everything that a verb needs; nothing is changed."""
    it = Preflight(call)
    read(it)
    if it.server and _writes_results(it):
        it.findings += checks.check_results(it.results)
    if call.verb in RESULTS:
        name, remedy = RESULTS[call.verb]
        if not it.values[name]:
            it.findings.append(Finding(f"{call.verb}.yml was given no {name}", remedy))
        return it
    check_inventory(it)
    check_run(it)
    check_machines(it)
    if call.verb == "throttle" and not it.findings and it.server:
        table, reference = it.variable("coldframe_profiles"), it.variable("coldframe_reference_speed")
        it.requests, it.findings, warned = throttle.plan(
            it.values, it.roster, it.answered, table, reference, call.base
        )
        it.warnings += warned
    return it


def read(it: Preflight) -> None:
    """Read the variables of verb and machines, and what the last deployment has left."""
    call = it.call
    it.findings, told = misplaced(call.verb, call.extra)
    others = [name for name in call.extra if name not in told]
    it.findings += check_names(call.verb, others, names_on_disk(ROOT, ROLES, "group_vars/all/*.yml"))
    it.machines, it.raw, found = _machines(call)
    it.findings += found
    given = dict(call.extra)
    if it.server:
        given, found = given_values(call.hostvars, it.server.name, VERBS[call.verb])
        it.findings += found
        if not it.variable("coldframe_group_vars_loaded"):
            it.findings.append(LINK)
    it.values, found = cast(call.verb, {name: value for name, value in given.items() if name not in told})
    it.findings += _placed(found, call.extra, it.server.name if it.server else "", VERBS[call.verb])
    if call.verb == "experiment":
        experiment_plan.read(it)
    it.usual = _usual(it)
    if call.verb != "site" and it.server:  # site.yml follows nothing
        it.stood, plan = newest(it.machines, str(it.settings.get("fl_federation", FEDERATION)))
        state = it.path("coldframe_controller_state")
        it.here = bool(it.stood) and standing.read_record(state).get("plan") == plan
    it.asked, it.machines = it.machines, it.stood.follow(it.machines, call.extra, it.here)
    it.findings += checks.check_controller(it.values, it.settings, call.base)
    it.warnings += checks.warn_foreign_app(it.values, call.extra, RUN_CONFIG_KEYS)
    it.packed, found = _app(it)
    it.findings += found


def _writes_results(it: Preflight) -> bool:
    """Whether the verb writes a folder of results, or deletes some."""
    if it.call.verb == "teardown":
        return bool(it.values["purge"] and folders_of(it.results, str(it.variable("coldframe_federation"))))
    trains = it.deploys and it.values.get("train", True) and not it.values.get("stop")
    return trains or it.call.verb in RESULTS


def check_inventory(it: Preflight) -> None:
    """Check the inventory's shape, and make the roster, or compare it with what stands."""
    verb = it.call.verb
    # These may look at a part of the machines; every other verb needs the whole federation.
    if not (verb in ("throttle", "calibrate") and it.call.limited):
        it.findings += checks.check_shape(it.machines)
    if it.call.limited and verb in ("site", "run", "experiment", "teardown", "connect"):
        problem = f"{verb}.yml needs all machines of the federation, and --limit excludes some"
        it.findings.append(Finding(problem, "remove --limit"))
    it.roster = it.stood.clients_of(it.machines)
    # Numbers that are none were found above; a roster made from them would only repeat that.
    if any(finding.machine or finding.problem.startswith("fl_client") for finding in it.findings):
        return
    try:
        holders = [machine.name for machine in it.machines if "fl_clients" in machine.groups]
        planned = build_roster(holders, it.stood.repeat(it.raw, it.call.extra))
        if it.stood:
            site = " ".join(f"ansible-playbook site.yml {it.site_arguments} -e train=false".split())
            found = it.stood.differences(it.asked, it.call.groups, it.call.extra, planned, site)
            if verb in ("throttle", "experiment") or (verb == "run" and not any(map(it.values.get, EARLIER))):
                it.findings += found
            else:
                it.warnings += map(str, found)
        else:
            it.roster = planned
        it.clients = len(it.roster) if holders else None
    except ValueError as error:
        problem, _, remedy = str(error).rpartition(": ")
        it.findings.append(Finding(problem, remedy))


def check_run(it: Preflight) -> None:
    """Check the clients and the data that a run needs, who answers, and the runs that have not ended."""
    verb = it.call.verb
    if verb == "experiment" and it.server:
        experiment_plan.check_points(it, it.path("coldframe_cache") / "data")
    elif it.deploys:
        it.findings += check_clients(it.values, it.clients)
        it.findings += check_policy(it.values, it.clients)
        it.findings += check_resume(it.call.verb, it.values, it.call.extra)
        it.findings += checks.check_addresses(it.machines)
        # A partitioner or an argument that is unknown was found above.
        if it.server and not any(finding.problem.startswith("partitioner") for finding in it.findings):
            folder = training_set.data_folder(it.settings, it.call.base)
            prepared = it.path("coldframe_cache") / "data"
            it.findings += training_set.check_training_set(it.values, folder, len(it.roster), prepared)
        if it.server and it.roster and it.values.get("train", True) and not any(map(it.values.get, EARLIER)):
            it.findings += experiment_plan.plan_scenario(it, "", it.values)
    # An earlier run can be fetched or stopped, too, while other machines than the server are away.
    alone = verb == "connect" or any(it.values.get(name) for name in EARLIER)
    spared = it.server.name if it.server and alone else ""
    without = verb in ("status", "teardown") or it.values.get("close")
    for finding in checks.check_answers(it.machines):
        if without or (spared and finding.machine != spared):
            it.warnings.append(str(finding))
        else:
            it.findings.append(finding)
    it.findings += check_app_data.check_app_data(it.values, it.call.base, it.answered)
    it.going = [run for machine in it.answered for run in (machine.facts or {}).get("runs", [])]
    it.findings += checks.check_runs(verb, it.values, it.going, it.verb_arguments)


def check_machines(it: Preflight) -> None:
    """Check each machine that answered, and that they fit together."""
    verb = it.call.verb
    server = it.server.name if it.server else ""
    monitor = next((machine.name for machine in it.machines if "fl_monitor" in machine.groups), server)
    if verb == "site":
        it.findings += checks.check_identity(it.answered)
        monitored = it.server is not None and it.settings.get("fl_monitoring", True)
        it.findings += resolution.check_resolution(it.machines, monitor if monitored else "")
        builder = str(it.settings.get("fl_image_builder") or server)
        it.findings += checks.check_architectures(it.answered, builder)
        if builder not in (names := [machine.name for machine in it.machines]):
            problem = f"fl_image_builder={builder} is no machine of the inventory"
            it.findings.append(Finding(problem, f"name one of {', '.join(names)}"))
    if verb in ("run", "experiment", "throttle", "status") and server:  # site.yml renews it by itself
        certificate = it.path("coldframe_controller_state") / "pki" / "server.crt"
        it.warnings += certificates.warn_certificate(certificate, datetime.now(UTC))
    for machine in it.answered:
        clients = [client for client in it.roster if client["machine"] == machine.name]
        federation = machine.settings.get("fl_federation", it.settings.get("fl_federation", FEDERATION))
        if verb == "site":
            it.findings += checks.check_clock(machine)
            it.findings += checks.check_platform(machine)
            it.findings += checks.check_disk(machine)
            it.findings += checks.check_memory(machine, clients)
            it.findings += checks.check_limits(machine, clients)
            it.warnings += checks.warn_profiles(machine, clients)
            it.warnings += checks.warn_platform(machine)
            ports = _ports(machine, it.server, monitor, it.call.hostvars)
            it.findings += checks.check_ports(machine, federation, ports)
        if it.deploys:
            over = checks.warn_cpu(machine, clients, federation)
            it.oversubscribed = it.oversubscribed or bool(over)
            it.warnings += over


def _app(it: Preflight) -> tuple[dict[str, Any], list[Finding]]:
    """Pack the app of the user's that is to run; its FAB and commit, and what is wrong with it."""
    given = it.values.get("app")
    earlier = any(it.values.get(name) for name in EARLIER if name != "resume")
    if not given or not it.server or earlier:
        manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        config = it.values.get("run_config", {})
        known = {key: value for key, value in config.items() if key in RUN_CONFIG_KEYS.values()}
        problems = [] if given else app.judge_config(known, manifest, "our app")
        return {}, [Finding(*problem) for problem in problems]
    place = given if given.startswith(app.GIT) else str(it.call.base / given)
    folder = it.path("coldframe_controller_state") / "fabs"
    words = [place, str(folder), "--cache", str(it.path("coldframe_cache")), "--name", given]
    words += ["--config", json.dumps(it.values["run_config"])]
    done = subprocess.run(
        [sys.executable, "-m", "coldframe.controller.fab", *words],
        cwd=ROOT,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        why = " ".join(done.stderr.split("\n")[-2:]).strip()
        return {}, [Finding(f"app={given} cannot be packed ({why})", "type -e app=DIR with another app")]
    told = json.loads(done.stdout.splitlines()[-1])
    return told, [Finding(*problem) for problem in told["problems"]]


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
            remedy = vault_remedy(str(error)) or "correct it in the inventory"
            findings.append(Finding(f"{name} cannot be evaluated ({error})", remedy, machine))
    return values, findings


def is_monitored(machine: Machine, server: Machine) -> bool:
    """Whether exporters are deployed on a machine; what it does not set itself is as on the server's."""
    return bool(machine.settings.get("fl_monitoring", server.settings.get("fl_monitoring", True)))


def _ports(
    machine: Machine, server: Machine | None, monitor: str, hostvars: Mapping[str, Any]
) -> dict[str, int]:
    """What the machine is to listen on, by the variable that moves it."""
    ports: dict[str, int] = {}
    if server is None:
        return ports
    planned = coldframe_ports(machine.name, hostvars, [server.name])
    if machine is server:
        ports["fl_port"] = planned["fl_port"]
    wanted = []
    if is_monitored(machine, server):
        wanted = ["node_exporter_port", "container_exporter_port"]
        wanted += ["fl_metrics_port"] if machine is server else []
        wanted += ["prometheus_port"] if machine.name == monitor else []
        # With grafana_directory there is a Grafana of the user's own, which may well have that port.
        own = machine.settings.get("grafana_directory")
        wanted += ["grafana_port"] if machine.name == monitor and not own else []
    return ports | {name: planned[name] for name in wanted}


def _machines(call: Call) -> tuple[list[Machine], dict[str, dict[str, Any]], list[Finding]]:
    """The machines, their variables as the roster wants them, and the findings about those variables."""
    machines: list[Machine] = []
    raw: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    wanted = [*INVENTORY, *CONNECTION, "machine_facts", "ansible_connection"]
    for name in map(str, call.groups.get("fl_machines", [])):
        values, found = given_values(call.hostvars, name, wanted)
        findings += found
        settings, found = cast_inventory(values)
        # One -e reaches every machine: say it once.
        findings += [finding for finding in _placed(found, call.extra, name) if finding not in findings]
        facts = values.get("machine_facts")
        if facts is None and call.limited:
            continue  # left out by --limit
        answered = isinstance(facts, Mapping) and "time" in facts
        machines.append(
            Machine(
                name=name,
                groups=frozenset(group for group in GROUPS if name in call.groups.get(group, [])),
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


def _usual(it: Preflight) -> dict[str, dict[str, Any]]:
    """What other verbs see of each machine where nothing sets it."""
    return {
        machine.name: {
            "fl_monitoring": it.settings.get("fl_monitoring", True),
            **coldframe_ports(machine.name, it.call.hostvars, [it.server.name] if it.server else []),
        }
        for machine in it.machines
    }


def _login(name: str, values: Mapping[str, Any]) -> str:
    """What to type to reach the machine by hand; nothing for the controller itself."""
    if values.get("ansible_connection") == "local":
        return ""
    port = f"-p {values['ansible_port']} " if values.get("ansible_port") else ""
    user = f"{values['ansible_user']}@" if values.get("ansible_user") else ""
    return f"ssh {port}{user}{values.get('ansible_host', name)}"
