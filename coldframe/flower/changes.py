"""How Coldframe changes flwr: `replace` exchanges one function, `change` notes what the new one relies on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from coldframe.flower.version import installed

# How often a server that does not hold a request until it has an answer is asked again.
POLL_SECONDS = 0.5
# When a task sends its first heartbeat; the server expects one within 30 s.
FIRST_HEARTBEAT_SECONDS = 10.0

Change = TypeVar("Change", bound=Callable[..., None])


class ChangeError(RuntimeError):
    """Something that Coldframe replaces is not in this flwr."""


def change(*relies_on: str) -> Callable[[Change], Change]:
    """Note the sources of flwr that a change relies on, each as `module:name`, or `module:` for all of it.

    `scripts/flwr_diff.py` shows what a release alters in them. Nothing is compared when a process starts.
    """

    def note(function: Change) -> Change:
        vars(function)["relies_on"] = relies_on
        return function

    return note


def replace(owner: Any, name: str, new: Any) -> None:
    """Put `new` in the place of a function or method of flwr.

    Raises
    ------
    ChangeError
        If there is none of that name: what would be changed is somewhere else.
    """
    if not hasattr(owner, name):
        raise ChangeError(f"flwr {installed()} has no {getattr(owner, '__name__', owner)}.{name}")
    setattr(owner, name, new)


def is_traced() -> bool:
    """Whether flwr traces requests, which the fast path would pass by."""
    return os.environ.get("FLWR_TRACING_ENABLED") == "1"
