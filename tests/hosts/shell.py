"""Runs docker and root commands on this machine, and knows where test hosts keep their files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO


class HostsError(RuntimeError):
    """Something about test hosts went wrong; the message says what to do."""


def cache() -> Path:
    """Directory of everything that test hosts keep on disk."""
    root = os.environ.get("COLDFRAME_CACHE") or Path.home() / ".cache" / "coldframe"
    return Path(root) / "hosts"


def say(text: str) -> None:
    """Tell the user, on stderr: stdout is for what scripts read."""
    print(text, file=sys.stderr, flush=True)


def as_root(command: Sequence[str]) -> list[str]:
    """Return the command as it must be typed to run as root."""
    return list(command) if os.geteuid() == 0 else ["sudo", "-n", *command]


def docker_command() -> list[str]:
    """Return how docker is called here: the distribution's own client first, it fits the engine."""
    client = "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else shutil.which("docker")
    if client is None:
        raise HostsError(
            "test hosts need a Docker engine, and there is no docker here: `make setup` installs one"
        )
    if "DOCKER_HOST" in os.environ or os.access("/var/run/docker.sock", os.W_OK):
        return [client]
    return as_root([client])


def call(
    command: Sequence[str],
    *,
    check: bool = True,
    text: str | None = None,
    stdin: IO[bytes] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it printed.

    It runs in a session of its own, so that an interrupt from the terminal reaches us and not the
    half-done command: we clean up after it.
    """
    try:
        result = subprocess.run(
            list(command),
            check=False,
            capture_output=True,
            text=True,
            input=text,
            stdin=stdin if text is None else None,
            timeout=timeout,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise HostsError(f"{command[0]} is not installed here") from None
    if check and result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise HostsError(f"`{' '.join(command[:6])} ...` ended with {result.returncode}: {said}")
    return result


def docker(
    *arguments: str, check: bool = True, text: str | None = None, stdin: IO[bytes] | None = None
) -> str:
    """Run a docker command and return its standard output, stripped."""
    return call([*docker_command(), *arguments], check=check, text=text, stdin=stdin).stdout.strip()


def start_container(name: str, tries: int = 3) -> None:
    """Start a container, again where its runtime died at that: under load it does now and then."""
    for left in reversed(range(tries)):
        try:
            docker("start", name)
        except HostsError as error:
            if left == 0 or "OCI runtime create failed" not in str(error):
                raise
        else:
            return


def remove_tree(path: Path) -> None:
    """Remove a directory that may hold root's files and mounts that a crash left behind."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    below = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{path}/")]
    for mount in sorted(below, key=len, reverse=True):
        call(as_root(["umount", "--lazy", mount]))
    if path.exists():
        call(as_root(["rm", "-rf", "--one-file-system", str(path)]))
