"""Test hosts: makes them, breaks them, mends them and removes every trace of them."""

from __future__ import annotations

import atexit
import functools
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tests.hosts import image
from tests.hosts.shell import (
    HostsError,
    as_root,
    cache,
    call,
    docker,
    docker_command,
    remove_tree,
    say,
    start_container,
)

LABEL = "coldframe.hosts"
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
# Names of the other things in the same directory.
RESERVED = {"images", "seeds"}
BOOT_SECONDS = 60.0

# Naming the table first makes its removal succeed whether it existed or not.
END_ISOLATION = "table ip isolation\ndelete table ip isolation\n"
ISOLATION = """
table ip isolation {{
    chain incoming {{
        type filter hook prerouting priority -300; policy accept;
        iifname "eth0" ip saddr {subnet} ip saddr != {controller} drop
    }}
    chain outgoing {{
        type filter hook postrouting priority -150; policy accept;
        oifname "eth0" ip daddr {subnet} ip daddr != {controller} drop
    }}
}}
"""

# Layers are read-only to an engine, so that hosts may share their files; whatever it writes to is copied.
PLANT = """
cd "$1"
tar -cf "$2/seed.tar" --anchored --no-wildcards-match-slash \\
    --exclude './overlay2/*/diff' --exclude ./engine-id .
tar -xf "$2/seed.tar" -C "$2"
rm "$2/seed.tar"
for layer in overlay2/*/diff; do
    cp -al "$layer" "$2/$layer"
done
"""


