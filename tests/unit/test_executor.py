"""The warm executor with real Flower processes: what a ClientApp does wrong stays one failed task."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.common.constant import ErrorCode

from coldframe.client import executor, zygote
from coldframe.recording import app_errors, task_log
from tests.unit.flower import Federation, federation, wait_until, write_app
from tests.unit.forkserver import ADAPTED, EXECUTOR

CLIENT = """
import os, random, resource, signal, subprocess, sys, threading, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
GENERATION = {generation}

@app.query()
def query(message, context):
    order = message.content["order"]
    answer = {{"generation": GENERATION, "pid": os.getpid(), "parent": os.getppid()}}
    match order["do"]:
        case "raise":
            raise ZeroDivisionError("on purpose")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill the zygote":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(0)
        case "print":
            print("printed by the task", flush=True)
            os.system("echo printed by a process of it")
        case "hang":
            time.sleep(1000)
        case "die while replying":
            from flwr.supernode.runtime import run_clientapp
            run_clientapp.push_objects = lambda *_args, **_kwargs: os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            threading.Thread(target=time.sleep, args=(1000,)).start()
            child = subprocess.Popen(["sleep", "1001"])
            detached = subprocess.Popen(["sleep", "1002"], start_new_session=True)
            answer["left"] = [child.pid, detached.pid]
        case "random":
            import numpy, torch
            answer["random"] = [random.random(), float(numpy.random.rand()), float(torch.rand(1))]
        case "parallel":
            import torch
            torch.set_num_threads(2)
            a = torch.rand(600, 600)
            for _ in range(5):
                a = torch.tanh(a @ a)
            answer["threads"] = len(os.listdir("/proc/self/task"))
        case "allocate":
            import torch
            def faults():
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                for _ in range(20):
                    held = [torch.ones(5 << 18) for _ in range(4)]  # 5 MB each
                    del held
                return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
            answer["faults"] = [faults(), faults()]
    return Message(RecordDict({{"answer": ConfigRecord(answer)}}), reply_to=message)
"""


@dataclass(frozen=True)
class Resources:
    """What a process uses: open files, children, and bytes of memory."""

    files: int
    children: int
    memory: int

    @staticmethod
    def of(pid: int) -> Resources:
        """Read them from /proc."""
        status = (Path("/proc") / str(pid) / "status").read_text()
        parents = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                parents.append(path.read_text().rpartition(")")[2].split()[1])
        return Resources(
            files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            children=parents.count(str(pid)),
            memory=int(status.partition("VmRSS:")[2].split()[0]) * 1024,
        )


def settled(zygote: int) -> Resources:
    """Return what a zygote uses when its last task has ended."""
    wait_until(lambda: Resources.of(zygote).children == 0, 10, "the zygote keeps children")
    return Resources.of(zygote)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink and one client with the warm executor, for all tests of this module."""
    with federation(tmp_path_factory.mktemp("federation")) as it:
        it.start_recorded_link()
        it.start_node([*ADAPTED, "supernode"], EXECUTOR)
        yield it


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_app(tmp_path_factory.mktemp("app"), CLIENT.format(generation=1))


def test_whatever_a_task_does_is_one_failed_task_and_the_next_message_works(
    started: Federation, app: Path
) -> None:
    wrongs = {
        "raise": (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "on purpose"),
        "kill": (ErrorCode.CLIENT_APP_CRASHED, "killed by SIGKILL"),
        "exit": (ErrorCode.CLIENT_APP_CRASHED, "exit status 3"),
        "sys.exit": (ErrorCode.CLIENT_APP_CRASHED, "exit status 0 and no reply"),
        "die while replying": (ErrorCode.CLIENT_APP_CRASHED, "killed by SIGKILL"),
    }
    answers = started.run(app, [{"do": do} for wrong in wrongs for do in (wrong, "echo")])
    for (wrong, (code, reason)), failed, following in zip(
        wrongs.items(), answers[0::2], answers[1::2], strict=True
    ):
        assert failed["code"] == code, wrong
        assert reason in failed["reason"], wrong
        assert following["generation"] == 1, wrong


def test_a_task_that_hangs_is_killed_when_its_message_has_expired(started: Federation, app: Path) -> None:
    hung, following = started.run(app, [{"do": "hang", "ttl": 3.0}, {"do": "echo"}])
    assert "code" in hung
    assert following["seconds"] < 20


def test_threads_and_processes_that_a_task_leaves_end_with_it(started: Federation, app: Path) -> None:
    left, following = started.run(app, [{"do": "leave"}, {"do": "echo"}])
    assert not [pid for pid in [left["pid"], *left["left"]] if Path(f"/proc/{pid}").exists()]
    assert following["parent"] == left["parent"], "both are children of one zygote"


def test_tasks_that_seed_nothing_draw_different_numbers(started: Federation, app: Path) -> None:
    one, other = (answer["random"] for answer in started.run(app, [{"do": "random"}] * 2))
    assert all(a != b for a, b in zip(one, other, strict=True)), "random, numpy.random, torch.rand"


def test_what_a_task_prints_is_found_by_its_run(started: Federation, app: Path) -> None:
    started.run(app, [{"do": "print"}])
    [path] = started.home.glob("executor-*.log")

    def printed() -> list[str]:
        lines = path.read_text().splitlines()
        begin = lines.index("printed by the task") - 1
        run_id = lines[begin].removeprefix(task_log.BEGIN.partition("{}")[0]).partition(" ")[0]
        return list(task_log.of_run(lines, run_id)) if task_log.END in lines[begin:] else []

    wait_until(printed, 10, "the task's end is not in the log")
    assert printed()[1:3] == ["printed by the task", "printed by a process of it"]
    assert task_log.END not in printed()


