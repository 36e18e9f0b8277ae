"""Makes seeds: directories of stopped engines with images in them, from which hosts start in seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.hosts.hosts import Host, Hosts
from tests.hosts.image import ROOT, locked
from tests.hosts.shell import HostsError, as_root, cache, call, remove_tree, say

# A seed is as large as its unpacked images, and every change of an image makes a new one.
KEPT = 3
# An image that was built leaves those behind that it was built from; their layers are a part of it.
FORGET = """
for reference in $(docker image ls --format '{{.Repository}}:{{.Tag}}' | grep -vxF -e %s -e %s); do
    docker image rm --no-prune "$reference"
done
docker image prune --force
"""


def make_seed(archive: Path, key: str, suite: str = "trixie") -> Path:
    """Return the directory of an engine that has the image of `archive` (.tar or .tar.zst).

    It is made once per `key`, which should be the image's content hash, and serves as `Hosts(..., seed=...)`.
    """

    def load(hosts: Hosts) -> None:
        say(f"test hosts: loading {archive.name} into an engine, once")
        hosts[0].run("systemctl start docker")
        hosts[0].load_image(archive)

    with locked("seed"):
        return keep(key, suite, load)


def fl_seed(suite: str = "trixie") -> Path:
    """Return the directory of an engine that has the images which this checkout's site.yml deploys.

    The plays that make images for users bring them to one host, without a federation: from the controller's
    cache, or from nothing in minutes. Of processes that want it at once, one makes it and the others wait.
    """
    versions = yaml.safe_load((ROOT / "group_vars/all/versions.yml").read_text())
    packages = yaml.safe_load((ROOT / "roles/fl_image/defaults/main.yml").read_text())["fl_image_packages"]
    debian = versions["coldframe_debian_suite"]
    fl = names(debian, packages)[2]
    prometheus = names(debian, versions["coldframe_prometheus_packages"])[0]

    def deploy(hosts: Hosts) -> None:
        say("test hosts: bringing the federation's images into an engine, once")
        play(hosts, ROOT / "tests" / "hosts" / "images.yml")
        hosts[0].run(FORGET % (f"coldframe/fl:{fl}", f"coldframe/prometheus:{prometheus}"))

    with locked("fl-seed"):
        return keep(f"fl-{fl}-{prometheus}", suite, deploy)


def names(suite: str, packages: list[str]) -> list[str]:
    """Return the content tags of three images: these Debian packages, Python's upon them, the FL image."""
    script = str(ROOT / "roles" / "fl_image" / "files" / "names.sh")
    return call([script, str(ROOT), suite, " ".join(packages)]).stdout.splitlines()


def play(hosts: Hosts, playbook: Path) -> None:
    """Run a playbook on the hosts, apart from the user's own federations."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(playbook)]
    command += ["-i", str(hosts.directory / "inventory.yml")]
    with tempfile.TemporaryDirectory() as state:
        environment = {**os.environ, "XDG_STATE_HOME": state}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def keep(key: str, suite: str, fill: Callable[[Hosts], None]) -> Path:
    """Return the seed of this key. If there is none, `fill` fills a host's engine, and that becomes it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        raise HostsError(f"{key!r} cannot name a seed: use letters, digits, dots and dashes")
    seed = cache() / "seeds" / f"{suite}-{key}"
    if not seed.exists():
        seed.parent.mkdir(parents=True, exist_ok=True)
        with Hosts(1, suite=suite) as hosts:
            fill(hosts)
            take(hosts[0], hosts.directory / hosts[0].name, seed)
    with locked("seeds"):  # not before: hosts are planted while a seed is being made
        # The directory is the engine's, so the time of its last use stands beside it.
        seed.with_name(f"{seed.name}.used").touch()
        by_age = sorted(seed.parent.glob("*.used"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-KEPT]:
            remove_tree(old.with_suffix(""))
            old.unlink()
    return seed


def take(host: Host, engine: Path, seed: Path) -> None:
    """Stop a host's engine and keep its directory."""
    host.run("systemctl stop docker.socket docker.service containerd.service && sync")
    host.power_cut()
    call(as_root(["mv", str(engine), str(seed)]))
