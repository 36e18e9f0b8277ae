"""The warm executor with real Flower processes: what a ClientApp does wrong stays one failed task."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode

from tests.unit.flower import Federation, federation, tool, write_app

CLIENT = """
import os, random, signal, subprocess, sys, threading, time
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
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(0)
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
    return Message(RecordDict({{"answer": ConfigRecord(answer)}}), reply_to=message)
"""

EXECUTOR = [sys.executable, "-m", "coldframe.executor"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A SuperLink and one client with the warm executor, for all tests of this module."""
    with federation(tmp_path_factory.mktemp("federation")) as it:
        it.start_link([tool("flower-superlink")])
        it.executor = it.start_node([sys.executable, "-m", "coldframe.adapters", "supernode"], EXECUTOR)
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
