"""Files of traces and of data sets that hold anything: read, or refused in one line; never a traceback."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.controller import traces
from coldframe.controller.trace_file import Trace, read_trace
from fl import data, sources

FEW = settings(max_examples=80, deadline=None, derandomize=True, database=None)
CLIENTS = ["c1-0", "c1-1"]


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """A damaged file may ask for any amount of memory: it is refused some, and the machine keeps its own."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (3 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


CELL = st.one_of(
    st.sampled_from(
        ["0", "1", "0,5", "1.5", "30", "c1-0", "c1-1", "10mbit", "1,500", "nan", "-1", "1e400", '"', ""]
    ),
    st.text(max_size=5),
)
TABLE = st.builds(
    lambda rows, separator, end: end.join(separator.join(row) for row in rows),
    st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=5),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
CSV = st.one_of(
    st.binary(max_size=80),
    TABLE.map(lambda text: text.encode("utf-8", "surrogatepass")),
    TABLE.map(lambda text: b"\xef\xbb\xbfseconds,client,cpu\n" + text.encode("utf-8", "surrogatepass")),
    TABLE.map(lambda text: b"seconds;client;down\n" + text.encode("utf-8", "surrogatepass")),
    TABLE.map(lambda text: ("seconds\tclient\tonline\n" + text).encode("utf-16", "surrogatepass")),
)


@FEW
@given(CSV)
def test_trace_of_any_content(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(content)
        try:
            trace = read_trace(path, CLIENTS)
        except ValueError as error:
            problem, separator, remedy = str(error).rpartition(": ")
            assert problem and separator and remedy
        else:
            assert isinstance(trace, Trace) and trace.length > 0


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**20) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SECONDS = st.lists(st.integers(-1, 50) | st.floats(allow_nan=True), max_size=4)
FEDSCALE = st.dictionaries(
    st.integers(0, 9),
    st.fixed_dictionaries(
        {"active": SECONDS | PLAIN, "inactive": SECONDS, "finish_time": st.integers(0, 90) | PLAIN}
    ),
    max_size=3,
)
STATES = ["wifi", "WIFI", "4G", "unknown", "screen_lock", "screen_unlock", "battery_charged_on", "88.0%", ""]
LINE = st.builds(
    lambda second, state: f"2020-01-29 00:00:{second:02}\t{state}",
    st.integers(0, 70),
    st.sampled_from(STATES),
)
FLASH = st.dictionaries(
    st.text(max_size=2),
    st.fixed_dictionaries(
        {"messages": st.lists(LINE | st.text(max_size=9), max_size=9).map("\n".join) | PLAIN}
    ),
    max_size=3,
)


def changed(content: bytes, cut: int, place: int, byte: int) -> bytes:
    """Cut a file off and put another byte somewhere; 0 leaves it whole."""
    raw = bytearray(content[: len(content) - cut % (len(content) + 1)])
    if raw and place:
        raw[place % len(raw)] = byte
    return bytes(raw)


DAMAGE = (st.sampled_from([0, 0, 1, 7]) | st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 255))


@FEW
@given(FEDSCALE | PLAIN, *DAMAGE)
def test_fedscale_of_any_content(content: Any, cut: int, place: int, byte: int) -> None:
    converted("fedscale", changed(pickle.dumps(content), cut, place, byte))


@FEW
@given(FLASH | PLAIN, *DAMAGE)
def test_flash_of_any_content(content: Any, cut: int, place: int, byte: int) -> None:
    converted("flash", changed(json.dumps(content).encode(), cut, place, byte))


