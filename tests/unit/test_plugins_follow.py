"""Tests of the follow action: lines come while the command runs, and the command outlives who follows it."""

import base64
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from coldframe.controller.follow import Output, poll_script, read_poll, start_script
from tests.unit.plays import on_terminal, one_task, some_tasks

ROOT = Path(__file__).parents[2]
BAR = '\x1e{"done":%d,"total":4,"text":"round %d"}'


def shown(data, **options):
    pieces = []
    output = Output(pieces.append, **options)
    for chunk in data:
        output.feed(chunk)
    output.close()
    return "".join(pieces), output.lines


def test_lines_are_indented_and_labelled_and_cut_anywhere():
    text, lines = shown([b"one\nt", b"w\xc3", b"\xbc\nthree"], label="node1")
    assert text == "    node1: one\n    node1: tw\u00fc\n    node1: three\n"
    assert lines == ["one", "tw\u00fc", "three"]


def test_bars_are_dropped_where_there_is_no_terminal():
    text, lines = shown([b"a\n" + (BAR % (1, 1)).encode() + b"\nb\n"])
    assert text == "    a\n    b\n"
    assert lines == ["a", "b"]


def test_a_bar_is_drawn_below_the_lines_and_wiped_at_the_end():
    text, lines = shown([(BAR % (1, 1)).encode() + b"\na\n"], terminal=True)
    bar = "\r    [======                  ]  25%  round 1\x1b[K"
    assert text == bar + "\r\x1b[K    a\n" + bar + "\r\x1b[K"
    assert lines == ["a"]


def test_a_bar_is_no_wider_than_the_terminal():
    text, _lines = shown([(BAR % (1, 1)).encode() + b"\n"], terminal=True, columns=20)
    assert len(text.split("\x1b[K")[0].strip("\r")) == 20


def test_a_torn_bar_is_passed_over():
    assert shown([b'\x1e{"done": 1, "tot\nx\n'], terminal=True) == ("    x\n", ["x"])


def test_a_tools_own_progress_line_shows_its_last_state():
    assert shown([b"10%\r50%\r100%\n"])[1] == ["100%"]


def test_an_answer_in_json_is_kept_and_not_shown():
    assert shown([b'done\n{"status": "ok"}\n{no json}\n']) == (
        "    done\n    {no json}\n",
        ["done", '{"status": "ok"}', "{no json}"],
    )


def sh(script):
    return subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False).stdout


def test_poll_scripts_fetch_each_byte_once_and_then_the_exit_code():
    directory = re.search(r"FOLLOW-STARTED (\S+)", sh(start_script("printf 'a\\377b'; exit 7", ".", "", "")))[
        1
    ]
    state, data = "running", b""
    while state == "running":
        state, new = read_poll(sh(poll_script(directory, len(data))))
        data += new
    assert (state, data) == ("7", b"a\xffb")
    subprocess.run(["rm", "-r", directory], check=True)


def test_a_command_that_was_killed_is_lost_and_not_awaited():
    directory = re.search(r"FOLLOW-STARTED (\S+)", sh(start_script("kill -9 $PPID", ".", "", "")))[1]
    assert read_poll(sh(poll_script(directory, 0)))[0] == "lost"
    subprocess.run(["rm", "-r", directory], check=True)


def test_an_answer_that_is_not_whole_is_no_answer():
    whole = f"FOLLOW-STATE 0 {base64.b64encode(b'x').decode()}."
    assert read_poll(whole) == ("0", b"x")
    assert read_poll(whole[:-1]) is None


@pytest.fixture
def playbook(tmp_path):
    """Make a playbook of one follow task; the command line that plays it and its environment."""

    def make(arguments, **keywords):
        return one_task(tmp_path, {"name": "Follow it", "follow": arguments, **keywords})

    return make


def leftovers(tmp_path):
    return list(tmp_path.glob("coldframe-follow.*"))


