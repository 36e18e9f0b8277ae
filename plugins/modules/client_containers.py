"""Makes, starts and removes the containers of a machine's clients, all at once and over the engine's API."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.containers import SPEC, body_of, differences, same_spec
from ansible.module_utils.engine import Engine, EngineError, Unreachable

DOCUMENTATION = r"""
module: client_containers
short_description: The containers of a machine's clients, in one call
description:
  - Makes the containers of all clients of a machine at once, and the federation's network before them. One
    that runs as described is not touched; one that differs is made anew; one that has stopped is started; one
    whose client is no longer named is removed.
  - Whether a container is as described is told by its label C(coldframe.spec), a hash of what it was made of.
    Limits are no part of it. They count when a container is made; from then on they are the agent's.
  - Needs nothing but Python on the machine.
options:
  socket:
    description: The socket of the engine's API.
    type: path
    default: /var/run/docker.sock
  federation:
    description: The federation's name, which is that of the network and the prefix of the containers' names.
    type: str
    required: true
  image:
    description: The image, which must be on the machine.
    type: str
    required: true
  clients:
    description: >-
      All clients of this machine: C(name), C(cpu) in cores, C(memory) in bytes, C(pids). Other keys are
      ignored.
    type: list
    elements: dict
    required: true
  public_keys:
    description: >-
      The clients' public keys by name. A client with a new key gets a new container, since a key is read at
      the start. Where a client's key is not given, as in check mode, it is not compared.
    type: dict
    default: {}
    no_log: false
  container:
    description: What the containers share. C({client}) in a text stands for the client's name.
    type: dict
    required: true
    suboptions:
      command:
        description: The command and its arguments.
        type: list
        elements: str
        required: true
      env:
        description: Environment variables.
        type: dict
        default: {}
      volumes:
        description: Bind mounts, as C(docker run --volume) takes them.
        type: list
        elements: str
        default: []
      healthcheck:
        description: When a container is healthy.
        type: dict
        required: true
        suboptions:
          test:
            description: C(CMD) and a command.
            type: list
            elements: str
            required: true
          interval:
            description: Seconds between two checks.
            type: int
            required: true
          timeout:
            description: Seconds that a check may take.
            type: int
            required: true
          start_period:
            description: Seconds in which a failed check does not count.
            type: int
            required: true
          retries:
            description: Failed checks in a row that make a container unhealthy.
            type: int
            required: true
      log_options:
        description: Options of the log driver json-file.
        type: dict
        default: {}
      tmpfs:
        description: Directories in memory.
        type: list
        elements: str
        default: []
      shm_size:
        description: >-
          Bytes that C(/dev/shm) may hold; 0 is the engine's own, 64 MB. What lies there is a part of the
          client's memory.
        type: int
        default: 0
      read_only:
        description: The root file system cannot be written.
        type: bool
        default: false
      cap_drop:
        description: Capabilities that it does not get.
        type: list
        elements: str
        default: []
      security_opts:
        description: Security options.
        type: list
        elements: str
        default: []
      restart_policy:
        description: When the engine starts it again.
        type: str
        choices: ["no", always, unless-stopped]
        default: unless-stopped
author:
  - The Coldframe authors
"""

EXAMPLES = r"""
- name: Two clients
  client_containers:
    federation: coldframe
    image: coldframe/fl
    clients:
      - {name: node1-0, cpu: 0.5, memory: 536870912, pids: 256}
      - {name: node1-1, cpu: 0.25, memory: 536870912, pids: 256}
    container:
      command: [python3, -P, -m, coldframe.client.container]
      env: {COLDFRAME_CLIENT: "{client}"}
      healthcheck: {test: [CMD, "true"], interval: 60, timeout: 20, start_period: 60, retries: 3}
  become: true
"""

RETURN = r"""
actions:
  description: What was done (in check mode, would be done) to whom. Who is not named was not touched.
  type: dict
  returned: always
  sample: {node1-0: create, node1-1: recreate, node1-2: start, node1-3: remove}
differences:
  description: By client that is made anew, what its container has otherwise, limits aside.
  type: dict
  returned: in check mode
  sample: {node1-1: ["Image coldframe/fl:1 -> coldframe/fl:2"]}
errors:
  description: Why it failed, by client.
  type: dict
  returned: failure
