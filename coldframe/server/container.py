"""The server container: nginx as gateway, SuperLink on loopback, what runs ServerApps, the FL exporter.

All share one network namespace by being one container, so no bridge address leads to the SuperLink, whose
Control and Runtime APIs have no authentication in open-source Flower.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from coldframe.flower import database
from coldframe.flower.version import runtime, warning
from coldframe.recording.journal import finish_interrupted
from coldframe.recording.output import UNCLAIMED
from coldframe.server import gateway
from coldframe.supervise import Child, say, supervise

SUPERLINK = "127.0.0.1:9091"  # loopback of the container: reached by the gateway and by `docker exec` alone
METRICS_PORT = 9095  # of the loopback too: the gateway publishes it
# The SuperLink has a certificate of its own, made at the container's start: who speaks to it is in the
# container too. So a new one of the gateway's, which is what clients see, needs no restart of the SuperLink.
SUPERLINK_CERTIFICATE = Path("/tmp/superlink.crt")
SUPERLINK_KEY = Path("/tmp/superlink.key")
USERS = Path("/run/coldframe/gateway/users")  # who may read metrics

RESTARTED = "the server restarted in the middle of the run"

# flwr's own commands with Coldframe's changes, in place of flower-superlink and the like.
ADAPTED = [sys.executable, "-m", "coldframe.flower.adapters"]


def children(state: Path, secret: Path, warm: bool) -> list[Child]:
    """Return the processes of the server; ``state`` is the directory that outlives the container."""
    host, port = SUPERLINK.split(":")
    superlink = [*ADAPTED, "superlink"] if warm else ["flower-superlink"]
    superexec = [*ADAPTED, "serverapp-superexec"] if warm else ["flower-superexec"]
    return [
        Child(
            "superlink",
            [
                *(*superlink, "--host", host, "--port", port),
                *("--ssl-certfile", str(SUPERLINK_CERTIFICATE), "--ssl-keyfile", str(SUPERLINK_KEY)),
                *("--ssl-ca-certfile", str(SUPERLINK_CERTIFICATE), "--enable-supernode-auth"),
                *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
                *("--database", str(state / database.NAME), "--disable-runtime-dependency-installation"),
            ],
        ),
        Child("gateway", ["nginx", "-e", "stderr", "-g", "daemon off;", "-c", str(gateway.CONFIG)]),
        Child(
            "superexec",
            [
                *(*superexec, "--runtime-api-address", SUPERLINK),
                *("--root-certificates", str(SUPERLINK_CERTIFICATE)),
                *("--superexec-auth-secret-file", str(secret)),
            ],
            # Between two requests for a task: the SuperLink holds each until a run is started.
            {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"},
        ),
        Child(
            "exporter",
            [sys.executable, "-m", "coldframe.exporters.runs", str(METRICS_PORT), str(USERS)],
            vital=False,
        ),
    ]


def write_secret(path: Path) -> Path:
    """Make the secret that SuperExec and its API share; it lives as long as the container's tmpfs."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path


def make_certificate(certificate: Path, key: Path) -> None:
    """Make the SuperLink's own certificate, in a process of its own: this one is to stay small."""
    words = ["own", str(certificate), str(key), "DNS:localhost", "IP:127.0.0.1"]
    subprocess.run([sys.executable, "-m", "coldframe.keys", *words], check=True, stdout=subprocess.DEVNULL)


def fail_interrupted_runs(state: Path) -> None:
    """Mark the runs that were going when the server went down as failed, with the reason.

    Their ServerApps were this container's processes.
    """
    for run_id in database.fail_started_tasks(state / database.NAME, RESTARTED):
        finish_interrupted(state / "runs" / run_id / "journal.jsonl", RESTARTED)


def main() -> int:
    """Run the server until SIGTERM."""
    state = Path(os.environ.get("COLDFRAME_STATE", "/state"))
    (state / "runs").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(state / UNCLAIMED, ignore_errors=True)  # of ServerApps that ended with the server
    try:
        database.mark_nodes_offline(state / database.NAME)
        fail_interrupted_runs(state)
    except database.SchemaError as error:  # Flower finds both out by itself, a minute later
        say(f"nodes and runs of before the restart keep their state for a minute: {error}")
    make_certificate(SUPERLINK_CERTIFICATE, SUPERLINK_KEY)
    gateway.note()
    found = runtime()
    if text := warning(found):
        say(text)
    say("server starts")
    return supervise(children(state, write_secret(Path("/tmp/superexec.secret")), found.is_warm))


if __name__ == "__main__":
    sys.exit(main())
