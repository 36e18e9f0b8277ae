"""One package has one version, wherever it is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.static.repository import ROOT, load

REQUIREMENTS = ("requirements.txt", "coldframe/requirements.txt", "requirements-dev.txt")


def requirements(path: Path) -> list[Requirement]:
    """Read a requirements file without the files that it includes."""
    lines = [line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def pins(path: Path) -> dict[str, str]:
    """Give package -> version of the lines that hold everywhere; others depend on the Python in use."""
    return {
        item.name: str(item.specifier).removeprefix("==")
        for item in requirements(path)
        if item.marker is None
    }


def versions() -> dict[str, str]:
    """Read the versions that plays and preflight use."""
    return dict(load(ROOT / "group_vars" / "all" / "versions.yml")["coldframe_versions"])


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned(name: str) -> None:
    found = requirements(ROOT / name)
    assert found
    assert [str(item) for item in found if not re.fullmatch(r"==[\w.*]+", str(item.specifier))] == []


def test_image_and_controller_hold_the_same_versions() -> None:
    controller, image = pins(ROOT / "requirements.txt"), pins(ROOT / "coldframe" / "requirements.txt")
    assert {"flwr", "torch", "torchvision", "numpy"} <= set(image)
    assert image == {name: controller.get(name) for name in image}


def test_every_package_of_the_image_but_torch_is_locked_with_hashes() -> None:
    """`scripts/lock.sh` makes the file anew. The hashes are those of all indexes, so none is named."""
    text = (ROOT / "coldframe" / "requirements.lock").read_text(encoding="utf-8")
    blocks = re.findall(
        r"^([a-z][\w.-]*)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE
    )
    locked = {name: version for name, version, _ in blocks}
    assert len(blocks) == len(re.findall(r"^[a-z]", text, re.MULTILINE)) > 50
    assert "://" not in text
    image = pins(ROOT / "coldframe" / "requirements.txt")
    assert locked.keys() & {"torch", "torchvision"} == set()
    assert {name: version for name, version in image.items() if not name.startswith("torch")} == {
        name: locked.get(name) for name in image if not name.startswith("torch")
    }
    assert locked["pip"] == pins(ROOT / "requirements.txt")["pip"]


def test_group_vars_name_the_images_versions() -> None:
    assert versions() == pins(ROOT / "coldframe" / "requirements.txt")


def test_development_adds_to_the_controllers_packages() -> None:
    text = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    assert "\n-r requirements.txt\n" in text
    twice = set(pins(ROOT / "requirements-dev.txt")) & set(pins(ROOT / "requirements.txt"))
    assert twice == set(), "pinned in requirements.txt already"


def test_app_manifest_accepts_the_images_versions() -> None:
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for text in manifest["project"]["dependencies"]:
        item = Requirement(text)
        assert versions()[item.name] in item.specifier, text


def test_collections_of_the_bundle_satisfy_the_ranges() -> None:
    listed = {item["name"] for item in load(ROOT / "collections" / "requirements.yml")["collections"]}
    setup = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    assert {name for name in listed if f'"{name.replace(".", "/")}"' not in setup} == set()