"""

HEALTHCHECK = {
    "test": {"type": "list", "elements": "str", "required": True},
    **{
        word: {"type": "int", "required": True} for word in ("interval", "timeout", "start_period", "retries")
    },
}
CONTAINER = {
    "command": {"type": "list", "elements": "str", "required": True},
    "env": {"type": "dict", "default": {}},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "healthcheck": {"type": "dict", "required": True, "options": HEALTHCHECK},
    "log_options": {"type": "dict", "default": {}},
    "tmpfs": {"type": "list", "elements": "str", "default": []},
    "shm_size": {"type": "int", "default": 0},
    "read_only": {"type": "bool", "default": False},
    "cap_drop": {"type": "list", "elements": "str", "default": []},
    "security_opts": {"type": "list", "elements": "str", "default": []},
    "restart_policy": {
        "type": "str",
        "choices": ["no", "always", "unless-stopped"],
        "default": "unless-stopped",
    },
}
ARGUMENTS: dict[str, Any] = {
    "socket": {"type": "path", "default": "/var/run/docker.sock"},
    "federation": {"type": "str", "required": True},
    "image": {"type": "str", "required": True},
    "clients": {"type": "list", "elements": "dict", "required": True},
    "public_keys": {"type": "dict", "default": {}, "no_log": False},
    "container": {"type": "dict", "required": True, "options": CONTAINER},
}
AGAIN = "then ansible-playbook site.yml -e train=false"
WORKERS = 8  # containers at a time: most of it is waiting for the engine
# The engine's words where runc or its shim ended before the container ran: under load they die now and then
# ("read init-p: connection reset by peer"). The container is made by then, and only has to be started.
RUNTIME = "OCI runtime create failed"
TRIES, PAUSE = 3, 2.0  # seconds
# The engine's words for a container that nothing has to be done about: it restarts or resumes by itself.
ALIVE = ("running", "restarting", "paused")
GONE = ("dead", "removing")


class Failed(Exception):
    """Why a client's container is not as described, and what to type."""


@dataclass(frozen=True)
class Machine:
    """What the engine has of a federation."""

    image_id: str = ""  # empty where the image is not there
    network: str = ""  # id of the federation's network; empty where there is none
    containers: Sequence[dict[str, Any]] = ()  # of the clients, as the engine lists them


@dataclass(frozen=True)
class Step:
    """What is to be done about one client."""

    client: str
    container: str  # its name
    action: str  # create, recreate, start, remove or nothing
    found: dict[str, Any]  # as the engine lists it; empty where there is none
    body: dict[str, Any]  # what it is to be made of; empty for one that is to be removed


def look(engine: Engine, image: str, federation: str) -> Machine:
    """Ask the engine what it has."""
    labels = (f"coldframe.federation={federation}", "coldframe.role=client")
    return Machine(engine.image_id(image), engine.network_id(federation), engine.containers(*labels))


def plan(wanted: dict[str, dict[str, Any]], machine: Machine, federation: str) -> list[Step]:
    """Return the steps that bring the containers to the bodies that are wanted, by client."""
    there = {item["Labels"]["coldframe.client"]: item for item in machine.containers}
    steps = []
    for name in sorted(there.keys() - wanted):
        steps.append(Step(name, there[name]["Names"][0].lstrip("/"), "remove", there[name], {}))
    for name, body in wanted.items():
        item = there.get(name, {})
        action = action_on(item, body, federation, machine.network)
        steps.append(Step(name, f"{federation}-{name}", action, item, body))
    return [step for step in steps if step.action]


def action_on(item: dict[str, Any], body: dict[str, Any], federation: str, network: str) -> str:
    """Say what is to be done about a container that the engine lists so."""
    if not item:
        return "create"
    connected = item["NetworkSettings"]["Networks"].get(federation)
    # One that never ran bears the name of its network alone, and gets the id at its start.
    same_network = connected is not None and connected.get("NetworkID", "") in ("", network)
    if not same_spec(item["Labels"].get(SPEC, ""), body["Labels"][SPEC]) or not same_network:
        return "recreate"
    if item["State"] in GONE:
        return "recreate"
    return "" if item["State"] in ALIVE else "start"


def carry_out(engine: Engine, step: Step) -> list[str]:
    """Do one step; return the engine's warnings.

    Raises
    ------
    Failed
        If the engine refuses.
    """
    name, container = step.container, step.found.get("Id", "")
    warnings: list[str] = []
    try:
        if step.action == "remove":
            engine.remove(container, force=True)
            return []
        if step.action == "recreate":
            if step.found["State"] not in GONE:
                engine.stop(container)
            engine.remove(container, force=step.found["State"] in GONE)
        if step.action in ("create", "recreate"):
            made = engine.create(name, step.body)
            container, warnings = made["Id"], made.get("Warnings") or []
    except EngineError as error:
        if error.status == 409 and "already in use" in str(error):
            raise Failed(
                f"another container, not of this federation, has the name {name}: type docker rm --force "
                f"{name} on the machine, or choose another fl_federation; {AGAIN}"
            ) from error
        raise Failed(
            f"the engine could not {step.action} {name} ({error}): type docker inspect {name} on the "
            f"machine, {AGAIN}"
        ) from error
    start(engine, container, name)
    return warnings


def start(engine: Engine, container: str, name: str) -> None:
    """Start a container, once more where its runtime died."""
    for attempt in range(1, TRIES + 1):
        try:
            return engine.start(container)
        except EngineError as error:
            if RUNTIME not in str(error):
                raise Failed(
                    f"the engine could not start {name} ({error}): type docker inspect {name} on the "
                    f"machine, {AGAIN}"
                ) from error
            if attempt == TRIES:
                raise Failed(
                    f"the container runtime ended {TRIES} times before {name} ran ({error}): look for a lack "
                    f"of memory with free -m and dmesg on the machine, {AGAIN}"
                ) from error
            time.sleep(PAUSE)


