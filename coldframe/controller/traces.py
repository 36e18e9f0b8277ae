"""Makes traces for throttle.yml: random ones from a seed, and those of others' availability data.

    python -m coldframe.controller.traces diurnal --clients c1-0,c1-1 --hours 48 --seed 1 > day.csv
    python -m coldframe.controller.traces walk --clients c1-0,c1-1 --low 1mbit --high 20mbit > walk.csv
    python -m coldframe.controller.traces fedscale client_behave_trace --clients c1-0,c1-1 > availability.csv
    python -m coldframe.controller.traces flash user_behavior_tiny.json --clients c1-0,c1-1 > availability.csv

A trace is CSV: seconds, client, and limits from then on; its greatest second is its end. Play it with
`ansible-playbook throttle.yml -e trace=day.csv -e trace_speed=60`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import pickle
import random
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]
Spans = list[tuple[float, float]]  # from second, to second: when a client is online


def diurnal(clients: Sequence[str], hours: float, seed: int, step: float = 900.0) -> list[Row]:
    """Make clients come at night and go by day, as phones do that train while they charge.

    The chance of being online follows a cosine with its peak at three o'clock in the night of each client's
    own time zone; whether a client changes is drawn every `step` seconds.
    """
    generator = random.Random(seed)
    rows = []
    for client in clients:
        shift, online = generator.uniform(-2, 2), None
        for index in range(int(hours * 3600 / step) + 1):
            hour = index * step / 3600 + shift
            chance = 0.5 + 0.4 * math.cos((hour - 3) / 24 * 2 * math.pi)
            now = generator.random() < chance if online is None or generator.random() < 0.25 else online
            if now != online or index == int(hours * 3600 / step):
                rows.append({"seconds": index * step, "client": client, "online": int(now)})
            online = now
    return rows


def walk(
    clients: Sequence[str], minutes: float, seed: int, low: float, high: float, step: float = 5.0
) -> list[Row]:
    """Make bandwidths wander: a random walk of their logarithm between two bounds that reflect it."""
    generator = random.Random(seed)
    span = math.log(high / low)
    rows = []
    for client in clients:
        place = generator.uniform(0, span)
        for index in range(int(minutes * 60 / step) + 1):
            rate = round(low * math.exp(place) / 1000)
            rows.append(
                {
                    "seconds": index * step,
                    "client": client,
                    "down": f"{rate}kbit",
                    "up": f"{max(1, rate // 2)}kbit",
                }
            )
            place = abs(place + generator.gauss(0, span / 10))
            place = place if place <= span else max(0.0, 2 * span - place)
    return rows


class Plain(pickle.Unpickler):
    """Reads pickles of plain values alone: what names a class or function is refused, since it would run."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise ValueError(f"it holds {module}.{name}, and only plain lists, dictionaries and numbers are read")


def fedscale(path: Path) -> tuple[list[Spans], float]:
    """Read FedScale's `client_behave_trace`: by client the seconds at which it becomes active and inactive.

    Returns
    -------
    spans : list
        One list per client in the file's order.
    length : float
        The longest client's `finish_time`.
    """
    with path.open("rb") as file:
        found = Plain(file).load()
    if not isinstance(found, dict) or not found:
        raise ValueError("it is no dictionary by client")
    try:
        spans = [
            [(float(a), float(b)) for a, b in zip(item["active"], item["inactive"], strict=False) if b > a]
            for item in found.values()
        ]
        return spans, max(float(item["finish_time"]) for item in found.values())
    except (KeyError, TypeError) as error:
        raise ValueError(f"a client lacks active, inactive or finish_time ({error})") from error


# What a line of a FLASH trace says, of which of three conditions.
FLASH_STATES = {
    **{"battery_charged_on": ("charging", True), "battery_charged_off": ("charging", False)},
    **{"screen_off": ("idle", True), "screen_lock": ("idle", True)},
    **{"screen_on": ("idle", False), "screen_unlock": ("idle", False)},
    **{"wifi": ("wifi", True), "Unknown": ("wifi", False)},
    **{f"{generation}G": ("wifi", False) for generation in range(2, 6)},
}


