"""A run is oversubscribed where more was asked of a machine than it has, for whatever reason, at any time."""

from __future__ import annotations

from typing import Any

import pytest

from coldframe.controller.oversubscription import reasons

START = 1_700_000_000.0


def make(cpu: float | None = 0.5, *, cores: int = 2, clients: int = 3, **machine: Any) -> dict[str, Any]:
    """An inventory of one machine."""
    return {
        "clients": [
            {"name": f"c1-{i}", "machine": "c1", "cpu": cpu, "baseline": {"cpu": 0.5}} for i in range(clients)
        ],
        "machines": [{"name": "c1", "cores": cores, **machine}, {"name": "server", "cores": None}],
    }


def change(after: float, client: str, cpu: float | None) -> dict[str, Any]:
    return {"time": START + after, "client": client, "cause": "throttle", "verified": {"cpu": cpu}}


@pytest.mark.parametrize(
    ("inventory", "events", "words"),
    [
        (make(), [], []),
        (make(0.6666667, clients=3), [], []),
        (make(1.0), [], ["added up to 3 cores, and it has 2"]),
        (make(None), [], []),  # not read: as it was deployed
        (make(load=1.9, other_cpu=0.5), [], []),
        (make(other_cpu=0.6), [], ["1.5 cores, those of other federations to 0.6, and it has 2"]),
        (make(load=4.0), [], ["its load average was 4 before the run, and it has 2 cores"]),
        (make(1.0, load=4.0), [], ["added up to 3", "load average"]),
        (make(), [change(12, "c1-0", 1.0), change(13, "c1-1", 1.0)], ["2.5 cores 13.0 s after its start"]),
        (make(), [change(12, "c1-0", 1.0), change(13, "c1-0", 0.1)], []),
        (make(), [change(12, "c1-0", None)], ["3 cores 12.0 s"]),  # without a limit
        (make(), [change(12, "c9-0", 8.0)], []),  # of another machine
        (make(1.0), [change(0, "c1-0", 0.1), change(0, "c1-1", 0.1)], ["added up to 3"]),
    ],
)
def test_what_exceeded_the_cores_is_said(
    inventory: dict[str, Any], events: list[dict[str, Any]], words: list[str]
) -> None:
    found = reasons(inventory, events, START)
    assert found is not None
    assert len(found) == len(words)
    assert all(
        part in reason and reason.startswith("c1: ") for part, reason in zip(words, found, strict=True)
    )


def test_nothing_is_guessed() -> None:
    assert reasons({}, [], START) is None
    unknown = make(None)
    for client in unknown["clients"]:
        del client["baseline"]
    assert reasons(unknown, [], START) is None
    assert reasons({**unknown, "machines": [{"name": "c1", "cores": 2, "load": 1.0}]}, [], START) == []
