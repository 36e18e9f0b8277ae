"""Runs flwr's own commands with Coldframe's changes to the flwr of that process.

`python -m coldframe.flower.adapters superlink|supernode|serverapp-superexec|serverapp ARGS` takes the
arguments of `flower-superlink` and so on. The changes are in the module of the process, each a function with
its reason; here they get what they call back. The client's executor is `coldframe.client.executor`, its tasks
are started by `coldframe.client.zygote`. With an untested flwr or COLDFRAME_RUNTIME=stock no change is
applied (`coldframe.flower.version`).

Keys, tokens and versions are checked by flwr's own functions, a node's key before a body is read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from coldframe.flower.version import runtime, warning
from coldframe.supervise import keep_freed_memory, say

KEPT_MEGABYTES = 16  # what long-lived processes keep of the memory that they free: a few messages


def superlink(warm: bool) -> None:
    """Run a SuperLink."""
    if warm:
        from coldframe.flower import superlink

        superlink.apply()
    from flwr.superlink.cli.flower_superlink import flower_superlink

    flower_superlink()


def supernode(warm: bool) -> None:
    """Run a SuperNode."""
    if warm:
        from coldframe.flower import supernode

        supernode.apply()
    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


def serverapp_superexec(warm: bool) -> None:
    """Run the SuperExec that starts ServerApps."""
    if warm:
        from coldframe.flower import superexec
        from coldframe.flower.changes import FIRST_HEARTBEAT_SECONDS
        from coldframe.server.serverapp_launcher import Subprocess

        superexec.launch_serverapps(Subprocess(FIRST_HEARTBEAT_SECONDS))
    from flwr.supercore.cli.flower_superexec import flower_superexec

    flower_superexec()


def serverapp(warm: bool) -> None:
    """Run a ServerApp, recorded."""
    from coldframe.recording import server

    if warm:
        from flwr.supercore.utils import get_flwr_home

        from coldframe.flower import serverapp
        from coldframe.recording import app_errors

        state = Path(os.environ.get("COLDFRAME_STATE", "/state"))
        errors = app_errors.ClientErrors()

        def explain(error: Exception) -> Exception:
            own = app_errors.describe(error, get_flwr_home().absolute())
            return app_errors.AppError(errors.explain(own, client_names(state)))

        serverapp.explain_failed_run(errors.sent, errors.replied, explain)
        serverapp.apply()
    server.main()


def client_names(state: Path) -> dict[int, str]:
    """Return the names of the federation's clients by node id; none where Coldframe did not deploy it."""
    try:
        nodes = json.loads((state / "nodes.json").read_text())
    except (OSError, ValueError):
        return {}
    return {int(node_id): str(node["name"]) for node_id, node in nodes.items()}


COMMANDS: dict[str, Callable[[bool], None]] = {
    "superlink": superlink,
    "supernode": supernode,
    "serverapp-superexec": serverapp_superexec,
    "serverapp": serverapp,
}


def run(process: str) -> None:
    """Run one of flwr's own commands, on the arguments in `sys.argv`."""
    found = runtime()
    if text := warning(found):
        say(text)
    if found.is_warm:
        keep_freed_memory(KEPT_MEGABYTES)
    COMMANDS[process](found.is_warm)


def main() -> None:
    """Run the command that the first argument names."""
    process = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if process not in COMMANDS:
        sys.exit(f"usage: python -m coldframe.flower.adapters {'|'.join(COMMANDS)} ARGS (not {process!r})")
    run(process)


if __name__ == "__main__":
    main()
