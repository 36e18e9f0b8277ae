"""Passes one connection to the SuperLink on, between the standard streams and the container's loopback.

    docker exec -i <federation>-server python3 -m coldframe.server.relay

connect.yml starts one for each connection that a `flwr` command opens on the controller: the SuperLink stays
on the loopback, and nothing listens for it anywhere else. What is passed on is the client's own TLS.

Standard input begins with lines that are ignored up to BEGIN: where sudo has asked for a password it has read
it, and where it has not, the password comes here. The answer is one line, GREETING and a JSON object with the
SuperLink's certificate and Flower's version; then the bytes of the connection follow, both ways.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from coldframe.server.container import SUPERLINK, SUPERLINK_CERTIFICATE

BEGIN = b"BEGIN\n"
GREETING = b"COLDFRAME-CONTROL "
PREAMBLE = 4096  # bytes before BEGIN
CHUNK = 65536
LINGER = 10.0  # seconds that the SuperLink has to end a connection that the client has ended


def wait_for_begin(read: Callable[[int], bytes]) -> bool:
    """Read up to the line BEGIN; return whether it came."""
    seen = b""
    while len(seen) < PREAMBLE:
        byte = read(1)
        if not byte:
            return False
        seen += byte
        if seen == BEGIN or seen.endswith(b"\n" + BEGIN):
            return True
    return False


def write_all(data: bytes) -> None:
    """Write to standard output, past Python's buffers."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def upload(link: socket.socket) -> None:
    """Pass standard input on; end the process where the SuperLink does not end the connection after it."""
    try:
        while data := os.read(0, CHUNK):
            link.sendall(data)
        link.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the SuperLink has ended it: the other direction finds out
    time.sleep(LINGER)
    os._exit(0)


def main(superlink: str = SUPERLINK, certificate: Path = SUPERLINK_CERTIFICATE) -> int:
    """Pass one connection on, until either side ends it."""
    if not wait_for_begin(lambda count: os.read(0, count)):
        return 1
    host, port = superlink.split(":")
    try:
        link = socket.create_connection((host, int(port)), 10)
        about = {"certificate": certificate.read_text(), "flwr": metadata.version("flwr")}
    except OSError as error:
        print(f"the SuperLink does not answer: {error}", file=sys.stderr)
        return 1
    link.settimeout(None)
    write_all(GREETING + json.dumps(about).encode() + b"\n")
    threading.Thread(target=upload, args=(link,), daemon=True).start()
    try:
        while data := link.recv(CHUNK):
            write_all(data)
    except OSError:
        pass  # either side is gone
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())
