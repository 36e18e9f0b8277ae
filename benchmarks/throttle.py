"""How long a change of limits takes, on 2 hosts with 10 clients each, beside the loops one might write.

On two test hosts of its own, in one run: `python benchmarks/throttle.py [--quick] [--json FILE]`. Each way
gives all clients another CPU limit, from the command to its end: `throttle.yml` (which looks at the machines,
asks first whether it can be done, and reads back from the kernel that it is), a loop of `docker update`, a
loop of `docker_container`; neither loop checks anything. What Ansible takes for a playbook without a task is
shown beside them, since no way can take less. Then, on the machines alone: the agent, for limits of cpu and
of bandwidth both ways, and a shell's loop of `docker update`. The clients are stand-ins that sleep.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import controlgroups
from tests.hosts import Host, Hosts

ROOT = Path(__file__).resolve().parents[1]
FEDERATION = "bench"
NAMES = ["server", "c1"]


def newest_image() -> Path:
    """The newest FL image in the controller's cache."""
    cache = Path(os.environ.get("COLDFRAME_CACHE", Path.home() / ".cache" / "coldframe"))
    archives = sorted((cache / "images").glob("fl-*.tar.zst"), key=lambda path: path.stat().st_mtime)
    if not archives:
        sys.exit("throttle: there is no FL image in the cache: type ansible-playbook site.yml -e train=false")
    return archives[-1]


