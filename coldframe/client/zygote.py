"""The zygote: a process with one thread that has imported the heavy modules and forks one child per task.

The order matters, and each step has cost somebody a day: environment, imports, fork, then in the child
signals, exit handlers, random state, threads, and only then the task. The zygote imports and nothing else:
with a second thread, or after parallel tensor work, a forked child can hang in its first parallel operation.
It never imports an app: flwr trusts `sys.modules`, and every child would then run that copy instead of the
code that came with the run.

`coldframe.client.executor` starts it. It speaks JSON over a SOCK_SEQPACKET socket, one object per packet. In:
`{"do": "launch", "task": ID, "spec": {...}}`, `{"do": "kill", "task": ID}`; end of file kills the task and
ends the zygote. Out: `{"event": "ready"|"started"|"refused"|"failed"|"message"|"ended", ...}`: refused means
that this zygote can fork no more, failed that the kernel would not let it.
"""

from __future__ import annotations

import atexit
import ctypes
import encodings.cp437  # noqa: F401 (with it zipfile reads names in every FAB; 4 ms to import)
import gc
import importlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.exit.exit_handler import registered_exit_handlers
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supercore.utils import get_flwr_home
from flwr.supernode.runtime.run_clientapp import run_clientapp

from coldframe.client import lazydynamo
from coldframe.flower import clientapp
from coldframe.recording import client as recording
from coldframe.recording import threads
from coldframe.recording.app_errors import describe
from coldframe.recording.task_log import BEGIN, END
from coldframe.supervise import exit_status, keep_freed_memory, thread_count

PACKET = 1 << 16
# What a child has reported to the SuperNode; it writes it into memory that it shares with the zygote.
NOTHING, REPLIED, DONE = 0, 1, 2
# What modules import only at its first use, which would be in every task.
LAZY = {"numpy": ["numpy.random"]}
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Child:
    """The one task that is running."""

    task_id: int
    pid: int
    pidfd: int
    progress: mmap.mmap


def preload(modules: list[str]) -> list[str]:
    """Import what tasks will need; a module that is not installed is named in the log and left out."""
    loaded = []
    for name in modules:
        try:
            importlib.import_module(name)
            for part in LAZY.get(name, ()):
                importlib.import_module(part)
            loaded.append(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0]:
                raise
            print(f"zygote: {name} is not installed, not preloaded", file=sys.stderr, flush=True)
    clientapp.apply(lambda error: describe(error, get_flwr_home().absolute()))
    lazydynamo.install()
    recording.install()  # around the functions of `clientapp`
    reseed()  # torch looks for every kind of device at the first time, 3 ms; each task has its own seed
    threads.loaded_blas()
    # Children share these pages; a collection in a child would write to all of them.
    gc.collect()
    gc.freeze()
    return loaded


def serve(control: socket.socket, modules: list[str], environment: dict[str, str | None]) -> None:
    """Fork a child per launch until the executor closes its end.

    Parameters
    ----------
    control : socket.socket
        SOCK_SEQPACKET, connected to the executor.
    modules : list of str
        What to preload besides flwr.
    environment : dict
        The thread variables as they were before the zygote was started; a child gets them back.
    """
    # Whatever a task leaves behind, even in a session of its own, becomes ours to end.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _send(control, event="ready", modules=preload(modules))
    child: Child | None = None
    while True:
        waiting: list[Any] = [control] if child is None else [control, child.pidfd]
        readable = select.select(waiting, [], [])[0]
        if child is not None and child.pidfd in readable:
            end = _reap(child)
            log_task(END)
            _send(control, event="ended", task=child.task_id, **end)
            child = None
        if control not in readable:
            continue
        packet = control.recv(PACKET)
        if not packet:
            if child is not None:
                _kill_group(child.pid)
                _reap(child)
            return
        order = json.loads(packet)
        if order["do"] == "kill":
            if child is not None and child.task_id == order["task"]:
                _kill_group(child.pid)
            continue
        if (count := thread_count()) != 1 or child is not None:
            reason = f"the zygote has {count} threads" if child is None else "a task is still running"
            _send(control, event="refused", task=order["task"], reason=reason)
            continue
        try:
            child = _fork(control, order, environment)
        except OSError as error:  # the client is at its limit of pids or memory
            _send(control, event="failed", task=order["task"], reason=str(error))
            continue
        _send(control, event="started", task=child.task_id, pid=child.pid)


