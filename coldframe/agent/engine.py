"""The engine's API over its unix socket: the few calls that the agent needs, with the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

SOCKET = Path("/var/run/docker.sock")
TIMEOUT = 30.0  # seconds
STOP_SECONDS = 5  # from SIGTERM until SIGKILL
# What can change a client's process or its place in the network. No "update": the agent itself is the one who
# does that, and somebody else's is seen in the control group within a second.
ACTIONS = ("start", "die", "destroy", "pause", "unpause", "rename")


class EngineError(Exception):
    """The engine refused, or does not answer."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("engine", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Engine:
    """The containers of one federation's clients, as the engine knows them."""

    def __init__(self, federation: str, path: Path = SOCKET) -> None:
        self.path = path
        self.labels = [f"coldframe.federation={federation}", "coldframe.role=client"]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = UnixConnection(self.path, TIMEOUT)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the engine does not answer: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            with contextlib.suppress(ValueError, KeyError):  # else the text as it is tells more than nothing
                text = json.loads(text)["message"]
            raise EngineError(text.strip())
        return json.loads(text) if text else None

    def clients(self) -> dict[str, str]:
        """Return the container id of every client, running or not, by the client's name."""
        filters = quote(json.dumps({"label": self.labels}))
        listed = self._call("GET", f"/containers/json?all=1&filters={filters}")
        return {item["Labels"]["coldframe.client"]: item["Id"] for item in listed}

    def inspect(self, container_id: str) -> dict[str, Any]:
        """Return all that the engine says of a container."""
        described: dict[str, Any] = self._call("GET", f"/containers/{container_id}/json")
        return described

    def update(self, container_id: str, changes: dict[str, int]) -> None:
        """Change limits of a container in place; they outlive its restart."""
        self._call("POST", f"/containers/{container_id}/update", changes)

    def execute(self, container_id: str, command: list[str]) -> None:
        """Start a command in a container, under its limits, and leave it alone."""
        made = self._call("POST", f"/containers/{container_id}/exec", {"Cmd": command})
        self._call("POST", f"/exec/{made['Id']}/start", {"Detach": True})

    def pause(self, container_id: str) -> None:
        """Have all processes of a container stand still."""
        self._call("POST", f"/containers/{container_id}/pause")

    def unpause(self, container_id: str) -> None:
        """Let them go on."""
        self._call("POST", f"/containers/{container_id}/unpause")

    def kill(self, container_id: str) -> None:
        """End a container by SIGKILL; it stays so until it is started."""
        self._call("POST", f"/containers/{container_id}/kill?signal=SIGKILL")

    def stop(self, container_id: str) -> None:
        """Stop a container; it stays so until it is started, whatever its restart policy says."""
        self._call("POST", f"/containers/{container_id}/stop?t={STOP_SECONDS}")

    def start(self, container_id: str) -> None:
        """Start a container."""
        self._call("POST", f"/containers/{container_id}/start")

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what happens to the clients' containers, until the engine goes away."""
        filters = quote(json.dumps({"type": ["container"], "label": self.labels, "event": list(ACTIONS)}))
        connection = UnixConnection(self.path, None)
        try:
            connection.request("GET", f"/events?filters={filters}")
            response = connection.getresponse()
            while line := response.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the engine's events ended: {error}") from error
        finally:
            connection.close()
