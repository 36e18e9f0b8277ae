"""The changes to flwr: the fast path refuses what flwr refuses, the HTTP client fails as httpx does."""

from __future__ import annotations

import asyncio
import base64
import datetime
import http.server
import importlib
import ipaddress
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import httpx
import numpy as np
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER, Status, SubStatus
from flwr.proto import fleet_pb2, message_pb2, runtime_pb2
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore import heartbeat, telemetry
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TASK_TOKEN_HEADER,
)
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink import main as superlink
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode import main as supernode
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.runtime import run_clientapp

from coldframe.flower import clientapp, fast_path, http_server
from coldframe.flower import superlink as superlink_changes
from coldframe.flower import supernode as supernode_changes
from coldframe.flower.fast_path import FastPath, PendingMessages
from coldframe.flower.fast_path_calls import acquire_when, superlink_calls, supernode_calls
from coldframe.flower.http_client import HttpClient
from tests.unit.flower import federation, free_port, wait_until, write_app
from tests.unit.test_executor import CLIENT

PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE}


def test_node_that_ended_without_a_goodbye_is_activated_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key is activated again while it counts as connected; who is not registered is not."""
    database = str(tmp_path / "superlink.db")
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory()).state()
    key = public_key_to_bytes(generate_key_pairs()[1])
    node = state.create_node("owner", "owner", key, heartbeat_interval=30.0)
    monkeypatch.setattr(type(state), "activate_node", type(state).activate_node)  # put back at the end
    assert state.activate_node(node, 30.0)
    assert not state.activate_node(node, 30.0), "flwr turns it away"
    (before,) = state.get_node_info(node_ids=[node])

    superlink_changes.allow_reactivation_of_online_node()
    assert state.activate_node(node, 30.0)
    (after,) = state.get_node_info(node_ids=[node])
    assert after.status == before.status == "online"
    assert after.last_activated_at > before.last_activated_at
    assert not state.activate_node(node + 1, 30.0)
    state.delete_node("owner", node)
    assert not state.activate_node(node, 30.0)


@pytest.mark.parametrize("enabled", ["0", "1"])
def test_a_task_has_no_telemetry_where_it_is_off_and_its_first_heartbeat_waits(
    enabled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exit_module = importlib.import_module("flwr.supercore.exit.exit")
    flwr_event = telemetry.event
    for module, name in (
        *((run_clientapp, "event"), (exit_module, "event")),
        (heartbeat.HeartbeatSender, "_run"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # and have it undone
    monkeypatch.setattr(telemetry, "FLWR_TELEMETRY_ENABLED", enabled)
    clientapp.skip_telemetry_and_first_heartbeat()
    assert (run_clientapp.event is flwr_event) == (exit_module.event is flwr_event) == (enabled == "1")
    if enabled == "0":
        event = telemetry.EventType.FLWR_CLIENTAPP_RUN_ENTER
        assert run_clientapp.event(event).result(timeout=0) == "disabled"
    pauses: list[float] = []
    beats: list[float] = []
    sender = heartbeat.HeartbeatSender(lambda: bool(beats.append(time.monotonic())) or True)
    monkeypatch.setattr(sender._stop_event, "wait", lambda seconds: pauses.append(seconds) or True)
    sender._run()
    assert 5 < pauses[0] < heartbeat.HEARTBEAT_DEFAULT_INTERVAL / 2
    assert beats == [], "stopped before the first"


# The commands where a ServerApp has to send its first heartbeat within 2 s.
HURRIED = """
from flwr.common import constant
constant.HEARTBEAT_DEFAULT_INTERVAL = 2
from coldframe.flower import changes
changes.FIRST_HEARTBEAT_SECONDS = 0.5
from coldframe.flower import adapters
adapters.main()
"""
SLOW_START = """
import sys, time
if "serverapp" in sys.argv:
    open({starts!r}, "a").write("started\\n")
    time.sleep(7)
