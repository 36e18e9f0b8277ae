"""How much of a round under a CPU limit is training: the warm runtime beside Flower's own, on real MNIST.

On this machine's engine, in a federation of its own: `python benchmarks/efficiency.py [--quick] [--json FILE]
[--plot FILE]`. Two clients train under 0.25 and then 0.5 cores each, and a third container under the same
limit times the training (the sum stays below 80 % of two cores, so that limits and not contention decide).

The efficiency of a round is its lower bound divided by what it took. The bound is training alone: steps ÷
(steps per CPU-second times cores), with the speed from `calibrate.yml -e cpu=...`, which trains in a
container of its own under the same limit and knows nothing of rounds. It does that while the clients train,
for a machine's own speed drifts by a tenth and more within minutes. `efficiency_of_an_undivided_core` takes
the speed without a limit, measured before: it counts as loss that a core in slices is slower, which no
framework can help. What a round took is from the ServerApp's journal, from sampling to the aggregated model;
the evaluation is the app's own matter and is left out.

Its parts, of the slowest client: training as calibrated and what it took longer, the rest of the task's
process (start, imports, loading the app and its data, model in and out), transfer (all else between sending
the model and having the last reply: SuperLink, gateway, SuperNode), aggregation, configuration. The memory
peak is the high-water mark of a client's control group, as the clients report it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FEDERATION = "efficiency"
CALIBRATION = Path("/var/lib/coldframe/calibration.json")  # the machine's, whatever the federation
CLIENTS, BATCH = 2, 32
LIMITS = (0.25, 0.5)  # cores per client
PARTS = ("training", "slower than calibrated", "task", "transfer", "aggregation", "configuration")
COLOURS = ("#4477AA", "#66CCEE", "#EE6677", "#CCBB44", "#228833", "#BBBBBB")


class Bench:
    """The federation and the way to run a verb on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        machine = {"local": {"ansible_connection": "local", "fl_client_count": CLIENTS}}
        inventory = {
            "fl_machines": {
                "vars": {
                    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
                    "fl_federation": FEDERATION,
                    "fl_results_dir": str(directory / "results"),
                    "fl_port": 9292,
                    "fl_client_cpu": LIMITS[0],
                    "fl_monitoring": False,
                },
                "children": {"fl_server": {"hosts": machine}, "fl_clients": {"hosts": {"local": None}}},
            }
        }
        self.inventory = directory / "inventory.yml"
        self.inventory.write_text(yaml.safe_dump(inventory))

    def play(self, verb: str, **variables: Any) -> None:
        """Run a verb that has to succeed."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), verb, "-i", str(self.inventory)]
        for name, value in variables.items():
            command += ["-e", f"{name}={value}"]
        output = self.directory / f"{verb}.log"
        with output.open("w") as file:
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command[1:])} failed:\n{output.read_text()[-4000:]}")

    def speed(self, seconds: float, cpu: float | None = None) -> float:
        """Training steps per CPU-second, timed for that long: of an undivided core, or under a limit."""
        self.play("calibrate.yml", seconds=seconds, **({} if cpu is None else {"cpu": cpu}))
        found = json.loads(CALIBRATION.read_text())
        return float((found if cpu is None else found["limited"])["steps_per_second"])

    def run(self, cpu: float, seconds: float, **variables: Any) -> float:
        """Train, and from the first round on time the training beside it; the speed as above."""
        output = self.directory / "run.yml.log"
        output.unlink(missing_ok=True)
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(self.play, "run.yml", **variables)
            while not run.done() and not (output.exists() and "round 0/" in output.read_text()):
                time.sleep(0.1)
            speed = self.speed(seconds, cpu)
            run.result()
        return speed

    def journal(self) -> list[dict[str, Any]]:
        """The events of the last run."""
        text = (self.directory / "results" / "latest" / "journal.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def figures(journal: list[dict[str, Any]], undivided: float, speed: float, cpu: float) -> dict[str, float]:
    """Return medians over a run's rounds, in seconds, and the efficiency.

    Parameters
    ----------
    undivided, speed : float
        Training steps per CPU-second: of a core without a limit, and under this one.
    cpu : float
        Cores per client.
    """
    rounds = []
    for event in journal:
        if event["event"] != "round" or event["round"] == 0:
            continue
        replies = [e for e in journal if e["event"] == "reply" and e["round"] == event["round"]]
        trained = [e for e in replies if e["phase"] == "train"]
        if len(trained) < CLIENTS:
            # Flower's own processes lose one now and then; nothing can be said of a round without it.
            lost = [e for e in journal if e["event"] == "failure" and e["round"] == event["round"]]
            print(f"round {event['round']} left out, {len(trained)} clients trained: {lost}", flush=True)
            continue
        assert all(e["system"]["cpu_limit"] == cpu for e in trained), "another limit held"
        steps = max(-(-e["examples"] // BATCH) for e in trained)
        bound = steps / (speed * cpu)
        last = max(trained, key=lambda e: e["system"]["train_seconds"])["system"]
        phases = event["phases"]
        total = phases["configure"] + phases["train"] + phases["aggregate"]
        rounds.append(
            {
                "bound": bound,
                "round": total,
                "efficiency": bound / total,
                "efficiency_of_an_undivided_core": steps / (undivided * cpu) / total,
                "training": bound,
                "slower than calibrated": last["train_seconds"] - bound,
                "task": last["task_seconds"] - last["train_seconds"],
                "transfer": phases["train"] - last["task_seconds"],
                "aggregation": phases["aggregate"],
                "configuration": phases["configure"],
                "client_memory_peak_mb": max(e["system"]["memory_peak"] for e in trained) / 1e6,
            }
        )
    if not rounds:
        sys.exit("no round in which all clients trained")
    return {key: statistics.median(item[key] for item in rounds) for key in rounds[0]}


def benchmark(bench: Bench, quick: bool) -> dict[str, Any]:
    """Measure both runtimes under both limits."""
    rounds, bound = (2, 10.0) if quick else (4, 15.0)
    results: dict[str, Any] = {}
    undivided = 0.0
    for runtime in ("warm", "stock"):
        print(f"{runtime}: deploying", flush=True)
        bench.play("site.yml", train="false", fl_runtime=runtime)
        undivided = undivided or bench.speed(5.0)
        for cpu in LIMITS:
            bench.play("throttle.yml", cpu=cpu)
            # A core in slices does about a tenth less.
            samples = CLIENTS * BATCH * round(bound * 0.9 * undivided * cpu)
            speed = bench.run(
                cpu,
                0.8 * rounds * bound * cpu,
                rounds=rounds,
                max_samples=samples,
                batch_size=BATCH,
                fraction_evaluate=0,
                min_available_clients=CLIENTS,
                min_train_clients=CLIENTS,
            )
            found = figures(bench.journal(), undivided, speed, cpu)
            found |= {"steps_per_cpu_second": speed, "steps_per_cpu_second_undivided": undivided}
            results.setdefault(runtime, {})[str(cpu)] = found
            print(
                f"{runtime} at {cpu} cores: bound {found['bound']:.1f} s, round {found['round']:.1f} s, "
                f"efficiency {found['efficiency']:.3f} "
                f"({found['efficiency_of_an_undivided_core']:.3f} of an undivided core), "
                f"memory peak {found['client_memory_peak_mb']:.0f} MB",
                flush=True,
            )
    ratios = {
        f"cpu_{cpu}_warm_to_stock_efficiency": results["warm"][str(cpu)]["efficiency"]
        / results["stock"][str(cpu)]["efficiency"]
        for cpu in LIMITS
    } | {
        f"cpu_{cpu}_stock_to_warm_memory_peak": results["stock"][str(cpu)]["client_memory_peak_mb"]
        / results["warm"][str(cpu)]["client_memory_peak_mb"]
        for cpu in LIMITS
    }
    return {"figures": results, "ratios": ratios}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw where the time of a round goes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    rows = [(runtime, cpu) for runtime in results for cpu in results[runtime]]
    left = [0.0] * len(rows)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [max(0.0, results[runtime][cpu][part]) for runtime, cpu in rows]
        axes.barh(range(len(rows)), widths, left=left, label=part, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, (runtime, cpu) in enumerate(rows):
        axes.text(left[place], place, f"  η {results[runtime][cpu]['efficiency']:.2f}", va="center")
    axes.set_yticks(range(len(rows)), [f"{runtime}, {cpu} cores" for runtime, cpu in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.15)
    axes.set_xlabel("seconds of a round")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, fontsize="small", loc="lower center", bbox_to_anchor=(0.45, 1.0))
    figure.savefig(path, dpi=200)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds each, with shorter training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw them")
    arguments = parser.parse_args()
    # Ended from outside, it still removes what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    where = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "platform": platform.platform()}
    before = CALIBRATION.read_text() if CALIBRATION.exists() else None
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        try:
            result = benchmark(bench, arguments.quick) | {"machine": where}
        finally:
            bench.play("teardown.yml", purge="true", yes="true")
            if before is not None:
                CALIBRATION.write_text(before)
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if arguments.plot:
        draw(result["figures"], arguments.plot)


if __name__ == "__main__":
    main()
