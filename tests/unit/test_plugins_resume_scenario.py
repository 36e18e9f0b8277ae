"""The plays of run.yml that resume a run, with stand-ins for the server's engine and a machine's agent."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller.settings import cast

ROOT = Path(__file__).parents[2]
# What the server says; all that is asked of it, and of the agent, is kept in one file in the order of asking.
DOCKER = """#!/bin/sh
while [ "$1" != coldframe.server.control ]; do shift; done
shift
echo "server $1 $2" >> {log}
case "$1" in
  resume) cat > /dev/null; {resume} ;;
  *) echo '{{"run_id": "9", "status": "finished"}}' ;;
esac
"""
RESUMES = """echo '{"run_id": "9", "resumed_from": "7", "round": 2}'"""
REFUSES = "echo 'run 7 has completed' >&2; exit 1"


class Agent(socketserver.ThreadingUnixStreamServer):
    """Stands for the agent of the clients' machine."""

    def __init__(self, path: Path, log: Path) -> None:
        self.log = log
        super().__init__(str(path), Handler)


class Handler(socketserver.StreamRequestHandler):
    """One request."""

    server: Agent

    def handle(self) -> None:
        """Note what is to be staged, or ended, for which run."""
        request = json.loads(self.rfile.readline())
        with self.server.log.open("a") as file:
            what = "stage" if request["entries"] else "end"
            file.write(f"agent {what} {request['run']}\n")
        self.wfile.write(b'{"clients": {}, "ended": true}\n')


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "agent").mkdir()
    server = Agent(tmp_path / "agent" / "agent.sock", tmp_path / "log")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.log
    server.shutdown()
    server.server_close()


def resume(folder: Path, answer: str, *, staged: dict[str, str], going: list[str], **run: Any) -> int:
    """Play them: one machine has the server, and another one a client."""
    docker = folder / "docker"
    docker.write_text(DOCKER.format(log=folder / "log", resume=answer))
    docker.chmod(0o755)
    plays = [play for play in yaml.safe_load((ROOT / "playbooks" / "run.yml").read_text()) if "hosts" in play]
    text = yaml.safe_dump(plays).replace("tasks/", f"{ROOT}/playbooks/tasks/")
    (folder / "play.yml").write_text(text)
    (folder / "hosts.yml").write_text(
        "all: {children: {fl_server: {hosts: {one: }}, fl_clients: {hosts: {two: }}, fl_machines: {}}}"
    )
    values, findings = cast("run", {"resume": "7", **run})
    assert findings == []
    variables = {
        **{"ansible_connection": "local", "ansible_become": False, "coldframe_state": str(folder)},
        **{"ansible_python_interpreter": sys.executable, "coldframe_federation": "lab"},
        **{"coldframe_server_machine": "one", "coldframe_server_image": "x", "coldframe_versions": {}},
        **{"coldframe_server_seen": {"image": "x"}, "coldframe_typed": "", "coldframe_typed_site": ""},
        "coldframe_plan": {
            **{"run": values, "scenario": {}, "staged": staged, "going": going},
            **{"resumption": {}, "checkout": {}, "oversubscribed": None},
        },
    }
    (folder / "vars.json").write_text(json.dumps(variables))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(folder / "hosts.yml")]
    command += [str(folder / "play.yml"), "-e", f"@{folder / 'vars.json'}"]
    environment = {
        **{**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "TMPDIR": str(folder)},
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    print(done.stdout, done.stderr)
    return done.returncode


def test_the_scenario_of_the_run_that_is_stopped_for_it_ends_before_the_resumed_one_is_followed(
    log: Path, tmp_path: Path
) -> None:
    assert resume(tmp_path, RESUMES, staged={"two": "8"}, going=["8"], interrupt=True) == 0
    assert log.read_text().splitlines() == ["server resume 7", "agent end 8", "server follow 9"]


def test_what_the_lost_run_has_staged_ends_before_and_nobody_is_followed_who_does_not_want_it(
    log: Path, tmp_path: Path
) -> None:
    assert resume(tmp_path, RESUMES, staged={"two": "7"}, going=[], wait=False) == 0
    assert log.read_text().splitlines() == ["agent end 7", "server resume 7"]


@pytest.mark.parametrize("run", [{"interrupt": True}, {"interrupt": False}, {"concurrent": True}])
def test_the_scenario_of_a_run_that_goes_on_is_left_alone(
    log: Path, tmp_path: Path, run: dict[str, bool]
) -> None:
    """It does where the server refuses, and beside a run that wants to be alone no more."""
    beside = "concurrent" in run
    answer = RESUMES if beside else REFUSES
    assert bool(resume(tmp_path, answer, staged={"two": "8"}, going=["8"], **run)) is not beside
    asked = ["server resume 7", *(["server follow 9"] if beside else [])]
    assert log.read_text().splitlines() == asked


def test_a_run_that_has_been_resumed_is_followed_also_where_an_agent_does_not_answer(
    log: Path, tmp_path: Path
) -> None:
    (tmp_path / "agent" / "agent.sock").unlink()
    assert resume(tmp_path, RESUMES, staged={"two": "8"}, going=["8"], interrupt=True) == 0
    assert log.read_text().splitlines() == ["server resume 7", "server follow 9"]