def flash(path: Path) -> tuple[list[Spans], float]:
    """Read FLASH's behaviour traces: a phone is available while it charges, is idle and has Wi-Fi.

    The file is JSON: by device `messages`, lines of a time, a tab, and a state. Second 0 is the first line of
    all.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    series = []
    for device in found.values():
        lines = (line.split("\t") for line in device["messages"].replace("\x00", "").splitlines())
        events = [(_moment(line[0]), line[1].strip()) for line in lines if len(line) == 2]
        series.append(sorted((moment, state) for moment, state in events if moment is not None))
    moments = [moment for events in series for moment, _ in events]
    if not moments:
        raise ValueError("it has no line that begins with a time")
    first, last = min(moments), max(moments)
    return [_spans(events, first, last) for events in series], last - first


def _moment(text: str) -> float | None:
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S").timestamp()
    except ValueError:
        return None


def _spans(events: Iterable[tuple[float, str]], first: float, last: float) -> Spans:
    conditions = {"charging": False, "idle": False, "wifi": False}
    spans: Spans = []
    since: float | None = None
    for moment, state in events:
        if state in FLASH_STATES:
            name, value = FLASH_STATES[state]
            conditions[name] = value
        ready = all(conditions.values())
        if ready and since is None:
            since = moment
        elif not ready and since is not None:
            spans += [(since - first, moment - first)] if moment > since else []
            since = None
    return [*spans, (since - first, last - first)] if since is not None and last > since else spans


def availability(clients: Sequence[str], spans: Sequence[Spans], length: float, seed: int) -> list[Row]:
    """Give each client the series of one device, drawn with the seed, as rows of `online`."""
    if len(spans) < len(clients):
        raise ValueError(f"it has {len(spans)} devices, fewer than the {len(clients)} clients")
    drawn = random.Random(seed).sample(range(len(spans)), len(clients))
    rows = []
    for client, index in zip(clients, drawn, strict=True):
        states = {0.0: 0}
        for begin, end in sorted(spans[index]):
            states[begin], states[end] = 1, 0
        states.setdefault(length, states[max(states)])
        previous = None
        for second in sorted(second for second in states if second <= length):
            if states[second] != previous or second == length:
                rows.append({"seconds": second, "client": client, "online": states[second]})
            previous = states[second]
    return rows


def write(rows: Sequence[Row], file: TextIO) -> None:
    """Write rows as CSV, in the order of time."""
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {**row, "seconds": f"{row['seconds']:g}"} for row in sorted(rows, key=lambda r: r["seconds"])
    )


def rate(text: str) -> float:
    """Read a bandwidth such as 10mbit."""
    for unit, size in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * size
    raise argparse.ArgumentTypeError(f"{text} is not a rate: write it like 10mbit")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace that is asked for to standard output."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--clients", required=True, type=lambda text: text.split(","), help="names, with commas"
    )
    common.add_argument("--seed", type=int, default=0)
    parser = argparse.ArgumentParser(
        prog="python -m coldframe.controller.traces", description="Make a trace."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("diurnal", parents=[common], help="online by night, offline by day")
    kind.add_argument("--hours", type=float, default=24.0)
    kind = kinds.add_parser("walk", parents=[common], help="bandwidth wanders")
    kind.add_argument("--minutes", type=float, default=10.0)
    kind.add_argument("--low", type=rate, default=1e6)
    kind.add_argument("--high", type=rate, default=2e7)
    for name in ("fedscale", "flash"):
        kinds.add_parser(name, parents=[common], help=f"{name}'s availability").add_argument(
            "file", type=Path
        )
    arguments = parser.parse_args(argv)
    try:
        if arguments.kind == "diurnal":
            rows = diurnal(arguments.clients, arguments.hours, arguments.seed)
        elif arguments.kind == "walk":
            rows = walk(arguments.clients, arguments.minutes, arguments.seed, arguments.low, arguments.high)
        else:
            read = fedscale if arguments.kind == "fedscale" else flash
            spans, length = read(arguments.file)
            rows = availability(arguments.clients, spans, length, arguments.seed)
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        print(
            f"traces: {getattr(arguments, 'file', arguments.kind)} cannot be used: {error}", file=sys.stderr
        )
        return 1
    write(rows, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
