"""The connection of the `flwr` command to a federation's Control API, which is published nowhere.

    python -m coldframe.controller.connection close DIRECTORY NAME

connect.yml opens it. A process of the user's on the controller listens on 127.0.0.1 and starts, for each
connection that it accepts, a command that reaches the server's container (over SSH, or docker alone) and
passes the bytes on there (`coldframe.server.relay`). Between two uses nothing of it is on the machine.

DIRECTORY, the user's own, holds `lock` (with the process's id, and held while it lives), `state.json` (its
port and command), `superlink.crt` (what `flwr` trusts: its TLS ends at the SuperLink) and `log`.

Any user of the controller can connect to a port of its loopback, and Control asks nobody who they are: so a
connection is only accepted if the process at its other end is the same user's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldframe.controller import flower_config

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
BEGIN, GREETING = b"BEGIN\n", b"COLDFRAME-CONTROL "  # as in coldframe/server/relay.py
TABLE = Path("/proc/net/tcp")
ESTABLISHED = "01"
CHUNK = 65536
MOST = 8  # connections at once: sshd takes 10 sessions of one connection
PATIENCE = 40.0  # seconds until the other side has answered
LINGER = 12.0  # seconds for a command to end by itself, longer than the relay's own
IDLE = 12 * 3600.0  # seconds without a connection, after which the process ends


class ConnectionFailed(Exception):
    """The connection cannot be opened or closed; the text says why."""


def owner(port: int, peer: int, table: Path = TABLE) -> int | None:
    """Return the id of the user whose process holds the other end of a connection to a port of the loopback.

    The kernel's table has a line for either end. An end whose process has closed it belongs to nobody: it
    bears the user 0 and no inode.

    Parameters
    ----------
    port, peer : int
        Of this end and of the other.
    """
    address = f"{struct.unpack('=I', socket.inet_aton(HOST))[0]:08X}"
    wanted = [f"{address}:{peer:04X}", f"{address}:{port:04X}", ESTABLISHED]
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1:4] == wanted and fields[9] != "0":
            return int(fields[7])
    return None


@dataclass
class Server:
    """Accepts connections and passes each on by a command of its own.

    Attributes
    ----------
    command : sequence of str
        What reaches the server's container and starts the relay there.
    answer : str
        What sudo there is told where it asks for a password; empty where it does not ask.
    """

    directory: Path
    name: str
    command: Sequence[str]
    answer: str = ""
    port: int = 0
    open: int = 0
    used: float = field(default_factory=time.monotonic)
    flwr: str = ""

    async def reach(self) -> asyncio.subprocess.Process:
        """Start the command; return when the relay has greeted, with its certificate written."""
        with (self.directory / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd="/"
            )
        assert process.stdin and process.stdout
        try:
            process.stdin.write((f"{self.answer}\n" if self.answer else "").encode() + BEGIN)
            async with asyncio.timeout(PATIENCE):
                await process.stdin.drain()
                while line := await process.stdout.readline():  # sudo's and the shell's own come before
                    if line.startswith(GREETING):
                        break
        except (OSError, ValueError, TimeoutError):
            line = b""
        if not line:
            await end(process, 0)
            raise ConnectionFailed(unanswered(self.directory))
        about = json.loads(line.removeprefix(GREETING))
        self.flwr = about["flwr"]
        write(self.directory / "superlink.crt", about["certificate"])
        return process

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, if it is this user's."""
        peer = writer.get_extra_info("peername")
        if self.open >= MOST or not peer or owner(self.port, peer[1]) != os.getuid():
            writer.transport.abort()
            return
        self.open += 1
        try:
            await self.carry(reader, writer)
        except (ConnectionFailed, OSError) as error:
            say(self.directory, str(error))
        finally:
            self.open -= 1
            self.used = time.monotonic()
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), LINGER)  # what is on its way arrives
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on both ways until the server ends the connection, or some seconds after the client."""
        process = await self.reach()
        assert process.stdin and process.stdout
        up = asyncio.create_task(pump(reader, process.stdin))
        down = asyncio.create_task(pump(process.stdout, writer))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                await asyncio.wait((down,), timeout=LINGER)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            await end(process, 1.0)

    async def serve(self, ready: Any) -> None:
        """Open the port and the named connection, call ``ready``, and serve until told to stop."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        await end(await self.reach(), 0)
        server = await listen(self.accept, self.port)
        self.port = server.sockets[0].getsockname()[1]
        file = flower_config.path()
        state = {"pid": os.getpid(), "port": self.port, "command": list(self.command), "flwr": self.flwr}
        write(self.directory / "state.json", json.dumps({**state, "config": str(file)}))
        flower_config.update(
            file,
            self.name,
            {
                "address": f"{HOST}:{self.port}",
                "root-certificates": str(self.directory / "superlink.crt"),
            },
        )
        try:
            ready()
            while not stop.is_set() and (self.open or time.monotonic() - self.used < IDLE):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 60)
        finally:
            server.close()
            clear(self.directory, self.name)


