"""What of a strategy's state a checkpoint can hold: numbers, texts, arrays, Flower's records, random states.

Values become JSON, and blobs of bytes beside it: nothing is pickled, so a checkpoint runs no code when it is
read. Of an attribute that holds something else the checkpoint says that it is not kept.
"""

from __future__ import annotations

import functools
import io
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.server.strategy import Strategy as LegacyStrategy
from flwr.serverapp.strategy import Strategy

from coldframe.recording.updates import HOOK

RECORDS: dict[str, type[ArrayRecord | ConfigRecord | MetricRecord]] = {
    kind.__name__: kind for kind in (ArrayRecord, ConfigRecord, MetricRecord)
}
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)
}
PLAIN = (bool, int, float, str, type(None))
NO_STATE = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial),
    *(type, types.ModuleType, PurePath),
)


WHOLE = ""  # in the place of an attribute's name: the strategy itself


class Unkept(TypeError):
    """A value that a checkpoint cannot hold."""


class Untold(Exception):
    """An asynchronous strategy whose `state_dict` fails, or tells what a checkpoint cannot hold."""


class Blobs:
    """The bytes of a checkpoint by name; what is given twice is there once.

    Arrays are copied, for whoever owns them may go on writing into them; bytes cannot change.
    """

    def __init__(self) -> None:
        self.found: dict[str, bytes | np.ndarray] = {}
        self._names: dict[int, str] = {}
        self._alive: list[Any] = []  # an id is another's as soon as its owner is gone

    def add(self, value: bytes | np.ndarray) -> str:
        """Take in a value; return its name."""
        if id(value) not in self._names:
            array = isinstance(value, np.ndarray)
            name = f"{len(self.found)}.{'npy' if array else 'bin'}"
            self.found[name] = value.copy() if isinstance(value, np.ndarray) else value
            self._names[id(value)] = name
            self._alive.append(value)
        return self._names[id(value)]

    def seal(self) -> dict[str, bytes | np.ndarray]:
        """Return all of them, and let go of what they were copied from."""
        self._names, self._alive = {}, []
        return self.found


def to_bytes(value: bytes | np.ndarray) -> bytes | memoryview:
    """Return a blob as it is written: an array in numpy's format."""
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, value, allow_pickle=False)
    return buffer.getbuffer()


def from_bytes(name: str, content: bytes) -> bytes | np.ndarray:
    """Return the blob of a name from what was written."""
    if not name.endswith(".npy"):
        return content
    array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _torch() -> Any:
    """The module, if the app has imported it."""
    return sys.modules.get("torch")


def encode(value: Any, blobs: Blobs, within: tuple[int, ...] = ()) -> Any:
    """Return a value as JSON, with its bytes in `blobs`.

    Raises
    ------
    Unkept
        If it is, or contains, something else than what this module's first line names.
    """
    if type(value) in PLAIN:
        return value
    if id(value) in within:
        raise Unkept("it contains itself")
    within = (*within, id(value))
    torch = _torch()
    if isinstance(value, bytes):
        return {"bytes": blobs.add(value)}
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            raise Unkept("an array of objects")
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: blobs.add(value if isinstance(value, np.ndarray) else np.asarray(value))}
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            return {"tensor": blobs.add(value.detach().cpu().numpy())}
        except (TypeError, RuntimeError) as error:  # bfloat16, sparse
            raise Unkept(f"a tensor of {value.dtype}") from error
    if isinstance(value, Array):
        return {
            "flower_array": blobs.add(value.data),
            "dtype": value.dtype,
            "shape": list(value.shape),
            "stype": value.stype,
        }
    for name, record in RECORDS.items():
        if isinstance(value, record):
            return {
                "record": name,
                "items": [[key, encode(_plain(item), blobs, within)] for key, item in value.items()],
            }
    if isinstance(value, dict):
        pairs = [[encode(key, blobs, within), encode(item, blobs, within)] for key, item in value.items()]
        return {"dict": pairs}
    if type(value).__name__ in SEQUENCES and type(value) is SEQUENCES[type(value).__name__]:
        return {type(value).__name__: [encode(item, blobs, within) for item in value]}
    raise Unkept(type(value).__name__)


