"""Reads, in one quick call, what preflight wants to know of a machine; changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.engine import Engine, EngineError, Unreachable
from ansible.module_utils.standing import look, read_record

DOCUMENTATION = r"""
module: machine_facts
short_description: What preflight wants to know of a machine
description:
  - Reads a machine's clock, platform, size, free disk, busy ports, engine, containers and cgroups. Needs
    nothing but Python, and changes nothing.
  - The action of the same name adds C(controller_before) and C(controller_after), the controller's clock
    around the call, so that a clock can be judged whatever the connection takes.
options:
  path:
    description: A path; the free space of its nearest existing parent is returned.
    type: path
    default: /var/lib/coldframe
  ports:
    description: TCP ports; who listens on them is returned.
    type: list
    elements: int
    default: []
  federation:
    description: A federation; what its last deployment has noted is returned beside what is found now.
    type: str
    default: ""
  data:
    description: The data set that a deployment brings.
    type: str
    default: ""
  images:
    description: Images that a deployment uses where it finds them.
    type: list
    elements: str
    default: []
  names:
    description: Names of machines; how each can be resolved here is returned, as C(resolved).
    type: list
    elements: str
    default: []
  runs:
    description: Find out which runs of the federation have not ended.
    type: bool
    default: true
  limits:
    description: Ask the federation's agent for the limits that its clients have now.
    type: bool
    default: false
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Preflight | Look at the machine
  machine_facts:
    ports: [9092]
  register: machine_facts
  become: true
"""

RETURN = r"""
time:
  description: The machine's clock, in seconds since 1970.
  type: float
  returned: always
arch:
  description: Architecture as the kernel names it.
  type: str
  returned: always
kernel:
  description: Release of the kernel.
  type: str
  returned: always
python:
  description: Version of the Python that runs modules.
  type: str
  returned: always
os:
  description: C(id), C(id_like) and C(pretty_name) of /etc/os-release.
  type: dict
  returned: always
cpus:
  description: Number of cores.
  type: int
  returned: always
load:
  description: Processes that ran or waited, on average over the last minute.
  type: float
  returned: always
memory_total:
  description: MemTotal in bytes.
  type: int
  returned: always
memory_available:
  description: MemAvailable in bytes.
  type: int
  returned: always
disk_path:
  description: The nearest existing parent of I(path).
  type: str
  returned: always
disk_free:
  description: Bytes free there.
  type: int
  returned: always
disk_files:
  description: How many files can be made there; none where there is no bound.
  type: int
  returned: always
disk_device:
  description: The number of the file system that it is on.
  type: int
  returned: always
engine_disks:
  description: >-
    The same as C(path), C(free), C(files) and C(device) for each directory in which the engine keeps images
    and containers, or, where there is no engine yet, would keep them.
  type: list
  elements: dict
  returned: always
ports:
  description: Of the ports asked for, those that something listens on, with what that is if it can be told.
  type: dict
  returned: always
docker:
  description:
    - C(installed), C(version), C(api) and C(error) of the engine, the C(containers) of any federation, and
      whether it has an FL C(image).
    - C(kind) says whose engine it is, C(docker) or C(podman), C(root) where it keeps images and containers,
      C(rootless) whether it runs as a user of the machine, C(elsewhere) whether the command leads to another
      engine than the socket, which modules use.
  type: dict
  returned: always
cgroup:
  description: C(version), and whether C(cpu) quotas, C(memory) and C(pids) limits exist.
  type: dict
  returned: always
hostname:
  description: The machine's own name.
  type: str
  returned: always
machine_id:
  description: A hash of /etc/machine-id; empty where there is none.
  type: str
  returned: always
address:
  description: The IPv4 address of the default route; empty where there is none.
  type: str
  returned: always
calibration:
  description: What calibrate.yml has measured and left in calibration.json below I(path); empty if nothing.
  type: dict
  returned: always
deployment:
  description: >-
    Of I(federation), what its last deployment has C(noted) of itself (empty where there was none), and the
    same as C(found) now.
  type: dict
  returned: always
