"""What the recording relies on in flwr; one that reads otherwise is left alone, with a warning."""

from __future__ import annotations

import flwr

from coldframe.flower.version import SEAMS, digest
from coldframe.supervise import say

# Of a reply: the client's own figures of its task, taken out again before the app's server sees it.
SYSTEM_RECORD = "coldframe.system"
# Of a reply: what an app tells of its partition, a list of the samples of each class.
PARTITION_RECORD, CLASS_COUNTS = "partition", "class-counts"
# By process and seam: the digest of the source that was read.
RELIES_ON: dict[str, dict[str, str]] = {
    "serverapp": {
        "run_serverapp": "2cf00cc3bc7e",
        "run_app": "a3c8972eda36",
        "strategy": "c166601a6d85",
        "legacy_strategy": "0f2b29859989",
        "legacy_server": "0c7f611c3f0f",
        "legacy_app": "7dea2b37b0d0",
        "default_workflow": "866c7974d30c",
        "http_grid": "72e288cdc292",
    },
    "clientapp": {
        "clientapp_runtime": "fa6612aaeda9",  # the module: functions of it are adapters' by then
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