def test_a_task_can_work_in_parallel(started: Federation, app: Path) -> None:
    (answer,) = started.run(app, [{"do": "parallel", "ttl": 30.0}])
    assert answer.get("threads", 0) >= 2, answer


def test_memory_that_a_task_frees_is_used_again(started: Federation, app: Path) -> None:
    """The second time that it takes 20 MB they are there: no page of them is asked of the kernel again."""
    (answer,) = started.run(app, [{"do": "allocate"}])
    first, second = answer["faults"]
    assert first > 20 << 20 >> 12
    assert second < 100


def test_a_zygote_that_has_worked_in_parallel_refuses_to_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = "import torch\ntorch.set_num_threads(2)\na = torch.rand(600, 600)\ntorch.tanh(a @ a)\n"
    (tmp_path / "busy.py").write_text(work)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ours, process = executor._start_zygote(["busy"])
    with ours:
        try:
            ours.settimeout(60)
            assert json.loads(ours.recv(zygote.PACKET))["event"] == "ready"
            ours.send(json.dumps({"do": "launch", "task": 1, "spec": {}}).encode())
            answer = json.loads(ours.recv(zygote.PACKET))
        finally:
            process.kill()
            process.wait()
    assert answer["event"] == "refused", "a child of it would hang in its first parallel operation"
    assert "threads" in answer["reason"]


def test_changed_code_takes_effect_with_the_next_run(started: Federation, app: Path, tmp_path: Path) -> None:
    changed = write_app(tmp_path / "changed", CLIENT.format(generation=2))
    (before,), (after,) = started.run(app, [{"do": "echo"}]), started.run(changed, [{"do": "echo"}])
    assert (before["generation"], after["generation"]) == (1, 2)
    assert before["parent"] == after["parent"], "both are children of one zygote"
    name = Path(f"/proc/{after['parent']}/comm").read_text().strip()
    assert name == "zygote", "it was not forked: whoever imports flwr again takes 80 MB more"


def test_nothing_grows_over_sixty_tasks(started: Federation, app: Path) -> None:
    (first,) = started.run(app, [{"do": "echo"}])
    before = settled(first["parent"])
    answers = started.run(app, [{"do": "echo"}] * 57 + [{"do": "kill"}, {"do": "leave"}, {"do": "echo"}])
    after = settled(first["parent"])
    assert [answer["parent"] for answer in answers if "parent" in answer] == [first["parent"]] * 59
    assert after.files == before.files
    assert after.memory - before.memory < 3e6


def test_fork_that_the_kernel_refuses_costs_one_task_and_not_the_zygote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(zygote, "_libc", SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(zygote, "preload", lambda modules: modules)
    monkeypatch.setattr(zygote, "thread_count", lambda: 1)
    monkeypatch.setattr(zygote, "_fork", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    serving = threading.Thread(target=zygote.serve, args=(theirs, [], {}))
    serving.start()
    with ours:
        assert json.loads(ours.recv(zygote.PACKET))["event"] == "ready"
        for task in (1, 2):
            ours.sendall(json.dumps({"do": "launch", "task": task, "spec": {}}).encode())
            answer = json.loads(ours.recv(zygote.PACKET))
            assert (answer["event"], answer["task"]) == ("failed", task)
            assert "temporarily unavailable" in answer["reason"]
    serving.join(5)
    assert not serving.is_alive()


def test_a_zygote_that_is_killed_with_an_order_unread_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does that to one at its memory limit; its end of the socket is reset then, not closed."""
    process = subprocess.Popen(["sleep", "60"])
    zygotes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    waiting = iter([(ours, process) for ours, _ in zygotes])
    monkeypatch.setattr(executor, "_start_zygote", lambda _: next(waiting))
    monkeypatch.setattr(executor, "RESTART_SECONDS", 0.01)
    warm = executor.WarmExecutor([], None)
    for _, theirs in zygotes:
        theirs.sendall(json.dumps({"event": "ready", "modules": []}).encode())
    wait_until(lambda: warm._ready, 5, "the first is not ready")
    zygotes[0][0].sendall(b"{}")
    process.kill()
    zygotes[0][1].close()
    wait_until(lambda: warm._control is zygotes[1][0] and warm._ready, 5, "there is no second one")
    warm._closing = True
    zygotes[1][1].close()
    warm._zygotes.join(5)
    assert not warm._zygotes.is_alive()


def test_a_zygote_that_dies_is_replaced_and_its_task_is_one_failed_task(
    started: Federation, app: Path
) -> None:
    before, failed, after = started.run(app, [{"do": "echo"}, {"do": "kill the zygote"}, {"do": "echo"}])
    assert failed["code"] == ErrorCode.CLIENT_APP_CRASHED
    assert after["parent"] != before["parent"]
    assert not Path(f"/proc/{before['parent']}").exists()


@pytest.mark.parametrize(
    ("code", "oom", "words"),
    [
        (-9, True, "out of memory (OOM)"),
        (-9, False, "killed by SIGKILL"),
        (-11, True, "killed by SIGSEGV"),
        (3, False, "exit status 3"),
    ],
)
def test_reason_of_a_death_says_oom_only_where_the_kernel_does(code: int, oom: bool, words: str) -> None:
    assert words in app_errors.ending(code, oom)
