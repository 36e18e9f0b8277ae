"""What became of a run's scenario: which entries were done, how late, and what did not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coldframe.controller.records import Event, named


def outcome(noted: Mapping[str, Any], events: Sequence[Event]) -> dict[str, Any] | None:
    """Make what `summary.json` says of the scenario; None for a run without one.

    Parameters
    ----------
    noted : mapping
        The note of the submission.
    events : sequence
        The agents' events of the run's time.

    Returns
    -------
    dict
        ``name``, and ``entries``: of each its ``number``, ``what`` it is, the ``clients`` to which it was
        done, those of whom it did ``not_hold``, and the greatest ``lateness`` in seconds (None: it was never
        due).
    """
    known = noted.get("scenario")
    if not known:
        return None
    entries = []
    for number, what in known["entries"].items():
        own = [e for e in events if e["cause"] == "scenario" and str(e.get("entry")) == number]
        entries.append(
            {
                "number": int(number),
                "what": what,
                "clients": sorted({event["client"] for event in own}),
                "not_hold": sorted({event["client"] for event in own if not event["holds"]}),
                "lateness": max((event["lateness"] for event in own), default=None),
            }
        )
    return {"name": known["name"], "entries": entries}


def lines(found: Mapping[str, Any] | None) -> list[str]:
    """Say it in the closing words: how much of it was done, and what was not."""
    if not found:
        return []
    entries = found["entries"]
    done = [entry for entry in entries if entry["lateness"] is not None]
    late = max((entry["lateness"] for entry in done), default=0.0)
    told = [f"{found['name']}: {len(done)} of {len(entries)} entries done, at most {late:.2f} s late"]
    told += [f"{entry['what']} was never due" for entry in entries if entry["lateness"] is None]
    told += [f"{it['what']} does not hold for {named(it['not_hold'])}" for it in entries if it["not_hold"]]
    return [f"  {'scenario' if place == 0 else '':<11} {line}" for place, line in enumerate(told)]
