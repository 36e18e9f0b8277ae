"""Runs the module client_limits, past Ansible's wrapper where it can: all it does is to pass a line on."""

from __future__ import annotations

import inspect
import json
from typing import Any

from ansible.plugins.action import ActionBase

from coldframe.controller.direct import run_script
from coldframe.machine.agent_request import ARGUMENTS, REQUIRED_IF, ask, build, conclude, patience, unanswered

SCRIPT = """\
from __future__ import annotations
import json, socket, time
{ask}
path, request, patience, wait = json.loads({question!r})
try:
    answer = ask(path, request, patience, wait)
except (OSError, ValueError) as error:
    answer = {{"unanswered": str(error)}}
print(json.dumps(answer))
"""


class ActionModule(ActionBase):
    """The module's wrapper takes 0.2 s of a core per machine, ten times what asking takes."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Pass the request to the agent and its answer back."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _spec, params = self.validate_argument_spec(ARGUMENTS, required_if=REQUIRED_IF)
        answer = self._ask(params, task_vars or {})
        if answer is None:
            found: dict[str, Any] = self._execute_module(task_vars=task_vars)
            return result | found
        if "unanswered" in answer:
            return {**result, "failed": True, "msg": unanswered(params["socket"], answer["unanswered"])}
        return result | conclude(answer, params, self._task.diff)

    def _ask(self, params: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any] | None:
        """The agent's answer; None where the way round the wrapper is closed, or ends in something that the
        wrapper explains better."""
        request = build(params, self._task.check_mode)
        question = json.dumps([params["socket"], request, patience(params), params["wait"] or 0])
        script = SCRIPT.format(ask=inspect.getsource(ask), question=question)
        return run_script(self, script, task_vars)
