"""Journals of runs that never were, of any size and of several kinds of app: for what draws and counts them.

    python -m tests.unit.journals 200 --rounds 5 --kind foreign --out DIRECTORY

makes the results folder of such a run below DIRECTORY, to look at its report.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START = 1_700_000_000.0
KINDS = ("ours", "foreign", "query", "exchanges")
PER_MACHINE = 10
CLASSES = 10
Event = dict[str, Any]


def name_of(client: int) -> str:
    """Name a client as the roster does: ten on each machine."""
    return f"edge{client // PER_MACHINE}-{client % PER_MACHINE}"


def make_journal(clients: int, rounds: int = 5, kind: str = "ours", start: float = START) -> list[Event]:
    """Make the events of a run.

    Parameters
    ----------
    kind : str
        ``ours``: everything is known. ``foreign``: an app of somebody else, with metrics of its own names,
        one of them a list, and no accuracy of the server. ``query``: an app without rounds. ``exchanges``:
        four exchanges in each round, as secure aggregation has.
    """
    dice = random.Random(f"{kind} {clients} {rounds}")
    roster = [{"name": name_of(i), "partition_id": i, "node_id": str(900 + i)} for i in range(clients)]
    # Every tenth is slow, and every fiftieth very slow.
    pace = [1.0 + 0.3 * dice.random() + 2.0 * (i % 10 == 9) + 3.0 * (i % 50 == 49) for i in range(clients)]
    about: Event = {"rounds": rounds, "clients": roster, "config": {"seed": 3}, "versions": {}}
    told = {"run_name": "pilot", "strategy": "fedavg", "dataset": "mnist", "partitioner": "iid", "seed": 3}
    about |= told if kind == "ours" else dict.fromkeys(told)
    if kind == "ours":
        counts = [[dice.randrange(10, 200) for _ in range(CLASSES)] for _ in roster]
        about["histogram"] = {str(i): row for i, row in enumerate(counts)}
    if kind == "query":
        about["rounds"] = None
    events: list[Event] = [{"time": start, "event": "run_started", "run_id": "71", **about}]
    now = start + 1
    for number in range(1, rounds + 1):
        begun = now
        this = None if kind == "query" else number
        if this is not None and number > 1:  # the checkpoint of a round is taken as the next one begins
            kept = {"round": number - 1, "bytes": 4_800_000, "held": 0.001, "seconds": 0.08, "unkept": []}
            events.append({"time": begun, "event": "checkpoint", **kept})
        phases = {"query": ["query"], "exchanges": ["train"] * 4 + ["evaluate"]}.get(
            kind, ["train", "evaluate"]
        )
        spent: dict[str, float] = {}
        for phase in phases:
            names = [client["name"] for client in roster]
            events.append(
                {"time": now, "event": "phase_started", "round": this, "phase": phase, "clients": names}
            )
            found = list(_replies(roster, pace, dice, now, this, phase, kind, number))
            events += sorted(found, key=lambda event: event["time"])
            longest = max(event["time"] for event in found) - now
            spent[phase] = spent.get(phase, 0.0) + longest
            now += longest + 0.1
        if this is not None:
            events.append(_round(kind, number, now, now - begun, spent, clients))
        now += 0.2
    events.append({"time": now, "event": "run_finished", "status": "completed", "error": None})
    return events


def _replies(
    roster: list[Event],
    pace: list[float],
    dice: random.Random,
    now: float,
    number: int | None,
    phase: str,
    kind: str,
    turn: int,
) -> Iterator[Event]:
    for client, slow in zip(roster, pace, strict=True):
        seconds = (6.0 if phase == "train" else 1.5) * slow * (0.9 + 0.2 * dice.random())
        who = {key: client[key] for key in ("partition_id", "node_id")}
        event = {"time": now + seconds, "round": number, "phase": phase, "client": client["name"], **who}
        if kind == "ours" and phase == "train" and client["partition_id"] % 40 == 7 and turn % 3 == 2:
            yield {**event, "event": "failure", "code": 5, "reason": "node unavailable"}
            continue
        yield {
            **event,
            **{"event": "reply", "seconds": round(seconds, 3), "bytes_down": 4 << 20, "bytes_up": 4 << 20},
            "examples": None if phase == "query" else 300,
            "metrics": _metrics(kind, phase, turn, slow),
            "system": {
                **{"cpu_limit": round(0.5 / slow, 2), "threads": 1, "memory_peak": 300 << 20},
                **(
                    {"train_seconds": round(0.9 * seconds, 3), "throttled_share": 0.4}
                    if phase == "train"
                    else {}
                ),
            },
        }


def _metrics(kind: str, phase: str, turn: int, slow: float) -> dict[str, Any]:
    fall = math.exp(-turn / 3) * (0.8 + slow / 10)
    if kind == "ours":
        return {"train_loss": fall} if phase == "train" else {"loss": fall, "accuracy": 1 - 0.9 * fall}
    if kind == "foreign":
        named = {"rmse": fall, "per_class_f1": [1 - fall, 0.5, 0.25], "lr": 0.1 / turn}
        return named if phase == "train" else {"r2": 1 - fall}
    return {"rows": 10.0 + slow} if kind == "query" else {}


def _round(
    kind: str, number: int, now: float, seconds: float, spent: dict[str, float], clients: int
) -> Event:
    fall = math.exp(-number / 3)
    figures = {
        "ours": {
            "accuracy": 1 - fall,
            "loss": fall,
            "client_accuracy": 0.9 - fall,
            "client_loss": 1.1 * fall,
        },
        "foreign": {"client_loss": fall},
    }.get(kind, {})
    figures |= {"train_loss": 1.2 * fall} if kind == "ours" else {}
    names = ("accuracy", "loss", "client_accuracy", "client_loss", "train_loss")
    return {
        **{"time": now, "event": "round", "round": number, "seconds": round(seconds, 3), "clients": clients},
        **dict.fromkeys(names),
        **figures,
        "phases": {"configure": 0.05, **spent, "aggregate": 0.1},
        "failures": 0,
        "keys": {"client_loss": "eval_mse"} if kind == "foreign" else {},
        "derived": [],
    }


def make_changes(clients: int, start: float = START) -> list[Event]:
    """Make the agents' events of a run: every third client is throttled after 12 s, released after 40 s."""
    return [
        {
            **{"time": start + after + client / 1000, "client": name_of(client), "cause": cause},
            **{"requested": {"cpu": cpu}, "verified": {"cpu": cpu}, "holds": True, "seconds": 0.1},
        }
        for after, cause, cpu in ((12.0, "throttle", 0.1), (40.0, "undo", 0.5))
        for client in range(0, clients, 3)
    ]