LOOP = "for i in 1 2 3 4; do echo tick $i; sleep 0.8; done"


def test_lines_appear_in_a_pipe_while_the_command_runs(playbook, tmp_path):
    command, environment = playbook({"cmd": LOOP})
    seen = {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            seen[line.rstrip()] = time.monotonic()
    assert process.returncode == 0
    assert list(seen).index("    tick 1") > next(
        k for k, line in enumerate(seen) if "TASK [Follow it]" in line
    )
    assert seen["    tick 4"] - seen["    tick 1"] > 2
    assert leftovers(tmp_path) == []


def test_a_terminal_sees_a_bar_while_the_command_runs(playbook):
    script = 'for i in 1 2 3 4; do printf \'\\036{"done":%d,"total":4,"text":"r"}\\n\' $i; sleep 0.6; done'
    command, environment = playbook({"cmd": script})
    code, text, seconds = on_terminal(command, environment, b"[======  ")
    assert code == 0
    assert seconds > 1
    assert b"\r    [========================] 100%  r\x1b[K" in text


def test_check_mode_runs_nothing_and_a_failure_is_told_once_with_the_last_lines(tmp_path):
    """What is there is not made again, and a playbook may go on after a command that was killed."""
    held = {"that": ["made is changed", "there is not changed"]}
    command, environment = some_tasks(
        tmp_path,
        {"follow": {"cmd": f"touch {tmp_path}/made"}, "register": "made"},
        {"follow": {"cmd": f"touch {tmp_path}/again", "creates": str(tmp_path)}, "register": "there"},
        {"ansible.builtin.assert": held, "when": "not ansible_check_mode"},
        {"follow": {"cmd": "kill -9 $PPID"}, "failed_when": False},
        {"follow": {"cmd": ["sh", "-c", "seq 100; exit 3"]}},
        {"follow": {"cmd": f"touch {tmp_path}/after"}},
    )
    for mode, code in (["--check"], 0), ([], 2):
        done = subprocess.run([*command, *mode], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        assert (tmp_path / "made").exists() == (not mode)
    assert not (tmp_path / "again").exists() and not (tmp_path / "after").exists()
    assert done.stdout.count("fatal") == 1, done.stdout
    told = done.stdout[done.stdout.index("fatal:") :]
    assert "the command ended with exit code 3. Its last lines:\n81\n82\n" in told
    assert "\n80\n" not in told
    assert "ERROR" not in done.stdout + done.stderr
    assert len(leftovers(tmp_path)) == 1, "of what was killed alone"


@pytest.mark.one_python
def test_the_command_outlives_the_controller(playbook, tmp_path):
    target = tmp_path / "ticks"
    command, environment = playbook({"cmd": f"for i in 1 2 3 4; do echo $i >>{target}; sleep 0.7; done"})
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not target.exists():
            time.sleep(0.1)
        process.kill()
    deadline = time.monotonic() + 20
    while target.read_text().split() != ["1", "2", "3", "4"]:
        assert time.monotonic() < deadline, target.read_text()
        time.sleep(0.1)


@pytest.mark.one_python
def test_ctrl_c_ends_the_view_and_not_the_command(playbook, tmp_path):
    """It says so, and how to come back was said when the command began."""
    target = tmp_path / "ticks"
    task = {"cmd": f"for i in 1 2 3 4; do echo $i >>{target}; sleep 1.5; done", "hint": "come back by this"}
    command, environment = playbook(task)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=default_interrupt
    ) as process:
        try:
            assert any(line == "    come back by this\n" for line in process.stdout)
            # Ansible waits for ever for a worker that it has ended in the middle of handing over a line.
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode != 0
    assert "Interrupted: what" in rest
    deadline = time.monotonic() + 20
    while target.read_text().split() != ["1", "2", "3", "4"]:
        assert time.monotonic() < deadline, target.read_text()
        time.sleep(0.1)


def default_interrupt():
    """Where tests run in the background, their shell has told them to ignore that signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
