"""What of a strategy's state a checkpoint holds, and what it names as not kept."""

from __future__ import annotations

import functools
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from coldframe.recording import state
from coldframe.recording.state import Blobs


def test_a_callable_with_a_state_is_named_as_not_kept() -> None:
    class Schedule:
        rate = 1.0

        def __call__(self) -> float:
            return self.rate

    chosen = FedAvg()
    for name, value in {
        "schedule": Schedule(),
        "method": Schedule().__call__,
        "function": json.dumps,
        "partial": functools.partial(json.dumps),
        "kind": Schedule,
        "builtin": len,
        "module": json,
        "path": Path(),
    }.items():
        setattr(chosen, name, value)
    _, unkept = state.capture(chosen, Blobs())
    assert unkept == ["FedAvg.schedule (Schedule)"]


def test_values_come_back_as_they_were() -> None:
    class Foreign:
        pass

    values = [
        *(None, True, 3, 2.5, "text", b"bytes", float("inf"), 2**70),
        *([1, (2, "a"), {3}], {"a": {1: [2]}, (1, 2): "b"}, frozenset({1}), deque([1, 2])),
        *(np.arange(6).reshape(2, 3).T, np.float32(1.5), np.array(2), np.zeros((0, 2), dtype="int8")),
        *(torch.ones(2, dtype=torch.float64), ArrayRecord({"w": Array(np.ones(2))})),
        *(ConfigRecord({"a": [1.5], "b": b"x", "c": True}), MetricRecord({"m": [1, 2], "n": 0.5})),
        Array("float32", (2,), "trees", b"another's format"),
    ]
    blobs = Blobs()
    trees = json.loads(json.dumps([state.encode(value, blobs) for value in values]))
    kept = {name: state.from_bytes(name, bytes(state.to_bytes(blob))) for name, blob in blobs.seal().items()}
    for value, tree in zip(values, trees, strict=True):
        found = state.decode(tree, kept)
        assert type(found) is type(value)
        if isinstance(value, np.ndarray | np.generic | torch.Tensor):
            assert found.dtype == value.dtype and np.array_equal(found, value)
        elif isinstance(value, ArrayRecord):
            assert {key: array.data for key, array in found.items()} == {k: a.data for k, a in value.items()}
        else:
            assert found == value
    loop: list[Any] = []
    loop.append(loop)
    for value in (Foreign(), [Foreign()], np.array([Foreign()]), loop, torch.ones(2, dtype=torch.bfloat16)):
        with pytest.raises(state.Unkept):
            state.encode(value, Blobs())


def test_a_checkpoint_is_a_copy_and_has_everything_once() -> None:
    array, data = np.zeros(3), b"0" * 100
    blobs = Blobs()
    trees = [state.encode(value, blobs) for value in (array, {"a": array}, data, [data])]
    array += 1
    found = blobs.seal()
    assert len(found) == 2
    assert np.array_equal(state.decode(trees[0], found), np.zeros(3))


def test_the_accountant_of_differential_privacy_is_kept() -> None:
    class Accountant:
        def __init__(self) -> None:
            self.spent = 0.0

        def state_dict(self) -> dict[str, Any]:
            return {"spent": self.spent, "orders": [1.5, 2.0]}

        def load_state_dict(self, found: dict[str, Any]) -> None:
            self.spent = found["spent"]

    one, other = FedAvg(), FedAvg()
    one.accountant, other.accountant = Accountant(), Accountant()  # type: ignore[attr-defined]
    before, _ = state.capture(one, Blobs())
    one.accountant.spent = 2.5  # type: ignore[attr-defined]
    blobs = Blobs()
    kept, unkept = state.capture(one, blobs)
    changed = state.changes(kept, before)
    assert list(changed) == ["accountant"] and unkept == []
    assert state.restore(other, changed, blobs.seal()) == []
    assert other.accountant.spent == 2.5  # type: ignore[attr-defined]
    assert state.restore(FedAvg(), changed, {}) != []
