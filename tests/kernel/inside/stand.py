"""A federation's client, and the agent that owns its limits, on this machine's engine.

The image holds no file but links: every container sees this machine's own /usr. So none is packed and
unpacked, which takes minutes without KVM.
"""

from __future__ import annotations

import io
import json
import platform
import subprocess
import tarfile
from typing import Any

from tests.kernel.inside.tools import (
    AGENT,
    BASELINE,
    CLIENT,
    CONTAINER,
    FEDERATION,
    NETWORK,
    STATE,
    TREE,
    docker,
    sh,
    status,
    until,
)

IMAGE = "small"
CODE = "/opt/coldframe"
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FOLDERS = ("dev", "etc", "host", "opt", "proc", "run", "state", "sys", "tmp", "usr", "var")
OURS = [f"--volume={CODE}:{CODE}:ro", "--volume=/usr:/usr:ro"]
OURS += [f"--env=PYTHONPATH={CODE}", "--env=PYTHONDONTWRITEBYTECODE=1", "--env=PYTHONUNBUFFERED=1"]
HARDENED = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--restart=unless-stopped"]


def labels(role: str) -> list[str]:
    """Return the labels that a deployment gives a container."""
    return [f"--label=coldframe.federation={FEDERATION}", f"--label=coldframe.role={role}"]


def stand() -> dict[str, Any]:
    """Start engine, agent and client; say what kernel and engine they have."""
    sh("systemctl", "start", "docker")
    sh("modprobe", "-a", "sch_netem", "sch_tbf")
    make_image()
    docker("network", "create", NETWORK)
    (STATE / "clients").mkdir(parents=True)
    (STATE / "events.jsonl").touch()
    identity = {"name": CLIENT, "machine": "vm", "partition_id": 0, "num_partitions": 1, "profile": None}
    content = {**identity, "federation": FEDERATION, "baseline": BASELINE}
    (STATE / "clients" / f"{CLIENT}.json").write_text(json.dumps(content))
    start_client()
    start_agent()
    until(answers, "the agent holds the client's limits")
    info = json.loads(docker("info", "--format", "{{json .}}"))
    return {
        "file_system": sh("stat", "--file-system", "--format=%T", str(TREE)),
        "controllers": (TREE / "cgroup.controllers").read_text().split(),
        "kernel": platform.release(),
        "engine": info["ServerVersion"],
        "version": info["CgroupVersion"],
        "driver": info["CgroupDriver"],
    }


def answers() -> bool:
    """Whether the agent says that all limits hold."""
    try:
        return bool(status()["holds"])
    except (OSError, KeyError, ValueError, RuntimeError):
        return False


def make_image() -> None:
    """Import the links and the empty directories."""
    command = ["docker", "import", "-", IMAGE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as importing:
        assert importing.stdin is not None
        with tarfile.open(fileobj=importing.stdin, mode="w|") as archive:
            for folder in FOLDERS:
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            for name, target in LINKS.items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
            root = b"root:x:0:0:root:/root:/bin/sh\n"
            entry = tarfile.TarInfo("etc/passwd")
            entry.size = len(root)
            archive.addfile(entry, io.BytesIO(root))
    if importing.returncode:
        raise RuntimeError("docker import failed")


def start_client() -> None:
    """Start a container with the arguments of `roles/fl_client`; it rests."""
    quota, memory = round(BASELINE["cpu"] * 100_000), BASELINE["memory"]
    docker(
        *("run", "--detach", f"--name={CONTAINER}", f"--network={NETWORK}"),
        *(*labels("client"), f"--label=coldframe.client={CLIENT}"),
        *("--cpu-period=100000", f"--cpu-quota={quota}", f"--memory={memory}", f"--memory-swap={memory}"),
        *(f"--pids-limit={BASELINE['pids']}", "--tmpfs=/tmp", "--stop-signal=KILL"),
        *(*HARDENED, *OURS, IMAGE, "busybox", "sleep", "86400"),
    )


def start_agent() -> None:
    """Start the agent's container with the arguments of `roles/fl_agent`."""
    docker(
        *("run", "--detach", f"--name={AGENT}", "--network=host", "--pid=host"),
        *("--cgroupns=host", "--userns=host", "--tmpfs=/tmp", *HARDENED),
        *("--cap-add=NET_ADMIN", "--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE"),
        *("--memory=256m", "--memory-swap=256m", *labels("agent"), *OURS),
        *(f"--volume={STATE}:{STATE}", "--volume=/var/run/docker.sock:/var/run/docker.sock"),
        *("--volume=/sys/fs/cgroup:/host/cgroup", IMAGE),
        *("python3", "-m", "coldframe.agent.service", str(STATE), FEDERATION, "/host/cgroup"),
    )
