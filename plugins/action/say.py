"""Shows lines to the person at the terminal as they are, such as a table or closing words."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from coldframe.controller.commands import complete
from coldframe.controller.terminal import plain

display = Display()


class ActionModule(ActionBase):
    """Runs on the controller; changes nothing."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Show the lines; fail with them where the playbook says that they tell of a failure."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec(
            {
                "lines": {"type": "list", "elements": "str", "required": True},
                "indent": {"type": "int", "default": 0},
            }
        )
        preflight = (task_vars or {}).get("hostvars", {}).get("localhost", {}).get("coldframe_preflight", {})
        extra = {**preflight.get("stood", {}), **load_extra_vars(self._loader)}
        for line in args["lines"]:
            text = plain(line)
            text = text if text.startswith("{") else complete(text, extra)  # JSON is for programs
            display.display((" " * args["indent"] + text).rstrip())
        return {**result, "changed": False}