@dataclass(frozen=True)
class Host:
    """One test host: an address, and the ways to use and to hurt it."""

    name: str
    address: str
    container: str
    subnet: str
    controller: str
    key: Path = field(repr=False)

    def ssh(self, user: str = "root") -> list[str]:
        """Return the ssh command that reaches this host, without what to run there."""
        options = ["BatchMode=yes", "ConnectTimeout=5", "IdentitiesOnly=yes", "LogLevel=ERROR"]
        options += ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ControlPath=none"]
        flags = [part for option in options for part in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(self.key), *flags, f"{user}@{self.address}"]

    def run(
        self, command: str, *, user: str = "root", check: bool = True, timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host over ssh.

        Raises
        ------
        HostsError
            If `check` and the command ends with anything but 0.
        """
        result = call([*self.ssh(user), command], check=False, timeout=timeout)
        if check and result.returncode != 0:
            raise HostsError(
                f"{self.name}: `{command}` ended with {result.returncode}: {result.stderr}{result.stdout}"
            )
        return result

    def inside(self, command: str) -> str:
        """Run a shell command as root without the network: works on a partitioned host too."""
        return docker("exec", self.container, "sh", "-c", command)

    def answers(self, timeout: float = 1.0) -> bool:
        """Whether its sshd takes a connection from here."""
        try:
            with socket.create_connection((self.address, 22), timeout=timeout) as connection:
                connection.settimeout(timeout)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def wait_ready(self, timeout: float = BOOT_SECONDS) -> None:
        """Wait until ssh answers and systemd says that it is running."""
        deadline = time.monotonic() + timeout
        state = "no answer on port 22"
        while time.monotonic() < deadline:
            if not self.answers():
                time.sleep(0.1)
                continue
            state = self.run("systemctl is-system-running --wait", check=False).stdout.strip()
            if state == "running":
                return
            if state == "degraded":
                failed = self.run("systemctl --failed --plain --no-legend", check=False).stdout
                raise HostsError(f"{self.name} has failed units:\n{failed}")
            time.sleep(0.1)
        logs = call([*docker_command(), "logs", "--tail", "20", self.container], check=False)
        raise HostsError(
            f"{self.name} is not ready after {timeout:.0f} s ({state})\n{logs.stdout}{logs.stderr}"
        )

    def boot_id(self) -> str:
        """Identity of the present boot; a new one after each start or reboot."""
        return self.inside("cat /proc/sys/kernel/random/boot_id")

    def power_cut(self) -> None:
        """Stop everything on the host at once, with no chance to say goodbye."""
        docker("kill", self.container)

    def start(self, timeout: float = BOOT_SECONDS) -> None:
        """Turn the host on after a power cut and wait until it is ready; its cable is plugged in again."""
        start_container(self.container)
        self.rejoin()
        self.wait_ready(timeout)

    def reboot(self, timeout: float = BOOT_SECONDS) -> None:
        """Reboot from inside, in good order, and wait until the host is ready again."""
        before = self.boot_id()
        self.run("systemctl reboot", check=False)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if self.boot_id() != before:
                    return self.wait_ready(timeout)
            except HostsError:
                pass  # between two boots there is no container to ask
            time.sleep(0.1)
        raise HostsError(f"{self.name} did not reboot within {timeout:.0f} s")

    def partition(self) -> None:
        """Cut the host's cable: nothing arrives, nothing is refused. Lasts until rejoin, start or reboot."""
        self._bridge_port("0")

    def rejoin(self) -> None:
        """Plug the cable in again."""
        self._bridge_port("3")

    def _bridge_port(self, state: str) -> None:
        index = self.inside("cat /sys/class/net/eth0/iflink")
        for device in Path("/sys/class/net").iterdir():
            if (device / "ifindex").read_text().strip() == index:
                call(as_root(["bridge", "link", "set", "dev", device.name, "state", state]))
                return
        raise HostsError(f"{self.name}: no network device {index} on this machine")

    def isolate_from_peers(self) -> None:
        """Cut the host and its containers from the other hosts, not from the controller. A reboot ends it."""
        table = ISOLATION.format(subnet=self.subnet, controller=self.controller)
        self._filter(END_ISOLATION + table)

    def rejoin_peers(self) -> None:
        """End an isolation."""
        self._filter(END_ISOLATION)

    def _filter(self, rules: str) -> None:
        docker("exec", "--interactive", self.container, "nft", "--file", "-", text=rules)

    def load_image(self, archive: Path) -> None:
        """Load an image archive (.tar or .tar.zst) into the host's engine, past the network."""
        unpack = "zstd -dcq" if archive.suffix == ".zst" else "cat"
        with archive.open("rb") as stream:
            command = [*docker_command(), "exec", "--interactive", self.container]
            call([*command, "sh", "-c", f"{unpack} | docker load"], stdin=stream)


class Hosts:
    """A set of test hosts with a network and an ssh key of its own.

    Parameters
    ----------
    count
        How many; named `server`, `c1`, `c2`, ... unless `names` says otherwise.
    prefix
        What its containers and its network are called after; random if not given.
    subnet
        A network in CIDR notation; a free one is found if not given.
    seed
        Directory of a stopped engine (see `make_seed`) that every host's engine starts from.
    kept
        Whether the set outlives this process. Else it goes with it, at the latest when the next set is made.
    """

    def __init__(
        self,
        count: int | None = None,
        *,
        names: list[str] | None = None,
        prefix: str | None = None,
        subnet: str | None = None,
        suite: str = "trixie",
        seed: Path | None = None,
        kept: bool = False,
    ) -> None:
        self.names = names or ["server", *(f"c{k}" for k in range(1, count or 1))]
        self.prefix = prefix or f"cf-{secrets.token_hex(3)}"
        for name in (*self.names, self.prefix):
            if not NAME.fullmatch(name) or name in RESERVED:
                raise HostsError(f"{name!r} cannot name a host or a set: use letters, digits and dashes")
        if count is not None and count != len(self.names):
            raise HostsError(f"{count} hosts and {len(self.names)} names: give one of them")
        if len(set(self.names)) != len(self.names):
            raise HostsError(f"host names are not unique: {', '.join(self.names)}")
        self.suite = suite
        self.seed = seed
        self.kept = kept
        self.subnet = subnet
        self.hosts: dict[str, Host] = {}

    @property
    def directory(self) -> Path:
        """Where the set keeps its key, its inventory, its state and its engines' files."""
        return cache() / self.prefix

    @property
    def key(self) -> Path:
        """Private ssh key of the set."""
        return self.directory / "key"

    def __enter__(self) -> Hosts:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def __len__(self) -> int:
        return len(self.hosts)

    def __getitem__(self, name: str | int) -> Host:
        if isinstance(name, int):
            return list(self.hosts.values())[name]
        if name not in self.hosts:
            raise HostsError(f"no host {name!r} in {self.prefix}: there are {', '.join(self.hosts)}")
        return self.hosts[name]

    def up(self) -> Hosts:
        """Make the hosts and wait until all are ready. Whatever interrupts it, nothing half-made stays."""
        sweep()
        tag = image.ensure_image(self.suite)
        try:
            self.directory.mkdir(parents=True)
        except FileExistsError:
            raise HostsError(
                f"there are hosts called {self.prefix} already: "
                f"`python -m tests.hosts down --prefix {self.prefix}` removes them"
            ) from None
        self._heed_signals()
        try:
            # The owner is on file before anything is made, so that a crash at any point can be swept up.
            self._write_state()
            call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.prefix, "-f", str(self.key)])
            self._make_network()
            self._write_state()
            self._each(lambda host: self._make_host(host, tag))
            self._each(lambda host: host.wait_ready())
            (self.directory / "inventory.yml").write_text(self.inventory())
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Remove containers, network, files and state of the set, or whatever is left of them."""
        mine = ("--quiet", "--filter", f"label={LABEL}={self.prefix}")
        with impatience_ignored():
            containers = docker("ps", "--all", *mine).split()
            for container in containers:
                thaw(container)
            with ThreadPoolExecutor(max_workers=8) as pool:
                list(pool.map(lambda container: docker("rm", "--force", "--volumes", container), containers))
            for network in docker("network", "ls", *mine).split():
                docker("network", "rm", network)
            remove_tree(self.directory)
        self.hosts = {}
        atexit.unregister(self._down_at_exit)

    def inventory(self, user: str = "gardener") -> str:
        """Return an Ansible inventory: the first host is server and monitor, the others run clients."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes"
        names = list(self.hosts)
        groups = {"fl_server": names[:1], "fl_clients": names[1:] or names, "fl_monitor": names[:1]}
        lines = ["---", "fl_machines:", "  hosts:"]
        for host in self:
            lines += [f"    {host.name}:", f"      ansible_host: {host.address}"]
        lines += [
            "  vars:",
            f"    ansible_user: {user}",
            f"    ansible_ssh_private_key_file: {self.key}",
            f'    ansible_ssh_common_args: "{options}"',
            # The next set may get the addresses of this one, and must not get its connections.
            f'    ansible_control_path: "%(directory)s/{self.prefix}-%%h-%%r"',
            "    ansible_python_interpreter: /usr/bin/python3",
            "  children:",
        ]
        for group, members in groups.items():
            lines += [f"    {group}:", "      hosts:", *(f"        {name}:" for name in members)]
        return "\n".join(lines) + "\n"

    def _each(self, action: Callable[[Host], None]) -> None:
        with ThreadPoolExecutor(max_workers=len(self.hosts)) as pool:
            list(pool.map(action, self.hosts.values()))

    def _write_state(self) -> None:
        state = {
            "prefix": self.prefix,
            "suite": self.suite,
            "subnet": self.subnet,
            "owner": None if self.kept else {"pid": os.getpid(), "started": started(os.getpid())},
            "hosts": {host.name: host.address for host in self},
        }
        (self.directory / "state.json").write_text(json.dumps(state, indent=2) + "\n")

    def _make_network(self) -> None:
        """Create the network; the engine itself refuses one that another set has taken meanwhile."""
        candidates = [self.subnet] if self.subnet else free_subnets()
        refusal = "every private range is taken by a route"
        for subnet in candidates:
            arguments = ["--subnet", subnet, "--label", f"{LABEL}={self.prefix}", self.prefix]
            try:
                docker("network", "create", *arguments)
            except HostsError as error:
                if "overlap" not in str(error):
                    raise
                refusal = str(error)
                continue
            addresses = ipaddress.ip_network(subnet)
            self.subnet = subnet
            for number, name in enumerate(self.names):
                self.hosts[name] = Host(
                    name=name,
                    address=str(addresses[11 + number]),
                    container=f"{self.prefix}-{name}",
                    subnet=subnet,
                    controller=str(addresses[1]),
                    key=self.key,
                )
            return
        raise HostsError(f"found no free subnet for the hosts: {refusal}")

    def _make_host(self, host: Host, tag: str) -> None:
        engine = self.directory / host.name
        engine.mkdir()
        if self.seed is not None:
            plant(self.seed, engine)
        docker(
            "create",
            *as_a_machine(),
            f"--name={host.container}",
            f"--hostname={host.name}",
            f"--network={self.prefix}",
            f"--ip={host.address}",
            f"--label={LABEL}={self.prefix}",
            f"--env=AUTHORIZED_KEY={self.key.with_suffix('.pub').read_text().strip()}",
            f"--volume={engine}:/var/lib/docker",
            tag,
        )
        start_container(host.container)

    def _heed_signals(self) -> None:
        """Turn SIGTERM into an interrupt, so that `with` blocks and pytest's finalizers still run."""
        if self.kept:
            return
        atexit.register(self._down_at_exit, os.getpid())
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, interrupt)

    def _down_at_exit(self, owner: int) -> None:
        if os.getpid() == owner:
            self.down()


