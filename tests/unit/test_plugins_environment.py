"""Tests of scripts/checkout_venv.py: checkouts share packages, and each has its own coldframe."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import checkout_venv
from tests.environment import SHARED, make

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the path by which the tests on another Python find this checkout."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkouts of one user, with what the callback needs; the path of one has a space."""
    found = []
    for name in ("one", "the other"):
        checkout = tmp_path_factory.mktemp("checkouts") / name
        for part in ("coldframe", "fl", "plugins"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("ansible.cfg", "scripts/checkout_venv.py"):
            (checkout / part).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, checkout / part)
        (checkout / "play.yml").write_text("[{hosts: localhost, gather_facts: false, tasks: []}]")
        assert make(checkout).returncode == 0
        found.append(checkout)
    return found


def play(environment: Path, checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [str(environment / "bin" / "ansible-playbook"), "-i", "localhost,", "play.yml"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def test_each_checkout_has_its_own_coldframe(checkouts: list[Path]) -> None:
    for checkout in checkouts:
        python = str(checkout / ".venv" / "bin" / "python")
        code = "import coldframe, ansible; print(coldframe.__file__, ansible.__file__, sep='\\n')"
        done = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=True)
        ours, ansibles = map(Path, done.stdout.splitlines())
        assert ours == checkout / "coldframe" / "__init__.py"
        assert ansibles.is_relative_to(SHARED)
        done = play(checkout / ".venv", checkout)
        assert "PLAY RECAP" in done.stdout, done.stderr


def test_an_environment_of_another_checkout_says_what_to_type(checkouts: list[Path]) -> None:
    one, other = checkouts
    done = play(other / ".venv", one)
    assert done.returncode == 1
    assert f"has coldframe of {other}: it is of another virtual environment. Type .venv/bin" in done.stderr
    done = play(SHARED, one)
    assert (done.returncode, "lacks coldframe" in done.stderr) == (1, True)
    assert f"pip install --no-deps -e {one}" in done.stderr


def test_it_is_made_again_where_the_checkout_has_moved_and_only_then(checkouts: list[Path]) -> None:
    made = (checkouts[0] / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
    assert make(checkouts[0]).returncode == 0
    assert (checkouts[0] / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made
    moved = checkouts[0].rename(checkouts[0].with_name("moved"))
    assert make(moved).returncode == 0
    assert play(moved / ".venv", moved).returncode == 0


def test_an_environment_of_the_users_own_is_kept(checkouts: list[Path]) -> None:
    own = checkouts[1] / ".venv"
    (own / ".checkout").unlink()
    done = make(checkouts[1])
    assert done.returncode != 0
    assert "is an environment of your own: move it away" in done.stderr
    assert (own / "pyvenv.cfg").exists()


def test_a_checkout_that_cannot_be_written_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But an environment that is as it should be is not made again."""
    checkout_venv.make(tmp_path / ".venv", SHARED)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    checkout_venv.make(tmp_path / ".venv", SHARED)
    (tmp_path / ".venv" / ".checkout").unlink()
    (tmp_path / ".venv").rename(tmp_path / "moved")
    with pytest.raises(
        SystemExit, match=rf"{tmp_path} is not writable: type cp -r {tmp_path} ~/coldframe && "
    ):
        checkout_venv.make(tmp_path / ".venv", SHARED)
    assert not (tmp_path / ".venv").exists()
