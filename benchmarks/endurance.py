"""200 tasks of one client, with all that a ClientApp can do wrong among them, and what they leave behind.

On this machine, as root: `python benchmarks/endurance.py [--quick] [--json FILE]`. SuperNode, warm executor
and zygote are in a control group of their own with a memory limit, first with all cores, then with a tenth
of one. Each tenth task raises, calls os._exit, is killed, takes more memory than there is (the kernel kills
it), hangs past the time to live of its message, dies while it replies, or leaves threads and processes
behind. It has to fail with the right reason, and the next one has to work. Compared are the client's
processes, threads, open files and memory after the first twenty tasks and after the last.

With `--runs N` it is the server that endures: N runs of an app with a model of 4.6 MB and three exchanges, on
one SuperLink with TLS, its executor, the FL exporter, which is read after each run, and two clients. Compared
are memory, threads, open files and disk after the first ten runs and after the last, when the server is idle.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import endurance_server  # noqa: E402
from tests.unit.flower import Federation, federation, wait_until, write_app  # noqa: E402

TASKS, FIRST = 200, 20
MEMORY = 900 << 20  # bytes; a client is below half of it
GROWTH_MB = 8.0

CLIENT = """
import os, signal, subprocess, threading, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    match message.content["order"]["do"]:
        case "raise":
            raise ZeroDivisionError("on purpose")
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fill":
            held = [bytearray(os.urandom(1 << 20)) * 32 for _ in range(1000)]
        case "hang":
            time.sleep(1000)
        case "die while replying":
            from flwr.supernode.runtime import run_clientapp
            run_clientapp.push_objects = lambda *_args, **_kwargs: os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            threading.Thread(target=time.sleep, args=(1000,)).start()
            subprocess.Popen(["sleep", "1001"])
            subprocess.Popen(["sleep", "1002"], start_new_session=True)
    return Message(RecordDict({"answer": ConfigRecord({"works": True})}), reply_to=message)
