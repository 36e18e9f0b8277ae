"""The checks of preflight for inventory, machines and controller: pure functions from facts to findings."""

from __future__ import annotations

import os
import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldframe.controller.oversubscription import ROUNDING, others_cpu
from coldframe.controller.profiles import speed_of
from coldframe.controller.settings import EARLIER, SERVER_MEMORY, Finding, typed, vault_remedy
from coldframe.limits import CPU_FLOOR, MEMORY_FLOOR
from coldframe.units import format_size

GB = 1 << 30
DISK_WITHOUT_IMAGE = 4 * GB
DISK_WITH_IMAGE = 1 * GB
FILES = 100_000  # inodes: the images hold some 60,000 files
CLOCK_SKEW = 5.0  # seconds; signed requests and certificates depend on the clocks
ENGINE_API = (1, 41)  # Docker 20.10
PYTHON = (3, 9)
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
MACHINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,50}")
LOOPBACK = re.compile(r"localhost|127\..*|::1|0\.0\.0\.0")


@dataclass(frozen=True)
class Machine:
    """One machine of the inventory.

    Attributes
    ----------
    groups : frozenset of str
        Those of fl_server, fl_clients and fl_monitor that it is in.
    settings : mapping
        Its inventory variables, converted to their types.
    facts : mapping or None
        The result of machine_facts; None if it did not answer.
    failure : str
        Why it did not answer.
    login : str
        The command that logs in: ``ssh -p 2222 user@host``.
    host, port : str, int
        What Ansible connects to.
    local : bool
        Whether it is the controller itself.
    """

    name: str
    groups: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] | None = None
    failure: str = ""
    login: str = ""
    host: str = ""
    port: int = 22
    local: bool = False

    @property
    def address(self) -> str:
        """What other machines call it."""
        return str(self.settings.get("fl_address") or self.host or self.name)


def check_shape(machines: Sequence[Machine]) -> list[Finding]:
    """One server, clients, at most one monitor; names that can be container names."""
    members = {
        g: [m.name for m in machines if g in m.groups] for g in ("fl_server", "fl_clients", "fl_monitor")
    }
    findings = []
    if not machines:
        return [
            Finding(
                "the inventory has no machines (group fl_machines)",
                "use -i inventory/local.yml, or copy inventory/ssh.example.yml (INI: [fl_machines:children])",
            )
        ]
    if len(members["fl_server"]) != 1:
        has = ", ".join(members["fl_server"]) or "none"
        findings.append(
            Finding(
                f"the group fl_server needs exactly one machine, and has {has}",
                "put exactly one machine into fl_server",
            )
        )
    if not members["fl_clients"]:
        findings.append(
            Finding("the group fl_clients has no machine", "put the machines that run clients into it")
        )
    if len(members["fl_monitor"]) > 1:
        has = ", ".join(members["fl_monitor"])
        findings.append(
            Finding(f"the group fl_monitor can have one machine, and has {has}", "leave one in it")
        )
    for machine in machines:
        if not MACHINE_NAME.fullmatch(machine.name):
            findings.append(
                Finding(
                    f"{machine.name!r} cannot be part of a container's name",
                    "name the machine with letters, digits, '-', '_' and '.', at most 51, "
                    "and give its address as ansible_host",
                    machine.name,
                )
            )
    return findings


