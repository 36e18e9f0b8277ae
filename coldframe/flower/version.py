"""Which flwr Coldframe's changes were tested with, and which runtime a process therefore has.

The image pins flwr. With any other than the tested versions a process applies no change: it runs Flower's
own runtime, says so in its log, and `status.yml` shows it. To widen the range, read what
`scripts/flwr_diff.py OLD NEW` prints, let `make test` pass with the other version, then change NEWEST.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import metadata

# Both ends belong to the range.
OLDEST, NEWEST = (1, 42, 0), (1, 42, 0)
WARM, STOCK = "warm", "stock"


@dataclass(frozen=True)
class Runtime:
    """`warm` with Coldframe's changes to flwr, `stock` without; why not `warm` where it was asked for."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name

    @property
    def is_warm(self) -> bool:
        """Whether Coldframe's changes to flwr are applied."""
        return self.name == WARM


def installed() -> str:
    """Return the version of the installed flwr."""
    return metadata.version("flwr")


def is_tested(version: str) -> bool:
    """Whether a version is in the tested range; pre-releases and local versions are not.

    >>> is_tested("1.42.0"), is_tested("1.42.0rc1"), is_tested("1.99.0")
    (True, False, False)
    """
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version)
    return numbers is not None and OLDEST <= tuple(map(int, numbers.groups())) <= NEWEST


def tested() -> str:
    """Return the tested range in words."""
    ends = [".".join(map(str, end)) for end in (OLDEST, NEWEST)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def runtime() -> Runtime:
    """Return the runtime of this process: that of COLDFRAME_RUNTIME, but `stock` with an untested flwr."""
    if os.environ.get("COLDFRAME_RUNTIME", WARM) != WARM:
        return Runtime(STOCK)
    version = installed()
    return Runtime(WARM) if is_tested(version) else Runtime(STOCK, f"flwr {version} is untested")


def warning(found: Runtime) -> str:
    """Return what the log says of a runtime that is not the one that was asked for; else nothing."""
    if not found.reason:
        return ""
    return (
        f"runtime: {found}: without Coldframe's changes rounds take longer and requests have no size limit;"
        f" install flwr {tested()} (coldframe/requirements.txt), or deploy with fl_runtime=stock"
    )
