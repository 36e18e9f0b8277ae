"""Asks a machine's agent to change, undo, measure or tell its clients' limits: one call for all of them."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: client_limits
short_description: Changes the limits of a machine's clients while they run
description:
  - A thin client of the agent that owns the limits of a machine's clients. The agent changes them all at
    once, and returns what the kernel held before and holds now.
  - Needs nothing but Python on the machine.
options:
  socket:
    description: The agent's socket.
    type: path
    required: true
  action:
    description:
      - C(set) gives I(limits), C(undo) returns I(clients) to their baseline, C(trace) replays I(trace),
        C(prove) measures for I(seconds) what I(clients) use, C(status) tells of all clients, C(events) what
        has happened I(since).
    type: str
    choices: [set, undo, trace, prove, status, events]
    default: status
  limits:
    description: >-
      By client, the limits to give: C(cpu) in cores, C(memory) in bytes, C(pids), C(down) and C(up) in
      bit/s, C(delay) and C(jitter) in seconds, C(loss) in percent. What is not named stays.
    type: dict
    default: {}
  clients:
    description: Names of clients.
    type: list
    elements: str
    default: []
  stamp:
    description: >-
      When the request began, the same on all machines: of two that run at once the later wins everywhere.
      Needed to change anything.
    type: float
  duration:
    description: Seconds after which the limits go back to what they were, without any controller.
    type: float
  seconds:
    description: How long to measure.
    type: float
  load:
    description: Have the clients use all the CPU that they may while it is measured.
    type: bool
    default: false
  trace:
    description: >-
      C(name), C(rows) by client, C(start) (unix time), C(length) (seconds), C(speed) and C(loop).
    type: dict
    default: {}
  wait:
    description: >-
      For C(status), seconds within which the agent has to answer and the kernel to hold all limits; the
      answer is the last one.
    type: float
    default: 0
  since:
    description: A time as ISO 8601 has it.
    type: str
  force:
    description: Go below what a client uses now, which may kill it.
    type: bool
    default: false
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Half a core for one client, for a minute
  client_limits:
    socket: /var/lib/coldframe/coldframe/agent/agent.sock
    action: set
    limits: {node1-0: {cpu: 0.5}}
    stamp: "{{ now().timestamp() }}"
    duration: 60
  become: true
"""

RETURN = r"""
clients:
  description: >-
    By client. For C(set) and C(undo): C(before), C(desired) and C(verified) limits (the first and last read
    from the kernel, None where the client does not run), C(holds), C(changed), C(superseded) (a request that
    began later had come first), C(revert_at). For C(prove): C(cpu), C(throttled_share), C(down), C(up) as
    measured, and C(desired). For C(status): C(state), C(desired), C(verified), C(holds),
    C(problem) (why they do not), C(use), C(revert_at).
  type: dict
  returned: success
events:
  description: >-
    Changes of limits and kills for want of memory, in the order of time: C(time), C(client), C(cause), and
    for changes C(requested), C(verified), C(holds), C(seconds).
  type: list
  elements: dict
  returned: for C(events)
"""

ACTIONS = ("set", "undo", "trace", "prove", "status", "events")
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
    "wait": {"type": "float", "default": 0},
    "since": {"type": "str"},
    "force": {"type": "bool", "default": False},
}
REQUIRED_IF = [
    ("action", "set", ("stamp", "limits")),
    ("action", "undo", ("stamp", "clients")),
    ("action", "trace", ("stamp", "trace")),
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


def main() -> None:
    """Ask, and return the answer."""
    module = AnsibleModule(ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    params = module.params
    try:
        answer = ask(
            params["socket"], build(params, module.check_mode), patience(params), params["wait"] or 0
        )
    except (OSError, ValueError) as error:
        module.fail_json(msg=unanswered(params["socket"], error))
    result = conclude(answer, params, module._diff)
    (module.fail_json if result.pop("failed", False) else module.exit_json)(**result)


if __name__ == "__main__":
    main()