app_data:
  description: The sizes in bytes of the folders of data that apps of I(federation) have brought here.
  type: list
  elements: int
  returned: always
runs:
  description: >-
    Ids of the runs of I(federation) that have not ended, if its server runs on this machine and I(runs) is
    true.
  type: list
  elements: str
  returned: always
agent:
  description: What the agent answers of the clients' limits, if it was to be asked; empty where none answers.
  type: dict
  returned: always
netem:
  description: Whether the kernel can delay and lose packets.
  type: bool
  returned: always
"""

SOCKET = "/var/run/docker.sock"
DAEMON = "/etc/docker/daemon.json"
ROOT = "/var/lib/docker"
CONTAINERD = "/var/lib/containerd"
AGENT_TIMEOUT = 10  # seconds
DOCKER_TIMEOUT = 10  # seconds; an engine that takes longer to answer is as good as none
LISTEN = "0A"  # state of a listening socket in /proc/net/tcp


def read(path: str) -> str:
    """The text of a file, or nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def os_release() -> dict[str, str]:
    """Which system it is."""
    fields = {}
    for line in read("/etc/os-release").splitlines():
        key, _, value = line.partition("=")
        fields[key.lower()] = value.strip("\"'")
    return {key: fields.get(key, "") for key in ("id", "id_like", "pretty_name")}


def memory() -> dict[str, int]:
    """Bytes of memory in all and available."""
    kibibytes = {}
    for line in read("/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        kibibytes[key] = int(value.split()[0])
    return {
        "memory_total": kibibytes.get("MemTotal", 0) * 1024,
        "memory_available": kibibytes.get("MemAvailable", 0) * 1024,
    }


def disk(path: str) -> dict[str, Any]:
    """The nearest existing parent of a path, the bytes and files free there, and its file system's number."""
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    system = os.statvfs(folder)
    return {
        "path": str(folder),
        "free": system.f_bavail * system.f_frsize,
        # Some, such as btrfs, have no bound and say 0 of 0.
        "files": system.f_favail if system.f_files else None,
        "device": folder.stat().st_dev,
    }


def listeners(ports: list[int]) -> dict[str, str]:
    """Who listens on which of the ports: ``{"9092": "nginx (pid 7)"}``, as far as it can be told."""
    inodes: dict[int, str] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(table).splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rsplit(":", 1)[1], 16)
            if fields[3] == LISTEN and port in ports:
                inodes.setdefault(port, fields[9])
    return {str(port): owner(inode) for port, inode in inodes.items()}


