"""Filters: see coldframe/controller/monitoring.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from coldframe.controller.monitoring import (
    coldframe_certificate_names,
    coldframe_host,
    coldframe_ports,
    coldframe_target_files,
    coldframe_targets,
)
from coldframe.controller.resolution import coldframe_names


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "coldframe_certificate_names": coldframe_certificate_names,
            "coldframe_host": coldframe_host,
            "coldframe_names": coldframe_names,
            "coldframe_ports": coldframe_ports,
            "coldframe_target_files": coldframe_target_files,
            "coldframe_targets": coldframe_targets,
        }
