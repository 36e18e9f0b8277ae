"""Tells the SuperLink and the run's journal how a ServerApp ended that could not say so itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress

import httpx
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from coldframe import cgroups
from coldframe.recording.app_errors import ending
from coldframe.recording.journal import finish_interrupted
from coldframe.recording.output import BoundedFile


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