def owner(inode: str) -> str:
    """The program that holds a socket; nothing if it cannot be told."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = link.stat()
        except OSError:
            continue  # gone, or not ours to look at
        if stat.S_ISSOCK(status.st_mode) and status.st_ino == int(inode):
            pid = link.parts[2]
            return f"{read(f'/proc/{pid}/comm').strip()} (pid {pid})"
    return ""


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=DOCKER_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return 124, "", f"{' '.join(words[:2])} did not answer within {DOCKER_TIMEOUT} s"
    return done.returncode, done.stdout, done.stderr


def docker(federation: str = "") -> dict[str, Any]:
    """The engine, the containers of all federations on it, and whether it has an FL image.

    Where a federation is named, the clients of others come with their CPU limit, ``cpu`` in cores.
    """
    found: dict[str, Any] = {
        "installed": False,
        "version": "",
        "api": "",
        "error": "",
        "kind": "docker",
        "root": engine_root(),
        "containerd": False,
        "rootless": False,
        "elsewhere": False,
        "containers": [],
        "image": False,
    }
    binary = shutil.which("docker", path=os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin")
    if binary is None:
        return found
    found["installed"] = True
    # The socket answers in a hundredth of the time that the command takes to start.
    server, error = (None, "") if redirected() else (ask("/version"), "")
    if not server:
        code, out, error = command(binary, "version", "--format", "{{json .Server}}")
        server = json.loads(out) if code == 0 and out.strip() else None
    if is_podman(binary, server or {}):
        return {**found, "kind": "podman", "version": (server or {}).get("Version", "")}
    if not server:
        found["error"] = error.strip() or "no answer"
        return found
    found["version"], found["api"] = server.get("Version", ""), server.get("ApiVersion", "")
    found |= engine(binary, ask("/info") or {})
    found["containers"] = [describe(item) for item in listed(binary)]
    foreign = [
        item
        for item in found["containers"]
        if federation and item["running"] and item["role"] == "client" and item["federation"] != federation
    ]
    limits = quotas(binary, [item["name"] for item in foreign])
    for item in foreign:
        item["cpu"] = limits.get(item["name"])
    found["image"] = has_image(binary, "coldframe/fl")
    return found


def listed(binary: str) -> list[dict[str, Any]]:
    """The containers of all federations, as the engine's API lists them."""
    only = "coldframe.federation"
    if not redirected():
        found = ask("/containers/json", all=1, filters=json.dumps({"label": [only]}))
        if found is not None:
            return list(found)
    _code, out, _error = command(
        binary, "ps", "--all", "--no-trunc", "--filter", f"label={only}", "--format", "{{json .}}"
    )
    found = []
    for line in out.splitlines():
        item = json.loads(line)
        labels = dict(label.partition("=")[::2] for label in item["Labels"].split(","))
        found.append({**item, "Id": item.get("ID", ""), "Names": [item["Names"]], "Labels": labels})
    return found


def describe(container: dict[str, Any]) -> dict[str, Any]:
    """A container of the engine's list, as it is returned; ports as `docker ps` writes them."""
    labels, ports = container["Labels"], container["Ports"]
    if not isinstance(ports, str):
        public = [port for port in ports if port.get("PublicPort")]
        ports = ", ".join(
            f"{port.get('IP', '')}:{port['PublicPort']}->{port['PrivatePort']}" for port in public
        )
    return {
        "id": container.get("Id", ""),
        "name": container["Names"][0].removeprefix("/"),
        "image": container.get("Image", ""),
        # A container in the machine's own network says by a label what it listens on.
        "ports": f"{ports} :{labels.get('coldframe.port', '')}->",
        "federation": labels.get("coldframe.federation", ""),
        "role": labels.get("coldframe.role", ""),
        "client": labels.get("coldframe.client", ""),
        "state": container.get("State", "running"),
        "status": container.get("Status", ""),
        "running": container.get("State", "running") == "running",
    }


def has_image(binary: str, reference: str) -> bool:
    """Whether the engine has an image."""
    if not redirected():
        found = ask("/images/json", filters=json.dumps({"reference": [reference]}))
        if found is not None:
            return bool(found)
    return bool(command(binary, "image", "ls", "--quiet", "--filter", f"reference={reference}")[1].strip())


def quotas(binary: str, names: list[str]) -> dict[str, float]:
    """The CPU limits of containers, in cores; one without a limit is left out."""
    if not names:
        return {}
    limits = "{{.HostConfig.CpuQuota}} {{.HostConfig.CpuPeriod}} {{.HostConfig.NanoCpus}}"
    found = {}
    for line in command(binary, "inspect", "--format", f"{limits} {{{{.Name}}}}", *names)[1].splitlines():
        parts = line.split(maxsplit=3)
        if len(parts) < 4:  # an empty line, where all of them have gone meanwhile
            continue
        quota, period, nano, name = parts
        cores = int(quota) / (int(period) or 100_000) if int(quota) > 0 else int(nano) / 1e9
        if cores > 0:
            found[name.removeprefix("/")] = round(cores, 4)
    return found


def engine_root() -> str:
    """Where an engine that does not run keeps its files, by its configuration."""
    try:
        settings = json.loads(read(DAEMON) or "{}")
    except ValueError:
        return ROOT
    settings = settings if isinstance(settings, dict) else {}
    return str(settings.get("data-root") or settings.get("graph") or ROOT)


