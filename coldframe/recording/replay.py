"""The order in which an earlier run used its updates, read from its journal on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coldframe.recording.journal import read_journal
from coldframe.recording.roster import Client
from coldframe.strategies.asynchronous import Planned

# Of a run's config: what makes no other model.
FREE = ("round-timeout", "evaluate-every", "evaluate-samples")
NO_ORDER = (
    "replay is for strategies that use updates as they arrive (fedbuff, fedasync): leave it out, with any"
    " other strategy the same seed makes the same model"
)


class ReplayError(ValueError):
    """A run that cannot be replayed here; the message says why."""


def order_of(state: Path, run_id: str, config: Mapping[str, Any], clients: Sequence[Client]) -> list[Planned]:
    """Return the order of a run for the clients that have its partitions now.

    Raises
    ------
    ReplayError
        If there is no such journal, or this run's settings or clients would make another model.
    """
    events = read_journal(state / "runs" / run_id / "journal.jsonl")
    started = next((event for event in events if event["event"] == "run_started"), None)
    if started is None:
        raise ReplayError(f"replay={run_id}: the server keeps no journal of that run")
    updates = [event for event in events if event["event"] == "update" and not event["reason"]]
    if not updates:
        raise ReplayError(f"replay={run_id}: that run used no updates of an asynchronous strategy")
    before, now = (
        {key: value for key, value in one.items() if key not in FREE} for one in (started["config"], config)
    )
    if differ := sorted(key for key in {**before, **now} if before.get(key) != now.get(key)):
        shown = ", ".join(f"{key}={before.get(key)} (here {now.get(key)})" for key in differ)
        raise ReplayError(f"replay={run_id}: that run had other settings: {shown}. Type the same ones")
    nodes = {client.partition_id: client.node_id for client in clients}
    wanted = {client["partition_id"] for client in started["clients"]}
    if set(nodes) != wanted:
        raise ReplayError(
            f"replay={run_id}: that run had {len(wanted)} clients, and this one has {len(nodes)} or other"
            " partitions: deploy the same number of clients"
        )
    return [
        Planned(event["dispatch"], nodes[event["partition_id"]], event["base"], event["round"])
        for event in updates
    ]
