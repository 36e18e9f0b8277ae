"""Makes what apps bring along in tests: small packages, as wheels, so that no index is asked, and data."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_wheel(directory: Path, name: str, version: str, requires: Sequence[str] = (), **files: str) -> Path:
    """Write a wheel of pure Python; a keyword is a file, `tiny__init` stands for `tiny/__init__.py`."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    contents: Mapping[str, str] = {
        f"{key.replace('__init', '/__init__').replace('___', '/')}.py": text for key, text in files.items()
    }
    notes = {
        "METADATA": "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            + [f"Requires-Dist: {text}" for text in requires]
            + [""]
        ),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [*contents, *(f"{stem}.dist-info/{key}" for key in notes), f"{stem}.dist-info/RECORD"]
    path = directory / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for key, text in contents.items():
            wheel.writestr(key, text)
        for key, text in notes.items():
            wheel.writestr(f"{stem}.dist-info/{key}", text)
        wheel.writestr(f"{stem}.dist-info/RECORD", "".join(f"{key},,\n" for key in record))
    return path


def fill(folder: Path) -> Path:
    """Write a folder of data with two files."""
    (folder / "part").mkdir(parents=True)
    (folder / "a.csv").write_text("1,2")
    (folder / "part" / "b.bin").write_bytes(b"x" * 1000)
    return folder
