"""A request to a machine's agent, over its socket, and what its answer means for a task."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

ACTIONS = ("set", "undo", "trace", "scenario", "prove", "status", "events")
ARGUMENTS: dict[str, Any] = {
    "socket": {"type": "path", "required": True},
    "action": {"type": "str", "choices": list(ACTIONS), "default": "status"},
    "limits": {"type": "dict", "default": {}},
    "clients": {"type": "list", "elements": "str", "default": []},
    "stamp": {"type": "float"},
    "duration": {"type": "float"},
    "seconds": {"type": "float"},
    "load": {"type": "bool", "default": False},
    "trace": {"type": "dict", "default": {}},
    "scenario": {"type": "dict", "default": {}},
    "wait": {"type": "float", "default": 0},
    "since": {"type": "str"},
    "force": {"type": "bool", "default": False},
}
REQUIRED_IF = [
    ("action", "set", ("stamp", "limits")),
    ("action", "undo", ("stamp", "clients")),
    ("action", "trace", ("stamp", "trace")),
    ("action", "scenario", ("scenario",)),
    ("action", "prove", ("seconds", "clients")),
    ("action", "events", ("since",)),
]
REMEDY = "type ansible-playbook site.yml -e train=false"
PATIENCE = 60.0  # seconds beyond those that the request itself takes


def ask(path: str, request: dict[str, Any], patience: float, wait: float) -> dict[str, Any]:
    """The agent's answer to a request; it is asked again, for so many seconds, until all its clients' limits
    hold."""
    end = time.monotonic() + wait
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(patience)
                connection.connect(path)
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    line = stream.readline()
            if not line:
                raise OSError("it ended before it had answered")
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError):
            if time.monotonic() >= end:
                raise
        else:
            hold = "clients" in answer and all(item.get("holds") for item in answer["clients"].values())
            if hold or time.monotonic() >= end:
                return answer
        time.sleep(0.2)


def build(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """The request for the agent."""
    action = params["action"]
    request: dict[str, Any] = {"do": action}
    if action in ("set", "undo", "trace"):
        request |= {"stamp": params["stamp"], "check": check}
    if action == "set":
        request |= {key: params[key] for key in ("limits", "duration", "force")}
    if action in ("undo", "prove"):
        request["clients"] = params["clients"]
    if action == "trace":
        request |= {**params["trace"], "force": params["force"]}
    if action == "scenario":
        request |= {**params["scenario"], "check": check}
    if action == "prove":
        request |= {"seconds": params["seconds"], "load": params["load"]}
    if action == "events":
        request["since"] = params["since"]
    return request


def refusal(refused: dict[str, list[str]]) -> str:
    """Why the agent changed nothing, as one message: a reason that several clients have is said once."""
    reasons: dict[str, list[str]] = {}
    for client, texts in refused.items():
        for text in texts:
            reasons.setdefault(text, []).append(client)
    lines = [f"- {', '.join(clients)}: {text}" for text, clients in reasons.items()]
    return "\n".join([*lines, "", "Nothing was changed."])


def difference(clients: dict[str, Any]) -> dict[str, str]:
    """The limits before and after, for --diff: those that differ."""
    before, after = [], []
    for name, answer in sorted(clients.items()):
        held, wanted = answer.get("before") or {}, answer["desired"]
        for key, value in wanted.items():
            if key in held and held[key] != value:
                before.append(f"{name}: {key}={held[key]}")
                after.append(f"{name}: {key}={value}")
    return {"before": "\n".join([*before, ""]), "after": "\n".join([*after, ""])}


def patience(params: dict[str, Any]) -> float:
    """How many seconds to wait for the answer."""
    return PATIENCE + (params["seconds"] or 0)


def unanswered(path: str, error: object) -> str:
    """What to say where there is no answer."""
    return f"no agent answers at {path} ({error}): {REMEDY}"


def conclude(answer: dict[str, Any], params: dict[str, Any], diff: bool) -> dict[str, Any]:
    """The result of the task."""
    if "error" in answer:
        return {"failed": True, "msg": answer["error"]}
    if "refused" in answer:
        return {"failed": True, "msg": refusal(answer["refused"]), "refused": answer["refused"]}
    clients = answer["clients"]
    result: dict[str, Any] = {**answer, "changed": any(item.get("changed") for item in clients.values())}
    if params["action"] in ("set", "undo"):
        if diff:
            result["diff"] = difference(clients)
        problems = [f"- {name}: {item['problem']}" for name, item in clients.items() if item.get("problem")]
        if problems:
            result |= {"failed": True, "msg": "\n".join(problems)}
    return result
