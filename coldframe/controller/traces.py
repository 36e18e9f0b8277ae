"""Makes traces for throttle.yml: random ones from a seed, and those of others' availability data.

    python -m coldframe.controller.traces diurnal --clients c1-0,c1-1 --hours 48 --seed 1 > day.csv
    python -m coldframe.controller.traces walk --clients c1-0,c1-1 --low 1mbit --high 20mbit > walk.csv
    python -m coldframe.controller.traces fedscale client_behave_trace --clients c1-0,c1-1 > availability.csv
    python -m coldframe.controller.traces flash user_behavior_tiny.json --clients c1-0,c1-1 > availability.csv

A trace is CSV: seconds, client, and limits from then on; its greatest second is its end. Play it with
`ansible-playbook throttle.yml -e trace=day.csv -e trace_speed=60`. docs/data.md describes the format.
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

from coldframe.units import parse_rate

Row = dict[str, Any]
Spans = list[tuple[float, float]]  # from second, to second: when a client is online
DIURNAL_STEP = 900.0  # seconds
WALK_STEP = 5.0  # seconds
MOST_HOURS = 366 * 24.0
MOST_MINUTES = 7 * 24 * 60.0
LEAST_RATE = 1e3  # bit/s: the trace counts in kbit


def _check_length(name: str, length: float, least: float, most: float, unit: str) -> None:
    """Refuse a length of a trace that has less than one step, or more rows than anybody plays."""
    if not least <= length <= most:
        raise ValueError(f"{name} {length:g} is not from {least:.3g} to {most:g} {unit}")


def _moments(length: float, step: float) -> list[float]:
    """The seconds of a trace's rows: the multiples of a step, and the end."""
    return [index * step for index in range(math.ceil(length / step - 1e-9))] + [length]


def diurnal(clients: Sequence[str], hours: float, seed: int, step: float = DIURNAL_STEP) -> list[Row]:
    """Make clients come at night and go by day, as phones do that train while they charge.

    The chance of being online follows a cosine with its peak at three o'clock in the night of each client's
    own time zone; whether a client changes is drawn every `step` seconds.
    """
    _check_length("--hours", hours, step / 3600, MOST_HOURS, "hours")
    generator = random.Random(seed)
    moments = _moments(hours * 3600, step)
    rows = []
    for client in clients:
        shift, online = generator.uniform(-2, 2), None
        for second in moments:
            chance = 0.5 + 0.4 * math.cos((second / 3600 + shift - 3) / 24 * 2 * math.pi)
            now = generator.random() < chance if online is None or generator.random() < 0.25 else online
            if now != online or second == moments[-1]:
                rows.append({"seconds": second, "client": client, "online": int(now)})
            online = now
    return rows


