"""What an app depends on: resolved for the image and installed with the real uv, from wheels made here."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import dependencies
from coldframe.controller.dependencies import Image, Unresolved
from coldframe.recording import packages
from tests.unit.wheels import write_wheel

IMAGE: dict[str, Any] = {
    "python": "3.11.2",
    "machine": "x86_64",
    "glibc": "2.36",
    "packages": {
        "flwr": {"version": "1.41.0"},
        "torch": {"version": "2.13.0+cpu"},
        "numpy": {"version": "2.4.6"},
        "fsspec": {"version": "2026.3"},
        "httpx": {"version": "0.28.1", "extras": ["h2<5,>=3; extra == 'http2'"]},
    },
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that uv finds."""
    for name in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setattr(dependencies, "pip_settings", dict)
    write_wheel(tmp_path / "index", "leaf", "1.0", leaf="version = 1")
    write_wheel(tmp_path / "index", "leaf", "2.0", leaf="version = 2")
    write_wheel(tmp_path / "index", "tree", "1.0", ["leaf", "numpy>=2", "torch"], tree="import leaf")
    write_wheel(tmp_path / "index", "h2", "4.0", h2="")
    write_wheel(tmp_path / "index", "old", "1.0", ["numpy<2"], old="")
    return tmp_path / "index"