def plant(seed: Path, engine: Path) -> None:
    """Give an engine that has never run the images of a seed."""
    with image.locked("seeds", shared=True):
        if not (seed / "overlay2").is_dir():
            raise HostsError(f"{seed} holds no engine: use what make_seed returns")
        call(as_root(["sh", "-euc", PLANT, "plant", str(seed), str(engine)]))


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM as if the user had typed Ctrl-C."""
    raise KeyboardInterrupt(f"signal {number}")


@contextmanager
def impatience_ignored() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM while cleaning up, so that a second one does not leave the rest behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started(pid: int) -> str | None:
    """Return when a process started, in ticks since boot, or None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


@functools.cache
def as_a_machine() -> tuple[str, ...]:
    """Return the arguments of `docker run` that make a container a machine."""
    command = ["env", f"DOCKER={' '.join(docker_command())}", str(image.RECIPE / "arguments.sh")]
    return tuple(call(command).stdout.splitlines())


def free_subnets() -> Iterator[str]:
    """Yield /24 networks that no route of this machine leads to.

    Engines hand out 172.16/12 and 192.168/16 by themselves, the inner ones too, so those come last or never.
    """
    taken = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        target, mask = (int.from_bytes(bytes.fromhex(fields[k]), "little") for k in (1, 7))
        if mask:
            taken.append(ipaddress.ip_network((target, bin(mask).count("1"))))
    ranges = [("10.213.{}.0/24", 0), ("198.18.{}.0/24", 0), ("192.168.{}.0/24", 100)]
    for pattern, first in ranges:
        for number in range(first, 256):
            subnet = ipaddress.ip_network(pattern.format(number))
            if not any(subnet.overlaps(other) for other in taken):
                yield str(subnet)