def walk(
    clients: Sequence[str], minutes: float, seed: int, low: float, high: float, step: float = WALK_STEP
) -> list[Row]:
    """Make bandwidths wander: a random walk of their logarithm between two bounds that reflect it."""
    _check_length("--minutes", minutes, step / 60, MOST_MINUTES, "minutes")
    if not LEAST_RATE <= low <= high < math.inf:
        raise ValueError(f"--low {low:g} bit/s is not from 1kbit to --high ({high:g} bit/s)")
    generator = random.Random(seed)
    moments = _moments(minutes * 60, step)
    span = math.log(high / low)
    rows = []
    for client in clients:
        place = generator.uniform(0, span)
        for second in moments:
            rate = round(low * math.exp(place) / 1000)
            rows.append(
                {
                    "seconds": second,
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
    try:
        with path.open("rb") as file:
            found = Plain(file).load()
    except OSError:
        raise
    except Exception as error:  # whatever a torn pickle makes the unpickler do
        raise ValueError(f"it is no pickle of plain values ({error or type(error).__name__})") from None
    if not isinstance(found, dict) or not found:
        raise ValueError("it is no dictionary by client")
    devices = [_fedscale_device(name, item) for name, item in found.items()]
    return [spans for spans, _ in devices], max(length for _, length in devices)


def _fedscale_device(name: object, item: object) -> tuple[Spans, float]:
    """Read one client of FedScale's: when it is active, and its finish_time."""
    try:
        if not isinstance(item, dict):
            raise TypeError(f"it is a {type(item).__name__}")
        changes = [[float(second) for second in item[key]] for key in ("active", "inactive")]
        length = float(item["finish_time"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"client {name!r} lacks active, inactive or finish_time in seconds ({error})"
        ) from None
    if not all(math.isfinite(second) and second >= 0 for second in (*changes[0], *changes[1], length)):
        raise ValueError(f"client {name!r} has a time that is negative or no number")
    if length == 0:
        raise ValueError(f"client {name!r} has a finish_time of 0")
    return [(begin, end) for begin, end in zip(*changes, strict=False) if end > begin], length


# What a line of a FLASH trace says, of which of three conditions; in lower case. As in FLASH's code, a device
# is idle while it is locked: whether its screen is off is recorded, too, but decides nothing.
FLASH_STATES = {
    **{"battery_charged_on": ("charging", True), "battery_charged_off": ("charging", False)},
    **{"screen_lock": ("locked", True), "screen_unlock": ("locked", False)},
    **{"wifi": ("wifi", True), "unknown": ("wifi", False)},
    **{f"{generation}g": ("wifi", False) for generation in range(2, 6)},
}


def flash(path: Path) -> tuple[list[Spans], float]:
    """Read FLASH's state traces: a phone is available while it is locked, charges, and has Wi-Fi.

    The file is JSON: by device `messages`, lines of a time, a tab, and a state. Second 0 is the first line of
    all. A time of availability that has not ended at a device's last line is left out, as FLASH does.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(found, dict) or not found:
        raise ValueError("it is no JSON object by device")
    series = [_flash_device(name, device) for name, device in found.items()]
    moments = [moment for events in series for moment, _ in events]
    if not moments:
        raise ValueError("it has no line that begins with a time")
    first, last = min(moments), max(moments)
    if first == last:
        raise ValueError("all its lines are of the same second")
    return [_spans(events, first) for events in series], last - first


def _flash_device(name: str, device: object) -> list[tuple[float, str]]:
    """Read one device of FLASH's: its states in the order of time, those of one second in the file's."""
    messages = device.get("messages") if isinstance(device, dict) else None
    if not isinstance(messages, str):
        raise ValueError(f"device {name!r} has no text named messages")
    lines = (line.split("\t") for line in messages.replace("\x00", "").splitlines())
    events = [(_moment(line[0]), line[1].strip().lower()) for line in lines if len(line) == 2]
    return sorted(
        ((moment, state) for moment, state in events if moment is not None), key=lambda event: event[0]
    )


def _moment(text: str) -> float | None:
    """Seconds on the device's own clock: no time zone of this machine has a part in it."""
    try:
        return (datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S") - datetime(1970, 1, 1)).total_seconds()
    except ValueError:
        return None


def _spans(events: Iterable[tuple[float, str]], first: float) -> Spans:
    conditions = {"charging": False, "locked": False, "wifi": False}
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
    return spans


def _merged(spans: Spans, length: float) -> Spans:
    """Join spans that touch or overlap, and cut what is beyond the end."""
    merged: Spans = []
    for begin, end in sorted((begin, min(end, length)) for begin, end in spans if begin < length):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def availability(clients: Sequence[str], spans: Sequence[Spans], length: float, seed: int) -> list[Row]:
    """Give each client the series of one device, drawn with the seed, as rows of `online`."""
    if len(spans) < len(clients):
        raise ValueError(f"it has {len(spans)} devices, fewer than the {len(clients)} clients")
    drawn = random.Random(seed).sample(range(len(spans)), len(clients))
    rows = []
    for client, index in zip(clients, drawn, strict=True):
        states = {0.0: 0}
        for begin, end in _merged(spans[index], length):
            states[begin], states[end] = 1, 0
        states.setdefault(length, 0)
        rows += [{"seconds": second, "client": client, "online": states[second]} for second in sorted(states)]
    return rows


def write(rows: Sequence[Row], file: TextIO) -> None:
    """Write rows as CSV, in the order of time."""
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {**row, "seconds": f"{row['seconds']:.15g}"} for row in sorted(rows, key=lambda r: r["seconds"])
    )


def rate(text: str) -> float:
    """Read a bandwidth such as 10mbit."""
    try:
        return float(parse_rate(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} {error}: write it like 10mbit") from None


def names(text: str) -> list[str]:
    """Read names of clients with commas between them."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(
            f"{text!r} has a name that is empty or there twice: write it like c1-0,c1-1"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace that is asked for to standard output."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--clients", required=True, type=names, help="names, with commas")
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
    except (OSError, ValueError) as error:
        where = getattr(arguments, "file", arguments.kind)
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        print(f"traces: {where} cannot be used: {reason}", file=sys.stderr)
        return 1
    write(rows, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
