"""What a client's container is made of: the body of the engine's API, its hash, and how two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

PERIOD = (
    100_000  # microseconds of the scheduler; a longer one would multiply the latency of a throttled client
)
NANOSECONDS = 1_000_000_000
SPEC = "coldframe.spec"
# Part of the body, not of the hash: limits count when a container is made, from then on they are the agent's.
LIMITS = ("CpuPeriod", "CpuQuota", "Memory", "MemorySwap", "PidsLimit")


def body_of(
    federation: str,
    image: str,
    image_id: str,
    container: Mapping[str, Any],
    client: Mapping[str, Any],
    key: str,
) -> dict[str, Any]:
    """Return the body that makes a client's container.

    Parameters
    ----------
    image_id : str
        The image's id; empty where the image is not there yet.
    container : mapping
        The options of the module that all clients share; `{client}` in them stands for a client's name.
    client : mapping
        Its `name` and limits: `cpu` in cores, `memory` in bytes, `pids`.
    key : str
        Its public key; empty where it is not known (in check mode).
    """
    name = str(client["name"])

    def own(value: Any) -> str:
        return str(value).replace("{client}", name)

    host: dict[str, Any] = {
        "Binds": [own(volume) for volume in container["volumes"]],
        "CapDrop": container["cap_drop"],
        "LogConfig": {
            "Type": "json-file",
            "Config": {word: str(value) for word, value in container["log_options"].items()},
        },
        "NetworkMode": federation,
        "ReadonlyRootfs": container["read_only"],
        "RestartPolicy": {"Name": container["restart_policy"], "MaximumRetryCount": 0},
        "SecurityOpt": container["security_opts"],
        "ShmSize": container["shm_size"],
        "Tmpfs": dict.fromkeys(container["tmpfs"], ""),
        # Where the engine remaps users (userns-remap): the machine's files belong to users as they are.
        "UsernsMode": "host",
    }
    labels = {"coldframe.federation": federation, "coldframe.role": "client", "coldframe.client": name}
    body: dict[str, Any] = {
        "Image": image,
        "Cmd": [own(word) for word in container["command"]],
        "Env": [f"{word}={own(value)}" for word, value in container["env"].items()],
        "Healthcheck": healthcheck(container["healthcheck"]),
        "Labels": labels,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": host,
        "NetworkingConfig": {"EndpointsConfig": {federation: {}}},
    }
    labels = {**labels, SPEC: spec_of(body, image_id, key)}
    # Period and quota, not NanoCpus, which excludes them for the container's life.
    limits = {
        "CpuPeriod": PERIOD,
        "CpuQuota": round(float(client["cpu"]) * PERIOD),
        "Memory": int(client["memory"]),
        "MemorySwap": int(client["memory"]),
        "PidsLimit": int(client["pids"]),
    }
    return {**body, "Labels": labels, "HostConfig": {**host, **limits}}


def healthcheck(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's description of a health check whose times are in seconds."""
    return {
        "Test": given["test"],
        "Interval": given["interval"] * NANOSECONDS,
        "Timeout": given["timeout"] * NANOSECONDS,
        "StartPeriod": given["start_period"] * NANOSECONDS,
        "Retries": given["retries"],
    }


def spec_of(body: Mapping[str, Any], image_id: str, key: str) -> str:
    """Return the hash of what a container is made of: that of its values, a dot, that of its client's key.

    In two parts, since the key is not known in check mode.
    """
    values = {**body, "Env": sorted(body["Env"]), "image_id": image_id}
    return f"{digest(json.dumps(values, sort_keys=True))[:16]}.{digest(key)[:8] if key else ''}"


def digest(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def same_spec(found: str, wanted: str) -> bool:
    """Say whether a container is made of what is wanted; a key that is not known is not compared.

    >>> [same_spec("aa.11", wanted) for wanted in ("aa.11", "aa.22", "bb.11", "aa.")]
    [True, False, False, True]
    """
    values, _, key = wanted.partition(".")
    return found == wanted if key else found.startswith(f"{values}.")


def differences(found: Mapping[str, Any], body: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what an inspected container has differently from a body, limits aside: name, found, wanted."""
    was = flat(found["Config"]) | flat(found["HostConfig"])
    host = {word: value for word, value in body["HostConfig"].items() if word not in LIMITS}
    config = {word: value for word, value in body.items() if word not in ("HostConfig", "NetworkingConfig")}
    return [
        (word, was.get(word), value)
        for word, value in (flat(config) | flat(host)).items()
        if was.get(word) != value
    ]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values by dotted names; a list of `NAME=value` is nested too.

    >>> flat({"Env": ["A=1"], "Labels": {"b": "2"}, "Cmd": ["x", "y"]})
    {'Env.A': '1', 'Labels.b': '2', 'Cmd': ['x', 'y']}
    """
    found: dict[str, Any] = {}
    for word, value in values.items():
        if word == "Env":
            value = dict(item.split("=", 1) for item in value or [] if "=" in item)
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{word}.")
        else:
            found[f"{before}{word}"] = value
    return found
