"""As many threads as the CPU limit of this process has whole cores, unless the user has said how many."""

from __future__ import annotations

import os
import sys

from coldframe import cgroups
from coldframe.supervise import THREAD_VARIABLES


def allowed() -> int:
    """Return how many threads suit this process now."""
    if chosen := os.environ.get("OMP_NUM_THREADS"):
        return max(1, int(chosen.partition(",")[0]))
    group = cgroups.own()
    return cgroups.threads(group.cpu_limit(), group.cpuset_count())


def limit() -> None:
    """Have torch, and what reads its number of threads as it is imported, keep to that."""
    count = allowed()
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, str(count))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