"""


def test_a_serverapp_that_starts_slowly_is_started_once(tmp_path: Path) -> None:
    starts, secret, slow = tmp_path / "starts", tmp_path / "secret", tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_START.format(starts=str(starts)))
    secret.write_bytes(secrets.token_bytes(32))
    auth = ["--superexec-auth-secret-file", str(secret)]
    hurried = [sys.executable, "-c", HURRIED]
    with federation(tmp_path / "federation") as started:
        started.start_link([*hurried, "superlink"], "--isolation", "process", *auth)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{started.link_port}"]
        path = f"{slow}:{started.environment['PYTHONPATH']}"
        started.start("superexec", [*hurried, "serverapp-superexec", *address, *auth], PYTHONPATH=path)
        assert started.run(write_app(tmp_path / "app", CLIENT.format(generation=1)), [], nodes=0) == []
    assert starts.read_text() == "started\n"


def node_headers(key: Any, when: datetime.datetime) -> dict[str, str]:
    """Return what a SuperNode with this key sends along at a given time."""
    timestamp = when.isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(key.public_key())).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(key, timestamp.encode())).decode(),
        TIMESTAMP_HEADER: timestamp,
    }


def refused_by_superlink() -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Return requests that a SuperLink must refuse: path, body, headers."""
    key, other = generate_key_pairs()[0], generate_key_pairs()[0]
    pull = fleet_pb2.PullMessagesRequest(node=Node(node_id=1)).SerializeToString()
    thing = message_pb2.PullObjectRequest(
        node=Node(node_id=1), run_id=1, object_id="0" * 64
    ).SerializeToString()
    stolen = {
        **node_headers(key, now()),
        **{FLEET_HTTP_PUBLIC_KEY_HEADER: node_headers(other, now())[FLEET_HTTP_PUBLIC_KEY_HEADER]},
    }
    old = node_headers(key, now() - datetime.timedelta(days=1))
    apps = runtime_pb2.PullAppMessagesRequest(message_ids=["a"]).SerializeToString()
    return {
        "unsigned": ("/v1/fleet/pull-messages", pull, {}),
        "unsigned object": ("/v1/fleet/pull-object", thing, {}),
        "unknown key": ("/v1/fleet/pull-messages", pull, node_headers(key, now())),
        "unknown key, object": ("/v1/fleet/push-object", thing, node_headers(key, now())),
        "another's key": ("/v1/fleet/pull-messages", pull, stolen),
        "old signature": ("/v1/fleet/confirm-message-received", thing, old),
        "no token": ("/v1/runtime/pull-messages", apps, {}),
        "wrong token": ("/v1/runtime/pull-object", thing, {TASK_TOKEN_HEADER: "nonsense"}),
        "no token, nodes": ("/v1/runtime/get-nodes", b"", {}),
        "wrong token, logs": ("/v1/runtime/push-logs", b"", {TASK_TOKEN_HEADER: "nonsense"}),
        "wrong type": ("/v1/fleet/pull-messages", pull, {"content-type": "text/plain"}),
        "no protobuf": ("/v1/fleet/pull-messages", b"\xff\xff\xff", node_headers(key, now())),
        "incompatible": (
            "/v1/runtime/pull-messages",
            apps,
            {
                "flwr-package-name": "flwr",
                "flwr-package-version": "1.2.0",
                "flwr-component-name": "flwr-serverapp",
            },
        ),
    }


def refused_by_supernode() -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Return requests that a SuperNode must refuse: path, body, headers."""
    acquire = runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-clientapp"]).SerializeToString()
    names = ("timestamp", "ts", "nonce", "body-sha256", "signature")
    return {
        "no secret": ("/v1/runtime/acquire-task", acquire, {}),
        "wrong secret": (
            "/v1/runtime/acquire-task",
            acquire,
            {f"flwr-superexec-{name}": "0" for name in names},
        ),
        "no token": ("/v1/runtime/pull-task-input", b"", {}),
        "wrong token": ("/v1/runtime/push-task-output", b"", {TASK_TOKEN_HEADER: "nonsense"}),
        "heartbeat": ("/v1/runtime/send-task-heartbeat", b"", {TASK_TOKEN_HEADER: ""}),
    }


# Anything else is refused as not authenticated.
EXPECTED = {"wrong type": 415, "no protobuf": 400, "incompatible": 412}


def ask(app: Any, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Return the status and text that an ASGI application answers with."""

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://flower") as client:
            return await client.post(path, content=body, headers={**PROTOBUF, **headers})

    answer = asyncio.run(post())
    return answer.status_code, answer.text


