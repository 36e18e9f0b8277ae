"""Makes the passwords of what is published, and their hashes, on the controller where they stay.

`python -m coldframe.controller.passwords DIRECTORY NAME...` -> {"changed": bool}. For each name the directory
then holds NAME.password, and NAME.hash, which is all that a machine with something to guard is given. A
password that somebody has put there is kept, and gets its hash.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import secrets
import sys
from pathlib import Path

# A guess costs 2^5 rounds: 2 ms. A costlier hash would protect no better 256 random bits, and nginx, which
# remembers nothing, pays at each scrape.
COST = 5
SALT = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def bcrypt(password: str, salt: str = "") -> str:
    """Return the hash of a password, by crypt(3): Python has had no function for it since 3.13.

    >>> bcrypt("abc", "$2b$05$abcdefghijklmnopqrstuu")
    '$2b$05$abcdefghijklmnopqrstuuRWUgMyyCUnsDr8evYotXg5ZXVF/HhzS'
    """
    # Of the last of a salt's characters only two bits count.
    salt = salt or f"$2b${COST:02}$" + "".join(secrets.choice(SALT) for _ in range(21)) + "u"
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    found = library.crypt(password.encode(), salt.encode())
    if not found or not found.startswith(b"$2b$"):
        raise SystemExit("this machine's crypt(3) does not know bcrypt: install the package libcrypt1")
    return str(found.decode())


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one step."""
    part = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.rename(path)


def make(directory: Path, names: list[str]) -> bool:
    """Make what is missing; return whether anything was."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    changed = False
    for name in names:
        password, hashed = directory / f"{name}.password", directory / f"{name}.hash"
        if not password.exists():
            write_secret(password, secrets.token_urlsafe(32))
            changed = True
        text = password.read_text().strip()
        known = hashed.read_text().strip() if hashed.exists() else ""
        if not known or bcrypt(text, known) != known:
            write_secret(hashed, bcrypt(text))
            changed = True
    return changed


if __name__ == "__main__":
    print(json.dumps({"changed": make(Path(sys.argv[1]), sys.argv[2:])}))
