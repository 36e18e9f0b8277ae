"""The app that run.yml is given: a folder, a FAB or a folder of a repository; what is refused, and why."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from coldframe.controller import fab

ROOT = Path(__file__).parents[2]
COUNTING = ROOT / "tests" / "cluster" / "apps" / "counting"
MANIFEST = """
[project]
name = "counting"
version = "1.0.0"
dependencies = ["flwr>=1.41", "Some-Lib==1"]
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "counting.server_app:app"
clientapp = "counting.client_app:app"
[tool.flwr.app.config]
num-server-rounds = 3
rate = 0.1
name = "x"
deep = true
model.width = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An app that can be packed."""
    path = tmp_path / "app"
    (path / "counting").mkdir(parents=True)
    (path / "pyproject.toml").write_text(MANIFEST)
    for name in ("server_app", "client_app"):
        (path / "counting" / f"{name}.py").write_text("app = object()\n")
    return path


def judge(
    given: str, out: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What preflight is told."""
    capsys.readouterr()
    words = [given, str(out / "fabs"), "--cache", str(out / "cache"), "--config", json.dumps(config or {})]
    assert fab.main(words) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def refusal(given: str, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that an app is refused with."""
    told = judge(given, out, capsys)
    assert told["path"] == ""
    ((problem, remedy),) = told["problems"]
    assert "\n" not in problem + remedy
    return f"{problem}: {remedy}"


def test_a_folder_and_its_fab_make_the_same_fab(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = judge(str(folder), tmp_path, capsys)
    assert told["problems"] == []
    assert (told["commit"], told["clean"]) == (None, None)
    packed = Path(told["path"])
    assert packed.stem == hashlib.sha256(packed.read_bytes()).hexdigest()[:16]
    mine = tmp_path / "mine.fab"
    mine.write_bytes(packed.read_bytes())
    assert judge(str(mine), tmp_path, capsys)["path"] == str(packed)
    assert fab.main([str(mine), str(tmp_path / "fabs")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(packed)


def test_our_own_app_is_packed_once_for_each_state_of_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again where its FAB was removed or damaged."""
    monkeypatch.setattr(fab, "ROOT", folder)
    monkeypatch.setattr(fab, "MADE_FROM", ("pyproject.toml", "counting"))
    packed = []
    pack = fab.pack
    monkeypatch.setattr(fab, "pack", lambda *words: (packed.append(1), pack(*words))[1])

    def own() -> Path:
        assert fab.main([str(folder), str(tmp_path / "fabs")]) == 0
        return Path(capsys.readouterr().out.splitlines()[-1])

    first = own()
    assert own() == own() == first and len(packed) == 1
    first.unlink()
    assert own() == first and first.exists() and len(packed) == 2
    (folder / "counting" / "client_app.py").write_text("app = 2\n")
    second = own()
    assert second != first and len(packed) == 3
    second.write_bytes(b"damaged")
    assert own() == second and len(packed) == 4
    assert second.stem == hashlib.sha256(second.read_bytes()).hexdigest()[:16]


def test_a_folder_of_a_repository_has_its_commit_and_a_change_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its path, and by its address with a branch, a tag and a commit; what was fetched once is here."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", "app")
    git("commit", "--quiet", "-m", "first")
    git("tag", "-m", "a tag with a note", "v1")
    first = git("rev-parse", "HEAD")
    (folder / "counting" / "client_app.py").write_text("app = 1\n")
    changed = judge(str(folder), tmp_path, capsys)
    assert (changed["commit"], changed["clean"]) == (first, False)
    git("commit", "--quiet", "--all", "-m", "second")
    second = git("rev-parse", "HEAD")
    # What is not of the app does not make it another one.
    (tmp_path / "notes.txt").write_text("")
    assert judge(str(folder), tmp_path, capsys) | {"problems": []} == {
        **changed,
        "commit": second,
        "clean": True,
    }
    url = f"git+file://{tmp_path}"
    for ref, commit in (("", second), ("@main", second), ("@v1", first), (f"@{first}", first)):
        told = judge(f"{url}{ref}#subdirectory=app", tmp_path, capsys)
        assert (told["commit"], told["clean"], told["problems"]) == (commit, True, [])
        assert (told["path"] == changed["path"]) == (commit == second)
    (tmp_path / ".git").rename(tmp_path / "away")
    assert judge(f"{url}@{first}#subdirectory=app", tmp_path, capsys)["commit"] == first
    gone = refusal(f"{url}@main#subdirectory=app", tmp_path, capsys)
    assert gone.startswith("git could not fetch app=git+file://")
    assert f"type git ls-remote file://{tmp_path}" in gone
    (tmp_path / "away").rename(tmp_path / ".git")
    nowhere = refusal(f"{url}#subdirectory=apps", tmp_path, capsys)
    assert f"there is no folder apps in commit {second[:12]}: correct what follows subdirectory=" in nowhere
    assert "(a whole one)" in refusal(f"{url}@{first[:8]}#subdirectory=app", tmp_path, capsys)


