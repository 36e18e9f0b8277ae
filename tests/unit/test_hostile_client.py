"""Honest clients finish their run beside a hostile client and a stranger, and the server stays small.

All of it real processes: a SuperLink with TLS and registered keys, what runs ServerApps, three SuperNodes
with their executors. The hostile client's owner decides what its app replies, and what its SuperNode sends.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import generate_key_pairs

from coldframe.keys import node_keys
from coldframe.recording.flower import SYSTEM_RECORD
from coldframe.recording.journal import read_journal
from coldframe.recording.replies import BAD_REPLY
from coldframe.server import control
from tests.unit.flower import Federation, federation, wait_until, write_app
from tests.unit.forkserver import ADAPTED, EXECUTOR
from tests.unit.test_adapters import PROTOBUF, node_headers

NAMES = ("one", "two", "liar")
# What the liar replies in each round, and what its failure says; None: an honest reply.
LIES = {
    "bytes in the system record": "memory_peak",
    "memory_peak is a text": "memory_peak",
    "cpu_limit is a text": "cpu_limit",
    "NaN": "not finite",
    "a shape that was not sent": "[2, 2]",
    "an array less": "keys",
    "negative examples": "num-examples",
    "no examples": "num-examples",
    "a list of a million numbers": "no number",
    "a thousand records": "records",
    "nothing": None,
}
CLIENT = """
import os
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
LIES = {lies!r}

