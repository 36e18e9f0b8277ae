"""What an asynchronous strategy tells of a run: which updates it used, and how stale they were.

Such a strategy calls its method `note_update(node_id, update)` once for each reply; `probes` listens there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean
from typing import Any

HOOK = "note_update"  # the method of a strategy
FIELDS = (
    "dispatch",
    "base",
    "version",
    "staleness",
    "weight",
)  # attributes of an update that are written down


@dataclass
class Updates:
    """The updates of a round; none where the strategy is not asynchronous."""

    nodes: set[int] = field(default_factory=set)  # whose updates were used
    staleness: list[int] = field(default_factory=list)  # of the used ones
    discarded: int = 0

    def add(self, node_id: int, staleness: int, used: bool) -> None:
        """Count an update."""
        if used:
            self.nodes.add(node_id)
            self.staleness.append(staleness)
        else:
            self.discarded += 1

    def figures(self) -> dict[str, Any]:
        """Return what the event of a round says of them."""
        if not self.staleness and not self.discarded:
            return {}
        used = self.staleness
        return {
            "updates": len(used),
            "discarded": self.discarded,
            "staleness": round(mean(used), 3) if used else None,
            "max_staleness": max(used, default=None),
        }

    def time_training(self, phases: dict[str, float], seconds: float) -> None:
        """Set the seconds of training: what the server did not spend on something else, it waited for it.

        The exchanges of such a round cannot be added up: they overlap, and most begin or end in another one.
        """
        if self.staleness or self.discarded:
            rest = sum(value for phase, value in phases.items() if phase != "train")
            phases["train"] = max(0.0, seconds - rest)


def described(update: Any) -> dict[str, Any]:
    """Return the fields of an update, and why it was not used: null where it was."""
    return {**{name: getattr(update, name) for name in FIELDS}, "reason": update.reason or None}
