"""The image's Python packages are taken only if they are those of the lock file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "roles" / "fl_image" / "files" / "make_wheelhouse.sh"


def wheel(folder: Path, name: str, content: str = "") -> str:
    """Write a wheel; its hash."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", content)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(base: Path, hashed: str) -> subprocess.CompletedProcess[str]:
    """Fetch what is required: one package of the lock, and one beside it, of an index that is a folder."""
    requirements = base / "requirements.txt"
    requirements.write_text("locked==1.0\nbuilt-differently==1.0\n")
    requirements.with_suffix(".lock").write_text(f"locked==1.0 \\\n    --hash=sha256:{hashed}\n")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(base / "index"), "PIP_CONFIG_FILE": os.devnull}
    words = ["bash", str(SCRIPT), sys.executable, str(requirements), "3.11", "x86_64", "", str(base / "out")]
    return subprocess.run(
        words, env={**own, **index}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.fixture
def good(tmp_path: Path) -> str:
    wheel(tmp_path / "index", "built_differently")
    return wheel(tmp_path / "index", "locked")


def test_packages_with_the_right_hash_are_fetched_and_the_others_by_version(
    tmp_path: Path, good: str
) -> None:
    done = fetch(tmp_path, good)
    assert done.returncode == 0, done.stdout
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {
        "locked-1.0-py3-none-any.whl",
        "built_differently-1.0-py3-none-any.whl",
        "requirements.txt",
    }
    assert "wheels: by version alone: built-differently==1.0" in done.stdout


def test_a_package_that_is_another_than_the_lock_says_is_refused(tmp_path: Path, good: str) -> None:
    wheel(tmp_path / "index", "locked", "import evil")
    done = fetch(tmp_path, good)
    assert done.returncode != 0
    assert "HASHES" in done.stdout and "locked" in done.stdout, done.stdout
    assert not (tmp_path / "out").exists()
