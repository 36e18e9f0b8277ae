"""Makes the image of a machine in a container, and box and disk of a virtual one, and keeps them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.shell import HostsError, as_root, cache, call, docker, docker_command, remove_tree, say

SUITES = ("trixie", "bookworm")
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "vagrant" / "machine"
PARTITION = 2048 * 512  # bytes before a box's file system: see box.sh


@dataclass(frozen=True)
class Disk:
    """The disk of a virtual machine, and what starts it without a boot loader."""

    image: Path
    kernel: Path
    initrd: Path


def mirror() -> str:
    """Return the Debian mirror that this machine itself uses."""
    found = call([str(ROOT / "scripts" / "debian_mirror.sh")]).stdout.strip()
    if not found:
        raise HostsError(
            "apt's configuration names no Debian mirror: set COLDFRAME_DEBIAN_MIRROR to the address of one"
        )
    return found


@contextmanager
def locked(name: str, *, shared: bool = False) -> Iterator[None]:
    """Keep other processes from doing the same at the same time."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def name(kind: str, suite: str) -> str:
    """Return what the recipe of a machine makes: `container` or `virtual`."""
    if suite not in SUITES:
        raise HostsError(f"no machine of suite {suite!r}: choose one of {', '.join(SUITES)}")
    return call([str(RECIPE / "name.sh"), kind, suite]).stdout.strip()


def ensure_image(suite: str = "trixie") -> str:
    """Return the tag of the machine's image, made now if this engine does not have it."""
    tag = name("container", suite)
    if docker("images", "--quiet", tag):
        return tag
    with locked("image"):
        if docker("images", "--quiet", tag):
            return tag
        archive = _archive(tag, suite)
        say(f"machine image: loading {archive.name} into the engine")
        importing = [*docker_command(), "import"]
        importing += [
            "--change",
            'ENTRYPOINT ["/usr/local/sbin/machine-init"]',
            "--change",
            "ENV container=docker",
        ]
        with subprocess.Popen(["zstd", "-dcq", str(archive)], stdout=subprocess.PIPE) as unpacked:
            call([*importing, "-", tag], stdin=unpacked.stdout)
        if unpacked.returncode != 0:
            docker("rmi", tag)
            raise HostsError(f"{archive} is damaged: remove it and try again")
    return tag


def _archive(tag: str, suite: str) -> Path:
    archive = cache() / "images" / f"{tag.partition(':')[2]}.tar.zst"
    if not archive.exists():
        build(suite, archive)
    return archive


def ensure_tree(suite: str = "trixie") -> Path:
    """Return a disk with the root file system of the machine in a container, made now if it is not there.

    For a virtual machine that runs the container: unpacking the image there takes minutes without KVM.
    """
    tag = name("container", suite)
    tree = cache() / "images" / f"{tag.partition(':')[2]}.ext4"
    with locked("image"):
        if not tree.exists():
            need("zstd", "mke2fs")
            archive = _archive(tag, suite)
            say(f"machine image: making a disk of {archive.name}")
            with _scratch(tree) as work:
                unpack = 'zstd -dcq "$1" | tar -x -C "$2" && mke2fs -q -F -t ext4 -d "$2" "$3" 2G'
                call(
                    as_root(
                        [
                            "sh",
                            "-euc",
                            f"mkdir $2; {unpack}",
                            "tree",
                            str(archive),
                            f"{work}/root",
                            f"{work}/disk",
                        ]
                    )
                )
                (work / "disk").rename(tree)
    return tree


def ensure_disk(suite: str = "trixie") -> Disk:
    """Return the disk of the box, unpacked, with the kernel that is on it; made now if it is not there."""
    box = ensure_box(suite)
    folder = box.with_suffix(".disk")
    with locked("box"):
        if not folder.exists():
            need("qemu-img", "debugfs")
            say(f"machine disk: unpacking {box.name}")
            with _scratch(folder) as work:
                call(["tar", "-C", str(work), "-xf", str(box), "box.img"])
                call(["qemu-img", "convert", "-O", "raw", f"{work}/box.img", f"{work}/raw"])
                system = f"{work}/raw?offset={PARTITION}"
                (work / "disk").mkdir()
                for file, target in (("vmlinuz", "kernel"), ("initrd.img", "initrd")):
                    listed = call(["debugfs", "-R", "ls -p /boot", system]).stdout
                    found = re.search(rf"/({re.escape(file)}-[^/]+)/", listed)
                    if found is None:
                        raise HostsError(f"{box} holds no /boot/{file}-*: remove it and try again")
                    call(["debugfs", "-R", f"dump /boot/{found[1]} {work}/disk/{target}", system])
                call(["qemu-img", "convert", "-O", "qcow2", f"{work}/raw", f"{work}/disk/disk.qcow2"])
                (work / "disk").rename(folder)
    return Disk(folder / "disk.qcow2", folder / "kernel", folder / "initrd")


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """Make a directory on the same file system for what is half made, and remove what is left in it."""
    work = Path(tempfile.mkdtemp(prefix=f".{beside.name}.", dir=beside.parent))
    try:
        yield work
    finally:
        remove_tree(work)