@pytest.mark.parametrize("name", refused_by_superlink())
def test_the_fast_path_of_a_superlink_refuses_what_flwr_refuses(name: str) -> None:
    path, body, headers = refused_by_superlink()[name]
    stock, fast = superlink.create_app(), superlink.create_app()
    fast.add_middleware(FastPath, calls=superlink_calls())
    status, text = ask(stock, path, body, headers)
    assert status == EXPECTED.get(name, 401)
    assert path in superlink_calls(), "the request takes the fast path"
    if name == "no protobuf":  # from nobody: that is found out before the body is read
        status, text = 401, ask(fast, path, b"", {})[1]
    assert ask(fast, path, body, headers) == (status, text)


@pytest.mark.parametrize("name", refused_by_supernode())
def test_the_fast_path_of_a_supernode_refuses_what_flwr_refuses(name: str) -> None:
    path, body, headers = refused_by_supernode()[name]
    calls = supernode_calls(lambda: True)
    secret = secrets.token_bytes(32)
    stock, fast = (supernode.create_app(NodeStateFactory(ObjectStoreFactory()), secret) for _ in range(2))
    fast.add_middleware(FastPath, calls=calls)
    status, text = ask(stock, path, body, headers)
    assert status == EXPECTED.get(name, 401)
    assert path in calls, "the request takes the fast path"
    assert ask(fast, path, body, headers) == (status, text)


def message(number: int, objects: int, reply_to: str = "") -> tuple[Any, Any]:
    """Return a message without content and the tree of its objects."""
    tree = message_pb2.ObjectTree(
        object_id=f"m{number}",
        children=[message_pb2.ObjectTree(object_id=f"m{number}-{k}") for k in range(objects)],
    )
    item = message_pb2.Message()
    item.metadata.message_id = tree.object_id
    item.metadata.reply_to_message_id = reply_to
    return item, tree


def test_a_message_is_delivered_when_its_last_object_has_arrived() -> None:
    async def story() -> None:
        pending = PendingMessages()
        notified = asyncio.get_running_loop().create_future()
        pending.waiting["node"].add(notified)
        pending.add(*message(1, objects=2), receiver="node")
        pending.expect_only(["m1"], {"m1", "m1-1"})
        for name, complete in (("m1", False), ("m1-0", False), ("m1-1", True)):
            assert notified.done() is False
            assert bool(pending.incomplete_for("node")) is True
            pending.object_stored(name)
            assert notified.done() is complete
        assert pending.incomplete_for("node") == set()
        assert not pending.messages

    asyncio.run(story())


def test_a_message_whose_sender_has_stopped_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pending = PendingMessages()
    pending.add(*message(1, objects=1), receiver="node")
    assert pending.incomplete_for("node")
    monkeypatch.setattr(fast_path, "STALLED_SECONDS", -1.0)
    assert not pending.incomplete_for("node")


@pytest.mark.parametrize("failure", [RunNotRunningException, ConnectionError])
def test_a_message_that_is_not_received_leaves_no_task(
    failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run was stopped meanwhile, or the connection was lost: it has one reply, an error, and no task;
    the reply of one would be taken for the next message's."""
    for owner, name in ((supernode, "create_app"), (start_client_internal, "_pull_and_store_message")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end
    for key, value in (("_task_id", 1), ("_run_id", 7), ("_node_id", 5)):
        monkeypatch.setattr(TaskIdentity, key, value)
    supernode_changes.serve_tasks_on_fast_path()
    objects = ObjectStoreFactory()
    state, store = NodeStateFactory(objects).state(), objects.store()
    state.set_node_id(5)
    state.store_run(Run.create_empty(7))
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3)])})
    sent = Message(content, dst_node_id=5, message_type="train")
    sent.metadata.__dict__["_message_id"] = sent.object_id

    def fail(*_: Any) -> bytes:
        raise failure

    run_id = start_client_internal._pull_and_store_message(
        state=state,
        object_store=store,
        node_config={},
        receive=lambda: (sent, get_object_tree(sent)),
        get_run=fail,
        get_fab=fail,
        pull_object=fail,
        confirm_message_received=fail,
        trusted_entities=None,
    )
    assert run_id == 7
    assert state.get_tasks(statuses=[Status.PENDING]) == []
    assert [task.status.sub_status for task in state.get_tasks()] == [SubStatus.FAILED]
    (reply,) = state.get_messages_legacy(is_reply=True)
    assert reply.has_error() and reply.metadata.reply_to_message_id == sent.metadata.message_id


