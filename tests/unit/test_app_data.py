"""The data of an app on the controller: named by their contents, checked before anything is changed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab

from coldframe.controller import app_data
from tests.unit.flower import write_app
from tests.unit.wheels import fill


def test_the_name_tells_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    first = app_data.digest(fill(tmp_path / "one"), index)
    assert first[1] == 1003
    assert app_data.digest(fill(tmp_path / "two"), tmp_path / "other.json") == first
    (tmp_path / "one" / "a.csv").write_text("1,3")
    changed = app_data.digest(tmp_path / "one", index)
    (tmp_path / "one" / "a.csv").rename(tmp_path / "one" / "c.csv")
    assert len({first[0], changed[0], app_data.digest(tmp_path / "one", index)[0]}) == 3


def test_files_that_have_not_changed_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = app_data.file_digest
    monkeypatch.setattr(app_data, "file_digest", lambda path: read.append(path.name) or whole(path))
    folder, index = fill(tmp_path / "one"), tmp_path / "index.json"
    first = app_data.digest(folder, index)
    assert app_data.digest(folder, index) == first
    assert read == ["a.csv", "b.bin"]
    (folder / "a.csv").write_text("longer than before")
    app_data.digest(folder, index)
    assert read == ["a.csv", "b.bin", "a.csv"]


def test_links_are_followed_and_what_cannot_be_shipped_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "one")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c").write_text("three")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert app_data.measure(folder) == (3, 1008)
    (folder / "link").unlink()
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(app_data.Unusable, match="nowhere leads to nothing"):
        app_data.measure(folder)
    (folder / "nowhere").unlink()
    (folder / "part" / "back").symlink_to(folder)
    with pytest.raises(app_data.Unusable, match="the link part/back leads in a circle"):
        app_data.measure(folder)


def test_a_marked_app_has_another_hash_and_is_the_same_app(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    fab = build_fab_from_disk(write_app(tmp_path / "app", "app = None"))
    marked = app_data.mark(fab, "0123")
    assert app_data.mark(fab, "0123") == marked
    assert len({hashlib.sha256(content).digest() for content in (fab, marked, app_data.mark(fab, "4"))}) == 3
    with zipfile.ZipFile(BytesIO(marked)) as archive:
        assert archive.comment == b"app-data 0123"
    installed = install_from_fab(marked, tmp_path / "flwr", skip_prompt=True)
    assert (installed / "probe" / "client.py").read_text() == "app = None"


def test_the_program_marks_the_app_and_names_what_is_wrong(tmp_path: Path) -> None:
    folder, fab = fill(tmp_path / "one"), tmp_path / "app.fab"
    with zipfile.ZipFile(fab, "w") as archive:
        archive.writestr("pyproject.toml", "")

    def call() -> dict[str, object]:
        words = [sys.executable, "-m", "coldframe.controller.app_data", folder, fab, tmp_path / "cache"]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    answer = call()
    marked = Path(str(answer["fab"]))
    assert hashlib.sha256(marked.read_bytes()).hexdigest() == answer["fab_hash"]
    assert (answer["path"], answer["bytes"], answer["error"]) == (str(folder), 1003, "")
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    assert "nowhere leads to nothing" in str(call()["error"])