class Bench:
    """Two hosts, the inventory, and the way to run a playbook and time it."""

    def __init__(self, hosts: Hosts, directory: Path, clients: int) -> None:
        self.hosts, self.directory, self.clients = hosts, directory, clients
        inventory = yaml.safe_load(hosts.inventory())
        machines = inventory["fl_machines"]
        machines["children"]["fl_clients"]["hosts"]["server"] = None
        limits = {"fl_client_count": clients, "fl_client_cpu": 0.1, "fl_client_memory": "512m"}
        machines["vars"] |= {**limits, "fl_federation": FEDERATION}
        self.inventory = directory / "inventory.yml"
        self.inventory.write_text(yaml.safe_dump(inventory))
        # Ansible looks for them beside the inventory and beside the playbook, which is not in the root here.
        (directory / "group_vars").symlink_to(ROOT / "group_vars")
        self.empty = directory / "empty.yml"
        self.empty.write_text("- hosts: fl_clients\n  gather_facts: false\n")

    def play(self, playbook: str, **variables: Any) -> float:
        """Run a playbook; its wall time in seconds."""
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            playbook,
            "-i",
            str(self.inventory),
        ]
        for name, value in {"fl_federation": FEDERATION, **variables}.items():
            command += ["-e", f"{name}={value}"]
        begin = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begin
        if done.returncode:
            sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return seconds

    def deploy(self) -> None:
        """Bring image, stand-ins and agents to the hosts."""
        archive = newest_image()
        tag = "coldframe/fl:" + archive.name.removeprefix("fl-").removesuffix(".tar.zst")
        for host in self.hosts:
            with subprocess.Popen(["zstd", "-q", "-dc", str(archive)], stdout=subprocess.PIPE) as unpacked:
                copy = [*host.ssh(), "cat > /root/fl-image.tar"]
                subprocess.run(copy, stdin=unpacked.stdout, check=True)
        self.play("benchmarks/throttle.yml", benchmark_image=tag)

    def quotas(self, host: Host) -> set[int]:
        """The quotas that the kernel holds on a host, in microseconds per period of 100 ms."""
        names = [f"{FEDERATION}-{host.name}-{k}" for k in range(self.clients)]
        found = [controlgroups.read(lambda command: host.run(command).stdout, name).cpu for name in names]
        return {round(cores * 100_000) for cores in found if cores is not None}

    def agent_seconds(self, host: Host) -> tuple[list[float], float]:
        """How long the agent took for each client of its last request, and for the whole request per
        client."""
        text = host.run(f"tail -n {self.clients} /var/lib/coldframe/{FEDERATION}/events.jsonl").stdout
        events = [json.loads(line) for line in text.splitlines()]
        begin = min(event["time"] - event["seconds"] for event in events)
        whole = max(event["time"] for event in events) - begin
        return [event["seconds"] for event in events], whole / self.clients

    def shell_loop(self, quota: int) -> float:
        """How long a loop of `docker update` takes per client on the machines themselves, both at once."""
        names = " ".join(f"{FEDERATION}-{{host}}-{k}" for k in range(self.clients))
        script = f"for c in {names}; do docker update --cpu-quota {quota} $c; done"

        def run(host: Host) -> float:
            begin = time.monotonic()
            host.run(script.format(host=host.name))
            return (time.monotonic() - begin) / self.clients

        with ThreadPoolExecutor() as pool:
            return statistics.mean(pool.map(run, self.hosts))

    def check(self, quota: int) -> None:
        """The kernel holds a quota for all clients, or the figures are worth nothing."""
        for host in self.hosts:
            if self.quotas(host) != {quota}:
                sys.exit(f"throttle: {host.name} holds {self.quotas(host)} and not {quota}")


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Take turns, so that what else the machine does hits all ways alike."""
    ways = ("throttle", "throttle_bandwidth", "docker_update", "docker_container", "nothing")
    walls: dict[str, list[float]] = {way: [] for way in ways}
    agents: dict[str, list[float]] = {"agent": [], "agent_bandwidth": []}
    requests: dict[str, list[float]] = {"agent": [], "agent_bandwidth": []}
    shell = []
    for turn in range(repeats):
        quota = 11_000 + 1000 * turn
        bandwidth = {"down": f"{turn + 10}mbit", "up": f"{turn + 5}mbit"}
        for way, agent, limits in (
            ("throttle", "agent", {"cpu": quota / 100_000}),
            ("throttle_bandwidth", "agent_bandwidth", bandwidth),
        ):
            walls[way].append(bench.play("throttle.yml", **limits))
            for host in bench.hosts:
                clients, request = bench.agent_seconds(host)
                agents[agent] += clients
                requests[agent].append(request)
            bench.check(quota)
        bench.play("throttle.yml", undo="true")
        walls["nothing"].append(bench.play(str(bench.empty)))
        # The agent would take somebody else's change back: it rests meanwhile.
        for host in bench.hosts:
            host.run(f"docker pause {FEDERATION}-agent")
        try:
            for way, key in (("update", "docker_update"), ("container", "docker_container")):
                other = quota + (100 if way == "update" else 200)
                variables = {"benchmark_way": way, "benchmark_quota": other}
                walls[key].append(bench.play("benchmarks/throttle_loops.yml", **variables))
                bench.check(other)
            shell.append(bench.shell_loop(quota + 300))
        finally:
            for host in bench.hosts:
                host.run(f"docker unpause {FEDERATION}-agent")
        bench.play("throttle.yml", undo="true")
    figures: dict[str, Any] = {
        way: {"seconds": statistics.median(values), "all": values} for way, values in walls.items()
    }
    for agent, seconds in agents.items():
        figures[agent] = {
            "p50_ms": 1000 * percentile(seconds, 0.5),
            "p95_ms": 1000 * percentile(seconds, 0.95),
            "request_ms_per_client": 1000 * statistics.median(requests[agent]),
        }
    figures["docker_update_on_machine"] = {"ms_per_client": 1000 * statistics.median(shell)}
    return figures


def main() -> None:
    """Measure, print, and write the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one turn in place of three")
    parser.add_argument("--clients", type=int, default=10, help="per host")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Hosts(names=NAMES) as hosts:
        bench = Bench(hosts, Path(directory), arguments.clients)
        bench.deploy()
        figures = measure(bench, 1 if arguments.quick else 3)
    wall = {way: found["seconds"] for way, found in figures.items() if "seconds" in found}
    loops = ("docker_update", "docker_container")
    ratios = {f"{way}/throttle": wall[way] / wall["throttle"] for way in loops}
    # Every way waits for Ansible's own start: the rest is what the way itself takes.
    own = {way: wall[way] - wall["nothing"] for way in wall}
    ratios |= {f"{way}/throttle, without Ansible's start": own[way] / own["throttle"] for way in loops}
    on_machine = figures["docker_update_on_machine"]["ms_per_client"]
    ratios["docker_update/agent, on the machine"] = on_machine / figures["agent"]["request_ms_per_client"]
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "kernel": platform.release()}
    print(f"{len(NAMES)} hosts x {arguments.clients} clients, wall seconds from command to end (median)")
    for way, seconds in wall.items():
        print(f"  {way:<20}{seconds:8.2f}")
    print("on the machines, milliseconds per client")
    for agent in ("agent", "agent_bandwidth"):
        found = figures[agent]
        print(
            f"  {agent:<20}{found['request_ms_per_client']:8.1f} of the whole request; each client's own: "
            f"p50 {found['p50_ms']:.1f}, p95 {found['p95_ms']:.1f}"
        )
    print(f"  {'docker update':<20}{on_machine:8.1f}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f}")
    print(f"load {machine['load']:.1f} on {machine['cores']} cores")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"figures": figures, "ratios": ratios, "machine": machine}, indent=2)
        )


if __name__ == "__main__":
    main()
