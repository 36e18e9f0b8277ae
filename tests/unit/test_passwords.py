"""Passwords are made once, are nobody's but the owner's, and their hashes follow them."""

from __future__ import annotations

from pathlib import Path

from coldframe.controller.passwords import bcrypt, make


def test_passwords_are_made_once_and_their_owner_alone_reads_them(tmp_path: Path) -> None:
    directory = tmp_path / "monitoring"
    assert make(directory, ["scrape", "prometheus"])
    first = {path.name: path.read_text() for path in directory.iterdir()}
    assert set(first) == {"scrape.password", "scrape.hash", "prometheus.password", "prometheus.hash"}
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700
    assert len(first["scrape.password"]) > 40
    assert first["scrape.password"] != first["prometheus.password"]
    assert first["scrape.hash"] == bcrypt(first["scrape.password"], first["scrape.hash"])
    assert not make(directory, ["scrape", "prometheus"])
    assert {path.name: path.read_text() for path in directory.iterdir()} == first


def test_a_password_of_the_users_own_is_kept(tmp_path: Path) -> None:
    make(tmp_path, ["prometheus"])
    (tmp_path / "prometheus.password").write_text("correct horse\n")
    assert make(tmp_path, ["prometheus"])
    hashed = (tmp_path / "prometheus.hash").read_text()
    assert hashed == bcrypt("correct horse", hashed)
    assert not make(tmp_path, ["prometheus"])
