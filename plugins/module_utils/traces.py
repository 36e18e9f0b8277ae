"""Reads a trace of limits over time: CSV with the columns seconds, client, and the limits it changes."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.module_utils.variables import VERBS, cast_value, nearest

LIMITS = ("cpu", "memory", "down", "up", "delay", "online")


@dataclass(frozen=True)
class Trace:
    """A trace that has been checked.

    Attributes
    ----------
    rows : dict[str, list[dict]]
        By client, in the order of time: ``seconds`` and the limits from then on.
    length : float
        Seconds until its end, which is the greatest second in the file.
    """

    rows: dict[str, list[dict[str, Any]]]
    length: float


def read_trace(path: Path, clients: Collection[str]) -> Trace:
    """Read and check a trace.

    Raises
    ------
    ValueError
        If it cannot be replayed; the message is "PROBLEM: REMEDY".
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(line for line in file if line.strip() and not line.startswith("#"))
            columns = [str(column).strip() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"trace={path} cannot be read ({error}): give the path of a CSV file") from error
    _check_columns(path, columns)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, record in enumerate(records, start=1):
        where = f"row {number} of the trace"
        client = (record["client"] or "").strip()
        if client not in clients:
            near = nearest(client, clients)
            raise ValueError(
                f"{where} names the client {client or '(none)'}, which is not among those chosen: "
                + (f"did you mean {near}?" if near else f"they are {', '.join(sorted(clients))}")
            )
        row = {name: _value(name, record[name], where) for name in columns if name != "client"}
        before = rows.setdefault(client, [])
        if not before and row["seconds"] != 0:
            raise ValueError(
                f"the trace has a gap: {client} begins at second {row['seconds']:g}: "
                f"give {client} a row at second 0"
            )
        if before and row["seconds"] <= before[-1]["seconds"]:
            raise ValueError(f"{where}: time does not go on for {client}: sort each client's rows by seconds")
        before.append(row)
    length = max((row["seconds"] for series in rows.values() for row in series), default=0.0)
    if length <= 0:
        raise ValueError(
            f"trace={path} has no duration: give it rows at more than one second; the greatest is its end"
        )
    return Trace(rows, length)


def _check_columns(path: Path, columns: list[str]) -> None:
    known = ("seconds", "client", *LIMITS)
    for name in columns:
        if name not in known:
            near = nearest(name, known)
            raise ValueError(
                f"trace={path} has the unknown column {name}: "
                + (f"did you mean {near}?" if near else f"it can have {', '.join(known)}")
            )
    if not {"seconds", "client"} <= set(columns) or len(columns) < 3:
        raise ValueError(
            f"trace={path} lacks columns: it needs seconds, client and one of {', '.join(LIMITS)}"
        )


def _value(name: str, text: str | None, where: str) -> Any:
    if text is None or not text.strip():
        raise ValueError(f"the trace has a gap: {where} has no {name}: fill it in, or leave the column out")
    if name == "online":
        if text.strip() not in ("0", "1"):
            raise ValueError(f"{where}: online={text} is neither 0 nor 1: write 1 for online, 0 for offline")
        return text.strip() == "1"
    if name == "seconds":
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"{where}: seconds={text} is no number ≥ 0: write the seconds since the start")
        return seconds
    try:
        return cast_value(VERBS["throttle"][name], text)
    except ValueError as error:
        raise ValueError(f"{where}: {name}={text} {str(error).partition(': ')[0]}: mend the trace") from None
