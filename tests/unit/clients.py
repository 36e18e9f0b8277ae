"""Several clients, forked from one process that has imported flwr and torch, as each container's are.

`python -m tests.unit.clients JSON`: a list of clients, each with the path of its `log`, the arguments of its
`supernode` and of its `executor`, and the `environment` of the executor.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coldframe.client import container
from coldframe.supervise import Child, supervise


def main() -> int:
    """Run the clients until SIGTERM."""
    container.preload((*container.SHARED, "torch"))
    children = []
    for client in json.loads(sys.argv[1]):
        for name, run in (("supernode", container.run_supernode), ("executor", container.run_executor)):
            function = functools.partial(_run, client, run)
            children.append(Child(name, client[name], function=function))
    return supervise(children)


def _run(client: dict[str, Any], run: Callable[[list[str]], None], arguments: list[str]) -> None:
    log = os.open(Path(client["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(client["environment"])
    run(arguments)


if __name__ == "__main__":
    sys.exit(main())
