"""The exporters' page is what Prometheus reads, and their server lets in who knows the password."""

from __future__ import annotations

import base64
import datetime
import http.client
import itertools
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families

from coldframe.controller.passwords import bcrypt
from coldframe.exporters import exposition

FAMILIES = {"a_total": ("counter", "Counts a."), "b": ("gauge", "Is b."), "c": ("gauge", "Is c.")}


def test_the_page_is_what_prometheus_reads() -> None:
    page, other = exposition.Page(FAMILIES), exposition.Page(FAMILIES)
    page.add("b", exposition.labels({"x": 'quote " backslash \\ line \n end'}), 1.5)
    page.add("a_total", "", 3)
    page.add("b", "", None)
    other.add("b", exposition.labels({"x": 2}), 1e-9)
    page.extend(other)
    families = list(text_string_to_metric_families(page.text()))
    assert [(family.name, family.type, family.documentation) for family in families] == [
        ("a", "counter", "Counts a."),
        ("b", "gauge", "Is b."),
    ]
    assert families[0].samples[0].value == 3
    assert [(sample.labels["x"], sample.value) for sample in families[1].samples] == [
        ('quote " backslash \\ line \n end', 1.5),
        ("2", 1e-9),
    ]


def test_a_metric_that_is_not_listed_is_refused() -> None:
    with pytest.raises(KeyError):
        exposition.Page(FAMILIES).add("d", "", 1)


def test_the_exporters_own_use_is_shown() -> None:
    assert "process_cpu_seconds_total" in exposition.own_process()()


def header(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def write_users(directory: Path, password: str) -> Path:
    """Write the file of who may read; its path."""
    path = directory / "users"
    path.write_text(f"coldframe:{bcrypt(password)}\n\n")
    return path


def test_the_guard_admits_the_right_password_alone(tmp_path: Path) -> None:
    guard = exposition.Guard(write_users(tmp_path, "right"))
    for _ in range(2):
        assert guard.admits(header("coldframe", "right"))
        for wrong in (
            None,
            "",
            "Basic",
            "Basic !",
            "Bearer right",
            header("coldframe", "wrong"),
            header("coldframe", "right\0"),
            header("coldframe", ""),
            header("other", "right"),
        ):
            assert not guard.admits(wrong), wrong


def test_a_new_password_holds_at_once_and_the_old_one_no_more(tmp_path: Path) -> None:
    guard = exposition.Guard(write_users(tmp_path, "old"))
    assert guard.admits(header("coldframe", "old"))
    write_users(tmp_path, "new")
    assert not guard.admits(header("coldframe", "old"))
    assert guard.admits(header("coldframe", "new"))
    (tmp_path / "users").unlink()
    assert guard.admits(header("coldframe", "new"))


def test_guesses_cost_next_to_no_cpu_and_hold_up_nobody_who_knows_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for one another, and what is known is not hashed again: the gateway beside them goes on."""
    guard = exposition.Guard(write_users(tmp_path, "right"))
    assert guard.admits(header("coldframe", "right"))
    hashes_made: list[bytes] = []
    crypt, stop = guard._crypt, threading.Event()
    guard._crypt = lambda *words: (hashes_made.append(words[0]), crypt(*words))[1]

    def guess(name: int) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            assert not guard.admits(header("coldframe", f"{name}-{number}"))

    guessers = [
        threading.Thread(target=guess, args=(name,)) for name in range(16)
    ]  # as many as nginx lets through
    begin, used = time.monotonic(), time.process_time()
    for guesser in guessers:
        guesser.start()
    admitted = 0
    while time.monotonic() - begin < 1.2:
        admitted += guard.admits(header("coldframe", "right"))
        time.sleep(0.02)
    seconds, used = time.monotonic() - begin, time.process_time() - used
    tried = len(hashes_made)
    print(f"16 guessers: {tried} guesses and {used:.3f} CPU-s in {seconds:.1f} s, {admitted} readers let in")
    bound = seconds / exposition.WRONG_SECONDS + 1
    monkeypatch.setattr(exposition, "WRONG_SECONDS", 0.0)
    stop.set()
    for guesser in guessers:
        guesser.join()
    assert tried <= bound
    assert admitted > 2 * tried
    assert used < 0.5


def write_certificate(directory: Path, days: int = 30) -> Path:
    """Write machine.key and machine.crt for localhost; the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "machine")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.TraditionalOpenSSL
    (directory / "machine.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    (directory / "machine.crt").write_bytes(certificate.public_bytes(pem))
    return directory / "machine.crt"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server with TLS and a password."""
    certificate = write_certificate(tmp_path)
    server = exposition.Server(
        ("127.0.0.1", 0),
        lambda: "b 1\n",
        exposition.Guard(write_users(tmp_path, "right")),
        exposition.Identity(certificate, tmp_path / "machine.key"),
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_server_demands_tls_and_password_and_keeps_the_connection(port: int, tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(tmp_path / "machine.crt"))
    with closing(http.client.HTTPSConnection("localhost", port, context=context, timeout=10)) as connection:
        socket = None
        for path, password, code, body in [
            ("/metrics", "right", 200, b"b 1\n"),
            ("/metrics", "wrong", 401, b""),
            ("/", "wrong", 401, b""),
            ("/", "right", 404, b""),
            ("/metrics?name=x", "right", 200, b"b 1\n"),
        ]:
            connection.request("GET", path, headers={"Authorization": header("coldframe", password)})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (code, body), path
            assert socket in (None, connection.sock)
            socket = connection.sock
    with closing(http.client.HTTPConnection("localhost", port, timeout=10)) as plain:
        plain.request("GET", "/metrics", headers={"Authorization": header("coldframe", "right")})
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()


def test_a_renewed_certificate_is_shown_to_new_connections(port: int, tmp_path: Path) -> None:
    def shown() -> str:
        return ssl.get_server_certificate(("localhost", port), timeout=10).strip()

    first = (tmp_path / "machine.crt").read_text().strip()
    assert shown() == first
    key = (tmp_path / "machine.key").read_bytes()
    renewed = write_certificate(tmp_path).read_text().strip()
    fitting = (tmp_path / "machine.key").read_bytes()
    (tmp_path / "machine.key").write_bytes(key)  # of the old certificate
    assert shown() == first
    (tmp_path / "machine.key").write_bytes(fitting)
    assert shown() == renewed != first


def test_the_end_of_a_certificate_is_shown_and_read_anew_when_it_is_renewed(tmp_path: Path) -> None:
    path = write_certificate(tmp_path, days=1)
    expiry = exposition.Expiry({"machine": path, "absent": tmp_path / "absent.crt"})

    def ends() -> list[float]:
        page = exposition.Page(exposition.EXPIRY)
        expiry.add(page)
        found = next(iter(text_string_to_metric_families(page.text()))).samples
        assert [sample.labels for sample in found] == [{"certificate": "machine"}]
        return [sample.value for sample in found]

    first = ends()
    write_certificate(tmp_path, days=2)
    assert ends()[0] == pytest.approx(first[0] + 86400, abs=60)
