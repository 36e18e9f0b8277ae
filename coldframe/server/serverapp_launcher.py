"""Starts ServerApps with Coldframe's changes, sends heartbeats while they start, and keeps their output."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
from flwr.supercore.runtime import RuntimeHttpClient

from coldframe import cgroups
from coldframe.recording.ends import report_end, task_client
from coldframe.recording.journal import note_stop
from coldframe.recording.output import UNCLAIMED, VARIABLE, BoundedFile, copy_output

# Added to what the kernel goes by where the container's memory is used up: the SuperLink, which all clients
# and runs need, is to outlive the ServerApp of one run.
OOM_SCORE = 500
# How long a ServerApp may take to start before it has to send heartbeats itself.
START_SECONDS = 600.0


class Subprocess:
    """What flwr's executor takes for the module subprocess; `pause` as in `send_heartbeats`."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def Popen(self, command: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start a process; a ServerApp with Coldframe's changes."""
        if command[0] != "flwr-serverapp":
            return subprocess.Popen(command, **kwargs)
        client = task_client(command)
        command = [sys.executable, "-m", "coldframe.flower.adapters", "serverapp", *command[1:]]
        state, kills = os.environ.get("COLDFRAME_STATE"), cgroups.own().oom_kills()
        process, file = (
            start_recorded(command, Path(state), **kwargs)
            if state
            else (subprocess.Popen(command, **kwargs), None)
        )
        with suppress(OSError):  # it has ended already
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(OOM_SCORE))

        def look_after() -> None:
            with closing(client):
                send_heartbeats(process, client, self.pause)
                if process.returncode:
                    report_end(client, process.returncode, file, kills)
                elif file is not None:
                    note_stop(file.path.parents[1] / "journal.jsonl")

        threading.Thread(target=look_after, daemon=True).start()
        return process


def start_recorded(
    command: list[str], state: Path, **kwargs: Any
) -> tuple[subprocess.Popen[bytes], BoundedFile | None]:
    """Start a ServerApp whose output goes into this process's own, and into a file that it gives to its run.

    A file whose ServerApp ends before it knows its run is removed: the container's log has that output too,
    and alone where no file can be made.
    """
    path = state / UNCLAIMED / f"{secrets.token_hex(8)}.log"
    try:
        file = BoundedFile(path)
    except OSError:
        return subprocess.Popen(command, **kwargs), None
    ours, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            **{**kwargs, "stdout": theirs, "stderr": theirs, "env": {**os.environ, VARIABLE: str(path)}},
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)

    def record() -> None:
        copy_output(ours, file, sys.stdout.fileno())
        path.unlink(missing_ok=True)

    threading.Thread(target=record, name="serverapp-output", daemon=True).start()
    return process, file


def send_heartbeats(process: subprocess.Popen[bytes], client: RuntimeHttpClient, pause: float) -> None:
    """Send a task's heartbeats until its process has ended, or has had the time to send its own.

    Parameters
    ----------
    process : Popen
        The process that starts; waited for until its end.
    client : RuntimeHttpClient
        Sends with the task's token.
    pause : float
        Seconds before each heartbeat.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            process.wait(pause)
            return
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            continue  # the SuperLink is busy, or gone
        except httpx.HTTPStatusError:
            break  # the task has ended
    process.wait()
