"""Runs the module machine_facts and notes the controller's clock before and after it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from coldframe.controller.direct import run_script, script_of

MODULE = Path(__file__).resolve().parents[1] / "modules" / "machine_facts.py"
UTILITIES = ("engine", "standing")  # of coldframe.machine, which the module imports


class ActionModule(ActionBase):
    """The module's clock reading lies between the two: whatever is outside them is skew, not latency."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        before = time.time()
        found = run_script(self, script_of(MODULE, UTILITIES, self._task.args), task_vars or {})
        if found is None:
            before = time.time()
            found = self._execute_module(task_vars=task_vars)
        return {**result, **found, "controller_before": before, "controller_after": time.time()}
