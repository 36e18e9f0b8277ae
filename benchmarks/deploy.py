"""How long a deployment takes: site.yml on 3 hosts with 4 clients each, from blank machines and again.

On three test hosts of its own, in one run: `python benchmarks/deploy.py [--quick] [--ship] [--clients N]
[--json FILE] [--plot FILE]`. Their engines are not started and hold the FL image, unless `--ship` has the
first deployment bring it; `--quick` deploys without monitoring. Then site.yml again, which finds everything
as it should be; then with one client more on each host, whose difference to that is what a client costs. Each
with the number of connections that it made, and the tasks that took longest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hosts import Hosts, make_seed

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["server", "c1", "c2"]
LONGEST = 10  # tasks that are printed
SETTLE = 240  # seconds within which all clients have to be connected
# Counts what Ansible sends, and is otherwise ssh.
SSH = '#!/bin/sh\necho >>"{count}"\nexec ssh "$@"\n'


class Bench:
    """Hosts, and the way to deploy on them and to measure that."""

    def __init__(self, hosts: Hosts, directory: Path, monitoring: bool) -> None:
        self.hosts, self.directory, self.monitoring = hosts, directory, monitoring
        self.count = directory / "ssh.count"
        self.ssh = directory / "ssh"
        self.ssh.write_text(SSH.format(count=self.count))
        self.ssh.chmod(0o755)

    def inventory(self, clients: int) -> Path:
        """Write an inventory with so many clients on every host."""
        inventory = yaml.safe_load(self.hosts.inventory())
        machines = inventory["fl_machines"]
        machines["children"]["fl_clients"]["hosts"] = dict.fromkeys(machines["hosts"])
        machines["vars"] |= {
            "fl_client_count": clients,
            "fl_client_cpu": 0.1,  # fifteen clients start on the cores of one machine
            "fl_client_memory": "512m",
            "fl_monitoring": self.monitoring,
            "ansible_ssh_executable": str(self.ssh),
        }
        path = self.directory / "inventory.yml"
        path.write_text(yaml.safe_dump(inventory))
        return path

    def deploy(self, clients: int) -> dict[str, Any]:
        """Deploy, and return wall seconds, connections, and seconds by task, the longest first."""
        self.count.write_text("")
        profile = self.directory / "tasks.json"
        command = [
            *(str(Path(sys.executable).with_name("ansible-playbook")), "site.yml"),
            *("-i", str(self.inventory(clients)), "-e", "train=false", "-e", "dataset=synthetic"),
        ]
        environment = {
            **os.environ,
            "XDG_STATE_HOME": str(self.directory / "state"),
            "ANSIBLE_CALLBACK_PLUGINS": f"{ROOT}/plugins/callback:{ROOT}/benchmarks/callback",
            "ANSIBLE_CALLBACKS_ENABLED": "task_seconds",
            "COLDFRAME_TASK_SECONDS": str(profile),
        }
        begin = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begin
        if done.returncode:
            sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        tasks = sorted(json.loads(profile.read_text()), key=lambda item: -item["seconds"])
        return {
            "seconds": seconds,
            "connections": len(self.count.read_text().splitlines()),
            "changed": sum(int(line.split("changed=")[1].split()[0]) for line in recap(done.stdout)),
            "tasks": tasks,
        }

    def settle(self, clients: int) -> None:
        """Wait until all clients are connected: one that starts takes CPU from what is measured."""
        ask = "docker exec coldframe-server python3 -m coldframe.control nodes"
        end = time.monotonic() + SETTLE
        while time.monotonic() < end:
            nodes = json.loads(self.hosts[0].run(ask).stdout.splitlines()[-1])
            if sum(node["status"] == "online" for node in nodes) == clients * len(self.hosts):
                return
            time.sleep(3)
        sys.exit(f"not all clients were connected within {SETTLE} s")


def archive() -> Path:
    """The FL image in the controller's cache; a deployment on one host puts it there, if need be."""
    packages = yaml.safe_load((ROOT / "roles/fl_image/defaults/main.yml").read_text())["fl_image_packages"]
    suite = yaml.safe_load((ROOT / "group_vars/all/versions.yml").read_text())["coldframe_debian_suite"]
    names = [ROOT / "roles/fl_image/files/names.sh", ROOT, suite, " ".join(packages)]
    tag = subprocess.run(names, capture_output=True, text=True, check=True).stdout.splitlines()[2]
    cache = Path(os.environ.get("COLDFRAME_CACHE", "~/.cache/coldframe")).expanduser()
    path = cache / "images" / f"fl-{tag}.tar.zst"
    if not path.exists():
        with tempfile.TemporaryDirectory() as directory, Hosts(1) as hosts:
            Bench(hosts, Path(directory), monitoring=False).deploy(1)
    return path


def recap(output: str) -> list[str]:
    """The lines of Ansible's recap."""
    return [line for line in output.splitlines() if "changed=" in line and "unreachable=" in line]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the tasks that take longest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    for place, (name, found) in enumerate(figures.items()):
        axes = figure.add_subplot(len(figures), 1, place + 1)
        tasks = found["tasks"][:6]
        axes.barh(range(len(tasks)), [item["seconds"] for item in tasks], color="#4477AA")
        axes.set_yticks(range(len(tasks)), [item["task"] for item in tasks], fontsize="x-small")
        axes.invert_yaxis()
        axes.set_title(f"{name}: {found['seconds']:.0f} s", loc="left", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds of a task")
    figure.savefig(path, dpi=200)


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without monitoring")
    parser.add_argument("--ship", action="store_true", help="the first deployment brings the image")
    parser.add_argument("--clients", type=int, default=4, help="per host")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw them")
    arguments = parser.parse_args()
    # Ended from outside, it still removes its hosts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    figures: dict[str, Any] = {}
    clients = arguments.clients
    image = archive()
    seed = None if arguments.ship else make_seed(image, image.name.removesuffix(".tar.zst"))
    with tempfile.TemporaryDirectory() as directory, Hosts(names=NAMES, seed=seed) as hosts:
        bench = Bench(hosts, Path(directory), not arguments.quick)
        for name, count in (("first", clients), ("second", clients), ("one client more", clients + 1)):
            found = figures[name] = bench.deploy(count)
            bench.settle(count)
            print(
                f"{name}: {found['seconds']:.1f} s, {found['connections']} connections, "
                f"{found['changed']} changes",
                flush=True,
            )
            for item in found["tasks"][:LONGEST]:
                print(f"  {item['seconds']:6.2f}  {item['task']}", flush=True)
    more = figures["one client more"]["seconds"] - figures["second"]["seconds"]
    print(f"a client more costs {more / len(NAMES):.1f} s ({len(NAMES)} hosts, one more on each)")
    ratios = {"first/second": figures["first"]["seconds"] / figures["second"]["seconds"]}
    print(f"first / second {ratios['first/second']:.1f}")
    if arguments.json:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "platform": platform.platform()}
        arguments.json.write_text(json.dumps({"figures": figures, "ratios": ratios, "machine": machine}))
    if arguments.plot:
        draw(figures, arguments.plot)


if __name__ == "__main__":
    main()
