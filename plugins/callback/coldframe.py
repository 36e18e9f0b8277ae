"""Ansible's own output, but fit for people who watch a run: live lines stand below their task's name."""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.plugins.loader import filter_loader, test_loader
from ansible.release import __version__
from ansible.utils.vars import load_extra_vars

try:
    from coldframe.controller.commands import complete
    from coldframe.controller.terminal import plain
except ModuleNotFoundError:
    pass  # foreign_environment says what to type, before any other plugin is loaded

DOCUMENTATION = """
name: coldframe
type: stdout
short_description: The default output, fit for tasks that show lines while they run
description:
  - Prints the name of a task that shows live lines before them, also where skipped hosts are not displayed.
  - Prints the failure of such a task, and of preflight, once and as text; that of machine_facts in one line.
  - With C(-e output=json) all that it prints goes to standard error; what the task say shows does not.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

PACKAGES = ("cryptography", "flwr", "matplotlib", "requests", "yaml")  # what the controller imports
ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = (2, 19)  # of requirements.txt
PROBE = "machine_facts"  # preflight tells what became of it
LIVE = ("follow", "preflight")
# Their failures are whole messages: what is wrong, and what to type.
TOLD_ONCE = (*LIVE, "client_containers", "connect", "client_limits", "ansible.builtin.assert")


def foreign_environment(
    packages: Sequence[str] = PACKAGES, version: str = __version__, root: Path = ROOT
) -> str:
    """Say in one line why this ansible-playbook cannot run the verbs; nothing where it can."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    old = tuple(int(part) for part in version.split(".")[:2]) < ANSIBLE
    package = importlib.util.find_spec("coldframe")
    found = Path(package.origin).resolve().parents[1] if package and package.origin else None
    if missing:
        problem = f"lacks {', '.join(missing)}"
    elif old:
        problem = f"is of ansible-core {version}, too old"
    elif found != root:
        problem = f"has coldframe of {found}" if found else "lacks coldframe"
    else:
        return ""
    made = (root / ".venv/bin/ansible-playbook").exists() and Path(sys.prefix) != root / ".venv"
    own = "" if missing or old else f", or pip install --no-deps -e {root} for the environment that you use"
    return (
        f"{sys.argv[0]} {problem}: it is of another virtual environment. Type "
        f"{'' if made else 'scripts/setup.sh, then '}.venv/bin/ansible-playbook in {root} instead{own}."
    )


class OnStandardError:
    """A display that writes to standard error, where standard output is for a program that reads it."""

    def __init__(self, display: Any) -> None:
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def display(self, *arguments: Any, **options: Any) -> None:
        """Write a line."""
        self._display.display(*arguments, **{**options, "stderr": True})

    def banner(self, *arguments: Any, **options: Any) -> None:
        """Write a heading, by way of `display`."""
        type(self._display).banner(self, *arguments, **options)


def foreseen(result: Any) -> bool:
    """Whether a task was only asked what it would do, in a play that is not: playbooks/ahead.yml."""
    return bool(result.task.check_mode) and not context.CLIARGS.get("check")


class CallbackModule(Default):
    """The default callback, but for the tasks of our own plugins, and for an answer in JSON."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "coldframe"
    _display: Any  # as the base class has it

    def v2_playbook_on_start(self, playbook: Any) -> None:
        super().v2_playbook_on_start(playbook)
        if problem := foreign_environment():
            self._display.display(problem, color=C.COLOR_ERROR, stderr=True)
            raise SystemExit(1)  # Ansible takes any other exception of a callback for a warning
        self._following = ""
        self._foreseen: list[str] = []
        self._unjudged: list[str] = []  # why machines failed to answer, until preflight says it
        atexit.register(self._interrupted, os.getpid())
        # Ansible forks a process per task and machine. Asked for one, a loader imports all filters or tests:
        # once here, and not in each of those processes, for a fifth of the CPU time of a deployment.
        filter_loader.get("combine")
        test_loader.get("match")
        self._extra = load_extra_vars(playbook._loader)
        if self._extra.get("output") == "json":
            self._display = OnStandardError(self._display)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Print nothing, as for the task that includes."""

    def _interrupted(self, process: int) -> None:
        """Say that a followed command goes on, where the controller's end comes before that of its task."""
        if self._following and os.getpid() == process:
            self._display.display(f"Interrupted: what {self._following!r} shows goes on without being shown.")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        for line in self._unjudged:  # Ansible has ended before preflight
            self._display.display(line, color=C.COLOR_ERROR)
        for host in self._foreseen:
            stats.decrement("changed", host)
        super().v2_playbook_on_stats(stats)
        self._following = ""

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        super().v2_playbook_on_task_start(task, is_conditional)
        self._following = task.get_name() if task.action == "follow" else ""
        # Where skipped hosts are not displayed, the default waits for a result before it prints the name.
        live = task.action in LIVE and task.args.get("quiet") is not True
        if live and self._last_task_banner != task._uuid:
            self._print_task_banner(task)

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.task.action == "preflight":
            self._unjudged = []
            self._extra = {**result.result.get("stood", {}), **self._extra}
        if foreseen(result):
            # Nothing was changed: the play that asked says what would be, as far as it matters.
            self._foreseen += [result.host.get_name()] if result.result.get("changed") else []
            return
        if result.task.action not in C._ACTION_ALL_INCLUDES:  # the tasks that are included tell what they do
            super().v2_runner_on_ok(result)

    def v2_on_file_diff(self, result: Any) -> None:
        if not foreseen(result):
            super().v2_on_file_diff(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        task, values = result.task, result.result
        if isinstance(values.get("msg"), str):
            values["msg"] = complete(plain(values["msg"]), self._extra)
        if task.action == "preflight":
            self._unjudged = []
        if task.action == PROBE:
            self._unjudged.append(f"{result.host.get_name()}: {values.get('msg', 'no reason given')}")
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
