"""A lab: test hosts with an inventory, and the verbs run against it as a user would run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests import environment
from tests.controlgroups import Kernel, read
from tests.hosts import Host, Hosts

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 900  # of a small run, all clients together
# A small run: rounds of two or three seconds. Nobody evaluates, so that a lost client holds up one phase and
# not two.
SMALL = {"dataset": "synthetic", "max_samples": str(SAMPLES), "fraction_evaluate": "0"}
# Prints the ports of a machine that another one can reach.
LISTENING = "ss -ltnH | awk '{print $4}' | grep -vE '^(127\\.|\\[::1\\])' | sed 's/.*://' | sort -un"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def sh(host: Host, command: str, check: bool = True) -> str:
    """Run a command on a host as root; its output."""
    result = host.run(command, check=check)
    output: str = result.stdout
    return output


@dataclass
class Play:
    """What one ansible-playbook call printed, line by line with the seconds since its start, and how it
    ended."""

    arguments: list[str]
    code: int = -1
    pid: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def output(self) -> str:
        """All that it printed."""
        return "\n".join(line for _, line in self.lines)

    @property
    def changed(self) -> dict[str, int]:
        """Number of changes by machine."""
        return {name: int(changed) for name, changed, _, _ in RECAP.findall(self.output)}

    def kill(self) -> None:
        """End the call and all that it runs by SIGKILL, as the loss of its machine does.

        A worker of Ansible that outlives its parent can wait on a pipe for ever.
        """
        controller = psutil.Process(self.pid)
        for process in [controller, *controller.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def seconds_of(self, text: str) -> float:
        """When the first line with ``text`` was printed."""
        for seconds, line in self.lines:
            if text in line:
                return seconds
        raise AssertionError(f"{text!r} was never printed:\n{self.output}")


@dataclass
class Lab:
    """Hosts, the directory of what the verbs write on the controller, and the way to call the verbs."""

    hosts: Hosts
    directory: Path
    deployed: set[str] = field(default_factory=set)
    federation: str = ""  # what every verb is about, where that is not the inventory's
    monitoring: bool = False  # of the inventories that are written: few tests are about it

    @property
    def inventory(self) -> Path:
        """The inventory file: the first host is the server, the others hold the clients."""
        return self.directory / "lab.yml"

    @property
    def results(self) -> Path:
        """The folder of results folders."""
        return self.directory / "results"

    @property
    def server(self) -> Host:
        """The server's machine."""
        return self.hosts[0]

    @property
    def machine(self) -> Host:
        """The first of the clients' machines."""
        return self.hosts[1]

    def on_server(self, command: str, check: bool = True) -> str:
        """Run a command on the server's machine; its output."""
        return sh(self.server, command, check)

    def on_machine(self, command: str, check: bool = True) -> str:
        """Run a command on the first of the clients' machines; its output."""
        return sh(self.machine, command, check)

    def write_inventory(
        self, clients: int = 3, machines: Sequence[str] = ("server", "c1"), **more: Any
    ) -> None:
        """Write the inventory of these of the hosts, with that many clients on each but the server, and
        variables for all of them."""
        inventory = yaml.safe_load(self.hosts.inventory())
        every = inventory["fl_machines"]
        every["hosts"] = {name: every["hosts"][name] for name in machines}
        for group in every["children"].values():
            group["hosts"] = {name: None for name in machines if name in group["hosts"]}
        variables = every.setdefault("vars", {})
        settings = {"fl_client_count": clients, "fl_results_dir": str(self.results)}
        variables.update({**settings, "fl_monitoring": self.monitoring, **more})
        self.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))

    def environment(self) -> dict[str, str]:
        """Keep what the verbs write on the controller apart from the user's own federations."""
        own = {"XDG_STATE_HOME": str(self.directory / "state"), "FLWR_HOME": str(self.directory / "flwr")}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        return {**os.environ, **own, **quiet, "PYTHONUNBUFFERED": "1"}

    def command(self, verb: str, *arguments: str, **variables: Any) -> list[str]:
        """The command line of a verb."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, verb, "-i", str(self.inventory), *arguments]
        if self.federation:
            variables = {"fl_federation": self.federation, **variables}
        for name, value in variables.items():
            command += ["-e", json.dumps({name: value}) if not isinstance(value, str) else f"{name}={value}"]
        return command

    def start(
        self, verb: str, *arguments: str, root: Path = ROOT, **variables: Any
    ) -> tuple[Play, Callable[[], Play]]:
        """Start a verb; returns the running play and a function that waits for its end."""
        command = self.command(verb, *arguments, **variables)
        if root != ROOT:
            done = environment.make(root)
            assert done.returncode == 0, done.stderr
            command[0] = str(root / ".venv" / "bin" / "ansible-playbook")
        play = Play(command)
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        play.pid = process.pid

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                play.lines.append((time.monotonic() - begin, line.rstrip("\n")))

        reader = threading.Thread(target=read)
        reader.start()

        def wait() -> Play:
            play.code = process.wait()
            reader.join()
            return play

        return play, wait

    def play(self, verb: str, *arguments: str, root: Path = ROOT, **variables: Any) -> Play:
        """Run a verb to its end, whatever that is."""
        return self.start(verb, *arguments, root=root, **variables)[1]()

    def must(self, verb: str, *arguments: str, root: Path = ROOT, **variables: Any) -> Play:
        """Run a verb that has to succeed."""
        play = self.play(verb, *arguments, root=root, **variables)
        assert play.code == 0, play.output
        return play

    def deploy(self, federation: str = "coldframe", **variables: Any) -> None:
        """Make sure that the federation stands."""
        if federation not in self.deployed:
            self.must("site.yml", train="false", fl_federation=federation, **variables)
            self.deployed.add(federation)

    def clear(self) -> None:
        """Take down what stands: an idle federation takes CPU too."""
        for federation in sorted(self.deployed):
            self.must("teardown.yml", fl_federation=federation, interrupt="true")  # of a test that failed
        self.deployed.clear()

    def run(self, *arguments: str, root: Path = ROOT, **variables: Any) -> dict[str, Any]:
        """Run run.yml, on little synthetic data and with no client that evaluates, unless told otherwise; the
        summary of its results."""
        self.must("run.yml", *arguments, root=root, **{**SMALL, "rounds": "1", **variables})
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """The newest results folder's summary."""
        summary: dict[str, Any] = json.loads((self.results / "latest" / "summary.json").read_text())
        return summary

    def journal(self) -> list[dict[str, Any]]:
        """The newest results folder's journal."""
        return [
            json.loads(line) for line in (self.results / "latest" / "journal.jsonl").read_text().splitlines()
        ]

    def nodes(self) -> list[dict[str, Any]]:
        """The registered clients, as the SuperLink sees them; none while it does not answer."""
        found: list[dict[str, Any]] = (self.control("nodes", check=False) or {}).get("nodes", [])
        return found

    def online(self) -> set[str]:
        """The names of the clients that are connected."""
        return {node["name"] for node in self.nodes() if node["status"] == "online"}

    def status(self) -> dict[str, Any]:
        """What status.yml says, as programs read it: standard output is JSON and nothing else."""
        words = self.command("status.yml", output="json")
        done = subprocess.run(words, cwd=ROOT, env=self.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def control(self, words: str, check: bool = True) -> Any:
        """What coldframe.server.control answers on the server; None if it does not."""
        ask = (
            f"docker exec {self.federation or 'coldframe'}-server python3 -m coldframe.server.control {words}"
        )
        answer = self.on_server(ask, check=check)
        return json.loads(answer.splitlines()[-1]) if answer.strip() else None

    def container(self, host: Host, name: str) -> dict[str, Any]:
        """What the engine says of a container."""
        described: dict[str, Any] = json.loads(sh(host, f"docker inspect {name}"))[0]
        return described

    def kernel(self, host: Host, container: str) -> Kernel:
        """What the kernel grants a container, past every tool of ours."""
        return read(lambda command: sh(host, command), container)

    def wait_for(self, what: str, condition: Callable[[], bool], timeout: float = 90.0) -> None:
        """Poll until the condition holds."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {timeout:.0f} s"
            time.sleep(0.5)