def test_a_link_of_a_repository_that_leads_out_of_it_is_not_followed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take a file of the controller along."""
    (folder / "counting" / "notes.md").symlink_to("/etc/hostname")
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=me", "-c", "user.email=m", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    assert "cannot be unpacked" in refusal(f"git+file://{folder}", tmp_path, capsys)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("git+https://me:secret@example.org/a.git", "the address of app= has a login in it: leave it out"),
        ("git+ext::sh -c id", "is no address of a git repository: type -e 'app=git+https://HOST/"),
        ("git+https://example.org", "is no address of a git repository"),
        ("git+https://example.org/a@--upload-pack=x", "has no branch, tag or commit after its @"),
        ("git+https://example.org/a#subdir=x", "has after its # something else than subdirectory=DIR"),
        ("git+https://example.org/a#subdirectory=x/../..", "leads out of its repository"),
        ("git+https://example.org/a?ref=x", "has a ?: a # comes before subdirectory"),
        (
            "https://example.org/a.git",
            "is no folder and no file: type -e 'app=git+https://example.org/a.git'",
        ),
        ("nowhere", "app=nowhere is no folder and no file: type -e app=DIR with the folder of a Flower app"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_without_asking_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, words: str
) -> None:
    told = refusal(given, tmp_path, capsys)
    assert words in told
    assert "secret" not in told
    assert not (tmp_path / "cache").exists()


def broken(manifest: str, **files: str) -> dict[str, str | None]:
    """The files of an app by their names, with __ for /; None takes one away."""
    named = {name.replace("__", "/") + ".py": text for name, text in files.items()}
    return {"pyproject.toml": manifest, **named}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pyproject.toml": None}, "is no Flower app: there is no {app}/pyproject.toml: type -e app=DIR"),
        (broken("a = ["), "{app}/pyproject.toml cannot be read ("),
        (broken("[project]"), "is no Flower app: its pyproject.toml has no [tool.flwr.app]: type -e app=DIR"),
        (
            broken("[tool.flwr.app]\npublisher = 'me'"),
            "{app}/pyproject.toml has no [tool.flwr.app.components]: write there serverapp = ",
        ),
        (
            broken(MANIFEST.replace("clientapp =", "client =")),
            'of {app} has no clientapp: write clientapp = "PACKAGE.MODULE:app"',
        ),
        (
            broken(MANIFEST.replace("client_app:app", "client_app")),
            'has clientapp = "counting.client_app" as its',
        ),
        (
            broken(MANIFEST.replace("client_app:app", "clients:app")),
            "names a module that is not in the app: there is no counting/clients.py: correct [tool.flwr",
        ),
        (
            broken(MANIFEST.replace('"somebody"', '"somebody"\nfab-exclude = ["counting/client_app.py"]')),
            "there is no counting/client_app.py: take it into fab-include of [tool.flwr.app], and out of",
        ),
        (
            broken(MANIFEST, counting__client_app="apps = 1"),
            "counting/client_app.py defines no app: did you mean apps?",
        ),
        (broken(MANIFEST, counting__client_app="def"), "counting/client_app.py of {app} is no Python ("),
        (
            broken(MANIFEST.replace('version = "1.0.0"', "")),
            "cannot be packed: Invalid Flower App configuration",
        ),
        (
            broken(MANIFEST.replace('"somebody"', '"somebody"\nfab-include = ["none/*.py"]')),
            'cannot be packed: Pattern in "fab-include" did not match any files',
        ),
    ],
)
def test_an_app_that_cannot_run_is_refused_with_what_to_type(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str | None],
    words: str,
) -> None:
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)
    assert words.format(app=folder) in refusal(str(folder), tmp_path, capsys)


def test_names_that_a_module_gets_in_other_ways_are_left_to_flower(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported, unpacked, made under a condition or by a star; a module of a package that it depends on."""
    client = folder / "counting" / "client_app.py"
    for text in (
        "from counting.x import app\n",
        "import a.b as app\n",
        "if 1:\n    app, b = 1, 2\n",
        "from counting.x import *\n",
        "def __getattr__(name): ...\n",
        "class app: ...\n",
    ):
        client.write_text(text)
        assert judge(str(folder), tmp_path, capsys)["problems"] == []
    manifest = MANIFEST.replace("counting.client_app:app", "some_lib.clients:app")
    (folder / "pyproject.toml").write_text(manifest)
    assert judge(str(folder), tmp_path, capsys)["problems"] == []


