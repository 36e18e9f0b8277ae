"""A fresh clone with a config.rb of its own, and vagrant and the verbs run in it as a user would run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hosts.hosts import as_a_machine, interrupt
from tests.hosts.shell import docker

ROOT = Path(__file__).resolve().parents[2]
FEDERATION = "vagrant"
HERE = Path(__file__).resolve().parent
# What is not ours to change: an option that Vagrant's own provisioner types.
DEPRECATED = re.compile(r"\[DEPRECATION WARNING\]: (?!The '--inventory-file' argument)")


@dataclass
class Output:
    """What a command printed, and how it ended."""

    code: int
    text: str


def succeeded(done: Output) -> str:
    """Assert that a command succeeded, with nothing that Ansible's next release will not have; its output."""
    assert done.code == 0, done.text
    assert not DEPRECATED.search(done.text), done.text
    return done.text


def ruby(value: Any) -> str:
    """Write a value as Ruby does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {ruby(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(ruby, value)) + "]"
    return "nil" if value is None else json.dumps(value)


def planted(seed: Path) -> list[str]:
    """The setting create_args that makes the machines' engines have the images of a seed."""
    mounts = {
        seed: "/seed",
        HERE / "plant.sh": "/plant.sh",
        HERE / "plant.conf": "/etc/systemd/system/docker.service.d/plant.conf",
    }
    return [*as_a_machine(), *(f"--volume={here}:{there}:ro" for here, there in mounts.items())]


@dataclass
class Cluster:
    """The clone, and the directory of what Vagrant and the verbs keep outside it."""

    checkout: Path
    home: Path
    settings: dict[str, Any] = field(default_factory=dict)
    first_up: str = ""

    @classmethod
    def clone(cls, directory: Path) -> Cluster:
        """Clone what is committed, as a newcomer would get it."""
        checkout = directory / "coldframe"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
        return cls(checkout, directory / "home")

    @property
    def inventory(self) -> Path:
        """The inventory that Vagrant makes."""
        return self.checkout / "vagrant" / ".vagrant" / "coldframe" / "inventory.yml"

    @property
    def state(self) -> Path:
        """Where the verbs keep the federation's certificate authority."""
        return self.home / "state" / "coldframe" / FEDERATION

    def configure(self, **settings: Any) -> None:
        """Write config.rb."""
        (self.checkout / "vagrant" / "config.rb").write_text(ruby(settings) + "\n")

    def refusals(self, settings: list[dict[str, Any]], path: Path) -> list[str | None]:
        """Return what is said to each of the settings, in one start of Vagrant; None to what is accepted."""
        done = self.call(
            *("env", f"MISTAKES={json.dumps(settings)}", "vagrant", "validate"),
            folder="tests/vagrant/mistakes",
            path=path,
        )
        *lines, last = done.text.splitlines()
        assert (done.code, last) == (0, "Vagrantfile validated successfully."), done.text
        return [json.loads(line) for line in lines]

    def environment(self, path: Path | None = None) -> dict[str, str]:
        """Keep what is made apart from the user's; `path` comes first on PATH."""
        found = {key: value for key, value in os.environ.items() if not key.startswith("VAGRANT_")}
        found["PATH"] = f"{path}:{found['PATH']}" if path else found["PATH"]
        own = {"VAGRANT_HOME": str(self.home / "vagrant"), "XDG_STATE_HOME": str(self.home / "state")}
        return {**found, **own, "VAGRANT_CHECKPOINT_DISABLE": "1", "PYTHONUNBUFFERED": "1"}

    def call(self, *command: str, folder: str = ".", path: Path | None = None) -> Output:
        """Run a command in the clone, and print what it prints: pytest -s shows it as it comes."""
        self.home.mkdir(exist_ok=True)
        with subprocess.Popen(
            command,
            cwd=self.checkout / folder,
            env=self.environment(path),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            lines = []
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    print(time.strftime("%H:%M:%S"), line, end="", flush=True)
            except BaseException:
                process.kill()  # it holds the machines' lock, without which they cannot be removed
                raise
        return Output(process.returncode, "".join(lines))

    @contextmanager
    def standing(self, settings: dict[str, Any], run: dict[str, Any]) -> Iterator[Cluster]:
        """Keep the machines up; whatever happens, all of them are removed in the end."""
        self.settings = settings
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            self.configure(**settings, run=run)
            self.first_up = self.must("up")
            yield self
        finally:
            self.vagrant("destroy", "-f")
            if settings["provider"] == "docker":
                for container in self.containers().values():
                    docker("rm", "--force", "--volumes", container)
            signal.signal(signal.SIGTERM, before)

    def vagrant(self, *arguments: str, path: Path | None = None) -> Output:
        """Run vagrant, whatever comes of it."""
        return self.call("vagrant", *arguments, folder="vagrant", path=path)

    def must(self, *arguments: str) -> str:
        """Run vagrant, which has to succeed; its output."""
        return succeeded(self.vagrant(*arguments))

    def play(self, verb: str, *arguments: str) -> str:
        """Run a verb from the root, which has to succeed; its output."""
        command = (".venv/bin/ansible-playbook", verb, "-i", str(self.inventory), *arguments)
        return succeeded(self.call(*command))

    def summary(self) -> dict[str, Any]:
        """The summary of the newest run."""
        path = self.checkout / "results" / "latest" / "summary.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def status(self) -> dict[str, Any]:
        """What status.yml says."""
        lines = self.play("status.yml", "-e", "output=json").splitlines()
        found: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("{")))
        return found

    def containers(self) -> dict[str, str]:
        """The machines' containers, running or not: the host name of each, and its id."""
        listed = docker(
            "ps", "--all", "--quiet", "--filter", f"label=coldframe.vagrant={self.checkout}/vagrant"
        )
        return {docker("inspect", "--format", "{{.Config.Hostname}}", one): one for one in listed.split()}

    def inside(self, machine: str, command: str) -> str:
        """Run a command on a machine, past the network; its output."""
        return docker("exec", self.containers()[machine], "sh", "-c", command)
