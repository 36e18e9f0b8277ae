"""Ansible's own output, but fit for people who watch a run: live lines stand below their task's name."""

from __future__ import annotations

from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.plugins.loader import filter_loader, test_loader

DOCUMENTATION = """
name: coldframe
type: stdout
short_description: The default output, fit for tasks that show lines while they run
description:
  - Prints the name of a task that shows live lines before them, also where skipped hosts are not displayed.
  - Prints the failure of such a task, and of preflight, once and as text; that of machine_facts in one line.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

PROBE = "machine_facts"  # preflight tells what became of it
LIVE = ("follow", "preflight")
# Their failures are whole messages: what is wrong, and what to type.
TOLD_ONCE = (*LIVE, "client_containers", "client_limits", "ansible.builtin.assert")


class CallbackModule(Default):
    """The default callback, but for the tasks of our own plugins."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "coldframe"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        super().v2_playbook_on_start(playbook)
        # Ansible forks a process per task and machine. Asked for one, a loader imports all filters or tests:
        # once here, and not in each of those processes, for a fifth of the CPU time of a deployment.
        filter_loader.get("combine")
        test_loader.get("match")

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        super().v2_playbook_on_task_start(task, is_conditional)
        # Where skipped hosts are not displayed, the default waits for a result before it prints the name.
        if task.action in LIVE and self._last_task_banner != task._uuid:
            self._print_task_banner(task)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        task, values = result.task, result.result
        if task.action == PROBE:
            if self._last_task_banner != task._uuid:
                self._print_task_banner(task)
            self._display.display(f"failed: [{self.host_label(result)}]", color=C.COLOR_ERROR)
            return
        if task.action not in TOLD_ONCE or task.loop or ignore_errors:
            super().v2_runner_on_failed(result, ignore_errors=ignore_errors)
            return
        self._display.display(
            f"fatal: [{self.host_label(result)}]: FAILED!\n{values['msg']}", color=C.COLOR_ERROR
        )

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if result.task.action != PROBE:
            super().v2_runner_on_unreachable(result)
            return
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        self._display.display(f"unreachable: [{self.host_label(result)}]", color=C.COLOR_UNREACHABLE)
