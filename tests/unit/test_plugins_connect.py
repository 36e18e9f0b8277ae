"""The task connect, as connect.yml plays it: how it reaches the server's container, and what it answers."""

import json
import os
import subprocess

import pytest

from coldframe.controller.connection import close_connection
from tests.unit.plays import one_task
from tests.unit.tls import Link, ask


@pytest.fixture
def connect(tmp_path):
    """Play the task with a docker that stands for the real one; its exit code, output and result."""
    directory, programs = tmp_path / "connection", tmp_path / "bin"
    programs.mkdir()

    def run(relay, **environment):
        docker = programs / "docker"
        docker.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/called\n{relay[2]}\n')
        docker.chmod(0o755)
        task = {"container": "lab-server", "directory": str(directory), "name": "lab"}
        command, usual = one_task(tmp_path, {"connect": task})
        play = json.loads((tmp_path / "play.yml").read_text())
        keep = {"content": "{{ r | to_json }}", "dest": f"{tmp_path}/result", "mode": "0600"}
        play[0]["tasks"][1] = {"ansible.builtin.copy": keep, "become": False}
        (tmp_path / "play.yml").write_text(json.dumps(play))
        path = f"{programs}:{os.environ['PATH']}"
        more = {"FLWR_HOME": str(tmp_path / "flwr"), "PATH": path, **environment}
        done = subprocess.run(command, env={**usual, **more}, capture_output=True, text=True)
        result = tmp_path / "result"
        return (
            done.returncode,
            done.stdout + done.stderr,
            json.loads(result.read_text()) if result.exists() else {},
        )

    yield run
    close_connection(directory, "lab")


def test_it_is_opened_by_docker_exec_and_says_what_matters_to_flwr(connect, tmp_path):
    with Link(tmp_path).serving() as link:
        proxy = {"https_proxy": "http://proxy.example.org:3128", "no_proxy": "localhost"}
        code, output, opened = connect(link.relay(), **proxy)
        assert code == 0, output
        called = (tmp_path / "called").read_text().split()
        assert called == ["exec", "--interactive", "lab-server", "python3", "-m", "coldframe.server.relay"]
        assert opened["changed"] and opened["proxied"]
        assert ask(opened["port"], tmp_path / "connection" / "superlink.crt", b"a") == b"A"
        code, output, again = connect(link.relay(), **proxy | {"NO_PROXY": "127.0.0.1"})
        assert (code, again["changed"], again["proxied"]) == (0, False, False), output
        assert again["pid"] == opened["pid"]


@pytest.mark.one_python
def test_it_is_found_open_by_who_becomes_root_too(connect, tmp_path):
    with Link(tmp_path).serving() as link:
        sudo = tmp_path / "sudo"
        sudo.write_text('#!/bin/sh\nwhile [ "$1" != /bin/sh ]; do shift; done\nexec "$@"\n')
        sudo.chmod(0o755)
        become = {
            "ANSIBLE_BECOME": "true",
            "ANSIBLE_BECOME_EXE": str(sudo),
            "ANSIBLE_BECOME_USER": "operator",
        }
        found = [connect(link.relay(), **become) for _ in range(2)]
        assert [code for code, _, _ in found] == [0, 0], found
        assert [result["changed"] for _, _, result in found] == [True, False]
        assert str(sudo) in found[0][2]["command"][2]


@pytest.mark.one_python
def test_a_server_that_does_not_answer_is_one_line(connect, tmp_path):
    code, output, _result = connect(["sh", "-c", "echo no such container >&2; exit 1"])
    assert code != 0
    assert f"the server does not answer (no such container): see {tmp_path}/connection/log" in " ".join(
        output.split()
    )
