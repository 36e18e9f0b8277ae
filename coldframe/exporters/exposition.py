"""What the exporters share: a page of metrics, and the server that shows it, with TLS and a password.

prometheus-client formats a thousand series in some 11 ms, most of them spent on labels that are the same at
each scrape. A page takes each sample as text whose labels were made once.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import ctypes.util
import hmac
import http.server
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WRONG_SECONDS = 0.5  # between two passwords that are tried
IDLE = 120.0  # seconds that a connection may be silent; Prometheus keeps its own open between scrapes
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

# By metric: type (gauge or counter) and what it says.
Families = Mapping[str, tuple[str, str]]


def labels(pairs: Mapping[str, object]) -> str:
    r"""Return labels as text, without braces.

    >>> labels({"client": 'a"b', "partition": 0})
    'client="a\\"b",partition="0"'
    """
    return ",".join(f'{name}="{str(value).translate(ESCAPES)}"' for name, value in pairs.items())


class Page:
    """Samples, to be read by Prometheus; those of a metric stand together, as the format demands.

    Parameters
    ----------
    families : mapping
        Every metric that may occur; one that is not listed is refused.
    """

    def __init__(self, families: Families) -> None:
        self.families = families
        self.samples: dict[str, list[str]] = {name: [] for name in families}

    def add(self, name: str, text: str, value: float | None) -> None:
        """Add a sample whose labels are ``text``; None is no sample."""
        if value is not None:
            self.samples[name].append(f"{name}{{{text}}} {value}\n")

    def extend(self, other: Page) -> None:
        """Add all samples of another page."""
        for name, lines in other.samples.items():
            self.samples[name] += lines

    def text(self) -> str:
        """Return the page."""
        parts = []
        for name, lines in self.samples.items():
            if lines:
                kind, words = self.families[name]
                parts.append(f"# HELP {name} {words}\n# TYPE {name} {kind}\n")
                parts += lines
        return "".join(parts)


def own_process() -> Callable[[], str]:
    """Return a function that gives the exporter's own CPU time, memory and files (process_*)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry).decode()


class Guard:
    """Lets through who knows the password.

    Parameters
    ----------
    users : Path
        A file of lines `name:bcrypt hash`; read anew when it has changed, so that a
        new password needs no restart.
    """

    def __init__(self, users: Path) -> None:
        self.path = users
        self.changed = 0
        self.users: dict[str, str] = {}
        self.known: set[str] = set()  # one hash per header, not one per scrape
        self.refresh()
        library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
        library.crypt.restype = ctypes.c_char_p
        self._crypt = library.crypt
        self._lock = threading.Lock()  # crypt(3) answers in a buffer of its own

    def refresh(self) -> None:
        """Read the file if it is another than before; one that is gone admits whom it admitted."""
        with contextlib.suppress(OSError):
            changed = self.path.stat().st_mtime_ns
            if changed != self.changed:
                lines = self.path.read_text().splitlines()
                self.users = dict(line.strip().split(":", 1) for line in lines if ":" in line)
                self.known, self.changed = set(), changed

    def admits(self, header: str | None) -> bool:
        """Return whether an Authorization header is right."""
        self.refresh()
        if not header or not header.startswith("Basic "):
            return False
        if header in self.known:
            return True
        try:
            name, _, password = base64.b64decode(header[6:], validate=True).decode().partition(":")
        except ValueError:
            return False
        expected = self.users.get(name)
        if expected is None or "\0" in password:
            return False
        with self._lock:
            found = self._crypt(password.encode(), expected.encode())
            if not found or not hmac.compare_digest(found, expected.encode()):
                time.sleep(WRONG_SECONDS)  # the next guess waits for it: guessing must not use up the CPU
                return False
        self.known.add(header)
        return True


class Server(http.server.ThreadingHTTPServer):
    """Shows `/metrics`, and nothing else.

    Parameters
    ----------
    page : callable
        Makes the text; one call at a time.
    guard : Guard, optional
        Without one everybody is let through: for a loopback alone.
    identity : Identity, optional
        Without one the connection is plain: for a loopback alone.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        page: Callable[[], str],
        guard: Guard | None = None,
        identity: Identity | None = None,
    ) -> None:
        super().__init__(address, Handler)
        self.page, self.guard, self.identity = page, guard, identity
        self.turn = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, under the certificate that stands now."""
        connection, address = super().get_request()
        return (self.identity.shown(connection) if self.identity else connection), address

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of callers that break off or do not speak TLS; of our own errors, all."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE
    wbufsize = -1  # head and body in one write

    def do_GET(self) -> None:
        """Answer."""
        server = self.server
        assert isinstance(server, Server)
        if server.guard and not server.guard.admits(self.headers.get("Authorization")):
            self.reply(401, b"", ("WWW-Authenticate", 'Basic realm="metrics"'))
        elif self.path.partition("?")[0] != "/metrics":
            self.reply(404, b"")
        else:
            with server.turn:
                text = server.page()
            self.reply(200, text.encode(), ("Content-Type", CONTENT_TYPE))

    def reply(self, code: int, body: bytes, *headers: tuple[str, str]) -> None:
        """Send an answer."""
        self.send_response_only(code)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log: a scrape is no news."""


class Identity:
    """A server's certificate, read anew when it has been renewed: a new connection needs no restart."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate, self.key = certificate, key
        self.changed = certificate.stat().st_mtime_ns
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        return context

    def shown(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return the connection with TLS. Its own thread makes the handshake: a silent caller keeps nobody
        waiting."""
        with contextlib.suppress(OSError):  # ssl.SSLError too: while the files do not fit, the old one stays
            changed = self.certificate.stat().st_mtime_ns
            if changed != self.changed:
                self.context = self._read()
                self.changed = changed
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)


class Expiry:
    """When certificates end; each is read anew only if its file has changed."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = paths
        self.read: dict[str, tuple[int, float]] = {}

    def add(self, page: Page) -> None:
        """Add fl_certificate_expiry_timestamp_seconds of those that are there."""
        from cryptography import x509

        for name, path in self.paths.items():
            try:
                changed = path.stat().st_mtime_ns
                if self.read.get(name, (0, 0.0))[0] != changed:
                    ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
                    self.read[name] = (changed, ends.timestamp())
            except OSError:
                continue
            page.add(
                "fl_certificate_expiry_timestamp_seconds", labels({"certificate": name}), self.read[name][1]
            )


EXPIRY: Families = {
    "fl_certificate_expiry_timestamp_seconds": ("gauge", "Unix time at which the certificate ends.")
}
