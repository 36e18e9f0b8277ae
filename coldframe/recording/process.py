"""The process that Flower's own runtime starts for an app: it stays beside the app's, which is its child.

The warm runtime has a launcher of ServerApps and a zygote that keep what an app prints and see how it ends.
Under `fl_runtime=stock` flwr starts a command and does not look at it again: this does the same there. It
imports next to nothing: its memory is taken beside the app's.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from coldframe import cgroups
from coldframe.recording.journal import note_stop
from coldframe.recording.output import UNCLAIMED, VARIABLE, BoundedFile, copy_output
from coldframe.recording.task_log import END

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
DRAIN_SECONDS = 2.0  # how long output is waited for that something an app left behind may still print
_PR_SET_PDEATHSIG = 1


def serverapp(run: Callable[[], None]) -> None:
    """Run a ServerApp in a child, and keep what it prints: in a file that the child gives to its run."""
    state = os.environ.get("COLDFRAME_STATE")
    try:
        path = Path(state or "", UNCLAIMED, f"{secrets.token_hex(8)}.log")
        file = BoundedFile(path) if state else None
    except OSError:
        file = None
    if file is None:  # the container's log has it
        return run()
    ours, theirs = os.pipe()
    kills = cgroups.own().oom_kills()

    def with_output() -> None:
        file.close()
        os.close(ours)
        for stream in (1, 2):
            os.dup2(theirs, stream)
        os.close(theirs)
        os.environ[VARIABLE] = str(path)
        run()

    pid = _fork(with_output)
    os.close(theirs)
    copier = threading.Thread(target=copy_output, args=(ours, file, 1), daemon=True)
    copier.start()
    code = _wait(pid)
    copier.join(DRAIN_SECONDS)
    if code:
        from coldframe.recording import ends  # it imports flwr

        with closing(ends.task_client(["flwr-serverapp", *sys.argv[1:]])) as client:
            ends.report_end(client, code, file, kills)
    else:
        note_stop(file.path.parents[1] / "journal.jsonl")
    path.unlink(missing_ok=True)  # if nobody has claimed it
    _leave(code)


def clientapp(run: Callable[[], None]) -> None:
    """Run a ClientApp in a child, and say in the log where its output ends, however it does."""
    code = _wait(_fork(run))
    print(END, file=sys.stderr, flush=True)
    _leave(code)


def _fork(run: Callable[[], None]) -> int:
    """Run a function in a child, in a process group of its own: its parent hands signals on, once."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    run()
    sys.exit(0)


def _wait(pid: int) -> int:
    """Wait for a child, and hand on to it what is to end this process; return its exit status, or -signal."""
    for number in FORWARDED:
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    _, status = os.waitpid(pid, 0)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    return os.waitstatus_to_exitcode(status)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if code >= 0 else 128 - code)
