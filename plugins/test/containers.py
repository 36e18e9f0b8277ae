"""Test of what docker_container says: whether to ask for the same container once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

RUNTIME = (
    "OCI runtime create failed"  # the engine's words where runc or its shim ended before the container ran
)


def coldframe_settled(result: Mapping[str, Any]) -> bool:
    """Whether a container is as asked for, or cannot be. The one failure worth another try is that of the
    container's runtime, which dies now and then under load ("read init-p: connection reset by peer"); the
    container is made then, and only has to be started."""
    return RUNTIME not in str(result.get("msg", ""))


class TestModule:
    """The tests' names in playbooks."""

    def tests(self) -> dict[str, Callable[..., Any]]:
        """Names in templates and what they call."""
        return {"coldframe_settled": coldframe_settled}