def test_a_request_that_was_held_in_vain_leaves_nothing_behind() -> None:
    """Nothing came for it until its time was up."""

    class Patient:
        async def receive(self) -> None:
            await asyncio.Event().wait()

    async def nothing() -> None:
        return None

    async def held() -> PendingMessages:
        path = FastPath(superlink.create_app(), calls={})
        assert await path.hold(cast(Any, Patient()), "node", 0.05, nothing, bool) is None
        return path.pending

    assert not asyncio.run(held()).waiting


def test_an_executor_is_held_until_a_run_is_started() -> None:
    """It has no task for it at first; a call of the Control API may have made one."""

    async def control(*_: Any) -> None:
        """Stand for flwr's application."""

    async def story() -> str:
        path = FastPath(control, calls={})
        await path({"type": "lifespan"}, cast(Any, None), cast(Any, None))
        answers = [runtime_pb2.AcquireTaskResponse(), runtime_pb2.AcquireTaskResponse(token="a task")]
        asking = runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
        request = SimpleNamespace(
            receive=asyncio.Event().wait, state=SimpleNamespace(protobuf_request=asking)
        )
        held = asyncio.ensure_future(
            acquire_when(lambda: True)(path, cast(Any, request), lambda: answers.pop(0))
        )
        while len(answers) == 2 or not path.pending.waiting:
            await asyncio.sleep(0.01)
        assert not held.done()
        scope = {"type": "http", "method": "POST", "path": "/v1/control/start-run"}
        await path(scope, cast(Any, None), cast(Any, None))
        return str(cast(Any, await asyncio.wait_for(held, fast_path.HOLD_SECONDS / 2)).token)

    assert asyncio.run(story()) == "a task"


def test_a_server_that_looks_less_often_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "main_loop", uvicorn.Server.main_loop)
    http_server.wake_less_often()
    server = uvicorn.Server(uvicorn.Config(superlink.create_app(), port=free_port(), lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, 20, "the server has not started")
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


class Server(http.server.BaseHTTPRequestHandler):
    """Counts connections; answers, is silent, or hangs up, as the path says."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[list[Any]] = []

    def setup(self) -> None:
        Server.connections.append(self.client_address)
        super().setup()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/silent":
            threading.Event().wait(2)
        if self.path == "/rude":
            self.close_connection = True
            return
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.path == "/last"

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str | None], str]]:
    """Start servers on the loopback; with a name, over TLS with a certificate for it that signs itself."""
    servers: list[http.server.ThreadingHTTPServer] = []
    Server.connections = []

    def start(name: str | None) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        if name is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*make_certificate(tmp_path, name))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"{'http' if name is None else 'https'}://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """Write a certificate for an address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now() - datetime.timedelta(days=1))
        .not_valid_after(now() + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def post(client: HttpClient, url: str, body: bytes = b"x", timeout: float = 5.0) -> httpx.Response:
    """Send one request."""
    return client.send(client.build_request("POST", url, content=body, timeout=timeout))


def test_the_http_client_keeps_its_connection_until_the_server_closes_it(
    serve: Callable[[str | None], str],
) -> None:
    url, client = serve(None), HttpClient(verify=True, timeout=5.0)
    assert [post(client, f"{url}/", b"abc").content for _ in range(3)] == [b"abc"] * 3
    assert post(client, f"{url}/busy").status_code == 503
    assert len(Server.connections) == 1
    post(client, f"{url}/last")
    assert post(client, f"{url}/").status_code == 200
    assert len(Server.connections) == 2
    client.close()


def test_the_http_client_raises_the_errors_that_flwr_retries(serve: Callable[[str | None], str]) -> None:
    url, client = serve(None), HttpClient(verify=True, timeout=5.0)
    with pytest.raises(httpx.ReadTimeout):
        post(client, f"{url}/silent", timeout=0.2)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        post(client, f"{url}/rude")
    with pytest.raises(httpx.ConnectError):
        post(client, "http://127.0.0.1:9/")
    client.close()


def test_the_http_client_verifies_who_it_talks_to(serve: Callable[[str | None], str], tmp_path: Path) -> None:
    url = serve("127.0.0.1")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "127.0.0.1.crt"))
    assert post(HttpClient(verify=trusted, timeout=5.0), f"{url}/").status_code == 200
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        post(HttpClient(verify=True, timeout=5.0), f"{url}/")
    other = serve("127.0.0.2")
    context = ssl.create_default_context(cafile=str(tmp_path / "127.0.0.2.crt"))
    with pytest.raises(httpx.ConnectError, match="certificate is not valid"):
        post(HttpClient(verify=context, timeout=5.0), f"{other}/")
