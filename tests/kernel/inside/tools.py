"""The engine, the agent's socket, the kernel's files: each read here, by none of Coldframe's own readers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FEDERATION, CLIENT, NETWORK = "kernel", "vm-0", "kernel"
CONTAINER, AGENT, EXPORTER = (
    f"{FEDERATION}-{CLIENT}",
    f"{FEDERATION}-agent",
    f"{FEDERATION}-container-exporter",
)
STATE = Path("/var/lib/coldframe") / FEDERATION
TREE = Path("/sys/fs/cgroup")
BASELINE = {"cpu": 1.0, "memory": 256 << 20, "pids": 256}
PATIENCE = 120.0  # seconds: an emulated machine is 20 to 40 times slower


def sh(*command: str, check: bool = True, text: str | None = None) -> str:
    """Run a command; return its output, stripped."""
    done = subprocess.run(command, capture_output=True, text=True, input=text, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout.strip()


def docker(*arguments: str, check: bool = True) -> str:
    """Run docker; return its output."""
    return sh("docker", *arguments, check=check)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds; return what it gives."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise RuntimeError(f"not within {PATIENCE:.0f} s: {what}")


def ask(**request: Any) -> dict[str, Any]:
    """Return the agent's answer, over its socket as `plugins/modules/client_limits.py` asks it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(STATE / "agent/agent.sock"))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as stream:
            answer: dict[str, Any] = json.loads(stream.readline())
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def set_limits(
    limits: Mapping[str, float], *, force: bool = False, duration: float | None = None
) -> dict[str, Any]:
    """Ask for limits; return what the agent says of the client, or that it refuses."""
    request = {"limits": {CLIENT: limits}, "stamp": time.time(), "force": force, "duration": duration}
    answer = ask(do="set", **request)
    found: dict[str, Any] = answer if "refused" in answer else answer["clients"][CLIENT]
    return found


def undo() -> dict[str, Any]:
    """Return to the baseline; what the agent says of the client."""
    found: dict[str, Any] = ask(do="undo", clients=[CLIENT], stamp=time.time())["clients"][CLIENT]
    return found


def status() -> dict[str, Any]:
    """Return what the agent says of the client now."""
    found: dict[str, Any] = ask(do="status")["clients"][CLIENT]
    return found


def events(cause: str) -> list[dict[str, Any]]:
    """Return what the agent has written of a cause."""
    lines = (STATE / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["cause"] == cause]


def engine(path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Return the answer of the engine's API: without starting its command line, which takes half a second."""
    connection = http.client.HTTPConnection("engine", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect("/var/run/docker.sock")
    with contextlib.closing(connection):
        content = None if body is None else json.dumps(body)
        method = "GET" if body is None else "POST"
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status >= 400:
            raise RuntimeError(text)
        return json.loads(text) if text else None


def told() -> dict[str, Any]:
    """Return with which limits the engine would start the client."""
    found: dict[str, Any] = engine(f"/containers/{CONTAINER}/json")["HostConfig"]
    return {key: found[key] for key in ("CpuQuota", "Memory", "PidsLimit")}


def pid(container: str = CONTAINER) -> int:
    """Return the main process of a container."""
    return int(engine(f"/containers/{container}/json")["State"]["Pid"])


def begin(*command: str) -> str:
    """Run a command in the client, and do not wait for it; return its id."""
    identity = str(engine(f"/containers/{CONTAINER}/exec", {"Cmd": command})["Id"])
    engine(f"/exec/{identity}/start", {"Detach": True})
    return identity


def end(identity: str) -> int:
    """Wait until such a command has ended; return its code."""

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = engine(f"/exec/{identity}/json")
        return None if found["Running"] else found

    return int(until(ended, "the command in the client ends")["ExitCode"])


def written(name: str) -> Path:
    """Return where a file in the client's /tmp is found."""
    return Path(f"/proc/{pid()}/root/tmp") / name


class Group:
    """The control group of a process, as the kernel names it: `0::/path` is the one line under version 2."""

    def __init__(self, process: int) -> None:
        line = Path(f"/proc/{process}/cgroup").read_text().strip()
        self.path = TREE / line.removeprefix("0::/")

    def text(self, name: str) -> str:
        """Return what a file says."""
        return (self.path / name).read_text().strip()

    def table(self, name: str) -> dict[str, int]:
        """Return a file of names and numbers."""
        return {key: int(value) for key, value in (line.split() for line in self.text(name).splitlines())}

    def processes(self) -> list[int]:
        """Return its processes."""
        return [int(line) for line in self.text("cgroup.procs").splitlines()]

    def limits(self) -> dict[str, str]:
        """Return the limits that it holds, in the kernel's words."""
        names = ("cpu.max", "memory.max", "memory.swap.max", "pids.max")
        return {name: self.text(name) for name in names}

    def stalled(self, resource: str) -> int:
        """Return for how many microseconds some task waited (pressure stall information)."""
        some = self.text(f"{resource}.pressure").splitlines()[0]
        return int(some.rpartition("total=")[2])


def device(process: int) -> str:
    """Return the machine's end of the link of a process."""
    index = Path(f"/proc/{process}/root/sys/class/net/eth0/iflink").read_text().strip()
    for path in Path("/sys/class/net").iterdir():
        if (path / "ifindex").read_text().strip() == index:
            return path.name
    raise RuntimeError(f"no interface has the number {index}")


def queues(process: int) -> dict[str, list[str]]:
    """Return the disciplines at both ends of a link, in the words of tc, without those of the kernel."""
    ends = {"down": device(process), "up": "eth0"}
    found = {}
    for way, name in ends.items():
        enter = [] if way == "down" else ["nsenter", "-t", str(process), "-n"]
        lines = sh(*enter, "tc", "qdisc", "show", "dev", name).splitlines()
        found[way] = [line for line in lines if "noqueue" not in line]
    return found


@contextlib.contextmanager
def running(*commands: str) -> Iterator[None]:
    """Run shell commands in the client beside what is done; then end all but its main process."""
    begin("busybox", "sh", "-c", " & ".join([*commands, "wait"]))
    try:
        yield
    finally:
        main = pid()
        for process in Group(main).processes():
            if process != main:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        until(lambda: Group(main).processes() == [main], "the client is at rest")
