"""How many threads an app's libraries use: as many as the CPU limit has whole cores, or as the user has set.

A library that is imported later reads its variable. One that is loaded already (numpy and torch in a fork of
the zygote) is told by a call.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from coldframe import cgroups

VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"),
)
# OpenBLAS has a prefix in numpy's and scipy's wheels, and a suffix where its integers have 64 bits.
_NAMES = [f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]


def allowed() -> int:
    """Return how many threads suit this process now: set by the user, else by the CPU limit."""
    if (chosen := _number("OMP_NUM_THREADS")) is not None:
        return chosen
    group = cgroups.own()
    return cgroups.threads(group.cpu_limit(), group.cpuset_count())


def apply() -> None:
    """Have all libraries of this process, loaded or not yet, use as many threads as are allowed."""
    count = allowed()
    for name in VARIABLES:
        os.environ.setdefault(name, str(count))
    for library in loaded_blas():
        library.set(_number("OPENBLAS_NUM_THREADS") or count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def _number(variable: str) -> int | None:
    """Return what a variable says, of a list (one per nesting level) its first."""
    with suppress(ValueError):
        return max(1, int(os.environ.get(variable, "").partition(",")[0]))
    return None


class Blas:
    """An OpenBLAS that is loaded."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        name = next((name for name in _NAMES if hasattr(library, name.format("set"))), None)
        if name is None:
            raise LookupError(path)
        self.set, self.get = getattr(library, name.format("set")), getattr(library, name.format("get"))


_loaded: list[Blas] = []


def loaded_blas() -> list[Blas]:
    """Return every OpenBLAS that this process has loaded; a task forked after a first look has no second."""
    if not _loaded:
        lines = Path("/proc/self/maps").read_text().splitlines()
        for path in sorted({line.split(maxsplit=5)[5] for line in lines if "openblas" in line}):
            with suppress(OSError, LookupError):  # a file that was replaced, or a build of another kind
                _loaded.append(Blas(path))
    return _loaded
