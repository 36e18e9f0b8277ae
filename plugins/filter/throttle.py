"""Filters: see coldframe/controller/throttle_text.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.controller.throttle_text import (
    coldframe_events,
    coldframe_proof_text,
    coldframe_refusal,
    coldframe_speeds,
    coldframe_throttle_text,
)


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them."""
        return {
            "coldframe_refusal": coldframe_refusal,
            "coldframe_throttle_text": coldframe_throttle_text,
            "coldframe_proof_text": coldframe_proof_text,
            "coldframe_events": coldframe_events,
            "coldframe_speeds": coldframe_speeds,
        }
