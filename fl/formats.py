"""Reads the files that data sets come in: IDX, .npy and CIFAR-10's batches; says of any other what is wrong.

Whatever a file holds, what is raised is a SourceError of one line that names the file.
"""

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NPY_MAGIC = b"\x93NUMPY"
MOST_DIMENSIONS = 4  # of an IDX file: colour images have these


class SourceError(Exception):
    """A source does not have the data; the message says why."""


def read_file(path: Path) -> bytes:
    """Read a whole file that is to hold data."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from None
    if not raw:
        raise SourceError(f"{path} is empty")
    if raw.startswith(LFS_POINTER):
        raise SourceError(f"{path} is a Git LFS pointer, not the file: type git lfs pull in its repository")
    return raw


def unzipped(raw: bytes, path: Path) -> bytes:
    """Unpack what gzip has packed; return anything else as it is."""
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error, struct.error, MemoryError) as error:
        raise SourceError(f"{path} is cut off or damaged: gzip cannot unpack it ({_line(error)})") from None


def read_idx(raw: bytes, name: str) -> np.ndarray:
    """Decode the IDX format: zero, zero, type code, number of dimensions, the dimensions, then the values."""
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or not 1 <= raw[3] <= MOST_DIMENSIONS:
        raise SourceError(f"{name} is no IDX file of bytes")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise SourceError(f"{name} is truncated: it ends within its header")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    if (found := len(raw) - start) != (expected := math.prod(shape)):
        wrong = "truncated" if found < expected else "damaged"
        raise SourceError(f"{name} is {wrong}: {found} values for the shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_npy(path: Path) -> np.ndarray:
    """Read an array that numpy.save wrote; one of Python objects is refused, since unpickling runs code."""
    raw = read_file(path)
    if not raw.startswith(NPY_MAGIC):
        raise SourceError(f"{path} is no .npy file")
    file = io.BytesIO(raw)
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except Exception as error:  # whatever numpy makes of a header that is none
        raise SourceError(
            f"{path} is cut off, damaged, or not an array of numbers ({_line(error)})"
        ) from None
    if file.tell() != len(raw):
        raise SourceError(f"{path} is damaged: it goes on after its array")
    return array


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what CIFAR-10's batches hold, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".", 1)[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise SourceError(f"it asks for {module}.{name}, which is no part of CIFAR-10")


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one of CIFAR-10's Python batches: images (N, 32, 32, 3) of uint8, and labels (N,)."""
    raw = read_file(path)
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:  # whatever a torn pickle makes the unpickler do
        raise SourceError(f"{path} is cut off, damaged, or no batch of CIFAR-10 ({_line(error)})") from None
    if not isinstance(batch, dict):
        raise SourceError(f"{path} is no batch of CIFAR-10: it holds a {type(batch).__name__}")
    if b"data" in batch:
        raise SourceError(f"{path} has keys of bytes (b'data'): write it again with keys of text ('data')")
    images, labels = batch.get("data"), batch.get("labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise SourceError(f"{path} is no batch of CIFAR-10: its 'data' is no array (N, 3072) of uint8")
    if not isinstance(labels, list | np.ndarray) or len(labels) != len(images):
        raise SourceError(f"{path} is no batch of CIFAR-10: it has not one of 'labels' for each image")
    try:
        numbers = np.asarray(labels)
    except ValueError:
        raise SourceError(f"{path} is no batch of CIFAR-10: its 'labels' are no numbers") from None
    return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), numbers


def check(
    arrays: Arrays, names: Mapping[str, str], dataset: str, shape: tuple[int, ...], classes: int
) -> Arrays:
    """Return a data set's arrays as they are prepared, or say which of them is not fit for it.

    Parameters
    ----------
    names : mapping
        What to call each array: the file that it was read from.
    """
    checked = {}
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype != np.uint8 or x.shape[1:] != shape or y.shape != x.shape[:1] or y.size == 0:
            raise SourceError(
                f"the {part} set is no {dataset}: images {x.shape} of {x.dtype} in {names[f'{part}_x']} with "
                f"labels {y.shape} of {y.dtype} in {names[f'{part}_y']}, where images "
                f"(N, {', '.join(map(str, shape))}) of uint8 and labels (N,) are expected"
            )
        if x.max() <= 1:
            raise SourceError(
                f"the {part} set is no {dataset}: the images in {names[f'{part}_x']} have values of "
                f"{x.min()} … {x.max()}, where 0 … 255 are expected"
            )
        checked[f"{part}_x"] = np.ascontiguousarray(x)
        checked[f"{part}_y"] = _labels(y, part, names[f"{part}_y"], classes)
    return checked


def _labels(y: np.ndarray, part: str, name: str, classes: int) -> np.ndarray:
    """Labels as int64; whole numbers that are stored as floats are taken for what they are."""
    if y.dtype.kind not in "iuf":
        raise SourceError(f"the {part} set's labels in {name} are {y.dtype}, and no whole numbers")
    wrong = np.flatnonzero(~((y >= 0) & (y < classes) & (np.floor(y) == y)))  # NaN is wrong, too
    if wrong.size:
        raise SourceError(
            f"the {part} set's labels are not all in 0 … {classes - 1}: "
            f"number {wrong[0]} in {name} is {y[wrong[0]]}"
        )
    return np.asarray(y, np.int64)


def _line(error: object) -> str:
    """An error's message as one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
