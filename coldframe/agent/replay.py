"""A trace of limits over time: which row of it holds at a moment, for each client.

The controller has checked the rows before they come here. All agents get the same start, so a trace runs by
the clock, and one that is interrupted goes on where it would be by now.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Replay:
    """A trace and the way to play it.

    Attributes
    ----------
    rows : dict[str, list[dict]]
        By client, in the order of time: ``seconds`` and the limits that hold from then on.
    start : float
        Unix time of second 0.
    speed : float
        Seconds of the trace per second of the clock.
    loop : bool
        Begin again at the end; else the limits go back to what they were.
    length : float
        Seconds of the trace until its end: no row lies later.
    """

    rows: dict[str, list[dict[str, Any]]]
    start: float
    length: float
    speed: float = 1.0
    loop: bool = False
    times: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.times.update({name: [row["seconds"] for row in rows] for name, rows in self.rows.items()})

    def over(self, now: float) -> bool:
        """Return whether the trace has come to its end."""
        return not self.loop and (now - self.start) * self.speed >= self.length

    def row(self, client: str, now: float) -> tuple[dict[str, Any], float] | None:
        """Return the limits of a client at a moment, and the unix time at which they should have begun.

        None before the start, after the end, and for a client that the trace does not name.
        """
        elapsed = (now - self.start) * self.speed
        if client not in self.rows or elapsed < 0 or self.over(now):
            return None
        turn = elapsed // self.length if self.loop else 0
        index = bisect_right(self.times[client], elapsed - turn * self.length) - 1
        row = self.rows[client][index]
        planned = self.start + (turn * self.length + row["seconds"]) / self.speed
        return {key: value for key, value in row.items() if key != "seconds"}, planned

    def next_change(self, now: float) -> float | None:
        """Return the unix time of the next row of any client, or of the end; None when it is over."""
        if self.over(now):
            return None
        elapsed = (now - self.start) * self.speed
        if elapsed < 0:
            return self.start
        turn = elapsed // self.length if self.loop else 0
        inside = elapsed - turn * self.length
        following = [self.length]
        for times in self.times.values():
            position = bisect_right(times, inside)
            following += times[position : position + 1]
        return self.start + (turn * self.length + min(following)) / self.speed
