"""What the exporters cost: CPU time of their whole processes with 20 clients, scraped once a second.

`python benchmarks/monitoring_cost.py [--quick] [--json FILE]`. The clients are containers of this machine's
engine that sleep, under limits; what is read of a container does not depend on what it does. The exporters
run as they are deployed, with TLS and a password, and each is asked over one lasting connection, as
Prometheus asks. The FL exporter has 20 runs of 20 clients to show, one of which goes on.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import platform
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from coldframe.controller.passwords import bcrypt
from coldframe.exporters.runs import RUNS
from coldframe.recording.journal import Journal
from tests.unit.test_exposition import write_certificate

ROOT = Path(__file__).resolve().parents[1]
FEDERATION = f"bench{os.getpid()}"
PASSWORD = "benchmark"
PORTS = {"container_exporter": 9761, "fl_exporter": 9762}
# What others have published for cAdvisor; not measured here, and under conditions that we do not know.
PUBLISHED = {"cadvisor_cpu_share": 0.073}


def docker(*words: str) -> str:
    """Output of a call of docker."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"docker {' '.join(words[:3])}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def clients(state: Path, count: int) -> Iterator[None]:
    """Containers that sleep under limits, and the files of deployment and agent that tell of them."""
    image = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "coldframe/*").splitlines()
    if not image:
        sys.exit("monitoring_cost: there is no image of ours on this machine's engine: type make up")
    limits = {"cpu": 0.5, "memory": 64 << 20, "pids": 64}
    started = []
    try:
        for k in range(count):
            words = [
                "--cpu-period",
                "100000",
                "--cpu-quota",
                "50000",
                "--memory",
                "64m",
                "--memory-swap",
                "64m",
            ]
            words += [
                "--pids-limit",
                "64",
                "--name",
                f"{FEDERATION}-c-{k}",
                "--entrypoint",
                "sleep",
                image[0],
                "infinity",
            ]
            started.append(docker("run", "--detach", *words))
            identity = {"name": f"c-{k}", "partition_id": k, "profile": None, "baseline": limits}
            asked = {"container_id": started[-1], "desired": limits | {"online": True}, "link": None}
            for name, content in ((f"clients/c-{k}.json", identity), (f"agent/limits/c-{k}.json", asked)):
                (state / name).parent.mkdir(parents=True, exist_ok=True)
                (state / name).write_text(json.dumps(content))
        yield
    finally:
        if started:
            docker("rm", "--force", *started)


def journal(state: Path, run: int, count: int) -> Journal:
    """A run's journal with two rounds of all clients."""
    written = Journal(state / "runs" / str(run) / "journal.jsonl")
    names = [{"name": f"c-{k}", "partition_id": k, "node_id": str(k)} for k in range(count)]
    about = {"run_name": "", "strategy": "fedavg", "dataset": "mnist", "partitioner": "iid", "seed": 0}
    written.append("run_started", run_id=str(run), rounds=2, clients=names, **about)
    for number in (1, 2):
        for k in range(count):
            reply(written, number, k)
        phases = dict.fromkeys(("configure", "train", "aggregate", "evaluate", "server_evaluate"), 1.0)
        figures = dict.fromkeys(("accuracy", "loss", "client_accuracy", "client_loss", "train_loss"), 0.5)
        written.append(
            "round", round=number, seconds=5.0, phases=phases, clients=count, failures=0, **figures
        )
    return written


def reply(written: Journal, number: int, client: int) -> None:
    """A client's reply."""
    names = ("cpu_limit", "threads", "train_seconds", "throttled_share", "memory_peak", "samples_per_second")
    who = {"client": f"c-{client}", "partition_id": client, "node_id": str(client)}
    how = {"seconds": 4.0, "examples": 600, "metrics": {}, "bytes_down": 5_000_000, "bytes_up": 5_000_000}
    written.append("reply", round=number, phase="train", system=dict.fromkeys(names, 1.0), **who, **how)