def log_task(line: str) -> None:
    """Say in the container's log where a task's output begins or ends."""
    print(line, file=sys.stderr, flush=True)


def _send(control: socket.socket, **event: Any) -> None:
    control.sendall(json.dumps(event).encode())


def _fork(control: socket.socket, order: dict[str, Any], environment: dict[str, str | None]) -> Child:
    progress = mmap.mmap(-1, 1)
    zygote = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _become_task(zygote, environment)
            _run_task(control, order, progress)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    return Child(order["task"], pid, os.pidfd_open(pid), progress)


def _become_task(zygote: int, environment: dict[str, str | None]) -> None:
    """Undo in the child what it inherited and should not have."""
    os.setsid()
    # A dead zygote cannot tell the executor how its child ended: end together.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != zygote:
        os._exit(70)
    # When the client's memory is full, the kernel shall take the task and not the SuperNode.
    Path("/proc/self/oom_score_adj").write_text("500")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    keep_freed_memory()
    registered_exit_handlers.clear()
    # What the zygote's modules would tidy up at their end is the zygote's: torch alone takes 30 ms for it.
    for finalizer in weakref.finalize._registry.values():  # type: ignore[attr-defined]
        finalizer.atexit = False
    sys.argv[:] = ["flwr-clientapp"]
    os.dup2(2, 1)  # the log keeps the order of one stream, not that of two
    # The image says not to write bytecode; each task would compile its app anew: 12 ms for ours.
    sys.dont_write_bytecode = False
    reseed()
    threads.apply()


def reseed() -> None:
    """Give this process random state of its own (`random` reseeds itself after a fork, these do not)."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.manual_seed(int.from_bytes(os.urandom(7)))


def _run_task(control: socket.socket, order: dict[str, Any], progress: mmap.mmap) -> NoReturn:
    """Run flwr's own ClientApp process to its end, and note what was reported to the SuperNode."""

    def on_message(message: bytes) -> None:
        log_task(BEGIN.format(ProtoMessage.FromString(message).metadata.run_id))
        _send(control, event="message", task=order["task"], message=message.hex())
        control.close()

    def on_progress(state: int) -> None:
        progress[0] = state

    clientapp.report_progress(on_message, lambda: on_progress(REPLIED), lambda: on_progress(DONE))
    spec = order["spec"]
    code = exit_status(
        lambda: run_clientapp(
            runtime_api_address=spec["runtime_api_address"],
            token=spec["token"],
            insecure=spec["insecure"],
            certificates=validate_and_resolve_root_certificates(
                spec["root_certificates_path"], spec["insecure"]
            ),
            # The zygote ends its child when the executor is gone: no need for a thread that watches it.
            parent_pid=None,
            runtime_dependency_install=False,
        )
    )
    # As in a process of its own: what the app registered runs; its left-over threads are not waited for.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _reap(child: Child) -> dict[str, int]:
    """Reap an ended child and end all that it left behind."""
    # Wait without reaping first: while the child is a zombie, its process group's number is nobody else's.
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    _kill_group(child.pid)
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    reached = child.progress[0]
    child.progress.close()
    deadline = time.monotonic() + 1
    while (orphans := _children()) and time.monotonic() < deadline:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.002)
    return {"code": os.waitstatus_to_exitcode(status), "reached": reached}


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        # Between fork and setsid the child has no group of its own yet.
        os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    """Return the processes whose parent is this one."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []  # the usual case, without a walk through /proc
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid():
            found.append(int(entry.name))
    return found


if __name__ == "__main__":
    _arguments = json.loads(sys.argv[1])
    serve(socket.socket(fileno=_arguments["control"]), _arguments["modules"], _arguments["environment"])
