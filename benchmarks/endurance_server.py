"""What many runs leave in the processes of a server and on its disk; see `endurance.py --runs`."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from coldframe.flower.fast_path import REST_SECONDS
from coldframe.keys import node_keys
from coldframe.server import control
from tests.unit.flower import Federation, federation, free_port, wait_for_port, write_app

FIRST, CLIENTS = 10, 2
KEEP = 50  # runs whose files are kept, as `fl_keep_runs` has it
GROWTH_MB = 8.0  # of each process between the first runs and the last

CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    arrays = {key: Array(array.numpy() + np.float32(1)) for key, array in message.content["arrays"].items()}
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1.0})}
    return Message(RecordDict(content), reply_to=message)
"""
SERVER = """
import time
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.1)
    draw = np.random.default_rng()
    sizes = [300_000] * 3 + [60_000] * 4 + [1000] * 8
    arrays = [Array(draw.standard_normal(size, np.float32)) for size in sizes]
    model = ArrayRecord({f"a{number}": array for number, array in enumerate(arrays)})
    for _ in range(3):
        messages = [Message(RecordDict({"arrays": model}), node, "train") for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=60))
        assert len(replies) == len(nodes) and not any(reply.has_error() for reply in replies), replies
        model = replies[0].content["arrays"]
"""
ADAPTED = [sys.executable, "-m", "coldframe.flower.adapters"]
EXECUTOR = "from coldframe.client import container; container.preload(); container.run_executor([])"


def endure(runs: int) -> dict[str, dict[str, float]]:
    """Make the runs; return the figures after the first of them and after the last."""
    with tempfile.TemporaryDirectory() as name, federation(Path(name) / "it") as started:
        directory = Path(name)
        state, port = directory / "state", free_port()
        (state / "runs").mkdir(parents=True)
        watched = start(started, directory, state, port)
        submit = submitter(started, directory, state)
        figures = {}
        for number in range(1, runs + 1):
            submit()
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read()
            if number in (FIRST, runs):
                time.sleep(REST_SECONDS + 10)
                figures[f"after {number} runs"] = use(watched, state)
                print(f"after {number} runs", json.dumps(figures[f"after {number} runs"]), flush=True)
    before, after = figures[f"after {FIRST} runs"], figures[f"after {runs} runs"]
    for process in watched:
        assert after[f"{process}_mb"] < before[f"{process}_mb"] + GROWTH_MB, f"{process}: {before} -> {after}"
        assert after[f"{process}_files"] <= before[f"{process}_files"] + 4, f"{process}: {before} -> {after}"
    return figures


def start(started: Federation, directory: Path, state: Path, port: int) -> dict[str, int]:
    """Start server and clients; return the ids of the processes that are watched."""
    secret = directory / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    auth = ["--superexec-auth-secret-file", str(secret)]
    started.environment["COLDFRAME_STATE"] = str(state)
    started.authenticate()
    database = ["--database", str(state / "superlink.db")]
    started.start_link([*ADAPTED, "superlink"], "--isolation", "process", *auth, *database)
    address = ["--runtime-api-address", f"127.0.0.1:{started.link_port}"]
    superexec = started.start(
        "superexec",
        [*ADAPTED, "serverapp-superexec", *started.trust, *address, *auth],
        FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.2",
    )
    exporter = started.start("exporter", [sys.executable, "-m", "coldframe.exporters.runs", str(port)])
    wait_for_port(port)
    return {"superlink": started.processes[0].pid, "superexec": superexec.pid, "exporter": exporter.pid}


def submitter(started: Federation, directory: Path, state: Path) -> Callable[[], None]:
    """Register and start the clients; return what makes one run, as a deployment's run is made."""
    app = write_app(directory / "app", CLIENT)
    (app / "probe" / "server.py").write_text(SERVER)
    fab = directory / "probe.fab"
    fab.write_bytes(build_fab_from_disk(app))
    assert started.certificate
    client = ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{started.link_port}",
        insecure=False,
        root_certificates=started.certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    vars(control)["state_directory"] = lambda: state
    keys, names = directory / "keys", [f"c-{number}" for number in range(CLIENTS)]
    keys.mkdir()
    public: Any = node_keys(keys, names)["public_keys"]
    about = [
        {"name": name, "machine": "here", "partition_id": number, "public_key": public[name]}
        for number, name in enumerate(names)
    ]
    control.register(client, about)
    for name in names:
        scratch = str(directory / name)
        executor = [sys.executable, "-c", EXECUTOR]
        started.start_node([*ADAPTED, "supernode"], executor, keys / name, COLDFRAME_SCRATCH=scratch)

    def submit() -> None:
        run_id = control.submit(client, fab, {"nodes": CLIENTS}, KEEP, "refuse")["run_id"]
        deadline = time.monotonic() + 120
        while (run := next(r for r in control.list_runs(client) if r["run_id"] == run_id))[
            "status"
        ] != "finished":
            assert time.monotonic() < deadline, f"{run}; the logs are in {started.home}"
            time.sleep(0.5)
        assert run["sub_status"] == "completed", run
        (state / "runs" / run_id / "collected").touch()

    return submit


def use(watched: dict[str, int], state: Path) -> dict[str, float]:
    """Return what the processes use (memory that is their own, in MB), and what is on the disk."""
    found: dict[str, float] = {}
    for name, pid in watched.items():
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found[f"{name}_mb"] = round(int(text.partition("\nPss_Anon:")[2].split()[0]) / 1024, 1)
        found[f"{name}_threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
        found[f"{name}_files"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    files = [path for path in state.rglob("*") if path.is_file()]
    found["disk_mb"] = round(sum(path.stat().st_size for path in files) / 2**20, 1)
    found["disk_files"] = len(files)
    found["database_mb"] = round((state / "superlink.db").stat().st_size / 2**20, 2)
    return found