@app.train()
def train(message, context):
    arrays = {{key: Array(array.numpy() + np.float32(1)) for key, array in message.content["arrays"].items()}}
    metrics, more = {{"num-examples": 10, "train_loss": 0.5}}, {{}}
    lie = LIES[message.content["config"]["server-round"] - 1] if os.environ.get("HOSTILE") else "nothing"
    match lie:
        case "bytes in the system record":
            more[{record!r}] = ConfigRecord({{"memory_peak": b"x"}})
        case "memory_peak is a text":
            more[{record!r}] = ConfigRecord({{"memory_peak": "x"}})
        case "cpu_limit is a text":
            more[{record!r}] = ConfigRecord({{"cpu_limit": "x"}})
        case "NaN":
            arrays["a"] = Array(np.full(arrays["a"].shape, np.nan, dtype=np.float32))
        case "a shape that was not sent":
            arrays["a"] = Array(np.zeros((2, 2), dtype=np.float32))
        case "an array less":
            del arrays["a"]
        case "negative examples":
            metrics["num-examples"] = -10
        case "no examples":
            del metrics["num-examples"]
        case "a list of a million numbers":
            metrics["train_loss"] = [0.5] * 1_000_000
        case "a thousand records":
            more |= {{f"r{{number}}": MetricRecord({{"x": 1.0}}) for number in range(1000)}}
    content = {{"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics), **more}}
    return Message(RecordDict(content), reply_to=message)
"""
SERVER = """
import json
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

@app.main()
def main(grid, context):
    start = ArrayRecord({{name: Array(np.zeros(1000, dtype=np.float32)) for name in ("a", "b")}})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes={nodes})
    found = strategy.start(grid, start, num_rounds={rounds}, timeout=60)
    model = {{name: float(array.numpy().mean()) for name, array in found.arrays.items()}}
    Path(context.run_config["out"]).write_text(json.dumps([model]))
"""
# The bounds that docs/security.md states.
STRANGER_CPU = 0.4  # s of the SuperLink for a request with a body of 128 MiB, TLS handshake included
BODY_BYTES = 128 << 20  # the gateway takes no more
GROWTH_MB = 400  # of the SuperLink while a client sends all it can: three bodies of 128 MiB


@dataclass
class Strangers:
    """Callers with a key that nobody has registered, one after the other, each with a body without an end."""

    port: int
    certificate: Path
    statuses: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def call(self) -> None:
        """Make one request."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=20)
        key = generate_key_pairs()[0]
        headers = {**PROTOBUF, **node_headers(key, now()), "Transfer-Encoding": "chunked"}
        connection.putrequest("POST", "/v1/fleet/push-object", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        part, sent = b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0
        assert connection.sock is not None
        connection.sock.settimeout(1.0)
        try:
            while sent < BODY_BYTES:
                connection.sock.sendall(part)
                sent += len(part)
        except OSError:
            pass  # nobody reads on
        self.sent.append(sent)
        connection.sock.settimeout(20)
        try:
            self.statuses.append(connection.getresponse().status)
        except (OSError, http.client.HTTPException):
            self.statuses.append(0)
        connection.close()


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU seconds and the greatest resident memory, in MB, of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    status = Path(f"/proc/{pid}/status").read_text()
    return seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server with three registered clients; the last is hostile."""
    base = tmp_path_factory.mktemp("hostile")
    secret, state = base / "secret", base / "state"
    secret.write_bytes(secrets.token_bytes(32))
    (state / "runs").mkdir(parents=True)
    keys = base / "keys"
    keys.mkdir()
    public: Any = node_keys(keys, list(NAMES))["public_keys"]
    with federation(base / "it") as it:
        it.environment |= {"COLDFRAME_STATE": str(state), "COLDFRAME_PRELOAD": "numpy"}  # no app has torch
        it.authenticate()
        auth = ["--superexec-auth-secret-file", str(secret)]
        database = ["--database", str(state / "superlink.db")]
        it.start_link([*ADAPTED, "superlink"], "--isolation", "process", *auth, *database)
        (base / "clients.json").write_text(
            json.dumps(
                [
                    {"name": name, "machine": "here", "partition_id": number, "public_key": public[name]}
                    for number, name in enumerate(NAMES)
                ]
            )
        )
        register(it, base / "clients.json")
        address = ["--runtime-api-address", f"127.0.0.1:{it.link_port}"]
        it.start("superexec", [*ADAPTED, "serverapp-superexec", *it.trust, *address, *auth])
        for name in NAMES[:2]:
            it.start_node([*ADAPTED, "supernode"], EXECUTOR, keys / name, COLDFRAME_SCRATCH=str(base / name))
        liar = [sys.executable, "-m", "tests.unit.hostile", str(base / "attacks.json")]
        more = {"HOSTILE": "1", "COLDFRAME_SCRATCH": str(base / "liar")}
        it.start_node(liar, EXECUTOR, keys / "liar", **more)
        yield it


def register(it: Federation, clients: Path) -> None:
    """Register clients as a deployment does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "SUPERLINK", f"127.0.0.1:{it.link_port}")
        patch.setattr(control, "SUPERLINK_CERTIFICATE", it.certificate)
        patch.setenv("COLDFRAME_STATE", it.environment["COLDFRAME_STATE"])
        patch.setattr(sys, "argv", ["control", "register", str(clients)])
        assert not control.main()


def test_honest_clients_finish_beside_a_hostile_client_and_a_stranger(
    server: Federation, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app", CLIENT.format(lies=list(LIES), record=SYSTEM_RECORD))
    (app / "probe" / "server.py").write_text(SERVER.format(rounds=len(LIES), nodes=len(NAMES)))
    manifest = app / "pyproject.toml"
    manifest.write_text(manifest.read_text() + "allow-nonfinite = false\n")
    link = server.processes[0]
    before = usage(link.pid)
    strangers = Strangers(server.link_port, server.certificate or Path())
    done = threading.Event()

    def intrude() -> None:
        while not done.is_set():
            strangers.call()
            time.sleep(0.2)

    intruder = threading.Thread(target=intrude)
    intruder.start()
    try:
        (model,) = server.run(app, [], timeout=180)
    finally:
        done.set()
        intruder.join()
    seconds, peak = usage(link.pid)
    (folder,) = Path(server.environment["COLDFRAME_STATE"], "runs").iterdir()
    wait_until(lambda: "run_finished" in (folder / "journal.jsonl").read_text(), 20, "the run does not end")
    events = read_journal(folder / "journal.jsonl")

    assert model == {"a": len(LIES), "b": len(LIES)}, "each round added one: no lie is in the model"
    assert events[-1]["status"] == "completed", events[-1]
    replies = [(event["round"], event["client"]) for event in events if event["event"] == "reply"]
    for number, lie in enumerate(LIES, 1):
        expected = {"one", "two"} | ({"liar"} if LIES[lie] is None else set())
        assert {client for round_, client in replies if round_ == number} == expected, lie
    failures = [event for event in events if event["event"] == "failure"]
    assert [(event["client"], event["code"]) for event in failures] == [("liar", BAD_REPLY)] * (len(LIES) - 1)
    for event, (lie, word) in zip(failures, LIES.items(), strict=False):
        assert word and word in event["reason"], (lie, event["reason"])
        assert len(event["reason"]) <= 500
    attacks = json.loads((Path(server.environment["COLDFRAME_STATE"]).parent / "attacks.json").read_text())
    print(f"attacks: {attacks}; strangers: {len(strangers.statuses)}")
    print(f"SuperLink: {seconds - before[0]:.1f} CPU-s, peak {before[1]:.0f} -> {peak:.0f} MB")
    took = attacks.pop("seconds")
    assert took < 120
    assert attacks == {
        "second item": 400,
        "to another node": 400,
        "in another's name": 401,
        "another's messages": 401,
        "objects of no message": 200,  # it is said that they were not stored
        "a batch of nothing": 400,
    }
    assert set(strangers.statuses) <= {401, 0} and 401 in strangers.statuses
    assert peak - before[1] < GROWTH_MB


def test_a_stranger_costs_the_server_next_to_nothing(server: Federation) -> None:
    """What it sends is thrown away as it comes. Beside it are others who open connections and say nothing."""
    link = server.processes[0]
    strangers = Strangers(server.link_port, server.certificate or Path())
    strangers.call()
    before = usage(link.pid)
    silent = [socket.create_connection(("127.0.0.1", server.link_port)) for _ in range(100)]
    for _ in range(10):
        strangers.call()
    after = usage(link.pid)
    for one in silent:
        one.close()
    each = (after[0] - before[0]) / 10
    print(
        f"a stranger: {1000 * each:.0f} ms CPU for {max(strangers.sent) >> 20} MiB; "
        f"the peak grew by {after[1] - before[1]:.1f} MB"
    )
    assert set(strangers.statuses) == {401}
    assert each < STRANGER_CPU
    assert after[1] - before[1] < 16
