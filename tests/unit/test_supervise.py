"""The supervisor of a container's processes, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from coldframe.client.container import StateWatch, children, node_config, run_executor, run_supernode
from coldframe.server.container import write_secret
from coldframe.supervise import Child, exit_status

ROOT = Path(__file__).resolve().parents[2]


def start(tmp_path: Path, *commands: str, vital: bool = True) -> subprocess.Popen[str]:
    """Supervise shell commands in a process of their own; ``vital`` is about the first."""
    script = textwrap.dedent(f"""
        import sys
        from coldframe import supervise
        supervise.RESTART_DELAY = 0.05
        children = [supervise.Child(str(i), ["sh", "-c", text]) for i, text in enumerate({list(commands)!r})]
        children[0].vital = {vital!r}
        sys.exit(supervise.supervise(children, interval=0.05))
    """)
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def lines(path: Path, count: int) -> list[str]:
    """Wait until a file has that many lines."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return path.read_text().splitlines()
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {count} lines")


def ends(end: object) -> None:
    raise end if isinstance(end, BaseException) else SystemExit(end)


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (-1, 255, ""),
        ("no data", 1, "no data\n"),
        (ValueError("bad"), 1, "ValueError: bad\n"),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt\n"),
    ],
)
def test_a_fork_ends_with_the_status_of_a_python_process(
    end: object, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: ends(end)) == status
    assert capsys.readouterr().err.endswith(words)


def test_a_function_that_returns_has_succeeded() -> None:
    assert exit_status(lambda: "anything") == 0


def test_a_killed_child_is_started_again_and_sigterm_ends_all(tmp_path: Path) -> None:
    """The other child is left alone."""
    first, second = tmp_path / "first", tmp_path / "second"
    process = start(tmp_path, f"echo $$ >>{first}; exec sleep 60", f"echo $$ >>{second}; exec sleep 60")
    os.kill(int(lines(first, 1)[0]), signal.SIGKILL)
    pids = [int(lines(first, 2)[1]), int(lines(second, 1)[0])]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "0 ended with code -9" in errors
    assert len(lines(second, 1)) == 1
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_child_that_cannot_live_ends_the_container(tmp_path: Path) -> None:
    """Then the container's restart policy takes over."""
    starts = tmp_path / "starts"
    process = start(tmp_path, f"echo x >>{starts}; exit 3")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "giving up" in errors
    assert len(starts.read_text().split()) == 6


def test_a_function_runs_in_a_fork_and_is_supervised_like_a_command(tmp_path: Path) -> None:
    """It shares what the supervisor has imported, ends on SIGTERM, and is started again when it dies."""
    script = textwrap.dedent(f"""
        import os, sys, time
        from coldframe import supervise
        supervise.RESTART_DELAY = 0.05
        shared = object()
        def work(arguments):
            with open({str(tmp_path / "log")!r}, "a") as log:
                print(os.getpid(), os.getppid(), id(shared), sys.argv[1:], arguments, file=log)
            time.sleep(60)
        print(os.getpid(), id(shared), flush=True)
        sys.exit(supervise.supervise([supervise.Child("work", ["--x"], function=work)], interval=0.05))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = lines(tmp_path / "log", 1)[0].split()
    os.kill(int(first[0]), signal.SIGKILL)
    second = lines(tmp_path / "log", 2)[1].split()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "work ended with code -9" in errors
    assert first[1:] == second[1:] == [*output.split(), "['--x']", "['--x']"]
    assert not Path(f"/proc/{second[0]}").exists()


def test_a_child_that_is_not_vital_is_left_alone_and_the_others_go_on(tmp_path: Path) -> None:
    """An exporter that cannot start takes no training down."""
    starts, other = tmp_path / "starts", tmp_path / "other"
    commands = f"echo x >>{starts}; exit 3", f"echo $$ >>{other}; exec sleep 60"
    process = start(tmp_path, *commands, vital=False)
    assert len(lines(starts, 6)) == 6
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "giving up" in errors
    assert len(lines(starts, 6)) == 6
    assert len(lines(other, 1)) == 1


def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    """With its descendants, since they share its group."""
    ready = tmp_path / "ready"
    child = Child("deaf", ["sh", "-c", f"trap '' TERM; sleep 60 & echo $! >{ready}; wait; sleep 60"])
    child.start()
    grandchild = int(lines(ready, 1)[0])
    child.stop(grace=0.2)
    assert child.process is not None and child.process.returncode == -signal.SIGKILL
    end = time.monotonic() + 5
    while Path(f"/proc/{grandchild}/cmdline").exists() and Path(f"/proc/{grandchild}/cmdline").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_grown_federation_restarts_the_supernode_alone(tmp_path: Path) -> None:
    """The state file's new number of partitions reaches the SuperNode's command line."""
    path = tmp_path / "c1-0.json"
    state = {"name": "c1-0", "partition_id": 0, "num_partitions": 3}
    path.write_text(json.dumps(state))
    supernode = Child("supernode", ["sleep", "60", "--node-config", node_config(state)])
    supernode.process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    watch = StateWatch(path, supernode)
    watch()
    assert supernode.process.poll() is None
    path.write_text(json.dumps({**state, "profile": "laptop"}))
    os.utime(path, ns=(1, 1))
    watch()
    assert supernode.process.poll() is None, "another key of the file is none of its business"
    path.write_text(json.dumps({**state, "num_partitions": 5}))
    os.utime(path, ns=(2, 2))
    watch()
    assert supernode.process.poll() is not None
    assert 'partition-id=0 num-partitions=5 name="c1-0"' in supernode.command


def test_stock_runtime_is_flowers_own_commands(tmp_path: Path) -> None:
    """fl_runtime=stock starts nothing of ours."""
    stock = children("192.0.2.1:9092", "partition-id=0", tmp_path / "secret", warm=False)
    assert [child.command[0] for child in stock] == ["flower-supernode", "flower-superexec"]
    warm = children("192.0.2.1:9092", "partition-id=0", tmp_path / "secret", warm=True)
    assert [child.function for child in warm] == [run_supernode, run_executor]
    assert [child.command for child in warm] == [child.command[1:] for child in stock]


def test_the_executors_secret_is_private_and_new_each_time(tmp_path: Path) -> None:
    """32 random bytes, readable by the owner alone."""
    path = write_secret(tmp_path / "secret")
    first = path.read_bytes()
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert write_secret(path).read_bytes() != first
