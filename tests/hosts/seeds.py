"""Makes seeds: directories of stopped engines with an image in them, from which hosts start in seconds."""

from __future__ import annotations

import re
from pathlib import Path

from tests.hosts.hosts import Hosts
from tests.hosts.image import locked
from tests.hosts.shell import HostsError, as_root, cache, call, remove_tree, say

# A seed is as large as its unpacked image, and every change of the image makes a new one.
KEPT = 3


def make_seed(archive: Path, key: str, suite: str = "trixie") -> Path:
    """Return the directory of an engine that has the image of `archive` (.tar or .tar.zst).

    It is made once per `key`, which should be the image's content hash, and serves as `Hosts(..., seed=...)`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        raise HostsError(f"{key!r} cannot name a seed: use letters, digits, dots and dashes")
    seed = cache() / "seeds" / f"{suite}-{key}"
    with locked("seeds"):
        if not seed.exists():
            say(f"test hosts: loading {archive.name} into an engine, once")
            seed.parent.mkdir(parents=True, exist_ok=True)
            with Hosts(1, suite=suite) as hosts:
                host = hosts[0]
                host.run("systemctl start docker")
                host.load_image(archive)
                host.run("systemctl stop docker.socket docker.service containerd.service && sync")
                host.power_cut()
                call(as_root(["mv", str(hosts.directory / host.name), str(seed)]))
        # The directory is the engine's, so the time of its last use stands beside it.
        used = seed.with_name(f"{seed.name}.used")
        used.touch()
        by_age = sorted(seed.parent.glob("*.used"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-KEPT]:
            remove_tree(old.with_suffix(""))
            old.unlink()
    return seed