def test_a_large_app_is_refused_with_its_largest_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = "".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(400_000))  # packed: a half
    (folder / "counting" / "table.json").write_text(digits)
    told = refusal(str(folder), tmp_path, capsys)
    assert "and Flower takes 10.5 MB: counting/table.json (25.6 MB), " in told
    assert "leave files out with fab-exclude in [tool.flwr.app]" in told


def test_a_fab_that_is_none_or_was_changed_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Path(judge(str(folder), tmp_path, capsys)["path"]).read_bytes()
    path = tmp_path / "x.fab"

    def told(content: bytes) -> str:
        path.write_bytes(content)
        return refusal(str(path), tmp_path, capsys)

    def without(name: str, **more: str) -> bytes:
        with zipfile.ZipFile(tmp_path / "good", "w") as target:
            path.write_bytes(good)
            with zipfile.ZipFile(path) as source:
                for item in source.namelist():
                    if item != name:
                        target.writestr(item, more.get("text") or source.read(item))
        return (tmp_path / "good").read_bytes()

    again = "make it again (flwr build), or type -e app=DIR with the folder of the app"
    assert told(b"no zip") == f"app={path} is no FAB: File is not a zip file: {again}"
    assert told(good[: len(good) // 2]) == f"app={path} is no FAB: File is not a zip file: {again}"
    assert (
        told(without("pyproject.toml")) == f"app={path} is no FAB: there is no pyproject.toml in it: {again}"
    )
    assert "there is no .info/CONTENT in it" in told(without(".info/CONTENT"))
    assert "counting/client_app.py in app=" in told(without("counting/client_app.py"))
    damaged = bytearray(good)
    damaged[good.index(b"server_app.py") + 20] ^= 0xFF
    assert f"app={path} is " in told(bytes(damaged))
    with zipfile.ZipFile(tmp_path / "foreign", "w") as target:
        text = "[project]\nname = 'x'"
        target.writestr("pyproject.toml", text)
        target.writestr(".info/CONTENT", f"pyproject.toml,{hashlib.sha256(text.encode()).hexdigest()},8")
    assert "has no [tool.flwr.app]: type" in told((tmp_path / "foreign").read_bytes())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num-server-rounds": 5, "rate": 1, "name": "y", "deep": False, "model": {"width": 2}}, []),
        ({"model.width": 2}, []),
        (
            {"num-server-round": 5},
            ["key num-server-round, which [tool.flwr.app.config]", "mean num-server-rounds?"],
        ),
        ({"zzz": 5}, ["it has num-server-rounds, rate, name, deep, model.width."]),
        (
            {"num-server-rounds": "5"},
            [
                'num-server-rounds="5", which is a text, and',
                "has a whole number there",
                '"num-server-rounds": 5}',
            ],
        ),
        ({"num-server-rounds": "five"}, ['type -e \'{"run_config": {"num-server-rounds": 3}}\'']),
        ({"num-server-rounds": 2.0}, ["which is a number", '"num-server-rounds": 2}']),
        ({"num-server-rounds": True}, ["which is true or false"]),
        ({"num-server-rounds": 10**30}, ["has a whole number there", '"num-server-rounds": 3}']),
        ({"rate": "0.5"}, ["has a number there", '{"rate": 0.5}']),
        ({"name": 7}, ["has a text there", '{"name": "7"}']),
        ({"deep": "false"}, ["has true or false there", '{"deep": false}']),
        ({"rate": [1]}, ["rate=[1], which is a list"]),
        ({"rate": None}, ["rate=null, which is nothing"]),
        ({"model": {"width": "wide"}}, ["model.width="]),
    ],
)
def test_a_configuration_is_judged_by_the_manifest_of_folder_and_fab(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    words: list[str],
) -> None:
    packed = judge(str(folder), tmp_path, capsys)["path"]
    for given in (str(folder), packed):
        problems = judge(given, tmp_path, capsys, config)["problems"]
        assert len(problems) == bool(words)
        assert all(word in ": ".join(problems[0]) for word in words)
