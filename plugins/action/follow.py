"""Runs a long command detached on the target and shows its lines live while it runs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from coldframe.controller.commands import complete
from coldframe.controller.follow import (
    CHUNK,
    GONE,
    INDENT,
    ON_TERMINAL,
    PATIENCE,
    Output,
    last,
    poll_script,
    read_poll,
    start_script,
)

display = Display()

# A pipe is buffered by blocks, which would hold the lines back until the task ends.
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(line_buffering=True)


class ActionModule(ActionBase):
    """Start, poll, show, clean up."""

    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec(
            {
                "cmd": {"type": "raw", "required": True},
                "chdir": {"type": "str", "default": "."},
                "creates": {"type": "str", "default": ""},
                "label": {"type": "str", "default": ""},
                "changed": {"type": "bool", "default": True},
                "hint": {"type": "str", "default": ""},
                "quiet": {"type": "bool", "default": False},
            }
        )
        command = (
            args["cmd"] if isinstance(args["cmd"], str) else shlex.join(str(word) for word in args["cmd"])
        )
        if self._task.check_mode:
            return {**result, "skipped": True, "changed": False, "msg": f"check mode: would run {command}"}

        directory = self._begin(
            start_script(command, args["chdir"], args["creates"], self._compute_environment_string())
        )
        if directory is None:
            return {
                **result,
                "changed": False,
                "rc": 0,
                "stdout_lines": [],
                "msg": f"{args['creates']} is there",
            }

        if args["hint"] and not args["quiet"]:
            self._show(f"{INDENT}{complete(args['hint'], load_extra_vars(self._loader))}\n")
        output = Output(
            show=(lambda text: None) if self._task.no_log else self._show,
            label=args["label"],
            terminal=ON_TERMINAL,
            columns=display.columns or 79,
            quiet=args["quiet"],
        )
        state = self._watch(directory, output)
        if state in GONE:  # not raised: Ansible does not ask `failed_when` about what is raised
            message = f"{GONE[state]}. Its last lines:\n{last(output.lines)}"
            return {**result, "failed": True, "changed": args["changed"], "msg": message}
        # A machine that goes down ends the command first: what became of it is known by then.
        with contextlib.suppress(AnsibleConnectionFailure):
            self._low_level_execute_command(f"rm -rf -- {shlex.quote(directory)}")
        rc = int(state)
        if rc != 0:
            # All lines were shown while they came: here the last ones, which tell why.
            message = f"the command ended with exit code {rc}. Its last lines:\n{last(output.lines)}"
            return {**result, "failed": True, "changed": args["changed"], "rc": rc, "msg": message}
        return {**result, "changed": args["changed"], "rc": rc, "stdout_lines": output.lines}

    @staticmethod
    def _show(text: str) -> None:
        display.display(text, newline=False)

    def _begin(self, script: str) -> str | None:
        answer = self._low_level_execute_command(script)
        if "FOLLOW-EXISTS" in answer["stdout"]:
            return None
        found = re.search(r"FOLLOW-STARTED (\S+)", answer["stdout"])
        if answer["rc"] != 0 or not found:
            raise AnsibleActionFail(
                f"the command could not be started: {answer['stdout']}{answer['stderr']}".strip()
            )
        return found[1]

    def _watch(self, directory: str, output: Output) -> str:
        """Show what the command writes until it has ended; its last state."""
        offset, controller, heard = 0, os.getppid(), time.monotonic()
        while True:
            if os.getppid() != controller:
                raise AnsibleActionFail("ansible-playbook is gone: nobody follows the command any more")
            try:
                answer = self._low_level_execute_command(poll_script(directory, offset))
                polled = read_poll(answer["stdout"])
            except AnsibleConnectionFailure:
                if time.monotonic() - heard > PATIENCE:
                    return "unreachable"
                polled = None
            if polled is None:
                if time.monotonic() - heard > PATIENCE:
                    raise AnsibleActionFail(
                        f"the command's output cannot be read: {answer['stdout']}{answer['stderr']}"
                    )
                time.sleep(2)
                continue
            heard = time.monotonic()
            state, data = polled
            offset += len(data)
            output.feed(data)
            if state != "running" and len(data) < CHUNK:
                output.close()
                return state
