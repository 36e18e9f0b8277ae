"""The client container: Flower's SuperNode and the executor beside it that runs ClientApps.

The warm runtime forks both from this process, which has imported flwr: three interpreters that import it one
by one take three times the CPU time, under the client's limit, and 80 MB each.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from coldframe.flower.version import runtime, warning
from coldframe.server.container import write_secret
from coldframe.supervise import THREAD_VARIABLES, Child, say, supervise

RUNTIME = "127.0.0.1:9094"  # the SuperNode's API for the executor: the container's own loopback
CLIENTS = Path("/run/coldframe/clients")
CA = Path("/run/coldframe/pki/ca.crt")
KEY = Path("/run/coldframe/key")


def node_config(state: dict[str, object]) -> str:
    """Return Flower's node_config of a client's state file, as the SuperNode's argument wants it."""
    return (
        f"partition-id={state['partition_id']} num-partitions={state['num_partitions']} "
        f'name="{state["name"]}"'
    )


def children(superlink: str, config: str, secret: Path, warm: bool) -> list[Child]:
    """Return the processes of a client that trains for the federation behind ``superlink`` (host:port)."""
    host, port = RUNTIME.split(":")
    supernode = [
        *("--superlink", superlink, "--root-certificates", str(CA)),
        *("--auth-supernode-private-key", str(KEY), "--node-config", config),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", host, "--port", port),
    ]
    executor = ["--runtime-api-address", RUNTIME, "--insecure", "--superexec-auth-secret-file", str(secret)]
    if not warm:
        return [
            Child("supernode", ["flower-supernode", *supernode]),
            Child("executor", ["flower-superexec", *executor]),
        ]
    return [
        Child("supernode", supernode, function=run_supernode),
        Child("executor", executor, function=run_executor),
    ]


# What the SuperNode, the executor and its zygote have in common.
SHARED = (
    "flwr.supernode.cli.flower_supernode",
    "flwr.supernode.start_client_internal",
    "flwr.supernode.runtime.run_clientapp",
    "flwr.supercore.cli.flower_superexec",
    "coldframe.flower.adapters",
    "coldframe.client.executor",
)


def preload(modules: Sequence[str] = SHARED) -> None:
    """Import what the processes share, with no thread but this one: what has threads must not be forked."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # BLAS starts its threads as numpy is imported
    for name in modules:
        importlib.import_module(name)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    gc.collect()
    gc.freeze()  # a collection in a child would write to every page that it shares


def run_supernode(arguments: list[str]) -> None:
    """Run Flower's SuperNode, in a process of its own."""
    from coldframe.flower import adapters

    del arguments  # in sys.argv, where flwr looks for them
    adapters.run("supernode")


def run_executor(arguments: list[str]) -> None:
    """Run the warm executor, in a process of its own."""
    from coldframe.client import executor

    del arguments
    executor.main()


class StateWatch:
    """Restart the SuperNode when its node_config has changed: a growing federation recreates no container."""

    def __init__(self, path: Path, supernode: Child) -> None:
        self.path = path
        self.supernode = supernode
        self.modified = path.stat().st_mtime_ns

    def __call__(self) -> None:
        """Look at the state file; called by the supervisor."""
        try:
            modified = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return  # between two versions of the file, or the client is being removed
        if modified == self.modified:
            return
        self.modified = modified
        config = node_config(json.loads(self.path.read_text()))
        position = self.supernode.command.index("--node-config") + 1
        if self.supernode.command[position] != config:
            say(f"node config is now {config}: the SuperNode restarts")
            self.supernode.command[position] = config
            self.supernode.stop()


def main() -> int:
    """Run the client until SIGTERM."""
    path = CLIENTS / f"{os.environ['COLDFRAME_CLIENT']}.json"
    config = node_config(json.loads(path.read_text()))
    secret = write_secret(Path("/tmp/superexec.secret"))
    found = runtime()
    if text := warning(found):
        say(text)
    processes = children(os.environ["COLDFRAME_SUPERLINK"], config, secret, found.is_warm)
    watch = StateWatch(path, processes[0])
    say(f"client {os.environ['COLDFRAME_CLIENT']} starts: {config}")
    if found.is_warm:
        preload()
    return supervise(processes, watch)


if __name__ == "__main__":
    sys.exit(main())
