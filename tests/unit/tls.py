"""A TLS server on the loopback with a certificate of its own, and the relay to it, as a command."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coldframe.keys import own_certificate

ROOT = Path(__file__).parents[2]


@dataclass
class Link:
    """What stands for the SuperLink: it answers each line with the same line, in capitals."""

    folder: Path
    port: int = 0

    @property
    def certificate(self) -> Path:
        """What its clients trust."""
        return self.folder / "link.crt"

    def relay(self, before: str = "") -> list[str]:
        """The command that reaches it; ``before`` is a shell's, and stands for sudo."""
        code = (
            "import os, pathlib; from coldframe.server import relay; "
            f"os._exit(relay.main('127.0.0.1:{self.port}', pathlib.Path({str(self.certificate)!r})))"
        )
        words = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", code]
        return ["/bin/sh", "-c", f"{before} exec {shlex.join(words)}"]

    @contextmanager
    def serving(self) -> Iterator[Link]:
        """Serve, with a new certificate."""
        own_certificate(self.certificate, self.folder / "link.key", ["DNS:localhost", "IP:127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.folder / "link.key")
        with socket.create_server(("127.0.0.1", self.port)) as listener:
            self.port = listener.getsockname()[1]
            threading.Thread(target=accept, args=(listener, context), daemon=True).start()
            yield self
            listener.shutdown(socket.SHUT_RDWR)


def accept(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer each connection in a thread of its own, until the listener is closed."""
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(plain, context), daemon=True).start()


def answer(plain: socket.socket, context: ssl.SSLContext) -> None:
    """Answer lines until the client ends the connection."""
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as link:
        while data := link.recv(65536):
            link.sendall(data.upper())


def ask(port: int, trusted: Path, text: bytes, user: int | None = None) -> bytes:
    """Send a line through a connection, and return the answer; as another user where one is given."""
    if user is not None:
        code = (
            f"import os; os.setuid({user}); import pathlib; from tests.unit.tls import ask; "
            f"print(ask({port}, pathlib.Path({str(trusted)!r}), {text!r}).decode())"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ConnectionError(done.stderr)
        return done.stdout.strip().encode()
    context = ssl.create_default_context(cadata=trusted.read_text())
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
    ):
        found = b""
        for start in range(0, len(text), 65536):
            link.sendall(text[start : start + 65536])
            while len(found) < min(start + 65536, len(text)):
                if not (data := link.recv(65536)):
                    raise ConnectionError(f"it ended after {len(found)} bytes")
                found += data
        return found


def ends(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
