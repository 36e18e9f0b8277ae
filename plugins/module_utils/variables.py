"""The variables of every verb and of the inventory: types, ranges, defaults, and what to type instead."""

from __future__ import annotations

import re

SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(value: object) -> int:
    """Bytes of a size such as ``512m``, ``1g``, ``1.5GiB`` or a plain number of bytes.

    Raises
    ------
    ValueError
        If `value` is not a size above zero.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a size")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", str(value).lower())
    size = int(float(found[1]) * SIZE_UNITS[found[2]]) if found else 0
    if size <= 0:
        raise ValueError(f"{value} is not a size")
    return size


def format_size(size: float) -> str:
    """A number of bytes for people: ``512 MB``, ``1.5 GB`` (units of 1024)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TB"


# Variables of run.yml that become keys of the app's run config.
RUN_CONFIG_KEYS = {
    "rounds": "num-server-rounds",
    "fl_strategy": "strategy",
    "strategy_args": "strategy-args",
    "fl_dp": "dp",
    "dp_args": "dp-args",
    "fraction_train": "fraction-train",
    "fraction_evaluate": "fraction-evaluate",
    "min_train_clients": "min-train-clients",
    "min_evaluate_clients": "min-evaluate-clients",
    "min_available_clients": "min-available-clients",
    "local_epochs": "local-epochs",
    "batch_size": "batch-size",
    "learning_rate": "learning-rate",
    "momentum": "momentum",
    "dataset": "dataset",
    "max_samples": "max-samples",
    "partitioner": "partitioner",
    "partitioner_args": "partitioner-args",
    "seed": "seed",
    "round_timeout": "round-timeout",
    "wait_timeout": "wait-timeout",
    "run_name": "run-name",
}
