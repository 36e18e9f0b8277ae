"""Filters: see coldframe/controller/monitoring.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.controller.monitoring import (
    coldframe_certificate_names,
    coldframe_host,
    coldframe_ports,
    coldframe_target_files,
    coldframe_targets,
)


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "coldframe_certificate_names": coldframe_certificate_names,
            "coldframe_host": coldframe_host,
            "coldframe_ports": coldframe_ports,
            "coldframe_target_files": coldframe_target_files,
            "coldframe_targets": coldframe_targets,
        }
