"""Runs one topic: `python3 -m tests.kernel.inside TOPIC`, with JSON on stdin and on stdout."""

import json
import sys
from collections.abc import Callable
from typing import Any

from tests.kernel.inside import host, limits, network, stand, standing

TOPICS: dict[str, Callable[..., Any]] = {
    "stand": stand.stand,
    "cpu": limits.cpu,
    "memory": limits.memory,
    "pids": limits.pids,
    "freeze": limits.freeze,
    "rates": network.rates,
    "netem": network.netem,
    "set_and_undo": standing.set_and_undo,
    "expiry": standing.expiry,
    "agent_restart": standing.agent_restart,
    "client_restart": standing.client_restart,
    "exporter": standing.exporter,
    "host": host.host,
}

if __name__ == "__main__":
    print(json.dumps(TOPICS[sys.argv[1]](**json.load(sys.stdin))))