def make_inventory(clients: int, cores: int = 4) -> Event:
    """Make what `inventory.json` holds of as many clients: ten on each machine."""
    machines = sorted({name_of(client).split("-")[0] for client in range(clients)})
    known = ("architecture", "system", "kernel", "docker", "cgroup", "load", "other_containers")
    return {
        "federation": "lab",
        "clients": [
            {
                **{"name": name_of(i), "machine": name_of(i).split("-")[0], "partition_id": i},
                **{"cpu": 0.5, "memory": 1 << 30, "profile": None},
            }
            for i in range(clients)
        ],
        "machines": [
            {"name": name, "roles": ["clients"], "cores": cores, "memory": 8 << 30, **dict.fromkeys(known)}
            for name in machines
        ],
    }


def make_folder(folder: Path, clients: int, rounds: int, kind: str) -> Path:
    """Make the results folder of such a run; its path."""
    from coldframe.controller import results

    source = folder / "run"
    source.mkdir(parents=True, exist_ok=True)
    given = {
        "inventory": json.dumps(make_inventory(clients)),
        "events": "".join(json.dumps(change) + "\n" for change in make_changes(clients)),
        "record": json.dumps({"app": "somebody/app"} if kind != "ours" else {}),
    }
    lines = [json.dumps(event) + "\n" for event in make_journal(clients, rounds, kind)]
    (source / "journal.jsonl").write_text("".join(lines), encoding="utf-8")
    options = []
    for option, text in given.items():
        (folder / option).write_text(text, encoding="utf-8")
        options += [f"--{option}", str(folder / option)]
    assert results.main([str(source), "--results", str(folder / "out"), "--run-id", "71", *options]) == 0
    return (folder / "out" / "latest").resolve()


def main() -> None:
    """Make one from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.unit.journals", description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, default="ours")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print(make_folder(given.out, given.clients, given.rounds, given.kind) / "report.html")


if __name__ == "__main__":
    main()
