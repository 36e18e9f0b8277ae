"""A reply is checked in one place: what cannot be used is refused with its reason, and read with bounds."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from coldframe.recording.flower import SYSTEM_RECORD
from coldframe.recording.replies import BadReply, Rules, check, clean, odd_ones, system_figures

MODEL = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
NPY = Array(MODEL["w"]).data


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for key in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, key, 1)
    yield


def arrays(**changed: Any) -> ArrayRecord:
    found = {key: changed.get(key, value) for key, value in MODEL.items()}
    return ArrayRecord(
        {k: v if isinstance(v, Array) else Array(v) for k, v in found.items() if v is not None}
    )


def sent(kind: str = "train") -> Message:
    return Message(RecordDict({"arrays": arrays()}), 7, kind)


def content(**changed: Any) -> RecordDict:
    """Return what an honest client answers to `train`, but for what is given."""
    metrics = {"train_loss": 0.5, "num-examples": 10} | changed.pop("metrics", {})
    system = {"cpu_limit": 0.5, "threads": 1, "memory_peak": 300 << 20} | changed.pop("system", {})
    records = {"arrays": arrays(), SYSTEM_RECORD: ConfigRecord(system)} | changed
    record = MetricRecord()
    for name, value in metrics.items():
        if value is not None:
            dict.__setitem__(record.__dict__.setdefault("_data", {}), name, value)
    return RecordDict({"metrics": record, **records})


def answer(records: RecordDict, to: Message | None = None) -> Message:
    return Message(records, reply_to=to or sent())


def lying(**fields: Any) -> Array:
    return Array(**({"dtype": "float32", "shape": (2, 3), "stype": "numpy.ndarray", "data": NPY} | fields))


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 24


def test_an_honest_reply_is_taken_as_it_is() -> None:
    good = check(answer(content()), sent(), Rules())
    assert (good.examples, good.metrics) == (10, {"train_loss": 0.5})


def test_what_the_system_record_has_beside_its_figures_is_left_out() -> None:
    record = {"note": "=1+1", "blob": b"\0", "threads": 2}
    assert check(answer(content(system=record)), sent(), Rules()).examples == 10
    assert system_figures(record) == {"threads": 2}


BAD: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "bytes in the system record": (lambda: content(system={"cpu_limit": b"x"}), "cpu_limit is b'x'"),
    "text in the system record": (lambda: content(system={"memory_peak": "x"}), "memory_peak is 'x'"),
    "a list there": (lambda: content(system={"threads": [1]}), r"threads is \[1\]"),
    "a truth there": (lambda: content(system={"threads": True}), "threads is True"),
    "NaN there": (lambda: content(system={"cpu_limit": float("nan")}), "cpu_limit is nan"),
    "half a thread": (lambda: content(system={"threads": 0.5}), "threads is 0.5, not a whole number"),
    "examples below 0": (lambda: content(metrics={"num-examples": -1}), "num-examples is -1"),
    "infinite examples": (lambda: content(metrics={"num-examples": float("inf")}), "num-examples is inf"),
    "too many examples": (lambda: content(metrics={"num-examples": 2**60}), "num-examples is 11529"),
    "no examples": (lambda: content(metrics={"num-examples": None}), "has no num-examples"),
    "a list of examples": (lambda: content(metrics={"num-examples": [1, 2]}), "num-examples is no number"),
    "a list as metric": (lambda: content(metrics={"train_loss": [0.1] * 9}), "train_loss is no number"),
    "text as metric": (lambda: content(metrics={"train_loss": "x"}), "train_loss is no number"),
    "a loss of NaN": (lambda: content(metrics={"train_loss": float("nan")}), "train_loss is nan"),
    "a metric with a control character": (lambda: content(metrics={"a\x1b[2J": 1.0}), "name of a metric"),
    "a long name": (lambda: content(metrics={"a" * 129: 1.0}), "name of a metric"),
    "many metrics": (lambda: content(metrics={f"m{k}": 1.0 for k in range(300)}), "302 metrics"),
    "many records": (lambda: content(**{f"r{k}": ConfigRecord() for k in range(99)}), "102 records"),
    "a second MetricRecord": (lambda: content(more=MetricRecord({"a": 1})), "2 MetricRecords"),
    "no arrays": (lambda: RecordDict({k: v for k, v in content().items() if k != "arrays"}), r"\[\], and"),
    "arrays by another name": (lambda: content(other=arrays()), "ArrayRecords of the reply"),
    "a key too few": (lambda: content(arrays=arrays(b=None)), "other keys"),
    "another shape": (lambda: content(arrays=arrays(w=np.ones((3, 2), np.float32))), "and float32"),
    "another dtype": (lambda: content(arrays=arrays(w=np.ones((2, 3)))), "is float64"),
    "NaN": (lambda: content(arrays=arrays(b=np.full(3, np.nan, np.float32))), "not finite"),
    "infinity": (lambda: content(arrays=arrays(b=np.full(3, np.inf, np.float32))), "not finite"),
    "no numpy array": (lambda: content(arrays=arrays(w=lying(data=b"x" * 50))), "is no numpy array"),
    "a cut array": (lambda: content(arrays=arrays(w=lying(data=NPY[:-1]))), "bytes that its header says"),
    "more than it says": (lambda: content(arrays=arrays(w=lying(data=NPY + b"x"))), "bytes that its header"),
    "a terabyte in 152 bytes": (
        lambda: content(arrays=arrays(w=lying(data=header("(500000, 500000)")))),
        "does not have the 1000000000000 bytes",
    ),
    "a pickle": (
        lambda: content(arrays=arrays(w=lying(data=header("(3,)", "|O") + pickle.dumps([1])))),
        "does not have the",
    ),
    "another array than it says": (
        lambda: content(arrays=arrays(w=lying(data=Array(np.ones((6, 1), np.float32)).data))),
        r"is float32\[6, 1\], and says",
    ),
    "another serialization": (lambda: content(arrays=arrays(w=lying(stype="pickle"))), "as pickle, not as"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_refused_with_its_reason(name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(BadReply, match=reason) as refused:
        check(answer(make()), sent(), Rules())
    assert refused.value.not_finite == (name in ("NaN", "infinity", "a loss of NaN"))
    assert len(str(refused.value)) < 500


def test_the_reply_to_evaluate_brings_no_arrays_of_its_own() -> None:
    asked = sent("evaluate")
    records = RecordDict({key: value for key, value in content().items() if key != "arrays"})
    assert check(answer(records, asked), asked, Rules()).examples == 10
    with pytest.raises(BadReply, match="ArrayRecords"):
        check(answer(content(other=arrays()), asked), asked, Rules())


def test_another_kind_of_app_may_send_arrays_and_lists_of_its_own_but_no_nonsense() -> None:
    loose = Rules(like_sent=False)
    records = content(
        arrays=arrays(w=np.ones(9), b=None), metrics={"curve": [0.1, 0.2], "num-examples": None}
    )
    good = check(answer(records), sent(), loose)
    assert good.examples is None
    assert good.metrics["curve"] == [0.1, 0.2]
    with pytest.raises(BadReply, match="cpu_limit"):
        check(answer(content(system={"cpu_limit": b"x"})), sent(), loose)
    with pytest.raises(BadReply, match="not finite"):
        check(answer(content(arrays=arrays(b=np.full(3, np.nan)))), sent(), loose)


def test_values_that_are_not_finite_are_taken_where_that_is_allowed() -> None:
    records = content(arrays=arrays(b=np.full(3, np.nan, np.float32)), metrics={"train_loss": float("inf")})
    assert check(answer(records), sent(), Rules(finite=False)).examples == 10


def test_most_replies_say_what_a_reply_looks_like() -> None:
    one, other = ((), (("metrics", ("a",)),)), ((), (("metrics", ("b",)),))
    assert odd_ones({1: one, 2: one}, None) == set()
    assert odd_ones({1: other, 2: one, 3: one}, None) == {1}
    assert odd_ones({1: other, 2: one}, one) == {1}, "as in the round before"
    assert odd_ones({1: one, 2: other}, None) == {2}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[31mred\x07", "[31mred"),
        ("two\r\nlines", "two lines"),
        ("\u202egnp.exe", "gnp.exe"),
        ("x" * 10_000, "x" * 499 + "…"),
    ],
)
def test_what_a_client_says_is_shown_as_one_short_line(said: str, shown: str) -> None:
    assert clean(said) == shown
