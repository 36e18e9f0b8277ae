"""Stands for dockerd on a unix socket: keeps containers as the engine's API has them, fails as told."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse


class Docker(socketserver.ThreadingUnixStreamServer):
    """An engine with images, networks and containers.

    Attributes
    ----------
    changes : list
        Each request that changes something: its method, what it is about and the name of the container.
    refusals : dict
        By request, as in `changes`: the status, the engine's words, and how often it is refused.
    """

    daemon_threads = True

    def __init__(self, path: Path, images: dict[str, str]) -> None:
        self.images = images
        self.networks: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, dict[str, Any]] = {}  # by name, as created: body, Id, State
        self.changes: list[str] = []
        self.refusals: dict[str, tuple[int, str, int]] = {}
        self.warnings: list[str] = []
        self.together: threading.Barrier | None = None  # that so many containers start at once
        self.lock = threading.Lock()
        super().__init__(str(path), Handler)

    def place(self, name: str, body: dict[str, Any], state: str = "created") -> dict[str, Any]:
        """Make a container."""
        self.containers[name] = {"Id": f"id-{name}-{len(self.changes)}", "State": state, "body": body}
        return self.containers[name]

    def name_of(self, word: str) -> str | None:
        """The name of a container that is given by its id or name."""
        return next((name for name, item in self.containers.items() if word in (name, item["Id"])), None)

    def refuse(self, what: str) -> tuple[int, str] | None:
        """Status and words where a request is to fail."""
        status, words, left = self.refusals.get(what, (0, "", 0))
        if left <= 0:
            return None
        self.refusals[what] = (status, words, left - 1)
        return status, words


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Docker

    def address_string(self) -> str:
        """A unix socket has no address."""
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def reply(self, content: Any = None, status: int = 200) -> None:
        """Answer with JSON, or with nothing."""
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body)

    def do_GET(self) -> None:
        """Tell what is there."""
        url = urlparse(self.path)
        words = unquote(url.path).strip("/").split("/")
        filters = json.loads(parse_qs(url.query).get("filters", ["{}"])[0])
        if words[0] == "images":
            name = "/".join(words[1:-1])
            found = self.server.images.get(name)
            self.reply(
                {"Id": found} if found else {"message": f"No such image: {name}"}, 200 if found else 404
            )
        elif words[0] == "networks":
            # Like the engine's, this filter lets pass every name that holds the one asked for.
            self.reply([item for item in self.server.networks.values() if filters["name"][0] in item["Name"]])
        elif words[-2:] == ["containers", "json"]:
            asked = {tuple(label.split("=", 1)) for label in filters["label"]}
            items = self.server.containers.items()
            self.reply([listed(name, i) for name, i in items if asked <= set(i["body"]["Labels"].items())])
        else:
            body = self.server.containers[self.server.name_of(words[1]) or ""]["body"]
            self.reply({"Config": body, "HostConfig": body["HostConfig"]})

    def do_POST(self) -> None:
        """Make, start or stop."""
        url = urlparse(self.path)
        words = url.path.strip("/").split("/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        if words == ["networks", "create"]:
            name = body["Name"]
            if name in self.server.networks:
                return self.reply({"message": f"network with name {name} already exists"}, 409)
            self.server.networks[name] = {**body, "Id": f"id-of-{name}"}
            self.server.changes.append(f"network {name}")
            return self.reply({"Id": f"id-of-{name}"}, 201)
        action = words[-1]
        query = parse_qs(url.query)
        name = query["name"][0] if action == "create" else self.server.name_of(words[1]) or words[1]
        if action == "start" and self.server.together:
            self.server.together.wait(10)
        with self.server.lock:
            self.server.changes.append(f"{action} {name}")
            refused = self.server.refuse(f"{action} {name}")
            if refused:
                return self.reply({"message": refused[1]}, refused[0])
            if action == "create":
                if name in self.server.containers:
                    return self.reply({"message": f'Conflict. The name "/{name}" is already in use'}, 409)
                made = self.server.place(name, body)
                return self.reply({"Id": made["Id"], "Warnings": self.server.warnings}, 201)
            if action == "wait":
                del self.server.containers[name]
                return self.reply({"StatusCode": 0})
            item = self.server.containers[name]
            item["State"] = {"start": "running", "stop": "exited"}[action]
            item["NetworkID"] = self.server.networks[item["body"]["HostConfig"]["NetworkMode"]]["Id"]
            return self.reply(status=204)

    def do_DELETE(self) -> None:
        """Remove a container."""
        name = self.server.name_of(urlparse(self.path).path.split("/")[2])
        with self.server.lock:
            self.server.changes.append(f"remove {name}")
            refused = self.server.refuse(f"remove {name}")
            if refused or name is None:
                status, words = refused or (404, "No such container")
                return self.reply({"message": words}, status)
            if self.server.containers[name]["State"] == "running" and "force=1" not in self.path:
                return self.reply({"message": "You cannot remove a running container"}, 409)
            del self.server.containers[name]
            return self.reply(status=204)


def listed(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """A container as the engine lists it."""
    return {
        "Id": item["Id"],
        "Names": [f"/{name}"],
        "State": item["State"],
        "Labels": item["body"]["Labels"],
        "NetworkSettings": {
            "Networks": {item["body"]["HostConfig"]["NetworkMode"]: {"NetworkID": item.get("NetworkID", "")}}
        },
    }
