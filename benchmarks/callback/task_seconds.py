"""Writes how long each task of a playbook took to the file that COLDFRAME_TASK_SECONDS names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: task_seconds
type: aggregate
short_description: Seconds of each task, as JSON
description:
  - A list of C(task) and C(seconds), in the order of the play, to the file that the environment variable
    COLDFRAME_TASK_SECONDS names.
"""


class CallbackModule(CallbackBase):
    """A task lasts until the next begins."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_seconds"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun: list[tuple[str, float]] = []

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note a task."""
        self.begun.append((task.get_name(), time.monotonic()))

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note a handler."""
        self.begun.append((task.get_name(), time.monotonic()))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the list."""
        ends = [*(moment for _, moment in self.begun[1:]), time.monotonic()]
        tasks = [
            {"task": name, "seconds": round(end - begin, 3)}
            for (name, begin), end in zip(self.begun, ends, strict=True)
        ]
        Path(os.environ["COLDFRAME_TASK_SECONDS"]).write_text(json.dumps(tasks, indent=1))
