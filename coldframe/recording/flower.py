"""What the recording relies on in flwr; one that reads otherwise is left alone, with a warning."""

from __future__ import annotations

import flwr

from coldframe.seams import SEAMS, digest
from coldframe.supervise import say

# By process and seam: the digest of the source that was read.
RELIES_ON: dict[str, dict[str, str]] = {
    "serverapp": {"run_serverapp": "2cf00cc3bc7e", "run_app": "a3c8972eda36"},
    "clientapp": {
        "run_clientapp": "6ce09559f3a2",
        "pull_task_input": "5607a23e1673",
        "call_app": "9ac8d938c6ee",
    },
}


def moved(process: str) -> list[str]:
    """Return one line for each thing that a process relies on and this flwr has otherwise."""
    return [
        f"{SEAMS[seam]}: expected {expected}, found {found}"
        for seam, expected in RELIES_ON[process].items()
        if (found := digest(seam)) != expected
    ]


def is_known(process: str) -> bool:
    """Whether this flwr is one that was read; says what differs if not."""
    differences = moved(process)
    if differences:
        say(
            f"flwr {flwr.__version__} is not the flwr that the recording was written for: the app runs"
            " without a directory to write to and without a record:\n  " + "\n  ".join(differences)
        )
    return not differences
