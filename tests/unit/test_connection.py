"""The connection from the command flwr to a SuperLink that nothing publishes; its end, and who may use it."""

from __future__ import annotations

import os
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.flower_config import read_superlink_connection

from coldframe.controller import connection, flower_config
from coldframe.controller.connection import ConnectionFailed, close_connection, open_connection, owner
from coldframe.server import relay
from tests.unit.tls import Link, ask, ends

MINE = """# mine
[superlink]
default = "lab"  # stays

[superlink.lab]
address = "example.org:1"
"""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """A server that lasts as long as the test."""
    with Link(tmp_path).serving() as serving:
        yield serving


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a connection has its state; the configuration of flwr is the test's own."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    directory = tmp_path / "state" / "connection"
    yield directory
    close_connection(directory, "cold")


def test_it_opens_once_carries_bytes_both_ways_and_leaves_nothing(link: Link, place: Path) -> None:
    opened = open_connection(place, "cold", link.relay())
    assert opened["changed"]
    trusted = place / "superlink.crt"
    found = read_superlink_connection("cold")  # as flwr reads it, beside what it makes itself
    assert (found.address, found.root_certificates) == (f"127.0.0.1:{opened['port']}", str(trusted))
    assert read_superlink_connection("local").address == ":local:"
    large = b"a" * 3_000_000
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(opened["port"], trusted, large))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [large.upper()] * 3
    again = open_connection(place, "cold", link.relay())
    assert again == {**opened, "changed": False}
    assert (place.stat().st_mode & 0o777, (place / "state.json").stat().st_mode & 0o777) == (0o700, 0o600)
    assert close_connection(place, "cold")
    assert ends(opened["pid"])
    assert "cold" not in flower_config.connections(flower_config.path().read_text())
    with pytest.raises(ConnectionRefusedError):
        ask(opened["port"], trusted, b"a")
    assert not close_connection(place, "cold")
    # What was noted of the address stays right.
    assert open_connection(place, "cold", link.relay())["port"] == opened["port"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_controller_gets_no_answer(link: Link, place: Path) -> None:
    opened = open_connection(place, "cold", link.relay())
    link.certificate.parent.chmod(0o755)
    with pytest.raises(ConnectionError):
        ask(opened["port"], link.certificate, b"a", user=65534)
    assert ask(opened["port"], link.certificate, b"a") == b"A"


def test_an_end_belongs_to_the_user_whose_process_holds_it(tmp_path: Path) -> None:
    """Not to the user of another connection, and to nobody once it is closed."""
    table = tmp_path / "tcp"
    queues = "00000000:00000000 00:00000000 00000000"
    row = "{n}: 0100007F:{peer:04X} 0100007F:1F90 {state} " + queues + " {uid} 0 {inode} 1"
    rows = [(1000, "01", 7, 501), (1001, "01", 8, 502), (1002, "06", 0, 0), (1003, "01", 0, 0)]
    lines = [
        row.format(n=n, peer=peer, state=state, uid=uid, inode=inode)
        for n, (peer, state, inode, uid) in enumerate(rows)
    ]
    table.write_text("sl local rem st\n" + "\n".join(lines) + "\n")
    assert [owner(8080, peer, table) for peer in (1000, 1001, 1002, 1003, 1004)] == [
        501,
        502,
        None,
        None,
        None,
    ]
    assert owner(8081, 1000, table) is None


def test_a_superlink_that_was_started_anew_is_trusted_again(tmp_path: Path, place: Path) -> None:
    link = Link(tmp_path)
    with link.serving():
        opened = open_connection(place, "cold", link.relay())
        old = (place / "superlink.crt").read_text()
    assert not connection.answers(place, "cold")
    with link.serving():
        again = open_connection(place, "cold", link.relay())
        assert (again["pid"], again["changed"]) == (opened["pid"], False)
        assert (place / "superlink.crt").read_text() != old
        assert ask(opened["port"], place / "superlink.crt", b"a") == b"A"


def test_a_way_that_has_changed_is_taken_anew(link: Link, place: Path) -> None:
    first = open_connection(place, "cold", link.relay())
    second = open_connection(place, "cold", link.relay("true;"))
    assert second["changed"] and second["pid"] != first["pid"] and ends(first["pid"])


@pytest.mark.parametrize("asks", [True, False], ids=["asks", "does not ask"])
def test_sudo_is_told_its_password_and_the_server_never(
    link: Link, place: Path, tmp_path: Path, asks: bool
) -> None:
    """Sudo reads a line, or, where it remembers, none; and what the shell says first is no greeting."""
    (tmp_path / "password").write_text("se cret")
    sudo = f'read -r word; [ "$word" = "$(cat {tmp_path}/password)" ] || exit 1;'
    before = f"echo BECOME-SUCCESS-abc; {sudo if asks else ''}"
    opened = open_connection(place, "cold", link.relay(before), "se cret")
    assert ask(opened["port"], place / "superlink.crt", b"a") == b"A"
    assert not any(b"se cret" in path.read_bytes() for path in place.iterdir())


def test_what_cannot_be_reached_is_said_with_its_reason(place: Path, tmp_path: Path) -> None:
    gone = ["/bin/sh", "-c", "echo No such container >&2; exit 1"]
    for command, why in ((gone, "No such"), (Link(tmp_path, 1).relay(), "the SuperLink does not answer")):
        with pytest.raises(ConnectionFailed, match=rf"does not answer \({why}.*\): see {place}/log"):
            open_connection(place, "cold", command)
        assert not connection.is_open(place)
    assert not flower_config.path().exists()


def test_a_connection_of_somebody_elses_name_is_left_alone(link: Link, place: Path) -> None:
    file = flower_config.path()
    file.parent.mkdir()
    file.write_text(MINE)
    for name, what in (("lab", "[superlink.lab]"), ("default", "the key default of [superlink]")):
        with pytest.raises(
            ConnectionFailed, match="rename it there, or type export FLWR_HOME=DIR"
        ) as refused:
            open_connection(place, name, link.relay())
        assert f"{file} has {what} already" in str(refused.value)
    close_connection(place, "lab")
    assert file.read_text() == MINE
    file.write_text("a = [")
    with pytest.raises(ConnectionFailed, match="it is not valid TOML"):
        open_connection(place, "cold", link.relay())


def test_a_connection_that_was_killed_is_cleared_away(link: Link, place: Path) -> None:
    opened = open_connection(place, "cold", link.relay())
    os.kill(opened["pid"], 9)
    while connection.is_open(place):
        time.sleep(0.02)
    assert not close_connection(place, "cold")
    assert "cold" not in flower_config.connections(flower_config.path().read_text())


def test_a_process_that_only_has_its_id_is_never_ended(link: Link, place: Path) -> None:
    """The lock's file was left by a process of before, whose id is another's now."""
    open_connection(place, "cold", link.relay())
    pid = (place / "lock").read_text()
    (place / "lock").write_text(str(os.getpid()))
    assert connection.holder(place) is None
    (place / "lock").write_text(pid)
    assert connection.holder(place) == int(pid)


def test_only_the_lines_of_the_connection_change(tmp_path: Path) -> None:
    entry = {"address": "127.0.0.1:7", "root-certificates": "/a b/c.crt"}
    once = flower_config.put(MINE, "cold", entry)
    assert once.startswith(MINE)
    assert tomllib.loads(once)["superlink"]["cold"] == entry
    assert flower_config.put(once, "cold", {**entry, "address": "x:8"}).count("[superlink.cold]") == 1
    assert flower_config.put(once, "cold", None) == MINE
    more = once + '\n[superlink."cold".options]\nnum-supernodes = 2\n\n[superlink.colder]\naddress = "y"\n'
    left = flower_config.put(more, "cold", None)
    assert set(flower_config.connections(left)) == {"default", "lab", "colder"}
    for other in ('superlink.cold.address = "x"\n', '[superlink]\ncold = {address = "x"}\n'):
        with pytest.raises(ValueError, match=r"is not written as \[superlink.cold\]"):
            flower_config.put(other, "cold", None)
    real = tmp_path / "real.toml"
    real.write_text(MINE)
    real.chmod(0o600)
    (tmp_path / "config.toml").symlink_to(real)
    flower_config.update(tmp_path / "config.toml", "cold", entry)
    assert (tmp_path / "config.toml").is_symlink() and real.read_text() == once
    assert real.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sent", "came"),
    [(b"BEGIN\n", True), (b"pass word\nBEGIN\n", True), (b"BEGIN", False), (b"x" * 9999, False)],
)
def test_the_relay_waits_for_the_line_that_begins_the_connection(sent: bytes, came: bool) -> None:
    rest = bytearray(sent + (b"\x16tls" if came else b""))

    def read(count: int) -> bytes:
        data = bytes(rest[:count])
        del rest[:count]
        return data

    assert relay.wait_for_begin(read) is came
    assert not came or bytes(rest) == b"\x16tls"
    assert (relay.BEGIN, relay.GREETING) == (connection.BEGIN, connection.GREETING)


def test_closing_says_whether_there_was_one(
    link: Link, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for expected in ("closed", "was not open"):
        if expected == "closed":
            open_connection(place, "cold", link.relay())
        assert connection.main(["close", str(place), "cold"]) == 0
        assert capsys.readouterr().out.strip() == expected
