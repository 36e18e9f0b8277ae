"""Has nginx read its configuration and certificate anew where they have changed, without a restart.

    docker exec <federation>-server python3 -m coldframe.server.gateway  ->  {"changed": bool}

A connection that is open stays so until its request is answered. What nginx has read is noted beside it: so a
change is found whoever made it, and however long ago.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PKI = Path("/run/coldframe/pki")
DIRECTORY = Path("/run/coldframe/gateway")
CONFIG = DIRECTORY / "nginx.conf"
# Not the SuperLink's own certificate, which nginx trusts: that lives and dies with the container.
METRICS = DIRECTORY / "metrics"
FILES = (
    *(CONFIG, DIRECTORY / "users", PKI / "server.crt", PKI / "server.key"),
    *(METRICS / "metrics.crt", METRICS / "metrics.key"),
)
READ = Path("/tmp/gateway.read")
NGINX = ("nginx", "-e", "stderr", "-c", str(CONFIG))


def digest(files: Sequence[Path] = FILES) -> str:
    """Return a digest of what nginx reads; a file that is not there counts as empty."""
    found = hashlib.sha256()
    for path in files:
        content = path.read_bytes() if path.exists() else b""
        found.update(f"{path} {hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()


def note(files: Sequence[Path] = FILES, read: Path = READ) -> None:
    """Note what nginx reads at its start."""
    read.write_text(digest(files))


def reload(files: Sequence[Path] = FILES, read: Path = READ, nginx: Sequence[str] = NGINX) -> bool:
    """Have nginx read its files anew; return whether there was a need.

    Raises
    ------
    subprocess.CalledProcessError
        If nginx finds them wrong: then it goes on with what it has read.
    """
    found = digest(files)
    if read.exists() and read.read_text() == found:
        return False
    subprocess.run([*nginx, "-t", "-q"], check=True)
    subprocess.run([*nginx, "-s", "reload"], check=True)
    read.write_text(found)
    return True


def main() -> int:
    """Reload where needed; JSON on stdout."""
    try:
        print(json.dumps({"changed": reload()}))
    except subprocess.CalledProcessError as error:
        print(f"nginx refuses its configuration (code {error.returncode}): see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
