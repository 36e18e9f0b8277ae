"""The fingerprints of OpenPGP keys, such as the one that Docker's packages are signed with."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

PUBLIC_KEY = 6  # a packet of OpenPGP


def coldframe_key_fingerprints(text: str) -> list[str]:
    """Return the fingerprints of the OpenPGP keys in a text, those of subkeys aside; empty where it has none.

    Not by gpg, which many machines lack: apt needs none. A fingerprint (RFC 4880, 12.2) is the SHA-1 of the
    packet with the public key.
    """
    found = []
    for block in re.findall(r"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END", text, re.DOTALL):
        body = block.replace("\r", "").strip("\n")
        lines = body.split("\n\n", 1)[-1].split("\n") if "\n\n" in body else body.split("\n")
        try:
            data = base64.b64decode(
                "".join(line for line in lines if not line.startswith("=")), validate=True
            )
            for tag, packet in _packets(data):
                if tag == PUBLIC_KEY and packet[:1] == b"\x04":
                    head = b"\x99" + len(packet).to_bytes(2, "big")
                    found.append(hashlib.sha1(head + packet, usedforsecurity=False).hexdigest().upper())
                elif tag == PUBLIC_KEY:
                    found.append("of another version")
        except (ValueError, IndexError, OverflowError):
            found.append("torn")
    return found


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each packet of OpenPGP."""
    place = 0
    while place < len(data):
        first, place = data[place], place + 1
        if not first & 0x80:
            raise ValueError("no packet")
        if first & 0x40:  # the format since RFC 2440
            tag, size, place = first & 0x3F, data[place], place + 1
            if 192 <= size < 224:
                size, place = (size - 192 << 8) + data[place] + 192, place + 1
            elif size == 255:
                size, place = int.from_bytes(data[place : place + 4], "big"), place + 4
            elif size >= 224:
                raise ValueError("a packet in parts: no key is one")
        else:
            tag, count = first >> 2 & 0x0F, 1 << (first & 3)
            if count == 8:
                raise ValueError("a packet without a length: no key is one")
            size, place = int.from_bytes(data[place : place + count], "big"), place + count
        if place + size > len(data):
            raise ValueError("torn")
        yield tag, data[place : place + size]
        place += size