def together(engine: Engine, steps: list[Step]) -> tuple[set[str], dict[str, str]]:
    """Carry out all steps at once; return the engine's warnings, and by client why one failed."""
    warnings: set[str] = set()
    errors: dict[str, str] = {}

    def attempt(step: Step) -> None:
        try:
            warnings.update(carry_out(engine, step))
        except Failed as error:
            errors[step.client] = str(error)
        except Unreachable as error:
            errors[step.client] = unreachable(engine, error)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(attempt, steps))
    return warnings, {step.client: errors[step.client] for step in steps if step.client in errors}


def unreachable(engine: Engine, error: Unreachable) -> str:
    """What to say where the engine does not answer."""
    return (
        f"no engine answers at {engine.path} ({error}): type systemctl status docker on the machine, {AGAIN}"
    )


def difference(engine: Engine, steps: list[Step], network: str) -> dict[str, str]:
    """Return the containers before and after, for --diff: those that change, one value a line.

    Parameters
    ----------
    network : str
        Name of the network that is to be made; empty where it is there.
    """
    before: list[str] = []
    after: list[str] = [f"network {network}"] if network else []
    for step in steps:
        name = step.container
        if step.found:
            before.append(f"{name}: {step.found['State']}")
        if step.action != "remove":
            after.append(f"{name}: running")
        if step.action == "create":
            host = step.body["HostConfig"]
            cores = host["CpuQuota"] / host["CpuPeriod"]
            after.append(f"{name}: {cores:g} cores, {host['Memory']} bytes, image {step.body['Image']}")
        if step.action == "recreate":
            with contextlib.suppress(EngineError):  # it has just gone
                for word, was, value in differences(engine.inspect(step.found["Id"]), step.body):
                    before.append(f"{name}: {word} {was}")
                    after.append(f"{name}: {word} {value}")
    return {"before": "\n".join([*before, ""]), "after": "\n".join([*after, ""])}


def reasons(engine: Engine, steps: list[Step]) -> dict[str, list[str]]:
    """Return for each client that is made anew what its container has otherwise."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if step.action == "recreate":
            found[step.client] = []
            with contextlib.suppress(EngineError):  # it has just gone
                found[step.client] = [
                    f"{word} {was} -> {value}"
                    for word, was, value in differences(engine.inspect(step.found["Id"]), step.body)
                    if word != f"Labels.{SPEC}"
                ]
    return found


def by_reason(errors: dict[str, str]) -> str:
    """Say what failed, a client a line."""
    return "\n".join(f"- {client}: {text}" for client, text in errors.items())


def run(engine: Engine, given: dict[str, Any], check: bool, diff: bool) -> dict[str, Any]:
    """Bring the containers to what is described; return the result of the task.

    Raises
    ------
    Failed
        If the image is not there: then nothing was changed.
    EngineError
        If the engine refuses what concerns all clients.
    Unreachable
        If no engine answers.
    """
    federation, image, keys = given["federation"], given["image"], given["public_keys"]
    try:
        machine = look(engine, image, federation)
    except Unreachable:
        if not check:
            raise
        machine = Machine()  # on a blank machine there is no engine yet
    wanted = {
        client["name"]: body_of(
            federation, image, machine.image_id, given["container"], client, keys.get(client["name"], "")
        )
        for client in given["clients"]
    }
    steps = plan(wanted, machine, federation)
    result: dict[str, Any] = {
        "actions": {step.client: step.action for step in steps},
        "changed": bool(steps or not machine.network),
    }
    if diff:
        result["diff"] = difference(engine, steps, "" if machine.network else federation)
    if check:
        return {**result, "differences": reasons(engine, steps)}
    lacking = [step.client for step in steps if step.body and not machine.image_id]
    if lacking:
        raise Failed(f"{', '.join(lacking)}: the image {image} is not on the machine: type {AGAIN[5:]}")
    if not machine.network:
        engine.create_network(federation)
    warnings, errors = together(engine, steps)
    if errors:
        done = {name: action for name, action in result["actions"].items() if name not in errors}
        result |= {"failed": True, "msg": by_reason(errors), "errors": errors, "actions": done}
    return {**result, "warnings": sorted(f"the engine says: {text}" for text in warnings)}


def main() -> None:
    """Read the arguments, and report."""
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    engine = Engine(module.params["socket"])
    try:
        result = run(engine, module.params, module.check_mode, module._diff)
    except Failed as error:
        module.fail_json(msg=str(error))
    except Unreachable as error:
        module.fail_json(msg=unreachable(engine, error))
    except EngineError as error:
        module.fail_json(msg=f"the engine refused ({error}): type docker info on the machine, {AGAIN}")
    for text in result.pop("warnings", []):
        module.warn(text)
    (module.fail_json if result.pop("failed", False) else module.exit_json)(**result)


if __name__ == "__main__":
    main()
