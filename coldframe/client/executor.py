"""The warm executor: a SuperExec whose ClientApp tasks are forks of a process that has imported torch.

`python -m coldframe.client.executor ARGS` takes the arguments of `flower-superexec` and is used in its place.
flwr's own SuperExec acquires the tasks; only the `Executor` that starts their processes is ours. Each task
still has a process of its own, which runs flwr's own `run_clientapp` on the app that came with the run; what
it saves is the interpreter's start and the imports.

A task that dies without a reply (killed, out of memory, `os._exit`) would keep its SuperNode waiting for a
minute, and in some places for ever. The executor sees the end of the process, so it sends the error reply
that flwr would have made up.

Environment: `COLDFRAME_PRELOAD` (default PRELOAD): what the zygote imports besides flwr.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore import log
from flwr.supercore.cli.flower_superexec import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import push_message

from coldframe import cgroups
from coldframe.client import zygote
from coldframe.client.zygote import DONE, PACKET, REPLIED
from coldframe.flower import superexec
from coldframe.flower.version import runtime, warning
from coldframe.recording.app_errors import OUT_OF_MEMORY, ending
from coldframe.supervise import THREAD_VARIABLES, Forked, say, thread_count

PRELOAD = "torch,numpy"
PACKAGES = Path(__file__).parents[2]  # the directory of the package coldframe

# A task that has replied may still run exit handlers; flwr forces its exit after 5 s, so by then it hangs.
SETTLE_SECONDS = 10.0
# How often a SuperNode that does not hold the request until there is a task is asked again.
POLL_SECONDS = 0.3
# A zygote that cannot start (no memory for its imports) is tried again, but not in a busy loop.
RESTART_SECONDS = 5.0


@dataclass
class Task:
    """A task that the zygote was asked to run."""

    spec: ExecutionSpec
    started: bool = False
    message: ProtoMessage | None = None
    oom_kills: int = 0  # the kernel's count for this container when the task began
    deadline: float = float("inf")
    overdue: bool = False


class WarmExecutor:
    """flwr's `Executor` protocol over a zygote; tasks other than ClientApps are started as flwr does.

    A SuperNode handles one message at a time, so one task runs at a time: the next is launched when the
    process of the one before has ended. That also keeps the order of the contexts which they write.

    Parameters
    ----------
    modules : list of str
        Modules that the zygote imports before the first task.
    first : tuple of socket and process, optional
        A zygote that `fork_zygote` has made.
    """

    def __init__(self, modules: list[str], first: tuple[socket.socket, Forked] | None = None) -> None:
        self._modules = modules
        self._first = first
        self._cold = SubprocessExecutor()
        self._changed = threading.Condition()
        self._task: Task | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._closing = False
        self._asked, self._launched = 0.0, False
        self._zygotes = threading.Thread(target=self._run_zygotes, name="zygotes", daemon=True)
        self._zygotes.start()

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Accept tasks once the zygote is ready."""
        del insecure, root_certificates_path
        return supported_task_types if self._ready else set(), set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """Wait until the zygote is ready."""
        del fab_hash, insecure, root_certificates_path
        if task_type == TaskType.CLIENT_APP:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._closing)

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Have the task forked; without a zygote, or with packages to install, start it as flwr does."""
        self._launched = True
        # A preloaded module would shadow the version that the app asks for.
        if spec.task_type != TaskType.CLIENT_APP or spec.runtime_dependency_install:
            return self._cold.launch(spec)
        with self._changed:
            if not self._changed.wait_for(lambda: self._task is None, SETTLE_SECONDS):
                self._kill("still running while the SuperNode has gone on")
                self._changed.wait_for(lambda: self._task is None, SETTLE_SECONDS)
            if self._control is None:
                return self._cold.launch(spec)
            self._task = Task(spec, oom_kills=cgroups.own().oom_kills())
            try:
                self._order(do="launch", spec=_spec_as_dict(spec))
            except OSError:
                self._task = None
                return self._cold.launch(spec)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Keep the SuperExec from asking a SuperNode too often that does not hold the request."""
        if time.monotonic() - self._asked < POLL_SECONDS and not self._launched:
            time.sleep(POLL_SECONDS)
        self._asked, self._launched = time.monotonic(), False

    def close(self) -> None:
        """End the zygote and the task that it runs."""
        with self._changed:
            self._closing = True
            task, self._task = self._task, None
            if self._control is not None:
                self._control.shutdown(socket.SHUT_RDWR)
        if task is not None:
            report_death(task, "the executor was stopped")
        self._zygotes.join(3)

    def _order(self, **order: Any) -> None:
        assert self._control is not None and self._task is not None
        self._control.sendall(json.dumps({"task": self._task.spec.task_id, **order}).encode())

    def _kill(self, why: str) -> None:
        if self._task is not None and self._control is not None:
            log(WARNING, "Killing task %d: %s", self._task.spec.task_id, why)
            self._task.deadline = float("inf")
            with contextlib.suppress(OSError):  # it is dead already
                self._order(do="kill")

    def _run_zygotes(self) -> None:
        """Start the zygote, follow it to its end, start another."""
        while not self._closing:
            try:
                ours, process = self._first or _start_zygote(self._modules)
            except OSError as error:  # at its limit of pids or memory a client gets no process
                log(ERROR, "No zygote can be started: %s; the next try is in %.0f s", error, RESTART_SECONDS)
                time.sleep(RESTART_SECONDS)
                continue
            self._first = None
            with self._changed:
                self._control = ours
            with ours:
                try:
                    self._follow(ours)
                except OSError as error:  # one that is killed with an order unread resets the connection
                    log(ERROR, "The zygote's socket: %s", error)
                with self._changed:
                    was_ready, self._ready, self._control = self._ready, False, None
                    task, self._task = self._task, None
                    self._changed.notify_all()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._closing:
                return
            log(ERROR, "The zygote ended (exit status %d), starting another", process.returncode)
            if task is not None and task.started:
                killed = cgroups.own().oom_kills() > task.oom_kills
                reason = OUT_OF_MEMORY.format("client") if killed else "its zygote died"
                _in_background(report_death, task, reason)
            elif task is not None:
                self._launch_cold(task)
            if not was_ready:
                time.sleep(RESTART_SECONDS)

    def _launch_cold(self, task: Task) -> None:
        """Start a task as flwr does; report to its SuperNode if even that is not possible."""
        try:
            self._cold.launch(task.spec)
        except OSError as error:
            _in_background(report_death, task, f"no process can be started for it: {error}")

    def _follow(self, control: socket.socket) -> None:
        """Handle the zygote's events, and the end of a task's time, until the zygote closes its end."""
        while True:
            remaining = self._task.deadline - time.monotonic() if self._task is not None else float("inf")
            timeout = None if remaining == float("inf") else max(0.0, remaining)
            if not select.select([control], [], [], timeout)[0]:
                with self._changed:
                    if self._task is not None and time.monotonic() >= self._task.deadline:
                        self._task.overdue = True
                        self._kill("the time to live of its message is over")
                continue
            packet = control.recv(PACKET)
            if not packet:
                return
            with self._changed:
                self._handle(json.loads(packet))
                self._changed.notify_all()

    def _handle(self, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            log(INFO, "The zygote has imported %s", ", ".join(event["modules"]))
            self._ready = True
            return
        task = self._task
        if task is None or event["task"] != task.spec.task_id:
            return
        if event["event"] == "started":
            task.started = True
        elif event["event"] == "message":
            task.message = ProtoMessage.FromString(bytes.fromhex(event["message"]))
            task.deadline = time.monotonic() + task.message.metadata.ttl
        elif event["event"] == "refused":
            log(ERROR, "Not forking: %s; starting the task as flwr does, and another zygote", event["reason"])
            self._task = None
            self._launch_cold(task)
            assert self._control is not None
            self._control.shutdown(socket.SHUT_RDWR)
        elif event["event"] == "failed":
            self._task = None
            _in_background(report_death, task, f"no process can be started for it: {event['reason']}")
        elif event["event"] == "ended":
            self._task = None
            if event["reached"] != DONE:
                killed = cgroups.own().oom_kills() > task.oom_kills
                reason = "no reply in its time to live" if task.overdue else ending(event["code"], killed)
                _in_background(report_death, task, reason, replied=event["reached"] == REPLIED)


def report_death(task: Task, reason: str, replied: bool = False) -> None:
    """Tell the SuperNode of a process that ended before it had reported: an error reply, the task as failed.

    Parameters
    ----------
    task : Task
        If its message is unknown (the process ended before it had one), it is pulled here.
    reason : str
        Goes into the reply, and so to the ServerApp.
    replied : bool
        The reply had been sent, only the task is still open: left so, its expiry would fail a later message.
    """
    spec = task.spec
    log(ERROR, "Task %d: the ClientApp's process ended without a report: %s", spec.task_id, reason)
    client = RuntimeHttpClient.from_server_address(
        server_address=spec.runtime_api_address,
        insecure=spec.insecure,
        root_certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(spec.token),
        ],
        # flwr's retries end the process when a token is no longer valid, which here is nothing unusual.
        retry_invoker=None,
    )
    try:
        if not replied:
            if task.message is None:
                task.message = _pull_message(client)
            message = message_from_proto(task.message)
            reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, f"ClientApp: {reason}"), reply_to=message)
            context = Context(message.metadata.run_id, message.metadata.dst_node_id, {}, RecordDict(), {})
            push_message(client, reply, context)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=reason))
    except (httpx.HTTPError, LookupError, RuntimeError) as error:  # the last: no thread to be had
        log(WARNING, "Task %d is left to expire at the SuperNode: %s", spec.task_id, error)
    finally:
        client.close()


