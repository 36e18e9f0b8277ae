"""nginx reads its files anew where they have changed since it read them, and only then."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coldframe.server import gateway


def stand_in(directory: Path) -> tuple[str, ...]:
    """A program in place of nginx that notes how it is called, and finds a file wrong that says so."""
    script = directory / "nginx"
    wrong = f"[ $1 = -t ] && grep -q wrong {directory}/nginx.conf"
    script.write_text(f"#!/bin/sh\necho $* >>{directory}/calls\nif {wrong}; then exit 1; fi\n")
    script.chmod(0o755)
    return (str(script),)


def test_the_gateway_is_reloaded_where_a_file_has_changed_and_only_then(tmp_path: Path) -> None:
    nginx, read, calls = stand_in(tmp_path), tmp_path / "read", tmp_path / "calls"
    files = [tmp_path / "nginx.conf", tmp_path / "users", tmp_path / "server.crt"]
    files[0].write_text("a")
    files[2].write_text("b")
    gateway.note(files, read)  # as the server does when nginx starts
    assert not gateway.reload(files, read, nginx)
    assert not calls.exists()

    for path, content in [(files[0], "c"), (files[1], "new"), (files[2], "renewed")]:
        path.write_text(content)
        assert gateway.reload(files, read, nginx), path
        assert not gateway.reload(files, read, nginx), path
    assert calls.read_text().split() == ["-t", "-q", "-s", "reload"] * 3


def test_a_wrong_configuration_is_not_loaded_and_is_found_again(tmp_path: Path) -> None:
    nginx, read, config = stand_in(tmp_path), tmp_path / "read", tmp_path / "nginx.conf"
    config.write_text("good")
    gateway.note([config], read)
    config.write_text("wrong")
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            gateway.reload([config], read, nginx)
    assert "reload" not in (tmp_path / "calls").read_text()
    config.write_text("good")
    assert not gateway.reload([config], read, nginx)
