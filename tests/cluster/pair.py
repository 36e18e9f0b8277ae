"""Two hosts of a module's own, which have the images and hold nothing else: a server, and one for clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.lab import Lab
from tests.hosts import Hosts, fl_seed
from tests.hosts.hosts import load


@contextmanager
def pair(directory: Path) -> Iterator[Lab]:
    """Make them, and remove them. COLDFRAME_HOSTS=<prefix> takes a standing set, for the inner loop."""
    standing = os.environ.get("COLDFRAME_HOSTS")
    if standing:
        lab = Lab(load(standing), directory)
        yield lab
        lab.clear()
        return
    with Hosts(2, seed=fl_seed()) as hosts:
        yield Lab(hosts, directory)
