"""A virtual machine with a kernel of its own: starts it, runs programs in it, and leaves nothing behind.

Qemu is started directly, without libvirt. The disk is the one of Vagrant's box (`vagrant/machine/box.sh`),
under an overlay that goes with the machine. No boot loader runs: Qemu starts the kernel that was on the disk.
The ssh key is made for this one start; systemd takes the public half from the kernel's command line, as a
credential.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.hosts.hosts import impatience_ignored, interrupt, started
from tests.hosts.image import ROOT, ensure_disk, ensure_tree
from tests.hosts.shell import HostsError, call, say

ARCHITECTURE = "x86_64"
BOOT_SECONDS = 240.0  # 25 s emulated on a quiet machine
STEP_SECONDS = 240.0
CODE = "/opt/coldframe"
PREFIX = "coldframe-vm-"
MEMORY, CORES = 2048, 2
# What nobody here needs. The recipe of the disk stays as it is: the kernel's command line masks them.
MASKED = [
    "getty.target",
    "systemd-logind.service",
    "systemd-resolved.service",
    "systemd-binfmt.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "systemd-network-generator.service",
    "systemd-udev-load-credentials.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "systemd-journal-flush.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-user-sessions.service",
    "systemd-random-seed.service",
]


class Machine:
    """A virtual machine: `with Machine() as machine: machine.run("uname -r")`."""

    def __init__(self) -> None:
        self.work: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.accelerator = ""
        self.boot_seconds = 0.0

    def __enter__(self) -> Machine:
        if platform.machine() != ARCHITECTURE:
            raise HostsError(f"the virtual machine is made for {ARCHITECTURE}, this is {platform.machine()}")
        for tool in (f"qemu-system-{ARCHITECTURE}", "qemu-img"):
            if shutil.which(tool) is None:
                raise HostsError(f"the virtual machine needs {tool}: type scripts/setup_kernel.sh")
        disk, tree = ensure_disk(), ensure_tree()
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, interrupt)
        sweep()
        self.work = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            (self.work / "owner").write_text(f"{os.getpid()} {started(os.getpid())}")
            call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "coldframe", "-f", str(self.key)])
            overlay = self.work / "overlay.qcow2"
            backing = ["-b", str(disk.image), "-F", "qcow2"]
            call(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay)])
            self.accelerator = "kvm" if has_kvm() else "tcg"
            begin = time.monotonic()
            self.start([*command(self.accelerator), *drives(overlay, tree)], disk.kernel, disk.initrd)
            self.wait_for_ssh()
            self.boot_seconds = time.monotonic() - begin
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def key(self) -> Path:
        """The private ssh key."""
        assert self.work is not None
        return self.work / "key"

    def start(self, qemu: list[str], kernel: Path, initrd: Path, tries: int = 3) -> None:
        """Start Qemu; again with another port where the one found free was taken meanwhile."""
        assert self.work is not None
        public = base64.b64encode(self.key.with_suffix(".pub").read_bytes()).decode()
        words = ["root=/dev/vda1", "ro", "quiet", "net.ifnames=0", "console=ttyS0", "mitigations=off"]
        words += [f"systemd.set_credential_binary=ssh.authorized_keys.root:{public}"]
        words += ["systemd.firstboot=off", "systemd.condition_needs_update=0", "systemd.wants=docker.service"]
        words += [f"systemd.mask={unit}" for unit in MASKED]
        boots = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", " ".join(words)]
        for left in reversed(range(tries)):
            self.port = free_port()
            # `restrict`: nothing in there reaches any network.
            network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"
            link = ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
            with (self.work / "qemu.log").open("wb") as log:
                self.process = subprocess.Popen(
                    [*qemu, *boots, *link, "-serial", f"file:{self.work / 'console'}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            while self.process.poll() is None:
                if self.listens():
                    return
                time.sleep(0.1)
            said = (self.work / "qemu.log").read_text()
            if left == 0 or "host forwarding rule" not in said:
                raise HostsError(f"Qemu ended with {self.process.returncode}: {said}")

    def listens(self) -> bool:
        """Whether Qemu holds the port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def wait_for_ssh(self) -> None:
        """Wait until the machine lets us in."""
        assert self.process is not None
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.greets() and call([*self.ssh(), "true"], check=False, timeout=60).returncode == 0:
                return
            time.sleep(0.5)
        raise HostsError(
            f"the virtual machine does not answer (Qemu: {self.process.poll()})\n{self.console()}"
        )

    def greets(self) -> bool:
        """Whether an sshd answers at the port."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.settimeout(5)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def console(self) -> str:
        """The last that the machine said, and Qemu."""
        assert self.work is not None
        lines = []
        for name in ("qemu.log", "console"):
            path = self.work / name
            lines += path.read_text(errors="replace").splitlines()[-20:] if path.exists() else []
        return "\n".join(lines)

    def ssh(self) -> list[str]:
        """Return the ssh command; all of one start share a connection, which costs two seconds emulated."""
        assert self.work is not None
        options = ["BatchMode=yes", "ConnectTimeout=30", "IdentitiesOnly=yes", "LogLevel=ERROR"]
        options += ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
        options += ["ControlMaster=auto", f"ControlPath={self.work / 'ssh'}", "ControlPersist=yes"]
        flags = [part for option in options for part in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), *flags, "root@127.0.0.1"]

    def run(self, line: str, *, text: str | None = None, check: bool = True) -> str:
        """Run a shell command as root; return what it printed.

        Raises
        ------
        HostsError
            If `check` and it ends with anything but 0.
        """
        done = call([*self.ssh(), line], check=False, text=text, timeout=STEP_SECONDS)
        if check and done.returncode != 0:
            raise HostsError(f"`{line}` ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def ask(self, topic: str, **arguments: Any) -> Any:
        """Run a topic of the program inside; return what it found."""
        line = f"PYTHONPATH={CODE} python3 -m tests.kernel.inside {topic}"
        return json.loads(self.run(line, text=json.dumps(arguments)).splitlines()[-1])

    def copy(self, source: Path, names: list[str], target: str = CODE) -> None:
        """Copy files and directories into a directory of the machine."""
        packing = ["tar", "-C", str(source), "--exclude=__pycache__", "-cf", "-", *names]
        with subprocess.Popen(packing, stdout=subprocess.PIPE) as packed:
            unpack = f"mkdir -p {target} && tar -C {target} --no-same-owner -xf -"
            call([*self.ssh(), unpack], stdin=packed.stdout, timeout=STEP_SECONDS)
        if packed.returncode != 0:
            raise HostsError(f"tar of {source} ended with {packed.returncode}")

    def stop(self) -> None:
        """End Qemu and remove what this start made, or whatever of it is there."""
        with impatience_ignored():
            if self.work is not None and (self.work / "ssh").exists():
                call([*self.ssh()[:-1], "-O", "exit", "root@127.0.0.1"], check=False)
            if self.process is not None:
                self.process.kill()  # nothing in there is kept
                self.process.wait()
            if self.work is not None:
                shutil.rmtree(self.work)
        self.process = self.work = None


def sweep() -> None:
    """Remove the files of machines whose process was killed: Qemu ended with it."""
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/owner"):
        with contextlib.suppress(OSError, ValueError):  # being written or removed right now, or not ours
            pid, begin = owner.read_text().split()
            if started(int(pid)) != begin:
                shutil.rmtree(owner.parent)


def has_kvm() -> bool:
    """Whether KVM helps here: decided where Vagrant's machines decide it."""
    found = call([str(ROOT / "vagrant" / "kvm.sh")], check=False).returncode == 0
    say(f"virtual machine: {'with KVM' if found else 'emulated (no usable KVM)'}")
    return found


def free_port() -> int:
    """Return a port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(accelerator: str) -> list[str]:
    """Return how Qemu is called; it ends with us, also where we are killed."""
    how = "kvm" if accelerator == "kvm" else "tcg,thread=multi,tb-size=512"
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *(f"qemu-system-{ARCHITECTURE}", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", how, "-cpu", "max", "-smp", str(CORES), "-m", str(MEMORY)),
    ]


def drives(overlay: Path, tree: Path) -> list[str]:
    """Return the disks: the machine's own, and the tree of the machine in a container."""
    return [
        *("-drive", f"if=virtio,format=qcow2,cache=unsafe,file={overlay}"),
        *("-drive", f"if=virtio,format=raw,readonly=on,file={tree}"),
    ]
