"""Checks what a client's reply contains, in one place, before anything else of the server sees it.

A client is registered, not trusted: its reply may say anything that Flower's types can hold. `check` returns
what may be used of a reply, or raises `BadReply`, which is that client's failure in that phase and nothing
else. `odd_ones` finds replies that do not fit to the others, which Flower's strategies would end the run for.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, Message, RecordDict

from coldframe.recording.flower import SYSTEM_RECORD

# Our own failure codes beside Flower's: the time was up; what the reply contains cannot be used.
NO_REPLY, BAD_REPLY = -1, -2
EXAMPLES = "num-examples"
# The figures that are taken of a client's own work, with the range of each; -1 stands for "no limit" and "not
# known".
SYSTEM_FIGURES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("cpu_limit", "cpu_pressure", "throttled_share"), (-1.0, 1e6)),
    **dict.fromkeys(("memory_limit", "memory_peak"), (-1.0, float(2**63))),
    **dict.fromkeys(("train_seconds", "task_seconds", "cpu_seconds"), (0.0, 1e9)),
    "threads": (0, 1e6),
}
WHOLE = ("threads", "memory_limit", "memory_peak")
MOST_EXAMPLES = 2**53  # beyond, a float does not hold every whole number
MOST_RECORDS, MOST_METRICS, LONGEST_NAME = 64, 256, 128
LONGEST_TEXT = 500  # characters of a reason
ELEMENTS_AT_ONCE = 1 << 20  # of an array whose values are looked at
HEADER_BYTES = 4096

Form = tuple[Any, ...]


class BadReply(ValueError):
    """A reply that cannot be used; the message says why. `not_finite`: because of NaN or infinity alone."""

    def __init__(self, reason: str, not_finite: bool = False) -> None:
        super().__init__(clean(reason))
        self.not_finite = not_finite


@dataclass(frozen=True)
class Rules:
    """What is demanded of replies beyond what nobody can use.

    Attributes
    ----------
    finite : bool
        Arrays and metrics have neither NaN nor infinity.
    like_sent : bool
        A reply to `train` has the arrays that were sent, with the same keys, shapes and dtypes; metrics are
        single numbers, and the number of examples is among them. An app of another kind cannot promise that.
    """

    finite: bool = True
    like_sent: bool = True


@dataclass(frozen=True)
class Checked:
    """What a good reply says."""

    examples: int | float | None
    metrics: dict[str, Any]
    form: Form


def clean(text: object, longest: int = LONGEST_TEXT) -> str:
    r"""Return what a client says as one line: no control characters, cut at a length.

    >>> clean("a\x1b[31m\nb")
    'a [31m b'
    """
    whole = str(text)[: 4 * longest]
    shown = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in whole)
    words = " ".join(shown.split())
    return words if len(words) <= longest else words[: longest - 1] + "…"


def check(reply: Message, sent: Message, rules: Rules) -> Checked:
    """Return what may be used of a reply without an error, or raise `BadReply`."""
    content = reply.content
    if len(content) > MOST_RECORDS:
        raise BadReply(f"the reply has {len(content)} records, and at most {MOST_RECORDS} are taken")
    for name in content:
        _check_name("record", name)
    system_figures(content.config_records.get(SYSTEM_RECORD) or {})
    metrics = _metrics(content, rules)
    examples = metrics.pop(EXAMPLES, None)
    if examples is None and rules.like_sent:
        raise BadReply(f"the reply has no {EXAMPLES}")
    if examples is not None:
        _check_examples(examples)
    if rules.like_sent:
        _check_like_sent(reply, sent)
    for name, record in content.array_records.items():
        for key, array in record.items():
            _check_array(f"{name}[{key}]", array, rules.finite)
    return Checked(examples, metrics, form(content))


def form(content: RecordDict) -> Form:
    """Return what Flower's strategies demand to be the same in all replies: records' names and their keys."""
    return tuple(
        tuple(sorted((name, tuple(sorted(record))) for name, record in records.items()))
        for records in (content.array_records, content.metric_records)
    )


def odd_ones(forms: Mapping[int, Form], before: Form | None) -> set[int]:
    """Return the nodes whose replies have another form than most.

    Where two forms are as frequent, that of an earlier round is right, else the one that comes first.
    """
    counts = Counter(forms.values())
    if len(counts) < 2:
        return set()
    most = max(counts.values())
    candidates = [found for found in forms.values() if counts[found] == most]
    right = before if before in candidates else candidates[0]
    return {node for node, found in forms.items() if found != right}


def weight(reply: Message) -> float:
    """Return the number of examples of a reply that has passed the check."""
    return sum(float(str(record.get(EXAMPLES, 0))) for record in reply.content.metric_records.values())


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or name != clean(name, LONGEST_NAME):
        shown = clean(name, 40)
        raise BadReply(
            f"the name of a {kind} ({shown!r}) is no plain text of at most {LONGEST_NAME} characters"
        )


def system_figures(record: Mapping[str, Any]) -> dict[str, int | float]:
    """Return a client's figures of its own work; one that is impossible makes the reply a bad one."""
    figures: dict[str, int | float] = {}
    for key, (low, high) in SYSTEM_FIGURES.items():
        if key not in record:
            continue
        value = record[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise BadReply(
                f"the system figure {key} is {clean(repr(value), 40)}, not a number from {low:g} up"
            )
        if key in WHOLE and value != int(value):
            raise BadReply(f"the system figure {key} is {value}, not a whole number")
        figures[key] = value
    return figures


def _metrics(content: RecordDict, rules: Rules) -> dict[str, Any]:
    records = content.metric_records
    if rules.like_sent and len(records) != 1:
        raise BadReply(f"the reply has {len(records)} MetricRecords instead of one")
    metrics: dict[str, Any] = {}
    for record in records.values():
        metrics.update(record)
    if len(metrics) > MOST_METRICS:
        raise BadReply(f"the reply has {len(metrics)} metrics, and at most {MOST_METRICS} are taken")
    for name, value in metrics.items():
        _check_name("metric", name)
        values = value if isinstance(value, list) and not rules.like_sent else [value]
        if len(values) > MOST_METRICS or not all(_number(item) for item in values):
            raise BadReply(f"the metric {name} is no number")
        if rules.finite and not all(math.isfinite(item) for item in values):
            raise BadReply(f"the metric {name} is {value}", not_finite=name != EXAMPLES)
    return metrics


def _check_examples(examples: object) -> None:
    if not isinstance(examples, int | float) or not 0 <= examples <= MOST_EXAMPLES:
        raise BadReply(f"{EXAMPLES} is {clean(examples, 40)}, not a number from 0 to 2^53")


def _check_like_sent(reply: Message, sent: Message) -> None:
    wanted, found = sent.content.array_records, reply.content.array_records
    trained = sent.metadata.message_type.split(".")[0] == "train"
    if set(found) - set(wanted) or (trained and set(found) != set(wanted)):
        raise BadReply(f"the ArrayRecords of the reply are {sorted(found)}, and {sorted(wanted)} were sent")
    for name, record in found.items():
        if list(record) != list(wanted[name]):
            raise BadReply(f"the arrays in {name} have other keys than those that were sent")
        for key, array in record.items():
            model = wanted[name][key]
            if (array.dtype, tuple(array.shape)) != (model.dtype, tuple(model.shape)):
                raise BadReply(
                    f"{name}[{key}] is {array.dtype}{list(array.shape)[:8]}, and {model.dtype}"
                    f"{list(model.shape)[:8]} was sent"
                )


def _check_array(name: str, array: Array, finite: bool) -> None:
    """Look at the bytes of an array: they are what its dtype and shape say, and no pickle.

    numpy makes an array of the size that the header says before it reads the first value: so the header is
    read first, alone.
    """
    if array.stype != "numpy.ndarray":
        raise BadReply(f"{name} is serialized as {clean(array.stype, 40)}, not as numpy.ndarray")
    start = io.BytesIO(array.data[:HEADER_BYTES])
    try:
        version = np.lib.format.read_magic(start)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(start)
    except Exception as error:  # numpy parses what a client wrote: whatever goes wrong, it is no array
        raise BadReply(f"{name} is no numpy array: {error}") from None
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size != len(array.data) - start.tell():
        raise BadReply(f"{name} does not have the {size} bytes that its header says")
    if (str(dtype), tuple(shape)) != (array.dtype, tuple(array.shape)):
        raise BadReply(f"{name} is {dtype}{list(shape)[:8]}, and says that it is {clean(array.dtype, 40)}")
    if finite and dtype.kind in "fc":
        values = np.frombuffer(array.data, dtype, offset=start.tell())
        for place in range(0, len(values), ELEMENTS_AT_ONCE):
            if not np.isfinite(values[place : place + ELEMENTS_AT_ONCE]).all():
                raise BadReply(f"{name} has values that are not finite", not_finite=True)
