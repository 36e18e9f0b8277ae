"""Filters: see coldframe/controller/status.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.controller.status import (
    coldframe_before,
    coldframe_inventory,
    coldframe_moment,
    coldframe_status,
    coldframe_status_text,
    coldframe_submission,
    coldframe_with_keys,
)


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "coldframe_inventory": coldframe_inventory,
            "coldframe_with_keys": coldframe_with_keys,
            "coldframe_status": coldframe_status,
            "coldframe_status_text": coldframe_status_text,
            "coldframe_before": coldframe_before,
            "coldframe_moment": coldframe_moment,
            "coldframe_submission": coldframe_submission,
        }
