"""Rates of network interfaces by rtnetlink, without starting a process: what tc says and does, for tbf alone.

tc takes 2 to 4 ms of a core for each interface, and nsenter before it as much again.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Self

ERROR, DONE, NEWQDISC, DELQDISC, GETQDISC = 2, 3, 36, 37, 38  # types of messages
REQUEST, ACK, REPLACE, DUMP, CREATE = 0x1, 0x4, 0x100, 0x300, 0x400  # their flags
KIND, OPTIONS = 1, 2  # attributes of a discipline
PARMS, RATE64, BURST = 1, 4, 6  # attributes of tbf's options
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, sender
MESSAGE = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
ATTRIBUTE = struct.Struct("=HH")  # length, type
RATESPEC = struct.Struct("=BBHhHI")  # cell, link layer, overhead, alignment, least packet, bytes per second
ROOT, HANDLE = 0xFFFFFFFF, 1 << 16
ETHERNET = 1
TICK = 64  # nanoseconds: the kernel's unit of a burst
GREATEST = 2**32 - 1  # bytes per second that fit into a RATESPEC
CLONE_NEWNET = 0x40000000
TIMEOUT = 5.0  # seconds


class Route:
    """A socket to the kernel's routing in a network namespace.

    Parameters
    ----------
    pid : int, optional
        A process in that namespace; none is this process's own.
    """

    def __init__(self, pid: int | None = None) -> None:
        if pid is None:
            self.socket = _open()
            return
        found: list[socket.socket | OSError] = []

        def enter() -> None:
            # A thread of its own: it alone changes its namespace, and ends there.
            try:
                descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                        number = ctypes.get_errno()
                        raise OSError(number, os.strerror(number), f"/proc/{pid}/ns/net")
                finally:
                    os.close(descriptor)
                found.append(_open())
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if isinstance(found[0], OSError):
            raise found[0]
        self.socket = found[0]

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.socket.close()

    def disciplines(self, interface: int) -> dict[str, int | None]:
        """Return the queueing disciplines of an interface by kind, with the rate in bit/s of tbf."""
        found: dict[str, int | None] = {}
        for content in self._ask(GETQDISC, DUMP, MESSAGE.pack(0, 0, 0, 0, 0)):
            if MESSAGE.unpack_from(content)[1] != interface:
                continue
            attributes = dict(_attributes(content[MESSAGE.size :]))
            kind = attributes.get(KIND, b"").rstrip(b"\0").decode()
            found[kind] = _rate(attributes.get(OPTIONS, b"")) if kind == "tbf" else None
        return found

    def limit(self, interface: int, rate: int, burst: int, latency: float) -> None:
        """Let an interface send `rate` bit/s, and `burst` bytes at once; what waits longer than `latency`
        seconds is dropped."""
        size = max(1, rate // 8)
        spec = RATESPEC.pack(0, ETHERNET, 0, 0, 0, size)
        buffer = min(GREATEST, int(burst * 1e9 / size / TICK))
        parms = spec + bytes(RATESPEC.size) + struct.pack("=III", int(size * latency) + burst, buffer, 0)
        options = _attribute(PARMS, parms) + _attribute(BURST, struct.pack("=I", burst))
        content = MESSAGE.pack(0, interface, HANDLE, ROOT, 0)
        content += _attribute(KIND, b"tbf\0") + _attribute(OPTIONS, options)
        list(self._ask(NEWQDISC, CREATE | REPLACE | ACK, content))

    def unlimit(self, interface: int) -> None:
        """Take away what stands at an interface."""
        list(self._ask(DELQDISC, ACK, MESSAGE.pack(0, interface, 0, ROOT, 0)))

    def _ask(self, kind: int, flags: int, content: bytes) -> Iterator[bytes]:
        """Send a message, and yield the contents of those that answer it.

        Raises
        ------
        OSError
            If the kernel refuses.
        """
        self.socket.send(HEADER.pack(HEADER.size + len(content), kind, flags | REQUEST, 1, 0) + content)
        while True:
            data = self.socket.recv(1 << 16)
            place = 0
            while place < len(data):
                length, kind, *_ = HEADER.unpack_from(data, place)
                body = data[place + HEADER.size : place + length]
                if kind == ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                if kind in (ERROR, DONE):
                    return
                yield body
                place += _aligned(length)


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.settimeout(TIMEOUT)
    return opened


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _attribute(kind: int, content: bytes) -> bytes:
    length = ATTRIBUTE.size + len(content)
    return ATTRIBUTE.pack(length, kind) + content + bytes(_aligned(length) - length)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, place)
        if length < ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[place + ATTRIBUTE.size : place + length]
        place += _aligned(length)


def _rate(options: bytes) -> int:
    attributes = dict(_attributes(options))
    if RATE64 in attributes:
        return 8 * int(struct.unpack_from("=Q", attributes[RATE64])[0])
    return 8 * int(RATESPEC.unpack_from(attributes[PARMS])[-1])
