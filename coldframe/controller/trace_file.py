"""Reads a trace of limits over time: CSV with the columns seconds, client, and the limits it changes."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldframe.controller.settings import VERBS, cast_value, nearest
from coldframe.units import KINDS

YEAR = 366 * 86400  # seconds
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
    columns, records = _table(path)
    _check_columns(path, columns)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, cells in enumerate(records, start=1):
        where = f"row {number} of the trace"
        if len(cells) > len(columns):
            raise ValueError(
                f"{where} has {len(cells)} cells, and there are {len(columns)} columns: write decimals with "
                "a point (1.5), or separate all cells by semicolons"
            )
        if len(cells) < len(columns):
            raise ValueError(
                f"the trace has a gap: {where} has {len(cells)} of {len(columns)} cells: fill it in, with "
                "the separator that the first line has"
            )
        record = dict(zip(columns, cells, strict=True))
        client = record["client"].strip()
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


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the rows' cells of a CSV file.

    Spreadsheets write a byte-order mark, and where the decimal sign is a comma, semicolons between the cells.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        header = lines[0] if lines else ""
        separator = next((sign for sign in ";\t" if sign in header), ",")
        rows = list(csv.reader(lines, delimiter=separator, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"trace={path} cannot be read ({error}): give the path of a CSV file") from error
    columns = [column.strip() for column in rows[0]] if rows else []
    return columns, rows[1:]


def _with_point(name: str, text: str, where: str) -> str:
    """A number with a decimal point instead of a decimal comma; any other text as it is."""
    if not (found := re.fullmatch(r"(\s*\d+),(\d+)(\D*)", text)):
        return text
    if re.fullmatch(r"\s*[1-9]\d{0,2}", found[1]) and len(found[2]) == 3:
        whole, point = (f"{found[1].strip()}{sign}{found[2]}{found[3]}" for sign in ("", "."))
        raise ValueError(f"{where}: {name}={text} can mean {point} or {whole}: write one of these")
    return f"{found[1]}.{found[2]}{found[3]}"


def _check_columns(path: Path, columns: list[str]) -> None:
    known = ("seconds", "client", *LIMITS)
    for name in columns:
        if name not in known:
            near = nearest(name, known)
            raise ValueError(
                f"trace={path} has the unknown column {name or '(no name)'}: "
                + (f"did you mean {near}?" if near else f"it can have {', '.join(known)}")
            )
    if twice := next((name for name in columns if columns.count(name) > 1), ""):
        raise ValueError(f"trace={path} has the column {twice} twice: leave one out")
    if not {"seconds", "client"} <= set(columns) or len(columns) < 3:
        raise ValueError(
            f"trace={path} lacks columns: it needs seconds, client and one of {', '.join(LIMITS)}"
        )


def _value(name: str, text: str, where: str) -> Any:
    if not text.strip():
        raise ValueError(f"the trace has a gap: {where} has no {name}: fill it in, or leave the column out")
    text = _with_point(name, text, where)
    if name == "online":
        if text.strip() not in ("0", "1"):
            raise ValueError(f"{where}: online={text} is neither 0 nor 1: write 1 for online, 0 for offline")
        return text.strip() == "1"
    if name == "seconds":
        try:
            seconds = float(KINDS["number"](text))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= YEAR:
            raise ValueError(
                f"{where}: seconds={text} is no number from 0 to {YEAR} (a year): "
                "write the seconds since the start"
            )
        return seconds
    try:
        return cast_value(VERBS["throttle"][name], text)
    except ValueError as error:
        raise ValueError(
            f"{where}: {name}={text} {str(error).partition(': ')[0]}: correct the trace"
        ) from None
