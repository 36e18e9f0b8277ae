"""How long a deployment takes: site.yml on 3 hosts with 4 clients each, again, and with more clients.

`python benchmarks/deploy.py [--quick] [--ship] [--clients N] [--many N] [--json FILE] [--plot FILE]`, on
three test hosts of its own. Their engines are not started and hold the federation's images, unless `--ship`
has the first deployment bring them. The steps:

- `first`: 4 clients on each host, which are blank;
- `second`: the same again, which finds everything as it should be;
- `one more`: one client more on one host;
- `many`: 20 clients on that host; `second of many`: the same again;
- `one less`: one client less.

What a further client costs is the difference between `many` and `one more`, by the number of clients between
them. All 20 are on one host, since 60 clients need more memory than many machines have; hosts are deployed
side by side. `--quick` deploys without monitoring, and 8 clients on that host in place of 20. Each step is
printed with the number of its connections, and the tasks that took longest.
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

from tests.hosts import Hosts, fl_seed

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["server", "c1", "c2"]
LONGEST = 10  # tasks that are printed
IMAGES = ("fl_image : Extra", "fl_image : Packages")  # tasks that bring the image of Prometheus
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

    def inventory(self, clients: int, last: int) -> Path:
        """Write an inventory with so many clients on every host, and so many on the last."""
        inventory = yaml.safe_load(self.hosts.inventory())
        machines = inventory["fl_machines"]
        machines["children"]["fl_clients"]["hosts"] = dict.fromkeys(machines["hosts"])
        machines["vars"] |= {
            "fl_client_count": clients,
            "fl_client_cpu": 0.1,  # they start on the cores of one machine
            "fl_client_memory": "512m",
            "fl_monitoring": self.monitoring,
            "ansible_ssh_executable": str(self.ssh),
        }
        machines["hosts"][NAMES[-1]] = {**(machines["hosts"][NAMES[-1]] or {}), "fl_client_count": last}
        path = self.directory / "inventory.yml"
        path.write_text(yaml.safe_dump(inventory))
        return path

    def deploy(self, clients: int, last: int) -> dict[str, Any]:
        """Deploy, and return wall seconds, connections, and seconds by task, the longest first."""
        self.count.write_text("")
        profile = self.directory / "tasks.json"
        command = [
            *(str(Path(sys.executable).with_name("ansible-playbook")), "site.yml"),
            *("-i", str(self.inventory(clients, last)), "-e", "train=false", "-e", "dataset=synthetic"),
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
            "images": sum(item["seconds"] for item in tasks if item["task"].startswith(IMAGES)),
        }

    def settle(self, total: int) -> None:
        """Wait until all clients are connected: one that starts takes CPU from what is measured."""
        ask = "docker exec coldframe-server python3 -m coldframe.server.control nodes"
        end = time.monotonic() + SETTLE
        while time.monotonic() < end:
            nodes = json.loads(self.hosts[0].run(ask).stdout.splitlines()[-1])["nodes"]
            if sum(node["status"] == "online" for node in nodes) == total:
                return
            time.sleep(3)
        sys.exit(f"not all clients were connected within {SETTLE} s")


def recap(output: str) -> list[str]:
    """The lines of Ansible's recap."""
    return [line for line in output.splitlines() if "changed=" in line and "unreachable=" in line]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the tasks that take longest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2 * len(figures)), layout="constrained")
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
    parser.add_argument("--quick", action="store_true", help="without monitoring, 8 in place of 20")
    parser.add_argument("--ship", action="store_true", help="the first deployment brings the image")
    parser.add_argument("--clients", type=int, default=4, help="per host")
    parser.add_argument("--many", type=int, help="on one host, 20 unless this says otherwise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw them")
    arguments = parser.parse_args()
    # Ended from outside, it still removes its hosts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    clients = arguments.clients
    many = arguments.many or (8 if arguments.quick else 20)
    if many < clients + 2:
        parser.error(f"--many {many} is not more than --clients {clients} and one: type a larger number")
    steps = {
        "first": clients,
        "second": clients,
        "one more": clients + 1,
        "many": many,
        "second of many": many,
        "one less": many - 1,
    }
    figures: dict[str, Any] = {}
    seed = None if arguments.ship else fl_seed()
    with tempfile.TemporaryDirectory() as directory, Hosts(names=NAMES, seed=seed) as hosts:
        bench = Bench(hosts, Path(directory), not arguments.quick)
        for name, last in steps.items():
            found = figures[name] = bench.deploy(clients, last)
            total = last + clients * (len(NAMES) - 1)
            bench.settle(total)
            print(
                f"{name}: {found['seconds']:.1f} s, {total} clients, {found['connections']} connections, "
                f"{found['changed']} changes",
                flush=True,
            )
            for item in found["tasks"][:LONGEST]:
                print(f"  {item['seconds']:6.2f}  {item['task']}", flush=True)
    seconds = {name: found["seconds"] for name, found in figures.items()}
    further = (seconds["many"] - seconds["one more"]) / (many - clients - 1)
    figures["further client"] = {"seconds": further}
    print(
        f"{len(NAMES)} hosts, {clients} clients each, the FL image being there: {seconds['first']:.1f} s, "
        f"of which {figures['first']['images']:.1f} s for the image of Prometheus"
    )
    print(
        f"again, unchanged: {seconds['second']:.1f} s; "
        f"with {many} clients on one host {seconds['second of many']:.1f} s"
    )
    print(f"a client more: {seconds['one more']:.1f} s; a client less {seconds['one less']:.1f} s")
    print(f"each further client on a host: {further:.2f} s ({clients + 1} to {many} on one host)")
    ratios = {
        "first/second": seconds["first"] / seconds["second"],
        "one more/second": seconds["one more"] / seconds["second"],
        "further client/one more": further / seconds["one more"],
    }
    print("; ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if arguments.json:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "platform": platform.platform()}
        arguments.json.write_text(json.dumps({"figures": figures, "ratios": ratios, "machine": machine}))
    if arguments.plot:
        draw({name: found for name, found in figures.items() if "tasks" in found}, arguments.plot)


if __name__ == "__main__":
    main()
