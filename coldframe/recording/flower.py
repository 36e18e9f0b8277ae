"""What the recording relies on in flwr. An untested flwr that has all of it is recorded, too."""

from __future__ import annotations

import functools
import importlib

from coldframe.flower.version import installed, is_tested
from coldframe.supervise import say

# Of a reply: the client's own figures of its task, taken out again before the app's server sees it.
SYSTEM_RECORD = "coldframe.system"
# Of a reply: what an app tells of its partition, a list of the samples of each class.
PARTITION_RECORD, CLASS_COUNTS = "partition", "class-counts"
# By process: what is replaced, and what its replacements were written for.
RELIES_ON: dict[str, tuple[str, ...]] = {
    "serverapp": (
        "flwr.superlink.runtime.run_serverapp:run_serverapp",
        "flwr.superlink.runtime.run_serverapp:run_",
        "flwr.server.run_serverapp:run",
        "flwr.serverapp.strategy.strategy:Strategy",
        "flwr.server.strategy.strategy:Strategy",
        "flwr.server.server:fit_clients",
        "flwr.server.server:evaluate_clients",
        "flwr.server.compat.app:start_grid",
        "flwr.server.compat.app:run_fl",
        "flwr.server.workflow.default_workflows:DefaultWorkflow.__call__",
        "flwr.superlink.grid.http_grid:HttpGrid",
        "flwr.superlink.grid.http_grid:inflate_object_from_contents",
        "flwr.superlink.grid.http_grid:make_message",
    ),
    "clientapp": (
        "flwr.supernode.runtime.run_clientapp:run_clientapp",
        "flwr.supernode.runtime.run_clientapp:pull_task_input",
        "flwr.supernode.runtime.run_clientapp:install_from_fab",
        "flwr.supernode.runtime.run_clientapp:push_message",
        "flwr.clientapp.client_app:ClientApp.__call__",
    ),
}


def missing(process: str) -> list[str]:
    """Return what a process relies on and this flwr does not have."""
    found = []
    for place in RELIES_ON[process]:
        module, _, path = place.partition(":")
        try:
            functools.reduce(getattr, path.split("."), importlib.import_module(module))
        except (ImportError, AttributeError):
            found.append(place)
    return found


def is_known(process: str) -> bool:
    """Whether a process can be recorded: its flwr is tested, or has what is replaced; says what it lacks."""
    if is_tested(installed()):
        return True
    if lacks := missing(process):
        say(
            f"flwr {installed()} is untested and lacks what the recording replaces: the app runs without a"
            f" directory to write to and without a record: {', '.join(lacks)}"
        )
    return not lacks
