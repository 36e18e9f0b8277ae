"""The engine's API over its unix socket: the calls that make, start and remove containers."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any
from urllib.parse import quote, urlencode

TIMEOUT = 180.0  # seconds: an engine that starts twenty containers on a small machine answers late


class EngineError(Exception):
    """The engine refused a request; `status` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Unreachable(Exception):
    """No engine answers at the socket."""


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Engine:
    """One engine. Each call has a connection of its own, so that threads may share it."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.path, self.timeout = path, timeout

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Return the content of an answer, None where it has none.

        Raises
        ------
        EngineError
            If the engine refuses.
        Unreachable
            If there is no engine, or it does not answer.
        """
        connection = Connection(self.path, self.timeout)
        try:
            content = None if body is None else json.dumps(body)
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request(method, target, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        try:
            answer = json.loads(text) if text.strip() else None
        except ValueError:
            answer = None
        if response.status >= 400:
            words = answer.get("message") if isinstance(answer, dict) else None
            raise EngineError(response.status, str(words or text or response.reason).strip())
        return answer

    def image_id(self, name: str) -> str:
        """Return the id of an image; empty where the engine does not have it."""
        try:
            return str(self.call("GET", f"/images/{quote(name)}/json")["Id"])
        except EngineError as error:
            if error.status != 404:
                raise
            return ""

    def containers(self, *labels: str) -> list[dict[str, Any]]:
        """Return all containers, running or not, that bear some labels (`key=value`)."""
        filters = json.dumps({"label": labels})
        found: list[dict[str, Any]] = self.call("GET", "/containers/json", all=1, filters=filters)
        return found

    def inspect(self, container: str) -> dict[str, Any]:
        """Return all that the engine says of a container."""
        found: dict[str, Any] = self.call("GET", f"/containers/{container}/json")
        return found

    def create(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make a container; return its `Id` and `Warnings`."""
        made: dict[str, Any] = self.call("POST", "/containers/create", body, name=name)
        return made

    def start(self, container: str) -> None:
        """Start a container; one that runs already is left alone."""
        self.call("POST", f"/containers/{container}/start")

    def stop(self, container: str) -> None:
        """Stop a container, and wait until it has ended."""
        self.call("POST", f"/containers/{container}/stop")

    def remove(self, container: str, force: bool = False) -> None:
        """Remove a container and its anonymous volumes, if it is there; wait where that is under way."""
        try:
            self.call("DELETE", f"/containers/{container}", v=1, force=int(force))
        except EngineError as error:
            if error.status == 409 and "already in progress" in str(error):
                self._wait_removed(container)
            elif error.status != 404:
                raise

    def _wait_removed(self, container: str) -> None:
        try:
            self.call("POST", f"/containers/{container}/wait", condition="removed")
        except EngineError as error:
            if error.status != 404:
                raise

    def network_id(self, federation: str) -> str:
        """Return the id of a federation's network; empty where there is none of that name.

        Raises
        ------
        EngineError
            If a network of that name is not the federation's: teardown.yml would leave it.
        """
        networks = self.call("GET", "/networks", filters=json.dumps({"name": [federation]}))
        found = next((item for item in networks if item["Name"] == federation), None)
        if found is None:
            return ""
        if (found.get("Labels") or {}).get("coldframe.federation") != federation:
            raise EngineError(
                409,
                f"another network has the name {federation}: type docker network rm {federation} on the "
                "machine, or choose another fl_federation",
            )
        return str(found["Id"])

    def create_network(self, federation: str) -> None:
        """Make the bridge network of a federation; another call may have made it meanwhile."""
        labels = {"coldframe.federation": federation}
        body = {
            "Name": federation,
            "Driver": "bridge",
            "Options": {},
            "Labels": labels,
            "CheckDuplicate": True,
        }
        try:
            self.call("POST", "/networks/create", body)
        except EngineError as error:
            if error.status != 409 or not self.network_id(federation):
                raise
