"""The changes to flwr in a SuperExec's process: the client's, which runs tasks, and the server's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coldframe.flower import transport
from coldframe.flower.changes import change, replace


@change(
    "flwr.supercore.superexec.executor.factory:get_executor",
    "flwr.supercore.superexec.run_superexec:run_superexec",
)
def use_executor(make: Callable[[], Any]) -> None:
    """Start tasks with an executor of ours: flwr chooses between its own only."""
    from flwr.supercore.superexec import run_superexec

    replace(run_superexec, "get_executor", lambda *_args, **_kwargs: make())
    transport.apply()


@change(
    "flwr.supercore.superexec.executor.subprocess_executor:SubprocessExecutor.launch",
    "flwr.supercore.runtime.runtime_http_client:",
    "flwr.supercore.corestate.sql_corestate:SqlCoreState.claim_task",
    "flwr.supercore.corestate.sql_corestate:SqlCoreState.acknowledge_task_heartbeat",
)
def launch_serverapps(launcher: Any) -> None:
    """Start ServerApps with a launcher of ours: flwr starts a process by the name of its command.

    One that sends no heartbeat within 30 s is started again. On a machine that takes longer to start Python
    each is too late in its turn, and all of them run: the launcher sends heartbeats meanwhile.

    Parameters
    ----------
    launcher : object
        Has `Popen` and `DEVNULL` of the module `subprocess`.
    """
    from flwr.supercore.superexec.executor import subprocess_executor

    replace(subprocess_executor, "subprocess", launcher)