def is_podman(binary: str, server: dict[str, Any]) -> bool:
    """Whether Podman stands behind Docker's name: its command, or its service at Docker's socket."""
    with Path(binary).open("rb") as file:
        script = file.read(4096)
    wrapper = script.startswith(b"#!") and b"podman" in script
    names = [str(part.get("Name", "")) for part in server.get("Components") or []]
    return wrapper or Path(binary).resolve().name.startswith("podman") or "Podman Engine" in names


def engine(binary: str, info: dict[str, Any]) -> dict[str, Any]:
    """What an engine says of how it is set up."""
    status = dict(pair for pair in info.get("DriverStatus") or [] if len(pair) == 2)
    # Asked only where that may be: the command starts each of its plugins before it answers.
    named = command(binary, "info", "--format", "{{.ID}}")[1].strip() if redirected() else ""
    return {
        "root": info.get("DockerRootDir") or engine_root(),
        # Its images are in containerd's directory then, and the containers in the engine's.
        "containerd": str(status.get("driver-type", "")).startswith("io.containerd.snapshotter"),
        "rootless": any("name=rootless" in word for word in info.get("SecurityOptions") or []),
        "elsewhere": bool(named) and named != info.get("ID"),
    }


def ask(path: str, **query: Any) -> Any:
    """What the engine behind the socket answers; None where none does."""
    try:
        return Engine(SOCKET, DOCKER_TIMEOUT).call("GET", path, **query)
    except (EngineError, Unreachable):
        return None


def redirected() -> bool:
    """Whether the environment or a context may lead the command to another engine than the socket's."""
    folder = os.environ.get("DOCKER_CONFIG") or str(Path("~/.docker").expanduser())
    try:
        settings = json.loads(read(f"{folder}/config.json") or "{}")
    except ValueError:
        settings = {}
    context = settings.get("currentContext") if isinstance(settings, dict) else None
    contexts = (os.environ.get("DOCKER_CONTEXT"), context)
    return bool(os.environ.get("DOCKER_HOST")) or any(name not in (None, "", "default") for name in contexts)


def cgroup() -> dict[str, Any]:
    """The version of cgroups, and which limits the kernel can enforce."""
    controllers = read("/sys/fs/cgroup/cgroup.controllers").split()
    if controllers:
        return {"version": 2, **{name: name in controllers for name in ("cpu", "memory", "pids")}}
    enabled = {
        fields[0]: fields[3] == "1"
        for fields in (line.split() for line in read("/proc/cgroups").splitlines()[1:])
        if len(fields) == 4
    }
    quota = any(Path("/sys/fs/cgroup").glob("cpu*/cpu.cfs_quota_us"))
    return {
        "version": 1,
        "cpu": enabled.get("cpu", False) and quota,
        "memory": enabled.get("memory", False),
        "pids": enabled.get("pids", False),
    }


def address() -> str:
    """The IPv4 address from which packets would go out by default; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def netem() -> bool:
    """Whether the kernel has, or can load, the queueing discipline netem."""
    modules = f"/lib/modules/{platform.release()}"
    return Path("/sys/module/sch_netem").is_dir() or any(
        "sch_netem" in read(f"{modules}/modules.{name}") for name in ("builtin", "dep")
    )


def resolved(name: str) -> str:
    """How a name is resolved: by C(dns), by the hosts file alone (C(hosts)), or not at all; C(unknown) where
    nobody can tell."""
    if not shutil.which("getent"):
        return "unknown"
    if command("getent", "-s", "dns", "ahosts", name)[0] == 0:
        return "dns"
    return "hosts" if command("getent", "ahosts", name)[0] == 0 else ""


def deployment(
    engine: dict[str, Any], path: str, federation: str, data: str, images: list[str]
) -> dict[str, Any]:
    """What a federation's last deployment has noted of itself, and if it has, what is found now."""
    root = Path(path) / federation
    noted = read_record(root) if federation else {}
    if not noted:
        return {"noted": {}, "found": {}}
    directory = root / "data" / Path(data).name if data else None
    own = [item for item in engine["containers"] if item["federation"] == federation]
    there = [name for name in images if engine["installed"] and has_image("docker", name)]
    return {"noted": noted, "found": look(root, federation, directory, there, own)}


