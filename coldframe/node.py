"""The client container: Flower's SuperNode and the executor beside it that runs ClientApps."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from coldframe.server import ADAPTED, is_warm, write_secret
from coldframe.supervise import Child, say, supervise

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
    supernode = [*ADAPTED, "supernode"] if warm else ["flower-supernode"]
    executor = [sys.executable, "-m", "coldframe.executor"] if warm else ["flower-superexec"]
    host, port = RUNTIME.split(":")
    return [
        Child(
            "supernode",
            [
                *(*supernode, "--superlink", superlink, "--root-certificates", str(CA)),
                *("--auth-supernode-private-key", str(KEY), "--node-config", config),
                *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
                *("--host", host, "--port", port),
            ],
        ),
        Child(
            "executor",
            [
                *(*executor, "--runtime-api-address", RUNTIME, "--insecure"),
                *("--superexec-auth-secret-file", str(secret)),
            ],
        ),
    ]


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
    processes = children(os.environ["COLDFRAME_SUPERLINK"], config, secret, is_warm())
    say(f"client {os.environ['COLDFRAME_CLIENT']} starts: {config}")
    return supervise(processes, StateWatch(path, processes[0]))


if __name__ == "__main__":
    sys.exit(main())
