"""The memory of one client that trains: the warm runtime beside Flower's own three processes.

On this machine, as root: `python benchmarks/memory.py [--json FILE]`, with MNIST prepared (site.yml does it).
A client's processes are in a control group of their own; it trains and evaluates two rounds of the
repository's own app on 3,000 samples. `peak` is the group's high-water mark from the start to the end, the
file pages included that this group read first; `idle` is the processes' proportional share (PSS) before the
run and, with what a first task leaves behind, after it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from endurance import ROOT, Group  # first: it makes the repository's modules importable
from round_overhead import CLIENT_CONTAINER, pss_bytes

from tests.unit.flower import Federation, federation, free_port, tool, wait_for_port, wait_until

CONFIG = {
    **{f"min-{kind}-clients": 1 for kind in ("available", "train", "evaluate")},
    "num-server-rounds": 2,
    "max-samples": 3000,
}


def start_client(started: Federation, group: Group, ours: bool) -> None:
    """Start one client's processes in a control group."""
    port = free_port()
    secret = started.home / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    auth = ["--superexec-auth-secret-file", str(secret)]
    supernode = [
        *("--insecure", "--superlink", f"127.0.0.1:{started.link_port}", "--isolation", "process", *auth),
        *("--port", str(port), "--node-config", 'partition-id=0 num-partitions=1 name="one"'),
    ]
    executor = ["--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *auth]
    if ours:
        command = [sys.executable, "-P", "-c", CLIENT_CONTAINER, json.dumps([supernode, executor])]
        started.start("client", group.command(command))
        wait_for_port(port)
    else:
        started.start("client", group.command([tool("flower-supernode"), *supernode]))
        wait_for_port(port)
        started.start("executor", group.command([tool("flower-superexec"), *executor]))


def idle_mb(group: Group) -> float:
    """Return what a client's processes use while nothing is to be done."""
    time.sleep(8)  # the imports of the zygote; the end of the last task
    return sum(pss_bytes([pid]) for pid in group.pids() if not _is_child_of_one(pid, group)) / 1e6


def _is_child_of_one(pid: int, group: Group) -> bool:
    """Say whether a process is counted with its parent already."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]) in group.pids()


def measure(ours: bool) -> dict[str, float]:
    """Train with one runtime and return the figures, in MB."""
    group = Group(f"coldframe-memory-{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory() as directory, federation(Path(directory) / "it") as started:
            state = Path(directory) / "state"
            (state / "runs").mkdir(parents=True)
            started.environment["COLDFRAME_STATE"] = str(state)
            link = [sys.executable, "-m", "coldframe.flower.adapters", "superlink"]
            started.start_link(link if ours else [tool("flower-superlink")])
            start_client(started, group, ours)
            before = idle_mb(group)
            config = " ".join(f"{key}={value}" for key, value in CONFIG.items())
            subprocess.run(
                [tool("flwr"), "run", str(ROOT), "test", "-c", config],
                env={**os.environ, **started.environment},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            wait_until(lambda: finished(state), 180, "the run does not end")
            after = idle_mb(group)
            return {"peak_mb": group.peak() / 1e6, "idle_mb": before, "idle_after_mb": after}
    finally:
        group.remove()


def finished(state: Path) -> bool:
    """Say whether the run has ended, which has to be well."""
    for journal in state.glob("runs/*/journal.jsonl"):
        for line in journal.read_text().splitlines():
            event = json.loads(line)
            assert event["event"] != "failure", event
            if event["event"] == "run_finished":
                assert event["status"] == "completed", event
                return True
    return False


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the same: it takes a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()
    where = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    figures = {}
    for name in ("stock", "ours"):
        figures[name] = measure(name == "ours")
        print(name, json.dumps({key: round(value) for key, value in figures[name].items()}), flush=True)
    ratios = {f"{key}_ours_to_stock": figures["ours"][key] / figures["stock"][key] for key in figures["ours"]}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"figures": figures, "ratios": ratios, "machine": where}, indent=1)
        )


if __name__ == "__main__":
    main()