def check_addresses(machines: Sequence[Machine]) -> list[Finding]:
    """The server's address leads to the server from everywhere; no two machines share one."""
    findings = []
    for server in machines:
        others = [m.name for m in machines if "fl_clients" in m.groups and m.name != server.name]
        if "fl_server" not in server.groups or not others:
            continue
        if ":" in server.address:
            problem = f"the server's address {server.address} is an IPv6 address"
            findings.append(Finding(problem, "set its fl_address to a name or an IPv4 address", server.name))
        unnamed = server.local and "fl_address" not in server.settings and not server.host
        if LOOPBACK.fullmatch(server.address) or unnamed:
            own = (server.facts or {}).get("address") or "192.0.2.10"
            findings.append(
                Finding(
                    f"clients on {others[0]} cannot reach the server as {server.address}",
                    f"set fl_address of {server.name} in the inventory to its own address, such as {own}",
                    server.name,
                )
            )
    addresses, doors = defaultdict(list), defaultdict(list)
    for machine in machines:
        if not LOOPBACK.fullmatch(machine.address) and (machine.host or "fl_address" in machine.settings):
            addresses[machine.address].append(machine.name)
        if machine.host and not machine.local:
            doors[machine.host, machine.port].append(machine.name)
    for address, names in addresses.items():
        if len(names) > 1:
            findings.append(
                Finding(
                    f"machines {' and '.join(names)} have the same address {address}",
                    "give each its own fl_address or ansible_host",
                )
            )
    for (host, port), names in doors.items():
        if len(names) > 1 and host not in addresses:
            findings.append(
                Finding(
                    f"machines {' and '.join(names)} are both reached at {host} port {port}",
                    "give each its own ansible_host or ansible_port",
                )
            )
    return findings


def check_answers(machines: Iterable[Machine]) -> list[Finding]:
    """Every machine answered."""
    return [
        Finding(
            f"machine {m.name} did not answer" + (f" ({' '.join(m.failure.split())})" if m.failure else ""),
            _try(m),
            m.name,
        )
        for m in machines
        if m.facts is None
    ]


def _try(machine: Machine) -> str:
    if "Incorrect sudo password" in machine.failure:
        return "type it again; if machines have different passwords, set ansible_become_password for each"
    if "sudo" in machine.failure and "password" in machine.failure:
        return "add -K, so that Ansible asks for the password"
    if remedy := vault_remedy(machine.failure):
        return remedy
    return f"check that this works: {machine.login}" if machine.login else "add -vvv to see why"


def check_identity(machines: Iterable[Machine]) -> list[Finding]:
    """No machine is in the inventory under two names."""
    names = defaultdict(list)
    for machine in machines:
        facts = machine.facts or {}
        if facts.get("machine_id"):
            names[facts["machine_id"], facts["hostname"]].append(machine.name)
    return [
        Finding(
            f"{' and '.join(same)} are the same machine (same machine-id, same hostname {hostname})",
            "keep one of them in the inventory; if they are clones, give each a hostname of its own",
        )
        for (_, hostname), same in names.items()
        if len(same) > 1
    ]


def clock_skew(facts: Mapping[str, Any]) -> float:
    """Seconds that a machine's clock is certainly ahead (+) or behind (-) of the controller's."""
    now = facts["time"]
    return max(0.0, now - facts["controller_after"]) + min(0.0, now - facts["controller_before"])


def check_clock(machine: Machine) -> list[Finding]:
    """The machine's clock agrees with the controller's."""
    skew = clock_skew(machine.facts or {})
    if abs(skew) <= CLOCK_SKEW:
        return []
    side = "ahead of" if skew > 0 else "behind"
    return [
        Finding(
            f"the clock is {abs(skew):.0f} s {side} the controller's",
            "set it, e.g. with sudo apt-get install chrony, or sudo timedatectl set-ntp true",
            machine.name,
        )
    ]


def check_platform(machine: Machine) -> list[Finding]:
    """Architecture, Python, Docker engine and cgroups can run the federation."""
    facts = machine.facts or {}
    findings = []
    if facts["arch"] not in ARCHITECTURES:
        findings.append(
            Finding(
                f"the architecture {facts['arch']} is not supported",
                "use a machine with x86_64 or aarch64",
                machine.name,
            )
        )
    if _version(facts["python"]) < PYTHON:
        findings.append(
            Finding(
                f"Python {facts['python']} is too old",
                "set ansible_python_interpreter of the machine to Python 3.9 or newer",
                machine.name,
            )
        )
    findings += _check_engine(machine, facts["docker"])
    for name, what in (("cpu", "CPU quotas"), ("memory", "memory limits"), ("pids", "process limits")):
        if not facts["cgroup"][name]:
            findings.append(
                Finding(
                    f"the kernel offers no {what} (cgroup v{facts['cgroup']['version']})",
                    f"boot it with the cgroup controller {name} (kernel option cgroup_enable={name})",
                    machine.name,
                )
            )
    return findings


