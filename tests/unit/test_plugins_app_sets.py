"""What apps bring along, on a machine and in preflight."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import check_app_data as app_data
from coldframe.controller.checks import Machine
from plugins.modules import app_sets
from tests.unit.wheels import fill


def given(fab: str, arrived: bool = False, running: tuple[str, ...] = (), **sets: str) -> dict[str, Any]:
    """The options of the module for an app with these sets."""
    items = [{"kind": kind, "name": name, "bytes": 10} for kind, name in sets.items()]
    common = {"python": "3.11.2", "keep": {"dependencies": 2, "data": 1}, "running": list(running)}
    return {**common, "fab": fab, "sets": items, "arrived": arrived}


def ship(root: Path, fab: str, at: int, **options: Any) -> None:
    """Bring an app's sets as the role does; `at` is the time of the note."""
    found = app_sets.bring(root, given(fab, **options))
    sets = {key: value for key, value in options.items() if key in app_sets.KINDS}
    for kind, name in sets.items():
        if name in found["missing"]:
            (root / kind / f"{name}.part").mkdir()
    if found["missing"]:
        assert app_sets.bring(root, given(fab, arrived=True, **options))["missing"] == []
    os.utime(root / "by-fab" / fab, (at, at))


def there(root: Path) -> set[str]:
    """What the machine has."""
    return {f"{kind}/{path.name}" for kind in app_sets.KINDS for path in (root / kind).iterdir()}


def test_what_is_missing_is_noted_when_it_has_arrived(tmp_path: Path) -> None:
    wanted = {"dependencies": "d1", "data": "w1"}
    found = app_sets.bring(tmp_path, given("f1", **wanted))
    assert found["missing"] == ["d1", "w1"]
    assert list((tmp_path / "by-fab").iterdir()) == []
    (tmp_path / "dependencies" / "d1.part").mkdir()
    assert app_sets.bring(tmp_path, given("f1", **wanted))["missing"] == ["d1", "w1"], "half of it is not it"
    (tmp_path / "data" / "w1.part").mkdir()
    found = app_sets.bring(tmp_path, given("f1", arrived=True, **wanted))
    assert found == {"changed": True, "missing": [], "removed": []}
    note = json.loads((tmp_path / "by-fab" / "f1").read_text())
    assert note == {**wanted, "dependencies_bytes": 10, "data_bytes": 10, "python": "3.11.2"}
    again = app_sets.bring(tmp_path, given("f1", **wanted))
    assert again == {"changed": False, "missing": [], "removed": []}
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path, tmp_path / "by-fab", tmp_path / "data")}
    assert modes == {0o755}, "whatever the umask, the containers' user reads it"


def test_the_oldest_go_and_never_what_a_running_run_uses(tmp_path: Path) -> None:
    ship(tmp_path, "f1", 1, dependencies="d1", data="w1")
    ship(tmp_path, "f2", 2, dependencies="d2")
    ship(tmp_path, "f3", 3, dependencies="d3", running=("f1",))
    ship(tmp_path, "f4", 4, dependencies="d4", data="w4", running=("f1",))
    app_sets.bring(tmp_path, given("f4", dependencies="d4", data="w4", running=("f1",)))
    assert there(tmp_path) == {"dependencies/d1", "dependencies/d3", "dependencies/d4", "data/w1", "data/w4"}
    assert {path.name for path in (tmp_path / "by-fab").iterdir()} == {"f1", "f3", "f4"}
    app_sets.bring(tmp_path, given("f4", dependencies="d4", data="w4"))
    assert there(tmp_path) == {"dependencies/d3", "dependencies/d4", "data/w4"}
    assert {path.name for path in (tmp_path / "by-fab").iterdir()} == {"f3", "f4"}


def test_a_transfer_that_somebody_else_has_begun_is_left_alone_for_a_day(tmp_path: Path) -> None:
    ship(tmp_path, "f1", 1, dependencies="d1")
    part = tmp_path / "data" / "w9.part"
    part.mkdir()
    app_sets.bring(tmp_path, given("f1", dependencies="d1"))
    assert part.exists()
    os.utime(part, (1, 1))
    app_sets.bring(tmp_path, given("f1", dependencies="d1"))
    assert not part.exists()


def test_what_does_not_fit_is_refused_before_it_is_shipped(tmp_path: Path) -> None:
    wanted = given("f1", data="w1")
    wanted["sets"][0]["bytes"] = 1 << 60
    with pytest.raises(app_sets.Full, match=r"GB are free on .* needed for the app's data: make room there"):
        app_sets.bring(tmp_path, wanted)


def machine(free: int, *sizes: int) -> Machine:
    """A machine with so many bytes free, and data of apps of these sizes."""
    return Machine("c1", facts={"disk_free": free, "disk_path": "/var/lib", "app_data": list(sizes)})


def test_the_folder_of_an_apps_data_is_checked(tmp_path: Path) -> None:
    fill(tmp_path / "words")
    (tmp_path / "empty").mkdir()

    def found(folder: str, app: str = "mine", free: int = 1 << 40, *sizes: int) -> str:
        values = {"app": app, "app_data": folder}
        return " ".join(map(str, app_data.check_app_data(values, tmp_path, [machine(free, *sizes)])))

    assert found("") == found("words") == ""
    assert "app_data=gone is not a folder on this machine: type -e app_data=DIR" in found("gone")
    assert "app_data=words/a.csv is not a folder" in found("words/a.csv")
    assert "app_data=empty is empty" in found("empty")
    assert "is for an app of your own, and none is given: type -e app=path/to/app too" in found("words", "")
    small = found("words", "mine", 1000)
    assert "1000 B are free on /var/lib, and app_data=words has 1003 B: make room there" in small
    assert found("words", "mine", 1000, 1003) == "", "it is there already"
    (tmp_path / "words" / "nowhere").symlink_to("gone")
    assert "app_data=words: nowhere leads to nothing" in found("words")
    assert app_data.folder_of({"app_data": "words"}, tmp_path) == str(tmp_path / "words")
    assert app_data.folder_of({"app_data": ""}, tmp_path) == ""


def test_a_machine_tells_the_sizes_of_the_data_that_it_has(tmp_path: Path) -> None:
    from plugins.modules import machine_facts

    notes = tmp_path / "lab" / "apps" / "by-fab"
    notes.mkdir(parents=True)
    (notes / "a").write_text('{"data": "w", "data_bytes": 1003}')
    (notes / "b").write_text('{"dependencies": "d"}')
    (notes / "c").write_text("half a no")
    assert machine_facts.app_data(str(tmp_path), "lab") == [0, 1003]
    assert machine_facts.app_data(str(tmp_path), "none") == []
