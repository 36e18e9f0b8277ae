"""Filters: see coldframe/controller/roster.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from coldframe.controller.roster import (
    coldframe_roster,
    coldframe_run_config,
    coldframe_server_memory,
    coldframe_size,
    coldframe_status_table,
    state_files,
)


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "coldframe_roster": coldframe_roster,
            "coldframe_size": coldframe_size,
            "coldframe_server_memory": coldframe_server_memory,
            "coldframe_run_config": coldframe_run_config,
            "coldframe_state_files": state_files,
            "coldframe_status_table": coldframe_status_table,
        }
