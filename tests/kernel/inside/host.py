"""The machine in a container, with systemd and an engine of its own, on this kernel.

Its root file system is the one that the recipe makes (`vagrant/machine/`), on a second disk. All of it but
/usr is imported as an image; /usr is bound from the disk: it is most of the bytes, and nothing in a machine
writes there.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.hosts.hosts import thaw
from tests.kernel.inside.tools import TREE, Group, docker, sh, until

DISK, MOUNT, IMAGE, NAME = "/dev/vdb", Path("/srv/machine"), "machine", "machine"
RECIPE = "/opt/coldframe/vagrant/machine"
BURN = "while :; do :; done"
TINY = "tar -C /usr/bin -c busybox | docker import --change 'ENTRYPOINT [\"/busybox\"]' - tiny"


def host(cores: float, periods: int) -> dict[str, Any]:
    """Start it, and in it an engine with a container under a limit; then remove it while that is paused."""
    MOUNT.mkdir()
    sh("mount", "-o", "ro", DISK, str(MOUNT))
    packing = ["tar", "-C", str(MOUNT), "--exclude=./usr/*", "--exclude=./boot/*", "-c", "."]
    importing = [
        "docker",
        "import",
        "--change",
        'ENTRYPOINT ["/usr/local/sbin/machine-init"]',
        "--change",
        "ENV container=docker",
    ]
    with subprocess.Popen(packing, stdout=subprocess.PIPE) as packed:
        subprocess.run([*importing, "-", IMAGE], stdin=packed.stdout, stdout=subprocess.DEVNULL, check=True)
    arguments = sh(f"{RECIPE}/arguments.sh").splitlines()
    docker(
        "run",
        "--detach",
        *arguments,
        f"--name={NAME}",
        f"--volume={MOUNT}/usr:/usr",
        "--volume=/var/lib/docker",
        IMAGE,
    )
    state = until(lambda: booted(), "systemd has started")
    failed = inside("systemctl --failed --plain --no-legend")
    run = f"docker run --detach --cpus {cores} tiny sh -c '{BURN}'"
    inner = inside(f"systemctl start docker && {TINY} >/dev/null && {run}")
    group = Group(inner_pid(inner))
    before, limit = group.table("cpu.stat"), group.text("cpu.max")
    until(lambda: group.table("cpu.stat")["nr_periods"] - before["nr_periods"] >= periods, "periods")
    delta = {key: value - before[key] for key, value in group.table("cpu.stat").items()}
    inside(f"docker pause {inner}")
    paused = group.table("cgroup.events")["frozen"]
    thaw(docker("inspect", "--format", "{{.Id}}", NAME))
    thawed = group.table("cgroup.events")["frozen"]
    docker("rm", "--force", "--volumes", NAME)
    left = [top for top, _, _ in os.walk(TREE) if inner in top]
    return {
        "state": state,
        "failed": failed,
        "driver": "systemd" if ".scope" in group.path.name else "cgroupfs",
        "nested": len(group.path.relative_to(TREE).parts),
        "cpu_max": limit,
        "frozen": [paused, thawed],
        "left": left,
        **{key: delta[key] for key in ("usage_usec", "nr_periods", "nr_throttled")},
    }


def inside(line: str, check: bool = True) -> str:
    """Run a shell command in it."""
    return docker("exec", NAME, "sh", "-c", line, check=check)


def booted() -> str:
    """Return what systemd says of itself once it has started."""
    said = inside("systemctl is-system-running --wait", check=False)
    return said if said in ("running", "degraded") else ""


def inner_pid(container: str) -> int:
    """Return the process of a container in it as this machine numbers it."""
    for top, _, _ in os.walk(TREE):
        if container in top:
            return int((Path(top) / "cgroup.procs").read_text().split()[0])
    raise RuntimeError(f"no control group of {container}")