def converted(kind: str, content: bytes) -> None:
    """Convert another's data: a trace that throttle.yml reads, or one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(content)
        run([kind, str(path), "--clients", CLIENTS[0]], Path(folder))


@FEW
@given(
    st.sampled_from(["--hours=", "--minutes="]),
    st.sampled_from(["0", "-0", "1e-9", "0.3", "2", "inf", "nan", "x", "9e99"])
    | st.floats(max_value=3).map(str),
    st.sampled_from(["0bit", "1bit", "1kbit", "1,5mbit", "2mbit", "-1mbit", "mbit", "9gbit", "nanbit"]),
)
def test_trace_of_any_length_and_bounds(length: str, value: str, rate: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kind = ["diurnal"] if length == "--hours=" else ["walk", f"--low={rate}", "--high=3mbit"]
        run([*kind, f"{length}{value}", "--clients", ",".join(CLIENTS)], Path(folder))


def run(command: list[str], folder: Path) -> None:
    """Run the maker of traces: what it writes can be played, or its last line says why there is nothing."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = traces.main(command)
        except SystemExit as end:  # argparse's
            code = int(str(end.code))
    if code:
        assert errors.getvalue().strip() and "Traceback" not in errors.getvalue() and not output.getvalue()
    else:
        (folder / "made.csv").write_text(output.getvalue())
        assert read_trace(folder / "made.csv", CLIENTS).length > 0


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    )


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return pickle.dumps({"data": images.reshape(len(images), -1), "labels": labels.tolist()})


X, Y = np.arange(2 * 784, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 7], np.uint8)
PIXELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
KINDS: dict[str, tuple[str, dict[str, bytes]]] = {
    "idx": (
        "mnist",
        {
            f"{stem}-idx-ubyte": idx(X if name.endswith("x") else Y)
            for name, stem in sources.IDX_STEMS.items()
        },
    ),
    "packed": (
        "fashion_mnist",
        {
            f"{stem}-idx-ubyte.gz": gzip.compress(idx(X if name.endswith("x") else Y))
            for name, stem in sources.IDX_STEMS.items()
        },
    ),
    "npy": ("mnist", {f"{name}.npy": npy(X if name.endswith("x") else Y) for name in data.FILES}),
    "batches": ("cifar10", {name: batch(PIXELS, Y) for name in sources.CIFAR10_MD5}),
}
FOREIGN: list[Callable[[bytes], bytes]] = [
    lambda raw: raw,
    lambda raw: b"",
    lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    lambda raw: raw + raw,
    gzip.compress,
]


@settings(FEW, max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 9), st.sampled_from(FOREIGN), *DAMAGE)
def test_folder_with_a_file_of_any_content(
    kind: str, which: int, foreign: Callable[[bytes], bytes], cut: int, place: int, byte: int
) -> None:
    dataset, files = KINDS[kind]
    with tempfile.TemporaryDirectory() as place_of_all:
        folder, root = Path(place_of_all) / "raw", Path(place_of_all) / "root"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        name = sorted(files)[which % len(files)]
        (folder / name).write_bytes(changed(foreign(files[name]), cut, place, byte))
        try:
            target = data.prepare(dataset, root, folder=folder)
        except sources.SourceError as error:
            said = str(error)
            assert "\n" not in said and str(folder) in said
            assert not root.exists()
        else:
            assert data.is_prepared(dataset, root, folder)
            assert np.load(target / "train_y.npy").max() < 10


@FEW
@given(PLAIN, *DAMAGE)
def test_manifest_of_any_content(content: Any, cut: int, place: int, byte: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mnist").mkdir()
        raw = json.dumps({"sha256": content, "source": content} if place % 2 else content).encode()
        (Path(folder) / "mnist/manifest.json").write_bytes(changed(raw, cut, place, byte))
        assert not data.is_prepared("mnist", Path(folder))


@FEW
@given(*DAMAGE)
def test_prepared_file_of_any_content(cut: int, place: int, byte: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mnist").mkdir()
        (Path(folder) / "mnist/train_x.npy").write_bytes(changed(npy(X), cut, place, byte))
        with contextlib.suppress(data.DataError):
            assert data.load_array(Path(folder), "mnist", "train_x").shape[1:] == (28, 28)
