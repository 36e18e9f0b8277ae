"""The kinds of values that variables have, from what is typed to what is meant: sizes, durations, rates."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
DURATION_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}
RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


class Wrong(ValueError):
    """A value that is wrong in a way that says what is meant.

    Attributes
    ----------
    right : tuple of (str, str)
        Values to write instead, each with what may have to be said of it.
    """

    def __init__(self, problem: str, *right: tuple[str, str]) -> None:
        super().__init__(problem)
        self.right = right


def parse_size(value: object) -> int:
    """Bytes of a size such as ``512m``, ``1g``, ``1.5GiB`` or a plain number of bytes.

    Raises
    ------
    ValueError
        If `value` is not a size above zero.
    """
    size = _measured(value, SIZE_UNITS, r"([bkmgt]?)(?:i?b)?")
    if size is None or int(size) <= 0:
        raise ValueError(f"{value} is not a size")
    return int(size)


def format_size(size: float) -> str:
    """A number of bytes for people: ``512 MB``, ``1.5 GB`` (units of 1024)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TB"


def parse_duration(value: object) -> float:
    """Seconds of a duration such as ``10s``, ``1m``, ``50ms`` or a plain number of seconds."""
    seconds = _measured(value, DURATION_UNITS, r"(ms|s|m|min|h)?")
    if seconds is None:
        raise ValueError("is not a duration")
    return seconds


def parse_latency(value: object) -> float:
    """Seconds of a duration whose unit is not left out: ``50ms``. Zero needs none."""
    seconds = parse_duration(value)
    number = str(value).strip()
    if seconds and number[-1].isdecimal():
        raise Wrong("has no unit", (f"{number}ms", " (milliseconds)"), (f"{number}s", " (seconds)"))
    return seconds


def parse_rate(value: object) -> int:
    """Bits per second of a rate such as ``10mbit``."""
    rate = _measured(value, RATE_UNITS, r"([kmg]?bit)")
    if rate is None:
        raise ValueError("is not a rate")
    return int(rate)


def format_rate(rate: float) -> str:
    """Bits per second as they are written: ``10mbit``."""
    unit = next(unit for unit, size in reversed(RATE_UNITS.items()) if rate >= size or size == 1)
    return f"{rate / RATE_UNITS[unit]:.10g}{unit}"


def _measured(value: object, units: Mapping[str, float], unit: str) -> float | None:
    if isinstance(value, bool):
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*" + unit + r"\s*", str(value).lower())
    measured = float(found[1]) * units[found[2] or ""] if found else math.inf
    return measured if math.isfinite(measured) else None


def parse_deadline(value: object) -> float | str:
    """Seconds of a duration, or ``auto``."""
    return "auto" if str(value).strip().lower() == "auto" else parse_duration(value)


def parse_goal(value: object) -> float | int:
    """A share up to 1, or a whole number.

    >>> parse_goal("0.75"), parse_goal("8")
    (0.75, 8)
    """
    number = _number(value)
    return number if number <= 1 else _whole(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\s*[+-]?\d+\s*", str(value)):
        raise ValueError("is not a whole number")
    return int(str(value))


def _number(value: object) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(str(value))
    except ValueError:
        raise ValueError("is not a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError("is not a number")
    return number


def _truth(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in TRUE + FALSE:
        raise ValueError("is neither true nor false")
    return text in TRUE


def _text(value: object) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError("is not a text")
    return str(value)


def _path(value: object) -> str:
    """A path on the controller; a shell leaves the `~` of ``-e app=~/mine`` as it is."""
    text = _text(value)
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise ValueError("names the home of a user that there is not") from None


def _dictionary(value: object) -> dict[str, Any]:
    try:
        given = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, Mapping):
        raise ValueError("is not a dictionary in JSON")
    return {str(key): item for key, item in given.items()}


def _registry(value: object) -> str:
    """A registry, and the folder in it, as they stand before an image's name."""
    text = _text(value).strip()
    meant = re.sub(r"^[a-z]+://", "", text.lower()).rstrip("/")
    part = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
    if not re.fullmatch(rf"{part}(?::\d{{1,5}})?(?:/{part})*", meant):
        raise ValueError("is not a registry")
    if meant != text:
        raise Wrong(
            "is not how an image's name begins (no https://, no upper case, no / at the end)", (meant, "")
        )
    return text


def _percent(value: object) -> float:
    return _number(str(value).strip().removesuffix("%"))


# What a value of each kind becomes; a ValueError says what is wrong with it.
KINDS: dict[str, Callable[[object], Any]] = {
    "whole": _whole,
    "number": _number,
    "truth": _truth,
    "text": _text,
    "path": _path,
    "size": parse_size,
    "duration": parse_duration,
    "latency": parse_latency,
    "registry": _registry,
    "rate": parse_rate,
    "percent": _percent,
    "dictionary": _dictionary,
    "deadline": parse_deadline,
    "goal": parse_goal,
}
NOUNS = {
    "whole": "a whole number",
    "number": "a number",
    "truth": "true or false",
    "text": "a text",
    "path": "a path",
    "size": "a size",
    "duration": "a duration in seconds",
    "latency": "a duration in seconds",
    "registry": "a registry",
    "rate": "a rate",
    "percent": "a percentage",
    "dictionary": "a dictionary in JSON",
    "deadline": "auto or a duration in seconds",
    "goal": "a share up to 1, or a whole number,",
}