def _check_engine(machine: Machine, docker: Mapping[str, Any]) -> list[Finding]:
    managed = machine.settings.get("docker_engine_manage", True)
    if unfit := _unfit(docker):
        return [Finding(*unfit, machine.name)]
    if docker["api"]:
        if _version(docker["api"]) >= ENGINE_API:
            return []
        return [
            Finding(
                f"Docker {docker['version']} is too old (its API is {docker['api']})",
                "install Docker 20.10 or newer",
                machine.name,
            )
        ]
    if managed:
        return []  # the role installs or starts it
    problem = (
        f"its Docker engine does not answer ({docker['error']})"
        if docker["installed"]
        else "it has no Docker"
    )
    return [
        Finding(problem, "start it, or type -e docker_engine_manage=true to have that done", machine.name)
    ]


def _unfit(docker: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return why an engine cannot run a federation, and the remedy; None if it can."""
    if docker["kind"] == "podman":
        return (
            "its docker command is Podman's emulation; clients and their limits need the Docker engine",
            "type sudo apt-get remove podman-docker, and site.yml again, which installs Docker beside Podman",
        )
    if docker["rootless"]:
        return (
            "its Docker engine is rootless, so users in containers cannot read their keys",
            "type sudo docker context use default, and sudo systemctl start docker if root has an engine too",
        )
    if docker["elsewhere"]:
        return (
            "root's docker command uses another engine than /var/run/docker.sock, which Ansible uses",
            "type sudo docker context use default, and leave DOCKER_HOST unset (env | grep DOCKER)",
        )
    if docker["root"].startswith("/var/snap/"):
        return (
            "its Docker is the snap package, whose containers can mount folders below /home only",
            "type sudo snap remove docker, and site.yml again, which installs Docker from packages",
        )
    return None


def warn_platform(machine: Machine) -> list[str]:
    """A warning about a system on which Docker is not installed automatically."""
    facts = machine.facts or {}
    release = facts["os"]
    known = {"debian", "ubuntu"} & {release["id"], *release["id_like"].split()}
    if known or facts["docker"]["installed"] or not machine.settings.get("docker_engine_manage", True):
        return []
    name = release["pretty_name"] or "an unknown system"
    return [
        f"{machine.name}: {name} is neither Debian nor Ubuntu, where Docker is installed automatically: "
        "install it yourself"
    ]


def check_architectures(
    machines: Sequence[Machine], builder: str, controller: str = platform.machine()
) -> list[Finding]:
    """Controller, builder and machines have the same architecture."""
    kinds = {m.name: ARCHITECTURES.get(m.facts["arch"]) for m in machines if m.facts}
    made, here = kinds.get(builder), ARCHITECTURES.get(controller, controller)
    if made and made != here:
        return [
            Finding(
                f"{builder}, which builds the image, is {made}, and this controller, which fetches its "
                f"packages, is {here}",
                f"run ansible-playbook on a machine that is {made}, such as {builder}",
                builder,
            )
        ]
    return [
        Finding(
            f"it is {kinds[m.name]}, and {builder}, which builds the image, is {made}",
            "remove it from the inventory, or give it a federation of its own with -e fl_federation=<name>",
            m.name,
        )
        for m in machines
        if made and kinds.get(m.name) not in (None, made)
    ]


def check_disk(machine: Machine) -> list[Finding]:
    """The disks have room for images, archives, data and results."""
    facts = machine.facts or {}
    default = DISK_WITH_IMAGE if facts["docker"]["image"] else DISK_WITHOUT_IMAGE
    need = machine.settings.get("fl_min_disk", default)
    state = {name: facts[f"disk_{name}"] for name in ("path", "free", "files", "device")}
    images = [disk for disk in facts["engine_disks"] if disk["device"] != state["device"]]
    # On a disk of their own, images do not count where the rest is.
    rest = min(need, DISK_WITH_IMAGE) if len(images) == len(facts["engine_disks"]) else need
    findings = [
        Finding(
            f"{format_size(disk['free'])} are free on {disk['path']}, {format_size(wanted)} needed",
            "make room (docker system prune -a frees what the engine does not use), "
            "or lower the limit with -e fl_min_disk=1g",
            machine.name,
        )
        for disk, wanted in [(state, rest), *((disk, need) for disk in images)]
        if disk["free"] < wanted
    ]
    findings += [
        Finding(
            f"{disk['path']} has inodes for {disk['files']} more files, {FILES} needed for the images",
            "remove what holds many files (df -i; docker system prune -a), "
            "or set data-root in /etc/docker/daemon.json to another disk",
            machine.name,
        )
        for disk in images or [state]
        if disk["files"] is not None and disk["files"] < FILES and not facts["docker"]["image"]
    ]
    return findings


def check_memory(machine: Machine, clients: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The memory limits of the machine's clients, and the server's need, fit into it."""
    total = (machine.facts or {})["memory_total"]
    server = machine.settings.get("fl_server_memory", SERVER_MEMORY) if "fl_server" in machine.groups else 0
    limits = sum(client["memory"] for client in clients)
    if limits + server <= total:
        return []
    need = f"its {'client' if len(clients) == 1 else f'{len(clients)} clients'} may use {format_size(limits)}"
    need += f" and the server {format_size(server)}" if server else ""
    fair = max(total - server, 0) // max(len(clients), 1) >> 20
    remedy = (
        f"type {typed('fl_client_memory', f'{fair}m')}, or " if clients and fair << 20 >= MEMORY_FLOOR else ""
    )
    left = (total - limits) >> 20
    if server > SERVER_MEMORY <= left << 20:
        remedy += f"type {typed('fl_server_memory', f'{left}m')}, or "
    return [
        Finding(
            f"{need}, and the machine has {format_size(total)}",
            f"{remedy}give it fewer clients (fl_client_count)",
            machine.name,
        )
    ]


def check_limits(machine: Machine, clients: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The machine can enforce the limits of its clients."""
    facts, findings = machine.facts or {}, []
    for client in clients:
        name, cpu = client["name"], client["cpu"]
        why = f" (profile {client['profile']} on this machine)" if client["profile"] else ""
        if cpu is not None and cpu > facts["cpus"]:
            findings.append(
                Finding(
                    f"client {name} has cpu={cpu:g}{why}, but there are {facts['cpus']} cores",
                    "give it less (fl_client_cpu, or cpu in fl_client_list), or another profile",
                    machine.name,
                )
            )
        if cpu is not None and cpu < CPU_FLOOR:
            findings.append(
                Finding(
                    f"client {name} has cpu={cpu:g}{why}, less than it needs to answer the server",
                    f"give it {CPU_FLOOR} or more (fl_client_cpu, or cpu in fl_client_list)",
                    machine.name,
                )
            )
        delayed = [key for key in ("delay", "jitter", "loss") if client.get(key)]
        if delayed and not facts.get("netem"):
            zeros = " and ".join(f"fl_client_{key}: 0" for key in delayed)
            findings.append(
                Finding(
                    f"client {name} has {' and '.join(delayed)}{why}, but the kernel lacks netem",
                    f"load it (modprobe sch_netem), or write {zeros} in the inventory",
                    machine.name,
                )
            )
    return findings


def warn_profiles(machine: Machine, clients: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning if a profile is used on a machine that is not calibrated."""
    named = [client["profile"] for client in clients if client["profile"]]
    if not named or speed_of(machine.facts):
        return []
    return [
        f"{machine.name} is not calibrated, so profile {named[0]} counts its cores as reference cores: type "
        "ansible-playbook calibrate.yml when it is deployed, then ansible-playbook site.yml -e train=false"
    ]


def warn_cpu(machine: Machine, clients: Sequence[Mapping[str, Any]], federation: str) -> list[str]:
    """A warning if clients may use more CPU than the machine has; other federations' clients count, too."""
    facts = machine.facts or {}
    cores, others = facts["cpus"], others_cpu(facts, federation) or 0.0
    quota = sum(client["cpu"] or 0 for client in clients)
    if not clients or quota + others <= cores + ROUNDING:
        return []
    fair = int(100 * (cores - others) / len(clients)) / 100
    remedy = f"type {typed('fl_client_cpu', f'{fair:.4g}')}" if fair >= CPU_FLOOR else "deploy fewer clients"
    beside = f", the clients of other federations {others:.4g}" if others else ""
    stop = ", or stop the other federations" if others else ""
    return [
        f"{machine.name}: its {len(clients)} clients may use {quota:.4g} cores{beside}, and it has {cores}: "
        "the run is recorded as oversubscribed, since its times depend on the machine and not only on the "
        f"limits; {remedy}{stop} to avoid that"
    ]


# Folders beside the federations' in /var/lib/coldframe, and Docker's own networks.
TAKEN = ("data", "build", "host", "none", "bridge")
INNER_PORTS = (9091, 9095)  # SuperLink and exporter, where the gateway listens too


def check_ports(machine: Machine, federation: str, ports: Mapping[str, int]) -> list[Finding]:
    """The ports (by the variable that sets them) are free, or used by this federation."""
    facts = machine.facts or {}
    findings = []
    names = list(ports)
    others: dict[str, list[str]] = {}  # by federation that holds them, the variables of ports
    for name, port in ports.items():
        twin = next((other for other in names[: names.index(name)] if ports[other] == port), None)
        if twin:
            remedy = f"type -e {name}={_other(port)}"
            findings.append(Finding(f"{twin} and {name} are both {port}", remedy, machine.name))
        elif port in INNER_PORTS and name in ("fl_port", "fl_metrics_port"):
            problem = f"{name}={port} is a port that is used inside the server's container"
            findings.append(Finding(problem, f"type -e {name}={_other(port)}", machine.name))
        elif not 0 < port < 65536:
            findings.append(Finding(f"{name} would be {port}", f"type -e {name}=9190", machine.name))
        if str(port) not in facts["ports"]:
            continue
        holders = [c for c in facts["docker"]["containers"] if _publishes(c["ports"], port)]
        if any(holder["federation"] == federation for holder in holders):
            continue
        if holders and holders[0]["federation"]:
            others.setdefault(holders[0]["federation"], []).append(name)
            continue
        who = f"container {holders[0]['name']}" if holders else facts["ports"][str(port)] or "another program"
        remedy = f"stop it, or type -e {name}={_other(port)}"
        findings.append(Finding(f"port {port} is in use by {who}", remedy, machine.name))
    for other, taken in others.items():
        shown = ", ".join(f"{ports[name]} ({name})" for name in taken)
        many = "ports" if len(taken) > 1 else "port"
        own = " ".join(f"-e {name}={_other(ports[name])}" for name in taken)
        problem = f"{many} {shown} {'are' if len(taken) > 1 else 'is'} in use by the federation {other}"
        findings.append(Finding(problem, f"give {federation} its own: type {own}", machine.name))
    return findings


def _publishes(ports: str, port: int) -> bool:
    """Whether a port is in the list that ``docker ps`` prints, which has ranges such as 8000-8002."""
    ranges = re.findall(r":(\d+)(?:-(\d+))?->", ports)
    return any(int(first) <= port <= int(last or first) for first, last in ranges)


def _other(port: int) -> int:
    return port + 100 if port + 100 <= 65535 else port - 100


def check_controller(values: Mapping[str, Any], settings: Mapping[str, Any], base: Path) -> list[Finding]:
    """Files and folders on the controller exist; relative paths start at `base`."""
    findings = []
    name = settings.get("fl_federation")
    if name in TAKEN:
        findings.append(Finding(f"fl_federation={name} is a reserved name", "type -e fl_federation=lab"))
    folder = settings.get("fl_data_dir")
    if folder and not (base / Path(folder).expanduser()).is_dir():
        findings.append(
            Finding(
                f"fl_data_dir={folder} is not a folder on this machine",
                "type -e fl_data_dir=DIR with the folder that holds the data set, or leave it out",
            )
        )
    if settings.get("fl_data_source") == "folder" and not folder:
        findings.append(
            Finding("fl_data_source=folder, but there is no fl_data_dir", "type -e fl_data_dir=DIR too")
        )
    archive = settings.get("grafana_archive")
    if archive and not (base / Path(archive).expanduser()).is_file():
        findings.append(
            Finding(
                f"grafana_archive={archive} is not a file on this machine",
                "type -e grafana_archive=FILE with what docker save wrote of Grafana's image",
            )
        )
    if archive and settings.get("grafana_directory"):
        findings.append(
            Finding(
                "grafana_archive and grafana_directory are both given",
                "leave one out: the first is for a container, the second for a server of your own",
            )
        )
    trace = values.get("trace")
    if trace and not (base / Path(trace).expanduser()).is_file():
        findings.append(Finding(f"trace={trace} is not a file on this machine", "type -e trace=FILE"))
    return findings


def check_results(folder: Path) -> list[Finding]:
    """A finding if results cannot be written to a folder, which is made where it is missing."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return []
    why = "not writable" if nearest.is_dir() else "no folder"
    return [
        Finding(
            f"results cannot be written to {folder}: {nearest} is {why}",
            "type -e fl_results_dir=DIR with a folder that you may write to",
        )
    ]


def check_runs(verb: str, values: Mapping[str, Any], going: Sequence[str], typed_too: str) -> list[Finding]:
    """A finding if a verb would interrupt running runs, or train at the same time on the same clients.

    What `site.yml` would change of a run's containers is found later, by the tasks that would change them.

    Parameters
    ----------
    going : sequence of str
        The runs that have not ended.
    typed_too : str
        What a verb about the same federation needs besides its own variables.
    """
    if not going or values.get("interrupt"):
        return []
    runs = f"run {going[0]} is" if len(going) == 1 else f"the runs {', '.join(going)} are"
    stop = " ".join(["ansible-playbook run.yml", *filter(None, [typed_too]), f"-e stop={going[0]}"])
    ends = f"wait for the end, stop it with {stop}, or add -e interrupt=true to end it"
    if verb == "teardown":
        return [Finding(f"{runs} running, and teardown.yml would end it", ends)]
    if values.get("rotate_keys"):
        return [Finding(f"{runs} running, and rotate_keys=true would take its clients", ends)]
    trains = verb == "run" or (verb == "site" and values.get("train"))
    if not trains or values.get("concurrent") or any(values.get(name) for name in EARLIER):
        return []
    beside = "-e concurrent=true to train beside it" + (", or -e train=false" if verb == "site" else "")
    return [Finding(f"{runs} running on the same clients", f"{ends}; or type {beside}")]


def data_of_runs(going: Sequence[str], machines: Sequence[str], dataset: str) -> Finding:
    """The finding that the data of running runs would be replaced."""
    return Finding(
        f"run {going[0]} is running, and its {dataset} on {', '.join(machines)} would be replaced",
        "wait for its end, or leave fl_data_dir as it was deployed; -e interrupt=true replaces it",
    )


def warn_foreign_app(values: Mapping[str, Any], given: Iterable[str], known: Iterable[str]) -> list[str]:
    """A warning if variables of our own app are given for another app."""
    lost = sorted(set(given) & set(known))
    if not values.get("app") or not lost:
        return []
    return [
        f"{', '.join(lost)} do not apply to the app {values['app']}: set its own settings with run_config"
    ]


def render(findings: Sequence[Finding]) -> str:
    """Return all findings as one numbered text: general ones first, then by machine."""
    groups: dict[str, list[Finding]] = {"": []}
    for finding in findings:
        groups.setdefault(finding.machine, []).append(finding)
    lines, number = [], 0
    for machine, group in groups.items():
        if machine:
            lines.append(f"{machine}:")
        for finding in group:
            number += 1
            lines += [f"  {number}. {finding.problem}", f"     -> {finding.remedy}"]
    return "\n".join(lines)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
