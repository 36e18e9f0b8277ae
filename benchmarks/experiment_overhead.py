"""What lies between two runs: experiment.yml beside a shell loop of run.yml, on one standing federation.

`python benchmarks/experiment_overhead.py [--quick] [--json FILE]`, on two test hosts of its own with 8
clients together. Each way trains runs of the same length; what is measured is the time from the end of a run
to the start of the next one, as the SuperLink has recorded them. `--quick` trains 3 runs each way in place
of 6.
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
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hosts import Hosts, fl_seed

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["server", "c1"]
CLIENTS = 4  # on each host
BASE = {"rounds": 1, "dataset": "synthetic", "max_samples": 1600, "local_epochs": 2}
CONTROL = "docker exec coldframe-server python3 -m coldframe.server.control"


class Bench:
    """Hosts with a federation, and the two ways to train on it."""

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts, self.directory = hosts, directory
        inventory = yaml.safe_load(hosts.inventory())
        machines = inventory["fl_machines"]
        machines["children"]["fl_clients"]["hosts"] = dict.fromkeys(machines["hosts"])
        machines["vars"] |= {"fl_client_count": CLIENTS, "fl_client_cpu": 0.2, "fl_client_memory": "512m"}
        machines["vars"] |= {"fl_monitoring": False, "fl_results_dir": str(directory / "results")}
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))

    def play(self, verb: str, *words: str) -> None:
        """Run a verb; its output if it fails."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), verb]
        command += ["-i", str(self.directory / "inventory.yml")]
        command += [word for pair in words for word in ("-e", pair)]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.directory / "state")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")

    def control(self, words: str) -> Any:
        """Ask the server."""
        return json.loads(self.hosts[0].run(f"{CONTROL} {words}").stdout.splitlines()[-1])

    def deploy(self) -> None:
        """Deploy, and wait for all clients."""
        self.play("site.yml", "train=false", "dataset=synthetic")
        end = time.monotonic() + 240
        while sum(node["status"] == "online" for node in self.control("nodes")["nodes"]) < 2 * CLIENTS:
            if time.monotonic() > end:
                sys.exit("not all clients were connected within 240 s")
            time.sleep(2)

    def loop(self, seeds: list[int]) -> None:
        """Train by a loop of run.yml."""
        words = [f"{name}={value}" for name, value in BASE.items()]
        for seed in seeds:
            self.play("run.yml", *words, f"seed={seed}")

    def experiment(self, seeds: list[int]) -> None:
        """Train by experiment.yml."""
        path = self.directory / "overhead.yml"
        path.write_text(yaml.safe_dump({"base": BASE, "seeds": seeds}))
        self.play("experiment.yml", f"file={path}")

    def gaps(self, known: set[str]) -> tuple[list[float], list[float]]:
        """Seconds between the runs that are not known yet, and seconds of each of them."""
        runs = [run for run in reversed(self.control("runs")) if run["run_id"] not in known]
        spans = [
            (datetime.fromisoformat(run["started"]), datetime.fromisoformat(run["finished"])) for run in runs
        ]
        between = [(b[0] - a[1]).total_seconds() for a, b in pairwise(spans)]
        return between, [(end - begin).total_seconds() for begin, end in spans]


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 runs each way in place of 6")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()
    # Ended from outside, it still removes its hosts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    count = 3 if arguments.quick else 6
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, Hosts(names=NAMES, seed=fl_seed()) as hosts:
        bench = Bench(hosts, Path(directory))
        bench.deploy()
        bench.play(
            "run.yml", *(f"{name}={value}" for name, value in BASE.items())
        )  # clients prepare themselves
        for name, train in (("loop of run.yml", bench.loop), ("experiment.yml", bench.experiment)):
            known = {run["run_id"] for run in bench.control("runs")}
            begin = time.monotonic()
            train(list(range(1, count + 1)))
            between, seconds = bench.gaps(known)
            figures[name] = {
                "between_seconds": median(between),
                "run_seconds": median(seconds),
                "seconds": time.monotonic() - begin,
            }
            shown = ", ".join(f"{gap:.1f}" for gap in between)
            print(
                f"{name}: {median(between):.2f} s between runs ({shown}), {median(seconds):.1f} s a run, "
                f"{figures[name]['seconds']:.1f} s in all",
                flush=True,
            )
    ours, loop = (figures[name]["between_seconds"] for name in ("experiment.yml", "loop of run.yml"))
    ratios = {"loop/experiment": loop / ours}
    print(f"a loop of run.yml leaves {ratios['loop/experiment']:.1f} times as long between two runs")
    if arguments.json:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "platform": platform.platform()}
        arguments.json.write_text(json.dumps({"figures": figures, "ratios": ratios, "machine": machine}))


if __name__ == "__main__":
    main()