def ensure_box(suite: str = "trixie") -> Path:
    """Return the box for Vagrant's provider libvirt, made now if it is not there."""
    box = cache() / "images" / f"{name('virtual', suite).partition(':')[2]}.box"
    with locked("box"):
        if not box.exists():
            need("mmdebstrap", "sfdisk", "mke2fs", "qemu-img", "grub-mkimage")
            started = time.monotonic()
            box.parent.mkdir(parents=True, exist_ok=True)
            made = box.with_name(f".{box.name}.{os.getpid()}")
            say(f"machine box: building Debian {suite} with a kernel (3-6 minutes, once; log: {box}.log)")
            try:
                recipe(["box.sh", suite, mirror(), str(made)], Path(f"{box}.log"), started)
                made.rename(box)
            finally:
                if made.exists():
                    call(as_root(["rm", "-f", str(made)]))
            say(f"machine box: {box.stat().st_size / 1e6:.0f} MB, {time.monotonic() - started:.0f} s")
    return box


def build(suite: str, archive: Path) -> None:
    """Build the root file system with mmdebstrap and compress it to `archive`."""
    need("mmdebstrap", "zstd")
    archive.parent.mkdir(parents=True, exist_ok=True)
    plain = archive.with_name(f".{archive.name}.{os.getpid()}.tar")
    log = archive.with_name(f"{archive.name}.log")
    packed = plain.with_suffix(".zst")
    started = time.monotonic()
    say(f"machine image: building Debian {suite} (2-5 minutes, once; log: {log})")
    try:
        recipe(["rootfs.sh", "container", suite, mirror(), str(plain)], log, started)
        say("machine image: compressing")
        call(["zstd", "-q", "-3", "-T0", "-f", str(plain), "-o", str(packed)])
        packed.rename(archive)
    finally:
        for left in (plain, packed):
            if left.exists():
                call(as_root(["rm", "-f", str(left)]))
    size = archive.stat().st_size / 1e6
    say(f"machine image: {size:.0f} MB, {time.monotonic() - started:.0f} s")


def need(*tools: str) -> None:
    """See that the tools of a recipe are there."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise HostsError(
                f"machines are made with {tool}, which is not here: type scripts/setup.sh --dev,"
                " and for virtual ones scripts/setup_kernel.sh"
            )


def recipe(command: list[str], log: Path, started: float) -> None:
    """Run a script of the recipe as root, say how far it is, and keep its output in `log`."""
    script = as_root([str(RECIPE / command[0]), *command[1:]])
    with (
        log.open("w") as lines,
        subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        follow(process.stdout, lines.write, started)
    if process.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise HostsError(f"{command[0]} failed:\n{tail}")


def follow(output: Iterable[str], log: Callable[[str], object], started: float) -> None:
    """Say which step the build is at and how many packages are done."""
    step, total, said = "starting", 0, 0.0
    counts = {"Get:": 0, "Setting up ": 0}
    terminal = sys.stderr.isatty()
    for line in output:
        log(line)
        changed = line.startswith("I: ")
        if changed:
            step, total, counts = line[3:].strip().rstrip("."), 0, dict.fromkeys(counts, 0)
        elif count := re.search(r"(\d+) newly installed", line):
            total = int(count[1])
        for start in counts:
            counts[start] += total > 0 and line.startswith(start)
        now = time.monotonic()
        if changed or now - said > (0.2 if terminal else 10):
            fetched, ready = counts.values()
            progress = f": {ready or fetched} of {total} packages" if fetched or ready else ""
            text = f"machine: [{now - started:3.0f} s] {step}{progress}"
            if terminal:
                print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
            else:
                say(text)
            said = now
    if terminal:
        print(file=sys.stderr)