def _plain(value: Any) -> Any:
    """Return what a record has of numpy's scalars, some of which it lets through, as Python's numbers."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def decode(tree: Any, blobs: Mapping[str, bytes | np.ndarray]) -> Any:
    """Return the value that `encode` has made a tree of."""
    if not isinstance(tree, dict):
        return tree
    if "record" in tree:
        pairs = {key: decode(item, blobs) for key, item in tree["items"]}
        return RECORDS[tree["record"]](pairs)
    if "flower_array" in tree:
        data = blobs[tree["flower_array"]]
        assert isinstance(data, bytes)
        return Array(tree["dtype"], tuple(tree["shape"]), tree["stype"], data)
    ((kind, content),) = tree.items()
    if kind == "dict":
        return {decode(key, blobs): decode(item, blobs) for key, item in content}
    if kind in SEQUENCES:
        return SEQUENCES[kind]([decode(item, blobs) for item in content])
    blob = blobs[content]
    if kind == "bytes":
        return blob
    assert isinstance(blob, np.ndarray)
    if kind == "scalar":
        return blob[()]
    copy = blob.copy()  # a blob may have several owners
    return _torch().from_numpy(copy) if kind == "tensor" else copy


def has_blobs(tree: Any) -> bool:
    """Whether a tree of `encode` has bytes beside it."""
    if isinstance(tree, list):
        return any(map(has_blobs, tree))
    if not isinstance(tree, dict):
        return False
    if "record" in tree or "dict" in tree:
        return any(has_blobs(item) for _, item in tree["items" if "record" in tree else "dict"])
    return not (set(tree) <= set(SEQUENCES)) or any(map(has_blobs, tree.values()))


# --- attributes


def capture(
    strategy: Any, blobs: Blobs, within: tuple[int, ...] = (), begun: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Return what the attributes of a strategy hold, and the names of those that cannot be kept.

    One with a `state_dict` and a `load_state_dict` of its own is captured by these, if they work and what
    they tell can be kept; else by its attributes. A strategy that it wraps is captured likewise, and what has
    these two methods, as torch's modules and optimisers and the accountant of differential privacy have, by
    them. Functions, classes, modules and paths are no state.

    Raises
    ------
    Untold
        If that of an asynchronous strategy that has `begun` does not work. Its attributes would not do: they
        count messages on their way of which nobody knows afterwards.
    """
    found: dict[str, Any] = {}
    unkept: list[str] = []
    within = (*within, id(strategy))
    if (state := _own_state(strategy)) is not None:
        try:
            return {WHOLE: {"state": encode(state(), blobs)}}, []
        except Exception as error:  # Unkept, or what a foreign state_dict raises
            if begun and hasattr(strategy, HOOK):
                reason = f"{type(error).__name__}: {error}"
                raise Untold(f"{type(strategy).__name__}'s state_dict cannot be used: {reason}") from error
    for name, value in vars(strategy).items():
        place = f"{type(strategy).__name__}.{name}"
        try:
            if isinstance(value, Strategy | LegacyStrategy):
                if id(value) not in within:
                    inner, lost = capture(value, blobs, within, begun)
                    found[name] = {"strategy": inner}
                    unkept += lost
            elif (state := _own_state(value)) is not None:
                found[name] = {"state": encode(state(), blobs)}
            elif not isinstance(value, NO_STATE):
                found[name] = {"value": encode(value, blobs)}
        except Untold:
            raise
        except Exception as error:
            unkept.append(f"{place} ({str(error) or type(error).__name__})")
    return found, unkept


def _own_state(value: Any) -> Callable[[], Any] | None:
    """Return what tells the state of a random generator, or of what has `state_dict`; None for others."""
    torch = _torch()
    if isinstance(value, np.random.Generator):
        return lambda: value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return lambda: value.get_state(legacy=False)
    if isinstance(value, random.Random):
        return value.getstate
    if torch is not None and isinstance(value, torch.Generator):
        return lambda: value.get_state()
    if not isinstance(value, type) and callable(getattr(value, "load_state_dict", None)):
        return getattr(value, "state_dict", None)
    return None


def _set_state(value: Any, state: Any) -> None:
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    elif isinstance(value, random.Random):
        value.setstate(state)
    elif hasattr(value, "load_state_dict"):
        value.load_state_dict(state)
    else:
        value.set_state(state)


def changes(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what holds no bytes and is what it was before: settings, which the app sets by itself.

    So a run that is resumed with another setting of its strategy gets that.
    """
    kept: dict[str, Any] = {}
    for name, tree in now.items():
        old = before.get(name)
        if "strategy" in tree:
            inner = changes(tree["strategy"], (old or {}).get("strategy", {}))
            if inner:
                kept[name] = {"strategy": inner}
        elif tree != old or any(map(has_blobs, tree.values())):
            kept[name] = tree
    return kept


def restore(strategy: Any, state: Mapping[str, Any], blobs: Mapping[str, bytes | np.ndarray]) -> list[str]:
    """Set the attributes of a strategy as `capture` found them; return the names of those that have no place.

    A dictionary or a deque is filled in place, so that it keeps its kind. What a strategy's own
    `load_state_dict` raises is raised.
    """
    lost: list[str] = []
    for name, tree in state.items():
        current = getattr(strategy, name, None)
        place = f"{type(strategy).__name__}.{name}"
        if name == WHOLE:
            if hasattr(strategy, "load_state_dict"):
                strategy.load_state_dict(decode(tree["state"], blobs))
            else:  # the run goes on with another strategy
                lost.append(type(strategy).__name__)
            continue
        if "strategy" in tree:
            if isinstance(current, Strategy | LegacyStrategy):
                lost += restore(current, tree["strategy"], blobs)
            else:
                lost.append(place)
            continue
        try:
            if "state" in tree:
                _set_state(current, decode(tree["state"], blobs))
                continue
            value = decode(tree["value"], blobs)
            if isinstance(current, dict) and isinstance(value, dict):
                current.clear()
                current.update(value)
            elif isinstance(current, deque) and isinstance(value, deque):
                current.clear()
                current.extend(value)
            else:
                setattr(strategy, name, value)
        except Exception as error:  # an attribute that cannot be set, a state of another kind
            lost.append(f"{place} ({type(error).__name__}: {error})")
    return lost


# --- what numbers are drawn from


def random_states(blobs: Blobs) -> dict[str, Any]:
    """Return the states of the process's random generators: Python's, numpy's, and torch's on the CPU."""
    states = {
        "python": encode(random.getstate(), blobs),
        "numpy": encode(np.random.get_state(legacy=False), blobs),
    }
    if (torch := _torch()) is not None:
        states["torch"] = encode(torch.random.get_rng_state(), blobs)
    return states


def restore_random(states: Mapping[str, Any], blobs: Mapping[str, bytes | np.ndarray]) -> None:
    """Set the random generators of the process."""
    random.setstate(decode(states["python"], blobs))
    np.random.set_state(decode(states["numpy"], blobs))
    if "torch" in states and (torch := _torch()) is not None:
        torch.random.set_rng_state(decode(states["torch"], blobs))
