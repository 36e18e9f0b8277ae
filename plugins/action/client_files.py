"""Runs the module client_files, past Ansible's wrapper where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from coldframe.controller.direct import run_script, script_of

MODULE = Path(__file__).resolve().parents[1] / "modules" / "client_files.py"


class ActionModule(ActionBase):
    """What it refuses, and a failure, the module says in its own way: it can be run twice."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Put the clients' files together."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        found = None
        if not self._task.check_mode:
            found = run_script(self, script_of(MODULE, (), self._task.args), task_vars or {})
        return result | (self._execute_module(task_vars=task_vars) if found is None else found)
