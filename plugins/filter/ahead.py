"""Filters: see coldframe/controller/interruption.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from coldframe.controller.interruption import (
    coldframe_harm,
    coldframe_interruption,
)


class FilterModule:
    """The filters' names in playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"coldframe_harm": coldframe_harm, "coldframe_interruption": coldframe_interruption}
