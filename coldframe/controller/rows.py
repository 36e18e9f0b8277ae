"""The rows of a run's tables: `rounds.csv` and `clients.csv`."""

from __future__ import annotations

from typing import Any

from coldframe.controller.asynchronous import client_columns, round_columns
from coldframe.controller.records import Run, natural

PHASES = ("configure", "train", "aggregate", "evaluate", "server_evaluate")
SYSTEM_FIGURES = (
    "cpu_limit",
    "memory_limit",
    "threads",
    "train_seconds",
    "cpu_seconds",
    "throttled_share",
    "cpu_pressure",
    "samples_per_second",
    "memory_peak",
)
CLIENT_STATUS = {"reply": "ok", "failure": "failed", "late": "late"}


def round_rows(run: Run) -> list[dict[str, Any]]:
    """Make the rows of `rounds.csv`: one per round, round 0 included; all times in seconds.

    Phases that only this app has come after those that every table has.
    """
    others = sorted(
        {phase for event in run.rounds.values() for phase in event.get("phases", {})} - set(PHASES)
    )
    return [
        {
            "round": number,
            **{key: event.get(key) for key in ("accuracy", "loss", "client_accuracy", "client_loss")},
            "train_loss": event.get("train_loss"),
            "seconds": event.get("seconds"),
            **{f"{phase}_seconds": event.get("phases", {}).get(phase) for phase in [*PHASES, *others]},
            "clients": event.get("clients"),
            "failures": event.get("failures"),
            "late": event.get("late", 0),
            "folded": event.get("folded", 0),
            **round_columns(run, event),
        }
        for number, event in sorted(run.rounds.items())
    ]


def client_rows(run: Run) -> list[dict[str, Any]]:
    """Make the rows of `clients.csv`: one per client, round and phase, failures and late clients included.

    `seconds` is the time from sending the message to having its reply, also where that was late; the client's
    own figures keep their names, and each metric of the reply has a column `metric_<name>`. Of a late reply
    that is in the model of a later round `folded_into` names that, and `staleness` the aggregations between.
    """
    metrics = sorted({name for reply in run.replies for name in reply.get("metrics", {})})
    rows = []
    for event in [*run.replies, *run.failures, *({**late, "seconds": late.get("came")} for late in run.late)]:
        system = event.get("system", {})
        rows.append(
            {
                **{key: event.get(key) for key in ("round", "phase", "client", "partition_id", "node_id")},
                "status": CLIENT_STATUS[event["event"]],
                **{key: event.get(key) for key in ("seconds", "examples", "bytes_down", "bytes_up")},
                **{key: system.get(key) for key in SYSTEM_FIGURES},
                **{f"metric_{name}": event.get("metrics", {}).get(name) for name in metrics},
                "code": event.get("code"),
                "reason": event.get("reason"),
                "folded_into": event.get("into"),
                "staleness": event.get("staleness"),
                **client_columns(run, event),
            }
        )
    order = {"train": 0, "evaluate": 1}
    nowhere = -1  # messages of no round come first, clients without a partition last
    return sorted(
        rows,
        key=lambda row: (
            nowhere if row["round"] is None else row["round"],
            order.get(row["phase"], 2),
            row["partition_id"] is None,
            row["partition_id"] or 0,
            natural(row["client"]),
        ),
    )
