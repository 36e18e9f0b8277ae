"""What tables and summary say of a run whose strategy waits for no client; nothing of any other run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import mean
from typing import Any

from coldframe.controller.records import Event, Run

ROUND = ("updates", "discarded", "staleness", "max_staleness")
CLIENT = ("dispatch", "staleness", "weight")
DISCARDED = "discarded"  # the status of a reply that was not used


def round_columns(run: Run, event: Event) -> dict[str, Any]:
    """Return the columns of a round in `rounds.csv`."""
    return {name: event.get(name) for name in ROUND} if run.updates else {}


def client_columns(run: Run, event: Event) -> dict[str, Any]:
    """Return the columns of a reply or failure in `clients.csv`; they go over those that every run has.

    A reply of a round can be used in a later one: staleness and weight are those of its use.
    """
    if not run.updates:
        return {}
    update: Mapping[str, Any] = event.get("update", {})
    columns = {name: update.get(name) for name in CLIENT}
    if update.get("reason"):
        columns |= {"status": DISCARDED, "reason": update["reason"]}
    return columns


def summary_of(run: Run) -> dict[str, Any] | None:
    """Return what `summary.json` says of the updates.

    How evenly clients took part is `updates_jain`, as in every run.
    """
    if not run.updates:
        return None
    used = [update for update in run.updates if not update["reason"]]
    staleness = Counter(update["staleness"] for update in used)
    return {
        "used": len(used),
        "discarded": len(run.updates) - len(used),
        "by_client": dict(sorted(run.contributions().items())),
        "staleness": {str(value): staleness[value] for value in sorted(staleness)},
        "mean_staleness": mean(update["staleness"] for update in used) if used else None,
    }


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the line of the closing words."""
    found = summary.get("updates")
    if not found:
        return []
    stale = "" if found["mean_staleness"] is None else f", mean staleness {found['mean_staleness']:.2f}"
    fair = "" if summary["updates_jain"] is None else f", evenness {summary['updates_jain']:.2f}"
    return [f"  updates     {found['used']} used, {found['discarded']} discarded{stale}{fair}"]