def start(name: str, directory: Path) -> subprocess.Popen[bytes]:
    """Start an exporter as its container does."""
    if name == "container_exporter":
        words = [str(directory / "state"), FEDERATION, "/sys/fs/cgroup", str(PORTS[name]), str(directory)]
    else:
        words = [str(PORTS[name])]
    environment = {**os.environ, "COLDFRAME_STATE": str(directory / "server")}
    command = [sys.executable, "-m", f"coldframe.{name}", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def connect(name: str, directory: Path) -> http.client.HTTPConnection:
    """A connection that waits until the exporter answers."""
    context = ssl.create_default_context(cafile=str(directory / "machine.crt"))
    for _ in range(100):
        encrypted = name == "container_exporter"
        connection = (
            http.client.HTTPSConnection("localhost", PORTS[name], context=context, timeout=10)
            if encrypted
            else http.client.HTTPConnection("127.0.0.1", PORTS[name], timeout=10)
        )
        try:
            connection.connect()
        except OSError:
            time.sleep(0.1)
            continue
        return connection
    sys.exit(f"monitoring_cost: {name} does not answer")


def scrape(connection: http.client.HTTPConnection) -> str:
    """One scrape."""
    login = base64.b64encode(f"scrape:{PASSWORD}".encode()).decode()
    connection.request("GET", "/metrics", headers={"Authorization": f"Basic {login}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        sys.exit(f"monitoring_cost: the exporter answers {answer.status}")
    return text


def measure(directory: Path, seconds: int, count: int) -> dict[str, Any]:
    """Scrape both exporters once a second; CPU time of each process as the kernel counts it."""
    running = journal(directory / "server", RUNS - 1, count)
    processes = {name: start(name, directory) for name in PORTS}
    try:
        connections = {name: connect(name, directory) for name in PORTS}
        pages = {name: scrape(connection) for name, connection in connections.items()}
        if pages["container_exporter"].count("container_cpu_usage_seconds_total{") != count:
            sys.exit("monitoring_cost: the exporter does not see the containers")
        watched = {name: psutil.Process(process.pid) for name, process in processes.items()}
        before = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
        begin = time.monotonic()
        for second in range(seconds):
            reply(running, 3, second % count)
            for connection in connections.values():
                scrape(connection)
            time.sleep(max(0.0, begin + second + 1 - time.monotonic()))
        wall = time.monotonic() - begin
        return {
            name: {
                "cpu_share": (sum(process.cpu_times()[:2]) - before[name]) / wall,
                "memory_bytes": process.memory_info().rss,
                "series": sum(not line.startswith("#") for line in pages[name].splitlines()),
                "page_bytes": len(pages[name]),
            }
            for name, process in watched.items()
        }
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()


def main() -> None:
    """Measure, print, and write the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="20 seconds in place of 120")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_certificate(directory)
        (directory / "users").write_text(f"scrape:{bcrypt(PASSWORD)}\n")
        for run in range(RUNS - 1):
            written = journal(directory / "server", run, arguments.clients)
            written.append("run_finished", status="completed", error=None)
        with clients(directory / "state", arguments.clients):
            figures = measure(directory, 20 if arguments.quick else 120, arguments.clients)
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "kernel": platform.release()}
    ratios = {"container_exporter/one_core": figures["container_exporter"]["cpu_share"]}
    print(f"{arguments.clients} clients, a scrape each second; CPU of the whole process, of one core")
    for exporter, figure in figures.items():
        print(
            f"  {exporter:<20}{figure['cpu_share']:7.2%}   {figure['memory_bytes'] / 2**20:5.0f} MB   "
            f"{figure['series']} series"
        )
    print(
        f"  cAdvisor: {PUBLISHED['cadvisor_cpu_share']:.1%} has been published by others; not measured here"
    )
    if arguments.json:
        content = {"figures": figures, "ratios": ratios, "machine": machine, "published_by_others": PUBLISHED}
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
