"""Forks the Flower processes of tests from one that has imported flwr, as a client's container does.

An interpreter that imports flwr takes one to four seconds of CPU time, a fork a tenth. Forked are the
commands of FORKED, and the ServerApps of a SuperExec that was forked itself. What a test starts in another
way, or with `forks=False` (another flwr, no Coldframe), is an interpreter of its own.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coldframe.supervise import exit_status

ROOT = Path(__file__).parents[2]
ADAPTED = [sys.executable, "-m", "coldframe.flower.adapters"]
# As in a client's container, where it is forked from a process that has imported flwr.
EXECUTOR = [
    *(sys.executable, "-P", "-c"),
    "from coldframe.client import container; container.preload(); container.run_executor([])",
]
CLIENTS = [sys.executable, "-m", "tests.unit.clients"]
# Flower's own commands: the module of each, which has a function of the command's name.
STOCK = {
    "flower-superlink": "flwr.superlink.cli.flower_superlink",
    "flower-supernode": "flwr.supernode.cli.flower_supernode",
    "flower-superexec": "flwr.supercore.cli.flower_superexec",
}
# What it forks, by the name of the process: the command that would do the same.
FORKED = {
    **{name: [str(Path(sys.executable).parent / name)] for name in STOCK},
    **{name: [*ADAPTED, name] for name in ("superlink", "supernode", "serverapp-superexec", "serverapp")},
    **{"executor": EXECUTOR, "clients": CLIENTS},
}
MODULES = (
    *("flwr.superlink.cli.flower_superlink", "flwr.superlink.cli.flwr_serverapp", "flwr.serverapp.strategy"),
    *("flwr.clientapp", "coldframe.flower.superlink", "coldframe.flower.supernode"),
    *("coldframe.flower.serverapp", "coldframe.recording.server", "coldframe.server.serverapp_launcher"),
)


class ForkedProcess:
    """A process that the fork server has forked, with the part of `subprocess.Popen` that is used here."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.lines = link.makefile("r")
        self.pid = int(self.lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raise `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.link, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = int(self.lines.readline() or -signal.SIGKILL)  # or the fork server's own end
            self.lines.close()
            self.link.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def name_of(command: Sequence[str]) -> str | None:
    """Which process of FORKED a command starts, if any."""
    found = (name for name, words in FORKED.items() if list(command[: len(words)]) == words)
    return next(found, None)


def fork(
    address: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, *streams: int
) -> ForkedProcess:
    """Have the fork server at an address fork a process.

    It ends when who asked for it ends.

    Parameters
    ----------
    command : sequence of str
        One of FORKED, and its arguments.
    streams : int
        File descriptors of its output and its error output.
    """
    name = name_of(command)
    assert name, command
    words = [name, *command[len(FORKED[name]) :]]
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(address)
    asked = {"words": words, "environment": dict(environment), "cwd": str(cwd)}
    content = json.dumps(asked).encode()
    socket.send_fds(link, [len(content).to_bytes(4, "big")], list(streams))
    link.sendall(content)
    return ForkedProcess(link)


@functools.cache
def address() -> str:
    """Start the fork server of this process, which ends with it; the address of its socket."""
    path = f"{tempfile.mkdtemp(prefix='cf-forkserver-')}/socket"
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.unit.forkserver", path, str(ours)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        pass_fds=[ours],
        start_new_session=True,
    )
    os.close(ours)

    def end() -> None:
        os.close(theirs)
        process.wait()

    atexit.register(end)
    deadline = time.monotonic() + 120
    while not Path(path).exists():
        assert process.poll() is None and time.monotonic() < deadline, "the fork server has not started"
        time.sleep(0.05)
    return path


def main(path: str, alive: int) -> None:
    """Fork what is asked for, until `alive` is closed at its other end."""
    from coldframe.client import container

    container.preload((*container.SHARED, *MODULES))
    asking = selectors.DefaultSelector()
    children: dict[socket.socket, tuple[int, int]] = {}  # by who asked: the process, and what tells its end
    asking.register(alive, selectors.EVENT_READ)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{path}.new")
        listener.listen(64)
        Path(f"{path}.new").rename(path)  # it listens
        asking.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in asking.select():
                if key.fd == alive:
                    for child, _watch in children.values():
                        os.kill(child, signal.SIGKILL)
                        os.waitpid(child, 0)
                    shutil.rmtree(Path(path).parent)
                    return
                if key.fileobj is listener:
                    link, _ = listener.accept()
                    child = fork_child(link, path)
                    children[link] = child, os.pidfd_open(child)
                    asking.register(link, selectors.EVENT_READ, link)
                    asking.register(children[link][1], selectors.EVENT_READ, link)
                elif key.data in children:
                    child, watch = children[key.data]
                    if key.fd != watch:  # nobody waits for it any more
                        os.kill(child, signal.SIGKILL)
                    for one in (key.data, watch):
                        asking.unregister(one)
                    del children[key.data]
                    os.close(watch)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    with suppress(OSError):
                        key.data.sendall(f"{code}\n".encode())
                    key.data.close()


def fork_child(link: socket.socket, path: str) -> int:
    """Fork the process that is asked for; its id."""
    head, streams, _, _ = socket.recv_fds(link, 4, 2)
    content, size = b"", int.from_bytes(head, "big")
    while len(content) < size:
        content += link.recv(size - len(content))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = exit_status(lambda: run_child(json.loads(content), streams, path))
        finally:
            os._exit(code)
    for stream in streams:
        os.close(stream)
    link.sendall(f"{child}\n".encode())
    return child


def run_child(asked: dict[str, Any], streams: list[int], path: str) -> None:
    """Do what is asked for in the fork."""
    from coldframe.client import container
    from coldframe.flower import adapters
    from tests.unit import clients

    os.setpgid(0, 0)  # no session: each gets as much CPU time as all containers
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    os.closerange(3, 1 << 10)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    process, *sys.argv[1:] = asked["words"]
    if process == "serverapp-superexec":
        fork_serverapps(path)
    if process == "executor":
        container.run_executor(sys.argv[1:])
    elif process == "clients":
        clients.main()
    elif process in STOCK:
        getattr(importlib.import_module(STOCK[process]), process.replace("-", "_"))()
    else:
        adapters.run(process)


def fork_serverapps(path: str) -> None:
    """Have the launcher of ServerApps take forks of the fork server."""
    from coldframe.server import serverapp_launcher

    def start(command: list[str], **given: Any) -> Any:
        if not name_of(command):
            return subprocess.Popen(command, **given)
        with Path(os.devnull).open("wb") as nowhere:
            streams = [given.get(name) or number for number, name in ((1, "stdout"), (2, "stderr"))]
            streams = [nowhere.fileno() if one == subprocess.DEVNULL else one for one in streams]
            return fork(path, command, given.get("env") or os.environ, Path.cwd(), *streams)

    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    serverapp_launcher.subprocess = SimpleNamespace(Popen=start, **names)  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
