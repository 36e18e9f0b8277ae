"""Starts ServerApps with Coldframe's changes, sends heartbeats while they start, and keeps their output."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PushTaskOutputRequest, SendTaskHeartbeatRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from coldframe import cgroups
from coldframe.recording.app_errors import ending
from coldframe.recording.journal import finish_interrupted
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


def task_client(command: Sequence[str]) -> RuntimeHttpClient:
    """Return the client of the Runtime API that a process started by this command of flwr's will have."""
    value = dict(itertools.pairwise(command))  # of each option
    certificates = value.get("--root-certificates")
    return RuntimeHttpClient.from_server_address(
        value["--runtime-api-address"],
        insecure=certificates is None,
        root_certificates=certificates,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name=command[0]),
            RuntimeTokenHttpInterceptor(token=value["--token"]),
        ],
    )


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


def report_end(client: RuntimeHttpClient, code: int, file: BoundedFile | None, kills: int) -> None:
    """Tell the SuperLink and the run's journal how a ServerApp ended, if it could not do so itself.

    The SuperLink would find out when its heartbeats have stopped, and not say why.

    Parameters
    ----------
    code : int
        The process's exit status, or minus the number of a signal.
    file : BoundedFile, optional
        With its output: in the directory of its run, once it knew that.
    kills : int
        How many processes of this container the kernel had killed for want of memory when it began.
    """
    reason = f"ServerApp: {ending(code, cgroups.own().oom_kills() > kills, 'server')}"
    with suppress(httpx.HTTPError):  # most often since the task has ended
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=reason))
    if file is not None:
        finish_interrupted(file.path.parents[1] / "journal.jsonl", reason)