def _pull_message(client: RuntimeHttpClient) -> ProtoMessage:
    try:
        client.PullTaskInput(PullTaskInputRequest())
    except httpx.HTTPStatusError:
        log(INFO, "The task was already active")
    messages = client.PullMessages(PullAppMessagesRequest()).messages_list
    if not messages:
        raise LookupError("its message is unknown")
    return messages[0]


def _in_background(function: Any, *args: Any, **kwargs: Any) -> None:
    try:
        threading.Thread(target=function, args=args, kwargs=kwargs, daemon=True).start()
    except RuntimeError:  # no thread can be had either: then the caller waits
        function(*args, **kwargs)


def _spec_as_dict(spec: ExecutionSpec) -> dict[str, Any]:
    names = ("runtime_api_address", "token", "insecure", "root_certificates_path")
    return {name: getattr(spec, name) for name in names}


def fork_zygote(modules: list[str]) -> tuple[socket.socket, Forked] | None:
    """Fork a zygote that shares the flwr which this process has imported.

    None if this process has threads, or was started without -P: the zygote would import modules of the
    working directory, which a stock process would not find.

    Returns
    -------
    tuple of socket.socket and Forked
        The executor's end of the control socket, and the process.
    """
    if thread_count() != 1 or not sys.flags.safe_path:
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def become_zygote(_arguments: list[str]) -> None:
        ours.close()
        environment = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        zygote.serve(theirs, modules, environment)

    process = Forked("zygote", become_zygote, [])
    theirs.close()
    return ours, process


def _start_zygote(modules: list[str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a zygote with an interpreter of its own: the executor has threads by now and must not fork."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arguments = {
        "control": theirs.fileno(),
        "modules": modules,
        "environment": {name: os.environ.get(name) for name in THREAD_VARIABLES},
    }
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
    with theirs:
        process = subprocess.Popen(
            # -P: the working directory must not provide modules that a stock process would not find.
            [sys.executable, "-P", "-m", "coldframe.client.zygote", json.dumps(arguments)],
            # One thread for every library that asks the environment, while it is imported.
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours, process


def main() -> None:
    """Run `flower-superexec` with the warm executor; without it where the runtime is stock."""
    found = runtime()
    if text := warning(found):
        say(text)
    if found.is_warm:
        modules = [name for name in os.environ.get("COLDFRAME_PRELOAD", PRELOAD).split(",") if name]
        first = fork_zygote(modules)  # now: later there are threads
        superexec.use_executor(lambda: WarmExecutor(modules, first))
        # The pause after each request for a task; `reconcile` makes it longer where that is needed.
        os.environ.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.01")
    flower_superexec()


if __name__ == "__main__":
    main()
