"""Starts real Flower processes on the loopback for tests: a SuperLink, SuperNodes, executors, and runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.proto.run_pb2 import RunStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from coldframe.keys import own_certificate
from tests.unit import forkserver
from tests.unit.forkserver import ADAPTED, CLIENTS

ROOT = Path(__file__).parents[2]

MANIFEST = """
[project]
name = "{name}"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = []
[tool.flwr.app]
publisher = "test"
fab-include = ["/{name}/*.py", "/LICENSE"]
[tool.flwr.app.components]
serverapp = "{name}.server:app"
clientapp = "{name}.client:app"
[tool.flwr.app.config]
orders = ""
out = ""
nodes = 1
"""

# Sends one message per order to each node, one after the other, and writes down what came back.
SERVER = """
import json, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    while len(nodes := sorted(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.1)
    replies = []
    for order in json.load(open(context.run_config["orders"])):
        start = time.monotonic()
        content = RecordDict({"order": ConfigRecord(order)})
        messages = [Message(content, node, "query", ttl=order.get("ttl", 600.0)) for node in nodes]
        waiting = set(grid.push_messages(messages))
        while waiting and time.monotonic() - start < 50:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                answer = {"seconds": time.monotonic() - start, "do": order["do"]}
                if reply.has_error():
                    answer |= {"code": reply.error.code, "reason": reply.error.reason}
                else:
                    answer |= dict(reply.content["answer"])
                replies.append(answer)
            time.sleep(0.02)
        replies += [{"do": order["do"], "missing": True} for _ in waiting]
    with open(context.run_config["out"], "w") as file:
        json.dump(replies, file)
"""


Process = subprocess.Popen[bytes] | forkserver.ForkedProcess


@dataclass
class Federation:
    """A SuperLink with its nodes; every process is ended by `stop`, by its id.

    With `authenticate` there is TLS, and only nodes with a registered key are let in. Without `forks` each
    process is an interpreter of its own: where a test is about how it starts.
    """

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    link_port: int = 0
    certificate: Path | None = None
    forks: bool = True

    def authenticate(self) -> None:
        """Make a certificate for the SuperLink, before it is started."""
        self.certificate = self.home / "superlink.crt"
        own_certificate(self.certificate, self.home / "superlink.key", ["DNS:localhost", "IP:127.0.0.1"])

    @property
    def trust(self) -> list[str]:
        """The options of who calls the SuperLink."""
        return ["--root-certificates", str(self.certificate)] if self.certificate else ["--insecure"]

    def start(self, name: str, command: list[str], **environment: str) -> Process:
        """Start one process; its output goes to `<home>/<name>.log`."""
        given = {**os.environ, **self.environment, **environment}
        process: Process
        with (self.home / f"{name}.log").open("wb") as log:
            if self.forks and forkserver.name_of(command):
                streams = (log.fileno(), log.fileno())
                process = forkserver.fork(forkserver.address(), command, given, self.home, *streams)
            else:
                process = subprocess.Popen(
                    command,
                    env=given,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=self.home,
                    process_group=0,  # no session: each gets as much CPU time as all containers
                )
        self.processes.append(process)
        return process

    def start_link(self, command: list[str], *options: str) -> None:
        """Start a SuperLink, which starts its ServerApps itself unless told otherwise, till it answers."""
        self.link_port = free_port()
        security = ["--insecure"]
        if self.certificate:
            key = self.certificate.with_suffix(".key")
            security = ["--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(key)]
            security += ["--ssl-ca-certfile", str(self.certificate), "--enable-supernode-auth"]
        self.start(
            "superlink",
            [
                *command,
                *security,
                "--port",
                str(self.link_port),
                "--disable-runtime-dependency-installation",
                *options,
            ],
        )
        wait_for_port(self.link_port)
        trust = f'root-certificates = "{self.certificate}"' if self.certificate else "insecure = true"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{self.link_port}"\n'
            f"{trust}\n"
        )

    def start_node(
        self, command: list[str], executor: list[str], key: Path | None = None, **environment: str
    ) -> Process:
        """Start a SuperNode in process isolation, with a key or without, and its executor; return that."""
        port = free_port()
        auth = self.secret(str(port))
        link = [*self.trust, "--superlink", f"127.0.0.1:{self.link_port}"]
        link += ["--auth-supernode-private-key", str(key)] if key else []
        self.start(
            f"supernode-{port}",
            [*command, *link, "--host", "127.0.0.1", "--port", str(port), "--isolation", "process", *auth],
        )
        wait_for_port(port)
        return self.start(
            f"executor-{port}",
            [*executor, "--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *auth],
            **environment,
        )

    def start_recorded_link(self, warm: bool = True) -> None:
        """Start a SuperLink and a SuperExec that starts its ServerApps, as in the server's container."""
        auth = self.secret("link")
        superlink = [*ADAPTED, "superlink"] if warm else [tool("flower-superlink")]
        superexec = [*ADAPTED, "serverapp-superexec"] if warm else [tool("flower-superexec")]
        self.start_link(superlink, "--isolation", "process", *auth)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{self.link_port}"]
        self.start("superexec", [*superexec, *address, *auth], FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.2")

    def secret(self, name: str) -> list[str]:
        """Return the option with a new secret, which an executor and the API that it asks share."""
        path = self.home / f"secret-{name}"
        path.write_bytes(secrets.token_bytes(32))
        return ["--superexec-auth-secret-file", str(path)]

    def start_clients(self, number: int, scratch: Path) -> list[int]:
        """Start clients with the warm runtime, in one go; return their node ids, by partition."""
        clients = []
        for partition in range(number):
            port, auth = free_port(), self.secret(f"client-{partition}")
            link = ["--insecure", "--superlink", f"127.0.0.1:{self.link_port}"]
            own = ["--host", "127.0.0.1", "--port", str(port), "--isolation", "process", *auth]
            config = ["--node-config", f"partition-id={partition} num-partitions={number}"]
            clients.append(
                {
                    "log": str(self.home / f"client-{partition}.log"),
                    "supernode": [*link, *own, *config],
                    "executor": ["--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *auth],
                    "environment": {"COLDFRAME_SCRATCH": str(scratch / str(partition))},
                }
            )
        self.start("clients", [*CLIENTS, json.dumps(clients)])

        def node_ids() -> list[int]:
            logs = [Path(client["log"]) for client in clients]
            found = [re.search(r"SuperNode ID: (\d+)", log.read_text()) for log in logs if log.exists()]
            return [int(match[1]) for match in found if match]

        wait_until(lambda: len(node_ids()) == number, 60, f"clients are missing: logs in {self.home}")
        return node_ids()

    def run(self, app: Path, orders: list[dict[str, Any]], nodes: int = 1, timeout: float = 80) -> list[Any]:
        """Run an app with a list of orders and return the answers."""
        out = self.home / f"answers-{secrets.token_hex(4)}.json"
        todo = out.with_suffix(".todo")
        todo.write_text(json.dumps(orders))
        self.submit(app, orders=str(todo), out=str(out), nodes=nodes)
        wait_until(out.exists, timeout, f"no answers; see the logs in {self.home}")
        time.sleep(0.1)
        return list(json.loads(out.read_text()))

    @cached_property
    def control(self) -> ControlHttpClient:
        """The SuperLink's Control API."""
        control = ControlHttpClient.from_server_address(
            f"127.0.0.1:{self.link_port}",
            insecure=self.certificate is None,
            root_certificates=str(self.certificate) if self.certificate else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        # uvicorn closes a connection that is idle for 5 s, and httpx sends on one for as long: on a busy
        # machine a request can meet the end of its connection.
        transport: Any = control._client._transport
        transport._pool._keepalive_expiry = 2.0
        return control

    def submit(self, app: Path, **config: Any) -> str:
        """Start a run of an app, as `flwr run` does in ten times the time; return its id."""
        content = build_fab_from_disk(app)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(config))
        return str(self.control.StartRun(request).run_id)

    def ended(self, run_id: str, timeout: float = 60) -> RunStatus:
        """Wait until a run has ended; return how, as the SuperLink says."""

        def status() -> RunStatus:
            return self.control.ListRuns(ListRunsRequest(run_id=int(run_id))).run_dict[int(run_id)].status

        what = f"run {run_id} has not ended: logs in {self.home}"
        wait_until(lambda: status().status == "finished", timeout, what, pause=0.3)  # each costs milliseconds
        return status()

    def stop(self) -> None:
        """End every process that was started here, with its process group."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def federation(home: Path, forks: bool = True) -> Iterator[Federation]:
    """Give a federation without processes whose files are under `home`, and end what was started in it."""
    home.mkdir(exist_ok=True)
    it = Federation(
        home,
        forks=forks,
        environment={
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )
    try:
        yield it
    finally:
        it.stop()


def write_app(directory: Path, client: str, name: str = "probe") -> Path:
    """Write a Flower app with the given client module."""
    package = directory / name
    package.mkdir(parents=True)
    (directory / "pyproject.toml").write_text(MANIFEST.format(name=name))
    (directory / "LICENSE").write_text("none\n")
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(SERVER)
    (package / "client.py").write_text(client)
    return directory


def tool(name: str) -> str:
    """Return the path of a command that was installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, timeout: float = 40) -> None:
    """Wait until something accepts connections on a port of the loopback."""
    wait_until(lambda: _accepts(port), timeout, f"nothing listens on port {port}")


def wait_until(condition: Callable[[], Any], timeout: float, what: str, pause: float = 0.05) -> None:
    """Wait for a condition, or fail saying what is missing."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(pause)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
