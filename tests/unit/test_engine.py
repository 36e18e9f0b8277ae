"""The engine's API over a unix socket, and a client's link as the kernel's files show it."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from coldframe.agent import links
from coldframe.agent.engine import Engine, EngineError


class Docker(socketserver.ThreadingUnixStreamServer):
    """Stands for dockerd: answers as its API does, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.seen: list[tuple[str, str, Any]] = []
        super().__init__(str(path), DockerHandler)


class DockerHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Docker

    def address_string(self) -> str:
        """A unix socket has no address."""
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.seen.append(("GET", self.path, None))
        path = urlparse(self.path).path
        if path == "/containers/json":
            self.reply([{"Id": "abc", "Labels": {"coldframe.client": "c1-0"}}])
        elif path == "/events":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for action in ("start", "die"):
                line = json.dumps({"Action": action}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.reply({"message": "No such container: zzz"}, 404)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(text) if text else None
        self.server.seen.append(("POST", self.path, body))
        self.reply({"Warnings": None})


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    with Docker(tmp_path / "docker.sock") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def engine(docker: Docker, tmp_path: Path) -> Engine:
    return Engine("lab", tmp_path / "docker.sock")


def test_only_this_federations_clients_are_asked_for(engine: Engine, docker: Docker) -> None:
    """Never the server, never another federation's, never the user's."""
    assert engine.clients() == {"c1-0": "abc"}
    query = parse_qs(urlparse(docker.seen[0][1]).query)
    labels = json.loads(query["filters"][0])["label"]
    assert labels == ["coldframe.federation=lab", "coldframe.role=client"]
    list(engine.events())
    query = parse_qs(urlparse(docker.seen[1][1]).query)
    assert json.loads(query["filters"][0])["label"] == labels


def test_update_is_sent_as_it_is(engine: Engine, docker: Docker) -> None:
    engine.update("abc", {"CpuQuota": 5000})
    assert docker.seen == [("POST", "/containers/abc/update", {"CpuQuota": 5000})]


def test_a_container_is_paused_killed_stopped_and_started(engine: Engine, docker: Docker) -> None:
    for action in (engine.pause, engine.unpause, engine.kill, engine.stop, engine.start):
        action("abc")
    paths = ("pause", "unpause", "kill?signal=SIGKILL", "stop?t=5", "start")
    assert docker.seen == [("POST", f"/containers/abc/{path}", None) for path in paths]


def test_events_are_a_stream(engine: Engine) -> None:
    assert [event["Action"] for event in engine.events()] == ["start", "die"]


def test_refusal_of_the_engine_is_its_own_words(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"^No such container: zzz$"):
        engine.inspect("zzz")


def test_engine_that_is_away_is_an_error_of_its_own(tmp_path: Path) -> None:
    away = Engine("lab", tmp_path / "nobody.sock")
    with pytest.raises(EngineError, match="does not answer"):
        away.clients()
    with pytest.raises(EngineError, match="events ended"):
        next(away.events())


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A /proc and a /sys/class/net with one client, process 7, whose other end is veth1."""
    inside = tmp_path / "proc/7/root/sys/class/net/eth0"
    inside.mkdir(parents=True)
    (inside / "iflink").write_text("12\n")
    for name, index, flags in (("lo", "1", "0x9"), ("veth1", "12", "0x1003")):
        folder = tmp_path / "net" / name / "statistics"
        folder.mkdir(parents=True)
        (folder.parent / "ifindex").write_text(index)
        (folder.parent / "flags").write_text(flags)
        (folder / "tx_bytes").write_text("100\n")
        (folder / "rx_bytes").write_text("7\n")
    (tmp_path / "net" / "bonding_masters").write_text("")  # a file among the interfaces
    return tmp_path / "proc", tmp_path / "net"


def test_other_end_of_a_link_is_found_by_its_number(machine: tuple[Path, Path]) -> None:
    assert links.device_of(7, *machine) == "veth1"
    with pytest.raises(links.LinkError, match="has no eth0"):
        links.device_of(8, *machine)
    (machine[0] / "7/root/sys/class/net/eth0/iflink").write_text("99")
    with pytest.raises(links.LinkError, match="number 99"):
        links.device_of(7, *machine)


def test_what_the_device_sends_the_client_receives(machine: tuple[Path, Path]) -> None:
    assert links.counters("veth1", machine[1]) == (100, 7)


def test_link_is_online_while_its_device_is_up(machine: tuple[Path, Path]) -> None:
    assert links.online("veth1", machine[1])
    (machine[1] / "veth1" / "flags").write_text("0x1002")
    assert not links.online("veth1", machine[1])


def test_delayed_link_is_shaped_and_read_by_one_process_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What netem does is left to tc."""
    calls: list[tuple[list[str], str]] = []

    def run(command: list[str], text: str = "") -> str:
        calls.append((command, text))
        return json.dumps([{"kind": "netem", "options": {"delay": {"delay": 0.025}}}])

    monkeypatch.setattr(links, "run", run)
    monkeypatch.setattr(links, "online", lambda device: True)
    wanted = {"down": None, "up": None, "delay": 0.05, "online": True}
    ways = links.write(7, "veth1", wanted, links.NOTHING)
    assert [way["delay"] for way in ways] == [0.025, 0.025]
    netem = "qdisc replace dev {} root handle 2: netem limit 10000 delay 25000us\nqdisc show dev {}\n"
    assert calls == [
        (["tc", "-j", "-batch", "-"], netem.format("veth1", "veth1")),
        (["nsenter", "-t", "7", "-n", "tc", "-j", "-batch", "-"], netem.format("eth0", "eth0")),
    ]