def write_fab(path: Path, wanted: list[str], **project: Any) -> Path:
    """Write an archive with a manifest, which is all of a FAB that is read here."""
    lines = ["[project]", 'name = "x"', f"dependencies = {json.dumps(wanted)}"]
    lines += [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in project.items()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pyproject.toml", "\n".join(lines))
    return path


def prepare(tmp_path: Path, wanted: list[str], **project: Any) -> tuple[dict[str, Any], list[str]]:
    """Call the program as the play does; its answer, and the lines before."""
    fab = write_fab(tmp_path / "app.fab", wanted, **project)
    code = (
        "import sys; from coldframe.controller import dependencies; dependencies.pip_settings = dict;"
        "sys.exit(dependencies.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, str(fab), str(tmp_path / "cache"), json.dumps(IMAGE)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *lines, answer = done.stdout.splitlines()
    return json.loads(answer), lines


def test_only_what_the_image_lacks_is_installed_without_a_word_of_its_packages(
    index: Path, tmp_path: Path
) -> None:
    answer, lines = prepare(tmp_path, ["flwr[simulation]>=1.24", "numpy", "torch", "tree"])
    assert answer["error"] == ""
    assert answer["packages"] == ["leaf==2.0", "tree==1.0"]
    assert "fetching 2 packages: leaf==2.0, tree==1.0" in lines
    found = {path.name for path in Path(answer["path"]).iterdir()}
    assert found == {"leaf.py", "leaf-2.0.dist-info", "tree.py", "tree-1.0.dist-info"}
    assert answer["bytes"] == sum(
        path.stat().st_size for path in Path(answer["path"]).rglob("*") if path.is_file()
    )


def test_the_second_time_nothing_is_resolved_or_fetched(index: Path, tmp_path: Path) -> None:
    first, _ = prepare(tmp_path, ["tree"])
    (tmp_path / "cache" / "sets" / first["name"] / "kept").touch()
    second, lines = prepare(tmp_path, ["tree"])
    assert {**second, "fab_hash": ""} == {**first, "fab_hash": ""}
    assert lines == []
    assert (Path(second["path"]) / "kept").exists()
    # A wheel of the same version with other contents is another set.
    write_wheel(index, "leaf", "2.0", leaf="version = 'mended'")
    third, _ = prepare(tmp_path, ["tree"])
    assert third["name"] != first["name"]
    assert "mended" in (Path(third["path"]) / "leaf.py").read_text()


def test_the_name_of_a_set_tells_its_contents(index: Path, tmp_path: Path) -> None:
    names = {
        tuple(wanted): prepare(tmp_path, wanted)[0]["name"] for wanted in (["leaf<2"], ["leaf"], ["leaf>=2"])
    }
    assert names["leaf",] == names["leaf>=2",] != names["leaf<2",]


def test_an_app_that_the_image_satisfies_brings_nothing(tmp_path: Path) -> None:
    """No uv is called: there is no index at all."""
    answer, lines = prepare(tmp_path, ["flwr @ {root:parent}/flwr", "numpy>=1.26", "torch==2.13.0"])
    assert (answer["name"], answer["packages"], answer["error"], lines) == ("", [], "", [])
    assert not (tmp_path / "cache").exists()


def test_a_pin_that_differs_from_the_image_is_a_warning(tmp_path: Path) -> None:
    answer, lines = prepare(tmp_path, ["torch==2.8.0", "numpy<2"], requires_python=">=3.12")
    assert answer["error"] == answer["name"] == ""
    assert lines == [
        "warning: the app requires Python >=3.12, and the image has 3.11.2",
        "warning: the app asks for torch==2.8.0, and gets torch 2.13.0+cpu, which the image has",
        "warning: the app asks for numpy<2, and gets numpy 2.4.6, which the image has",
    ]


def test_a_package_that_wants_another_version_of_the_images_is_refused_in_uvs_words(
    index: Path, tmp_path: Path
) -> None:
    answer, _ = prepare(tmp_path, ["old"])
    assert "all versions of old depend on numpy<2" in answer["error"]
    assert "The image has numpy 2.4.6, and keeps them." in answer["error"]
    assert "Change [project].dependencies" in answer["error"]
    assert not list((tmp_path / "cache" / "sets").iterdir())
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"sets", "resolved", "lock"}


def test_what_works_with_another_version_than_it_names_is_a_warning(index: Path, tmp_path: Path) -> None:
    """As Hugging Face's datasets with fsspec: the image's stays, and what its extra needs comes along."""
    write_wheel(index, "fsspec", "2025.1", ["leaf; extra == 'http'"], fsspec="")
    write_wheel(index, "datasets", "4.0", ["fsspec[http]<2026"], datasets="")
    answer, lines = prepare(tmp_path, ["datasets"])
    assert answer["packages"] == ["datasets==4.0", "leaf==2.0"]
    assert "warning: fsspec 2025.1 is asked for, and the app gets 2026.3, which the image has" in lines


def test_a_package_that_is_nowhere_is_named(index: Path, tmp_path: Path) -> None:
    answer, _ = prepare(tmp_path, ["no-such-package"])
    assert "no-such-package was not found" in answer["error"]


def test_an_extra_of_a_package_of_the_image_brings_what_the_extra_needs(index: Path, tmp_path: Path) -> None:
    assert prepare(tmp_path, ["httpx[http2]"])[0]["packages"] == ["h2==4.0"]


def test_markers_are_those_of_the_image() -> None:
    image = Image(**{**IMAGE, "python": "3.12.1", "machine": "aarch64", "glibc": "2.41"})
    wanted = ["a; python_version < '3.12'", "b; platform_machine == 'aarch64'", "c; sys_platform == 'win32'"]
    assert dependencies.needed({"dependencies": wanted}, image) == ([wanted[1]], [])
    assert image.platform == "aarch64-manylinux_2_40"
    assert Image(**IMAGE).platform == "x86_64-manylinux_2_36"


def test_a_dependency_that_cannot_be_read_is_named() -> None:
    with pytest.raises(Unresolved, match=r"'scipy=1' .* cannot be read: write it like scipy>=1\.10"):
        dependencies.needed({"dependencies": ["scipy=1"]}, Image(**IMAGE))


def test_pips_settings_become_those_of_uv() -> None:
    lines = [
        "global.index-url='https://a.example/simple'",
        "global.extra-index-url='https://b.example/simple\\nhttps://c.example/simple'",
        "global.find-links='/one /two'",
        "global.trusted-host='b.example'",
        "global.timeout='60'",
        ":env:.index-url='https://d.example/simple'",
    ]
    assert dependencies.as_uv(lines) == {
        "UV_DEFAULT_INDEX": "https://d.example/simple",
        "UV_INDEX": "https://b.example/simple https://c.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/one,/two",
        "UV_INSECURE_HOST": "b.example",
    }
    assert dependencies.as_uv(["global.no-index='true'"]) == {"UV_NO_INDEX": "1"}


def test_what_the_user_has_set_for_uv_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "pip_settings", lambda: {"UV_DEFAULT_INDEX": "a", "UV_FIND_LINKS": "b"})
    monkeypatch.setenv("UV_INDEX_URL", "c")
    monkeypatch.setenv("UV_FIND_LINKS", "d")
    found = dependencies.environment()
    assert "UV_DEFAULT_INDEX" not in found
    assert (found["UV_INDEX_URL"], found["UV_FIND_LINKS"]) == ("c", "d")


def test_the_sets_that_were_used_last_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        dependencies.os.utime(tmp_path / str(number), (number, number))
    dependencies.prune(tmp_path, kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_an_image_says_what_it_holds(tmp_path: Path) -> None:
    write_wheel(tmp_path, "half-done", "1.0", ["b; extra == 'more'", "c>=1"])
    with zipfile.ZipFile(tmp_path / "half_done-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "site")
    found = packages.packages([str(tmp_path / "site")])
    assert found == {"half-done": {"version": "1.0", "extras": ["b; extra == 'more'"]}}
    done = subprocess.run(
        [sys.executable, "-m", "coldframe.recording.packages"], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["running"] == []
    assert Image(**answer["image"]).version("flwr")