"""
# What the failure has to say; nothing where the task works.
WRONGS = {
    "raise": "on purpose",
    "exit": "exit status 3",
    "kill": "killed by SIGKILL",
    "fill": "out of memory (OOM)",
    "hang": "",
    "die while replying": "killed by SIGKILL",
    "leave": None,
}
EXECUTOR = [
    sys.executable,
    "-P",
    "-c",
    "from coldframe.client import container; container.preload(); container.run_executor([])",
]
SUPERNODE = [sys.executable, "-m", "coldframe.flower.adapters", "supernode"]


class Group:
    """A control group made for this run; both versions of the kernel's interface."""

    def __init__(self, name: str) -> None:
        root = Path("/sys/fs/cgroup")
        self.v2 = (root / "cgroup.controllers").exists()
        if self.v2:
            (root / "cgroup.subtree_control").write_text("+cpu +memory")
        self.places = [root / name] if self.v2 else [root / "cpu" / name, root / "memory" / name]
        for place in self.places:
            place.mkdir()

    def limit(self, cpu: float | None = None, memory: int | None = None) -> None:
        """Set limits: cores and bytes."""
        if memory is not None:
            (self.places[-1] / ("memory.max" if self.v2 else "memory.limit_in_bytes")).write_text(str(memory))
        if cpu is not None and self.v2:
            (self.places[0] / "cpu.max").write_text(f"{cpu * 100_000:.0f} 100000")
        elif cpu is not None:
            (self.places[0] / "cpu.cfs_quota_us").write_text(f"{cpu * 100_000:.0f}")

    def command(self, command: list[str]) -> list[str]:
        """Return the command that runs another in this group."""
        join = "; ".join(f"echo $$ > {place}/cgroup.procs" for place in self.places)
        return ["sh", "-c", f'{join}; exec "$@"', "sh", *command]

    def peak(self) -> int:
        """Return the most bytes that were ever charged to the group."""
        return int(
            (self.places[-1] / ("memory.peak" if self.v2 else "memory.max_usage_in_bytes")).read_text()
        )

    def pids(self) -> list[int]:
        """Return the processes of the group."""
        return [int(line) for line in (self.places[-1] / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        """Remove the group, once its processes are gone."""
        wait_until(lambda: not self.pids(), 10, "processes are left in the control group")
        for place in self.places:
            place.rmdir()


def use(group: Group) -> dict[str, float]:
    """Return what the client's processes use; memory that is their own, in MB."""
    found = {"processes": 0.0, "threads": 0.0, "files": 0.0, "memory_mb": 0.0}
    for pid in group.pids():
        found["processes"] += 1
        found["threads"] += len(list(Path(f"/proc/{pid}/task").iterdir()))
        found["files"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found["memory_mb"] += int(text.partition("\nPss_Anon:")[2].split()[0]) / 1024
    return found


def orders(tasks: int, ttl: float) -> list[dict[str, Any]]:
    """Return what the tasks are to do: each tenth something wrong."""
    wrongs = itertools.cycle(WRONGS)
    names = [next(wrongs) if number % 10 == 5 else "echo" for number in range(tasks)]
    return [{"do": name, "ttl": ttl if name == "hang" else 600.0} for name in names]


def check(answers: list[dict[str, Any]]) -> None:
    """See that each task did what it was to do, and failed for the reason that it had."""
    for answer in answers:
        reason = WRONGS.get(answer["do"])
        if reason is None:
            assert answer.get("works"), f"a task failed: {answer}"
        else:
            assert "code" in answer and reason in answer["reason"], f"another end than expected: {answer}"


def endure(started: Federation, group: Group, app: Path, tasks: int, ttl: float) -> dict[str, float]:
    """Run the tasks and compare what the client uses after the first of them and after the last."""

    def settled() -> dict[str, float]:
        # The last task's process may still be ending; SuperNode, executor and zygote stay.
        wait_until(lambda: len(group.pids()) == 3, 20, f"more than three processes: {group.pids()}")
        return use(group)

    check(started.run(app, orders(FIRST, ttl), timeout=300))
    before, start = settled(), time.monotonic()
    check(started.run(app, orders(tasks - FIRST, ttl), timeout=1200))
    seconds, after = time.monotonic() - start, settled()
    for name in ("processes", "files"):
        assert after[name] == before[name], f"{name}: {before} -> {after}"
    assert after["threads"] <= before["threads"] + 2, f"threads: {before} -> {after}"
    assert after["memory_mb"] < before["memory_mb"] + GROWTH_MB, f"memory: {before} -> {after}"
    return {
        "tasks": tasks,
        "seconds_per_task": seconds / (tasks - FIRST),
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="100 tasks with all cores, 60 with a tenth of one"
    )
    parser.add_argument("--runs", type=int, metavar="N", help="so many runs of a server instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()
    where = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    figures: dict[str, dict[str, float]] = {}
    if arguments.runs:
        figures = endurance_server.endure(arguments.runs)
        write(arguments.json, figures, where)
        return
    group = Group(f"coldframe-endurance-{os.getpid()}")
    group.limit(memory=MEMORY)
    try:
        with tempfile.TemporaryDirectory() as directory, federation(Path(directory) / "it") as started:
            app = write_app(Path(directory) / "app", CLIENT)
            started.start_link([sys.executable, "-m", "coldframe.flower.adapters", "superlink"])
            started.start_node(group.command(SUPERNODE), group.command(EXECUTOR))
            for cpu in (None, 0.1):
                group.limit(cpu=cpu)
                tasks = TASKS if not arguments.quick else 100 if cpu is None else 60
                name = "all cores" if cpu is None else f"{cpu} cores"
                figures[name] = endure(started, group, app, tasks, 3.0 if cpu is None else 10.0)
                print(name, json.dumps({k: round(v, 2) for k, v in figures[name].items()}), flush=True)
            group.limit(cpu=float(os.cpu_count() or 1))  # so that it can end quickly
    finally:
        group.remove()
    write(arguments.json, figures, where)


def write(path: Path | None, figures: dict[str, dict[str, float]], where: dict[str, Any]) -> None:
    """Write the figures, if there is a file for them."""
    if path:
        path.write_text(json.dumps({"figures": figures, "ratios": {}, "machine": where}, indent=1))


if __name__ == "__main__":
    main()
