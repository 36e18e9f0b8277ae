"""The filters of our playbooks: every function coldframe_… of the modules that compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.controller import (
    certificates,
    experiment_plan,
    interruption,
    monitoring,
    openpgp,
    resolution,
    roster,
    scenario,
    status,
    throttle_text,
)

MODULES = (
    certificates,
    experiment_plan,
    interruption,
    monitoring,
    openpgp,
    resolution,
    roster,
    scenario,
    status,
    throttle_text,
)


class FilterModule:
    """Ansible's way to find the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            name: function
            for module in MODULES
            for name, function in vars(module).items()
            if name.startswith("coldframe_")
        }
