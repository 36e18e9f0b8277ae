"""Filters: see coldframe/controller/interruption.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.controller.interruption import (
    coldframe_harm,
    coldframe_interruption,
)


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"coldframe_harm": coldframe_harm, "coldframe_interruption": coldframe_interruption}
