"""The ship action: files arrive as synchronize brings them, and who waits sees how far they are."""

import os
import shutil
import subprocess

import pytest

from coldframe.controller.transfer import progress, under_way
from tests.unit.plays import on_terminal, one_task, some_tasks

MEGABYTES = 12


@pytest.fixture
def slow(tmp_path):
    """A file, where it goes to, and a PATH whose rsync carries 4 MB per second."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "rsync").write_text(f'#!/bin/sh\nexec {shutil.which("rsync")} --bwlimit=4096 "$@"\n')
    (programs / "rsync").chmod(0o755)
    source = tmp_path / "image.tar"
    source.write_bytes(os.urandom(MEGABYTES << 20))
    return source, tmp_path / "there.tar", f"{programs}:{os.environ['PATH']}"


def play(tmp_path, source, target, path):
    task = {"name": "Ship it", "ship": {"src": str(source), "dest": str(target), "times": True}}
    command, environment = one_task(tmp_path, task)
    return command, {**environment, "PATH": path}


@pytest.mark.one_python
def test_a_terminal_sees_how_far_a_large_file_is(tmp_path, slow):
    source, target, path = slow
    command, environment = play(tmp_path, source, target, path)
    code, text, seconds = on_terminal(command, environment, b"[=")
    assert code == 0, text
    assert seconds > 1, text
    assert b" image.tar: " in text
    assert b" of 13 MB" in text
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.one_python
def test_what_is_there_is_not_shipped_again(tmp_path, slow):
    source, target, _ = slow
    ship = {"ship": {"src": str(source), "dest": str(target), "times": True}}
    held = {"ansible.builtin.assert": {"that": ["first is changed", "second is not changed"]}}
    tasks = ({**ship, "register": "first"}, {**ship, "register": "second"}, held)
    command, environment = some_tasks(tmp_path, *tasks)
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "changed=1" in output
    assert target.read_bytes() == source.read_bytes()


def test_what_a_child_reads_or_writes_tells_how_far_it_is(tmp_path):
    wheels, whl = f"{tmp_path}/wheels/", tmp_path / "wheels" / "torch.whl"
    whl.parent.mkdir()
    whl.write_bytes(bytes(3_000_000))
    assert under_way(wheels) is None
    script = 'exec 3<"$1" 4>"$2"; dd bs=1000000 count=1 <&3 >&4 2>/dev/null; echo; read line'
    command = ["sh", "-c", script, "sh", str(whl), str(tmp_path / "there" / ".fl.tar.part")]
    (tmp_path / "there").mkdir()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert under_way(wheels) == under_way(str(whl)) == (whl, 1_000_000)
        assert under_way(f"{tmp_path}/wheel") is None
        assert progress(wheels, "/x/", pull=False) == (1_000_000, 3_000_000, "torch.whl: 1 of 3 MB")
        pulled = progress("/x/fl.tar", f"{tmp_path}/there/fl.tar", pull=True)
        assert pulled == (1_000_000, 0, "fl.tar: 1 MB")
        child.stdin.close()
