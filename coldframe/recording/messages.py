"""What a message says: its size, its number of examples, its metrics."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeGuard

from flwr.app import Message, RecordDict

from coldframe.recording.replies import LONGEST_NAME, MOST_METRICS, clean

LONGEST_LIST = 64  # numbers of a metric that is a list; longer ones are data


def size_of(message: Message) -> int:
    """Return the bytes of a message's records."""
    if not message.has_content():
        return 0
    total = 0
    for record in message.content.values():
        with suppress(IndexError):  # flwr cannot count a list of nothing
            total += record.count_bytes()
    return total


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number, truth values left out."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def metrics_of(content: RecordDict, examples_key: str) -> tuple[int | None, dict[str, Any]]:
    """Return the number of examples and the metrics of a reply, those of the legacy API as well."""
    metrics: dict[str, Any] = {}
    examples: int | None = None
    for name, record in content.metric_records.items():
        for key, value in record.items():
            counts = key in (examples_key, "num-examples") or name.endswith("res.num_examples")
            if counts and is_number(value):
                examples = int(value)
            elif not isinstance(value, list) or len(value) <= LONGEST_LIST:
                metrics[key] = value
    for name in ("fitres.metrics", "evaluateres.metrics"):
        legacy: Mapping[str, Any] = content.config_records.get(name, {})
        metrics |= {key: value for key, value in legacy.items() if is_number(value)}
    kept = itertools.islice(metrics.items(), MOST_METRICS)
    return examples, {clean(key, LONGEST_NAME): value for key, value in kept}


def pick(metrics: Mapping[str, Any], name: str, pattern: str) -> tuple[str, float] | None:
    """Return the metric of this name, else the only one that matches, with its name."""
    numbers = {key: float(value) for key, value in metrics.items() if is_number(value)}
    if name in numbers:
        return name, numbers[name]
    found = [(key, value) for key, value in numbers.items() if re.search(pattern, key, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None