def power(container: str) -> str:
    """Return the state of a host's container as the engine calls it, such as running or exited."""
    return docker("inspect", "--format", "{{.State.Status}}", container, check=False) or "gone"


def states() -> dict[str, dict[str, Any]]:
    """Return what is on file of every set, by prefix."""
    found = {}
    for path in sorted(cache().glob("*/state.json")):
        try:
            found[path.parent.name] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # being written or removed right now
    return found


def load(prefix: str) -> Hosts:
    """Return a set that another process made."""
    state = states().get(prefix)
    if state is None:
        known = ", ".join(states()) or "none"
        raise HostsError(f"there are no hosts called {prefix} (there are: {known})")
    hosts = Hosts(names=list(state["hosts"]) or None, prefix=prefix, suite=state["suite"], kept=True)
    hosts.subnet = state["subnet"]
    for name, address in state["hosts"].items():
        controller = str(ipaddress.ip_network(state["subnet"])[1])
        hosts.hosts[name] = Host(name, address, f"{prefix}-{name}", state["subnet"], controller, hosts.key)
    return hosts


def thaw(container: str) -> None:
    """Wake what is paused inside a host: the kernel cannot end a frozen process."""
    for top, groups, _ in os.walk("/sys/fs/cgroup"):  # which minds no group that ends meanwhile
        if container not in top or not groups:
            continue
        for name, awake in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            for group in groups:
                path = Path(top, group, name)
                if path.exists() and path.read_text().strip() != awake:
                    path.write_text(awake)


def sweep() -> list[str]:
    """Remove the sets whose process has died without doing so, and return their prefixes."""
    swept = []
    with image.locked("sweep"):
        for prefix, state in states().items():
            owner = state["owner"]
            if owner is not None and started(owner["pid"]) != owner["started"]:
                say(f"test hosts: removing {prefix}, which a dead process left behind")
                load(prefix).down()
                swept.append(prefix)
    return swept