async def listen(accept: Any, port: int) -> asyncio.Server:
    """Listen on the port that was used before, so that what was noted stays right, or else a free one."""
    try:
        return await asyncio.start_server(accept, HOST, port, limit=CHUNK)
    except OSError:
        return await asyncio.start_server(accept, HOST, 0, limit=CHUNK)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the reader ends, then tell the writer's side."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def end(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Let a command end by itself, and end it after some seconds."""
    assert process.stdin
    process.stdin.close()
    for last_resort in (process.terminate, process.kill):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
            return
        with contextlib.suppress(ProcessLookupError):
            last_resort()
        seconds = 5.0
    await process.wait()


def write(path: Path, text: str) -> None:
    """Replace a file of this user's own, in one step, where its content changes."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.chmod(0o600)
    part.replace(path)


def say(directory: Path, text: str) -> None:
    """Append a line to the connection's log."""
    with (directory / "log").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")


def unanswered(directory: Path) -> str:
    """Say that the server does not answer, with the last that was said of it."""
    lines = (directory / "log").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing is said why")
    return f"the server does not answer ({last}): see {directory / 'log'}"


def read_state(directory: Path) -> dict[str, Any]:
    """Return what an open connection, or one that was open, has noted."""
    try:
        return dict(json.loads((directory / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold the directory's lock; whether it was free, so that no connection is open."""
    with (directory / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def is_open(directory: Path) -> bool:
    """Return whether a process serves the connection."""
    if not (directory / "lock").exists():
        return False
    with locked(directory) as free:
        return not free


def holder(directory: Path) -> int | None:
    """Return the id of the process that holds the lock; None where it has just ended or begun."""
    try:
        pid = int((directory / "lock").read_text(encoding="ascii"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(directory) in words else None


def clear(directory: Path, name: str) -> None:
    """Remove the named connection, if it is this one's."""
    file = Path(read_state(directory).get("config") or flower_config.path())
    with contextlib.suppress(OSError, ValueError):
        if is_ours(file, directory, name):
            flower_config.update(file, name, None)


def is_ours(file: Path, directory: Path, name: str) -> bool:
    """Return whether a connection of that name in the configuration of `flwr` is the directory's."""
    known = flower_config.connections(file.read_text(encoding="utf-8")) if file.exists() else {}
    entry = known.get(name)
    trusted = entry.get("root-certificates") if isinstance(entry, dict) else None
    return trusted == str(directory / "superlink.crt")


def refusal(directory: Path, name: str) -> str:
    """Say why a connection cannot have its name in the configuration of `flwr`; nothing where it can."""
    file = flower_config.path()
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if name in flower_config.connections(text) and not is_ours(file, directory, name):
            where = (
                f"[superlink.{name}]" if name != flower_config.DEFAULT else "the key default of [superlink]"
            )
            return (
                f"{file} has {where} already, and it is not of Coldframe: rename it there, "
                "or type export FLWR_HOME=DIR with another folder for connect.yml and flwr"
            )
        flower_config.put(text, name, None)
    except (OSError, ValueError) as error:
        return f"{file} cannot be used ({error}): correct it, or type export FLWR_HOME=DIR for another one"
    return ""


def open_connection(directory: Path, name: str, command: Sequence[str], answer: str = "") -> dict[str, Any]:
    """Open the connection, or find it open; return its state, with ``changed``.

    Raises
    ------
    ConnectionFailed
        If it cannot be opened.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if why := refusal(directory, name):
        raise ConnectionFailed(why)
    state = read_state(directory)
    if is_open(directory):
        config = str(flower_config.path())
        same = state.get("command") == list(command) and state.get("config") == config
        if same and answers(directory, name):
            return {**state, "changed": False}
        close_connection(directory, name)
    (directory / "log").write_text("", encoding="utf-8")
    options = {"name": name, "command": list(command), "answer": answer, "port": state.get("port", 0)}
    process = subprocess.Popen(
        [sys.executable, "-m", "coldframe.controller.connection", "serve", str(directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(options))
    with process.stdout as stdout:
        told = stdout.readline()
    if told.strip() == "ready":
        if answers(directory, name):
            return {**read_state(directory), "changed": True}
        close_connection(directory, name)
        raise ConnectionFailed(unanswered(directory))
    process.wait()
    raise ConnectionFailed(told.strip() or f"it ended with code {process.returncode}")


def answers(directory: Path, name: str) -> bool:
    """Return whether the SuperLink answers through the connection, with the certificate that `flwr` trusts.

    One that has been started anew has another: this very connection fetches it, and the next one knows it.
    """
    state = read_state(directory)
    if not is_ours(Path(state["config"]), directory, name):
        return False
    for _ in range(2):
        context = ssl.create_default_context(cafile=directory / "superlink.crt")
        try:
            with (
                socket.create_connection((HOST, state["port"]), PATIENCE) as link,
                context.wrap_socket(link, server_hostname=HOST),
            ):
                return True
        except ssl.SSLCertVerificationError:
            continue
        except OSError:
            break
    return False


def close_connection(directory: Path, name: str) -> bool:
    """End the process that serves the connection and remove the name; return whether there was one.

    Raises
    ------
    ConnectionFailed
        If the process does not end.
    """
    was_open = is_open(directory)
    deadline, told = time.monotonic() + 20, 0
    while is_open(directory):
        pid = holder(directory)
        if pid and pid != told:
            os.kill(pid, signal.SIGTERM)
            told = pid
        if time.monotonic() > deadline:
            raise ConnectionFailed(f"its process does not end: type kill -9 {pid}")
        time.sleep(0.05)
    clear(directory, name)
    return was_open


def serve(directory: Path) -> int:
    """Serve what standard input describes; say ``ready``, or why not, on standard output."""
    options = json.loads(sys.stdin.read())
    server = Server(directory, options["name"], options["command"], options["answer"], options["port"])

    def ready() -> None:
        print("ready", flush=True)
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)

    with locked(directory) as free:
        try:
            if not free:
                raise ConnectionFailed("another call of connect.yml is opening it: type it again")
            (directory / "lock").write_text(str(os.getpid()), encoding="ascii")
            asyncio.run(server.serve(ready))
        except (ConnectionFailed, OSError, ValueError) as error:
            print(error, flush=True)
            return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve or close a connection; 1 where that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("serve", help="what standard input describes").add_argument("directory", type=Path)
    close = commands.add_parser("close")
    close.add_argument("directory", type=Path)
    close.add_argument("name")
    arguments = parser.parse_args(argv)
    if arguments.what == "serve":
        return serve(arguments.directory)
    try:
        print("closed" if close_connection(arguments.directory, arguments.name) else "was not open")
    except ConnectionFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
