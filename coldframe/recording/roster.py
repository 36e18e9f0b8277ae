"""The clients of a federation, as `nodes.json` names them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Client:
    """A client as the federation knows it."""

    node_id: int
    name: str
    partition_id: int | None = None


def read_roster(path: Path) -> dict[int, Client]:
    """Read `nodes.json`, which maps node ids to names and partition ids; no file means no roster."""
    try:
        nodes = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {
        int(node_id): Client(int(node_id), node["name"], int(node["partition_id"]))
        for node_id, node in nodes.items()
    }