def going_runs(path: str, federation: str, containers: list[dict[str, Any]]) -> list[str]:
    """The runs of a federation that have not ended, if its server runs here."""
    server = f"{federation}-server"
    if not any(item["name"] == server and item["running"] for item in containers):
        return []
    unended = unended_runs(Path(path) / federation / "server" / "superlink.db")
    if unended == []:
        return []
    code, out, _error = command("docker", "exec", server, "python3", "-m", "coldframe.server.control", "runs")
    if code != 0 or not out.strip():
        return unended or []
    return [run["run_id"] for run in json.loads(out.splitlines()[-1]) if run["status"] != "finished"]


def app_data(path: str, federation: str) -> list[int]:
    """The sizes of the data of apps that are on this machine, as the notes of their apps say."""
    sizes = set()
    for note in (Path(path) / federation / "apps" / "by-fab").glob("*"):
        with contextlib.suppress(OSError, ValueError):
            sizes.add(int(json.loads(note.read_text(encoding="utf-8")).get("data_bytes", 0)))
    return sorted(sizes)


def unended_runs(database: Path) -> list[str] | None:
    """The runs that have not ended by the SuperLink's database; None if it cannot be read.

    That takes milliseconds, and to ask the SuperLink takes seconds; but only that notices a ServerApp that
    died.
    """
    try:
        import sqlite3  # a Python may be built without it
    except ImportError:
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5.0)) as link:
            rows = link.execute("SELECT DISTINCT run_id FROM task WHERE finished_at IS NULL").fetchall()
    except sqlite3.Error:
        return None
    return sorted(str(number % 2**64) for (number,) in rows)  # the database holds it with a sign


def limits(path: str, federation: str) -> dict[str, Any]:
    """What the federation's agent says of its clients' limits, desired and in the kernel."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(AGENT_TIMEOUT)
            connection.connect(f"{path}/{federation}/agent/agent.sock")
            connection.sendall(b'{"do": "status"}\n')
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline())
    except (OSError, ValueError):
        return {}
    return answer if "clients" in answer else {}


def main() -> None:
    """Read and return everything."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/lib/coldframe"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "federation": {"type": "str", "default": ""},
            "data": {"type": "str", "default": ""},
            "images": {"type": "list", "elements": "str", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "runs": {"type": "bool", "default": True},
            "limits": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    identity = read("/etc/machine-id").strip()
    now = time.time()
    found = docker(module.params["federation"])
    space = disk(module.params["path"])
    module.exit_json(
        changed=False,
        time=now,
        arch=platform.machine(),
        kernel=platform.release(),
        python=platform.python_version(),
        os=os_release(),
        cpus=os.cpu_count(),
        load=round(os.getloadavg()[0], 2),
        ports=listeners(module.params["ports"]),
        docker=found,
        runs=going_runs(module.params["path"], module.params["federation"], found["containers"])
        if module.params["runs"]
        else [],
        app_data=app_data(module.params["path"], module.params["federation"]),
        cgroup=cgroup(),
        hostname=socket.gethostname(),
        machine_id=hashlib.sha256(identity.encode()).hexdigest()[:16] if identity else "",
        address=address(),
        netem=netem(),
        resolved={name: resolved(name) for name in module.params["names"]},
        agent=limits(module.params["path"], module.params["federation"]) if module.params["limits"] else {},
        deployment=deployment(
            found, *(module.params[name] for name in ("path", "federation", "data", "images"))
        ),
        calibration=json.loads(read(f"{module.params['path']}/calibration.json") or "{}"),
        engine_disks=[disk(path) for path in (found["root"], *([CONTAINERD] if found["containerd"] else []))],
        **memory(),
        **{f"disk_{key}": value for key, value in space.items()},
    )


if __name__ == "__main__":
    main()
