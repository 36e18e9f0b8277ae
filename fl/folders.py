"""Finds a data set in a folder of the user's, which may hold others beside it, or several copies of it."""

import hashlib
import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl.formats import Arrays, SourceError, read_batch, read_file, read_idx, read_npy, unzipped

IDX_STEMS = {
    "train_x": "train-images",
    "train_y": "train-labels",
    "test_x": "t10k-images",
    "test_y": "t10k-labels",
}
NPY_NAMES = {f"{name}.npy": name for name in IDX_STEMS}
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
BATCHES = (*TRAIN_BATCHES, "test_batch")
MANIFEST = "manifest.json"
Homes = dict[Path, dict[str, list[Path]]]  # by folder, and by what they hold: files
# Whose data a folder of this name holds, in small letters without signs. Some are none of ours, but their
# files bear the names of MNIST's.
FOLDERS = {
    "mnist": "mnist",
    "fashionmnist": "fashion_mnist",
    "fashion": "fashion_mnist",
    "cifar10": "cifar10",
    "cifar10batchespy": "cifar10",
    "synthetic": "synthetic",
    **{name: name for name in ("kmnist", "emnist", "qmnist", "notmnist")},
}


@dataclass(frozen=True)
class Copy:
    """One copy of a data set.

    Attributes
    ----------
    names : dict[str, str]
        The file that each array was read from; of several files, their folder.
    sums : dict[str, set[str]]
        By file the MD5 of its content, and of what gzip has packed there.
    belongs : str
        The data set that a prepared copy says it is.
    """

    arrays: Arrays
    names: dict[str, str]
    sums: dict[str, set[str]]
    belongs: str = ""

    def content(self) -> str:
        """Digest of the arrays, whatever kinds of files they come from."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            array = self.arrays[name]
            if array.dtype.kind in "iu" and array.ndim == 1:
                array = array.astype(np.int64)
            digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def owners(self, known: Mapping[str, str]) -> set[str]:
        """The data sets whose published files these are; "" for a file that is nobody's."""
        owners = {next((known[md5] for md5 in sums if md5 in known), "") for sums in self.sums.values()}
        return owners | {self.belongs} if self.belongs else owners


def read(dataset: str, path: Path, known: Mapping[str, str]) -> Copy:
    """Read the one copy of a data set in a folder.

    The data set's own folder wins. Files that are published as another data set's are never taken. Of several
    copies that differ, the published files win; else none is taken.

    Parameters
    ----------
    known : mapping
        MD5 of each published file, and the data set that it belongs to.
    """
    files = _own(dataset, path, files_of(dataset, path))
    copies = list(_copies(dataset, path, files))
    fitting = [copy for copy in copies if not copy.owners(known) - {dataset, ""}]
    if not fitting:
        owner = ", ".join(sorted(copies[0].owners(known) - {dataset, ""}))
        raise SourceError(
            f"{_place(copies[0])} holds {owner}, not {dataset}: choose {owner} as the data set, or give "
            f"the folder of {dataset}"
        )
    if len(fitting) == 1:
        return fitting[0]
    distinct = {copy.content(): copy for copy in fitting}
    if len(distinct) > 1:
        published = {key: copy for key, copy in distinct.items() if copy.owners(known) == {dataset}}
        distinct = published or distinct
    if len(distinct) > 1:
        places = {_place(copy) for copy in distinct.values()}
        if len(places) < len(distinct):  # they share a folder
            places = {", ".join(sorted(copy.names.values())) for copy in distinct.values()}
        raise SourceError(
            f"{path} holds {len(distinct)} copies of {dataset} that differ: {'; '.join(sorted(places))}. "
            "Give the folder of one of them, or take the others away"
        )
    return next(iter(distinct.values()))


