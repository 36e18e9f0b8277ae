"""Filters: see coldframe/controller/roster.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.controller.roster import (
    coldframe_roster,
    coldframe_run_config,
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
            "coldframe_run_config": coldframe_run_config,
            "coldframe_state_files": state_files,
            "coldframe_status_table": coldframe_status_table,
        }