def files_of(dataset: str, path: Path) -> list[Path]:
    """Find the files below a folder that can be a data set's, by their names alone."""
    if not path.is_dir():
        raise SourceError(f"the folder {path} does not exist")
    found: list[Path] = []
    seen: set[str] = set()
    for directory, folders, names in os.walk(path, followlinks=True):
        there = Path(directory)
        if (place := os.path.realpath(there)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(place)
        found += [there / name for name in names if _role(dataset, name) and (there / name).is_file()]
    return sorted(found)


def digest(dataset: str, path: Path) -> str:
    """Digest of all that reading this data set from a folder depends on: names and contents of its files."""
    hashed = hashlib.sha256()
    files = files_of(dataset, path)
    manifests = {file.with_name(MANIFEST) for file in files if file.name in NPY_NAMES}
    for file in [*files, *sorted(manifest for manifest in manifests if manifest.is_file())]:
        try:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise SourceError(f"{file} cannot be read ({error.strerror})") from None
        hashed.update(f"{content} {file.relative_to(path)}\n".encode(errors="surrogateescape"))
    return hashed.hexdigest()


def _role(dataset: str, name: str) -> str:
    """What a file of this name holds: an array's name, a batch's, or nothing of this data set."""
    if name in NPY_NAMES:
        return NPY_NAMES[name]
    if dataset == "cifar10":
        return name if name in BATCHES else ""
    return next((key for key, stem in IDX_STEMS.items() if name.startswith(stem)), "")


def _own(dataset: str, path: Path, files: list[Path]) -> list[Path]:
    """Leave out the files of others' folders, and where the data set has a folder, all but those there."""
    owners = {file: _owner(file.relative_to(path).parent) for file in files}
    own = [file for file in files if owners[file] == dataset]
    nobodys = [file for file in files if not owners[file]]
    if files and not own and not nobodys:
        others = sorted({f"{owners[file]} ({file.parent})" for file in files})
        raise SourceError(
            f"{path} has no folder of {dataset}, but of {', '.join(others)}: give the folder itself if its "
            f"files are {dataset}"
        )
    return own or nobodys


def _owner(folder: Path) -> str:
    """The data set that a folder is named after; the innermost name counts."""
    plain = (re.sub(r"[^a-z0-9]", "", part.lower()) for part in reversed(folder.parts))
    return next((FOLDERS[part] for part in plain if part in FOLDERS), "")


def _copies(dataset: str, path: Path, files: list[Path]) -> Iterator[Copy]:
    """Read every copy that is complete; where none is, say what is missing."""
    arrays = _by_home(dataset, [file for file in files if file.name in NPY_NAMES])
    others = [file for file in files if file.name not in NPY_NAMES]
    prepared = [home for home, roles in arrays.items() if len(roles) == len(NPY_NAMES)]
    if arrays and not prepared and not others:
        raise _lacking(arrays, {role: name for name, role in NPY_NAMES.items()})
    for home in prepared:
        yield _prepared(home)
    if dataset == "cifar10":
        yield from _cifar_copies(path, others, bool(prepared))
    else:
        yield from _idx_copies(path, others, bool(prepared))


def _by_home(dataset: str, files: Iterable[Path]) -> Homes:
    """Group files by their folder and by what they hold. A folder named after its file does not count."""
    homes: Homes = defaultdict(lambda: defaultdict(list))
    for file in files:
        role = _role(dataset, file.name)
        inside = file.parent.name.startswith(IDX_STEMS.get(role, "\0"))
        homes[file.parent.parent if inside else file.parent][role].append(file)
    return homes


def _lacking(homes: Homes, names: Mapping[str, str]) -> SourceError:
    """Say what the folder lacks that has most of the files."""
    home, roles = max(homes.items(), key=lambda item: len(item[1]))
    return SourceError(f"{home} lacks {', '.join(name for role, name in names.items() if role not in roles)}")


def _prepared(home: Path) -> Copy:
    belongs = ""
    if (manifest := home / MANIFEST).is_file():
        try:
            belongs = str(json.loads(read_file(manifest))["dataset"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SourceError(
                f"{manifest} is no manifest of a prepared data set: delete it if the .npy files are yours"
            ) from None
    names = {name: str(home / file) for file, name in NPY_NAMES.items()}
    return Copy({name: read_npy(Path(file)) for name, file in names.items()}, names, {}, belongs)


def _cifar_copies(path: Path, files: list[Path], others: bool) -> Iterator[Copy]:
    homes = _by_home("cifar10", files)
    complete = [home for home, roles in homes.items() if len(roles) == len(BATCHES)]
    if not complete and not others:
        if homes:
            raise _lacking(homes, dict(zip(BATCHES, BATCHES, strict=True)))
        archive = next((f"; unpack {file} first" for file in path.glob("cifar-10*.gz")), "")
        raise SourceError(
            f"{path} holds no CIFAR-10 batches (data_batch_1 … data_batch_5, test_batch){archive}"
        )
    for home in complete:
        sums = {name: {_md5(read_file(home / name))} for name in BATCHES}
        batches = {name: read_batch(home / name) for name in BATCHES}
        images, labels = zip(*(batches[name] for name in TRAIN_BATCHES), strict=True)
        arrays = {"train_x": np.concatenate(images), "train_y": np.concatenate(labels)}
        arrays |= dict(zip(("test_x", "test_y"), batches["test_batch"], strict=True))
        names = {"train": str(home / "data_batch_1 … 5"), "test": str(home / "test_batch")}
        yield Copy(arrays, {name: names[name.partition("_")[0]] for name in arrays}, sums)


def _idx_copies(path: Path, files: list[Path], others: bool) -> Iterator[Copy]:
    """Read the copies in IDX. Files may be packed, or not, or both: two copies only if these differ."""
    homes = _by_home("", files)
    complete = [roles for roles in homes.values() if len(roles) == len(IDX_STEMS)]
    if not complete:  # images may lie in one folder and labels in another
        everything: dict[str, list[Path]] = defaultdict(list)
        for roles in homes.values():
            for role, found in roles.items():
                everything[role] += found
        missing = next((stem for role, stem in IDX_STEMS.items() if role not in everything), "")
        if missing and not others:
            raise SourceError(f"{path} holds no file {missing}-idx?-ubyte or {missing}-idx?-ubyte.gz")
        complete = [] if missing else [everything]
    for roles in complete:
        readings = {role: _readings(IDX_STEMS[role], roles[role]) for role in IDX_STEMS}
        for chosen in itertools.product(*(readings[role] for role in IDX_STEMS)):
            reading = dict(zip(IDX_STEMS, chosen, strict=True))
            yield Copy(
                {role: array for role, (_, array, _) in reading.items()},
                {role: str(file) for role, (file, _, _) in reading.items()},
                {role: sums for role, (_, _, sums) in reading.items()},
            )


def _readings(stem: str, files: list[Path]) -> list[tuple[Path, np.ndarray, set[str]]]:
    """What files that should hold the same thing do hold: each content once, with the MD5s that it has."""
    usual = [file for file in files if re.fullmatch(rf"{stem}([-.]idx\d-ubyte)?(\.gz)?", file.name)]
    found: dict[str, tuple[Path, np.ndarray, set[str]]] = {}
    for file in usual or files:
        packed = read_file(file)
        raw = unzipped(packed, file)
        sums = {_md5(packed), _md5(raw)}
        if (key := _md5(raw)) in found:
            found[key][2].update(sums)
        else:
            found[key] = (file, read_idx(raw, str(file)), sums)
    return list(found.values())


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _place(copy: Copy) -> str:
    """Where a copy lies: its folder, or its files where they are in several."""
    folders = {str(Path(name).parent) for name in copy.names.values()}
    return folders.pop() if len(folders) == 1 else ", ".join(sorted(copy.names.values()))
