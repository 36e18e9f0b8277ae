"""The action client_limits: a request reaches the agent and its answer the task, by the module or past it."""

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

from coldframe.machine.agent_request import ask
from plugins.modules.machine_facts import limits

ROOT = Path(__file__).parents[2]
ANSWERS: dict[str, dict[str, Any]] = {
    "set": {"clients": {"a": {"changed": True, "before": {"cpu": 1}, "desired": {"cpu": 0.5}}}},
    "undo": {"refused": {"a": ["no", "not now"], "b": ["no"]}},
    "status": {"error": "the engine does not answer"},
    "scenario": {"clients": {"a": {"changed": True}}},
}


class Agent(socketserver.ThreadingUnixStreamServer):
    """Stands for the agent: keeps what it is asked."""

    def __init__(self, path: Path) -> None:
        self.seen: list[dict[str, Any]] = []
        super().__init__(str(path), Handler)


class Handler(socketserver.StreamRequestHandler):
    """One request."""

    server: Agent

    def handle(self) -> None:
        """Answer by what is to be done."""
        request = json.loads(self.rfile.readline())
        self.server.seen.append(request)
        self.wfile.write(json.dumps(ANSWERS[request["do"]]).encode() + b"\n")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    server = Agent(tmp_path / "agent.sock")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("pipelining", [True, False], ids=["past the wrapper", "by the module"])
def test_request_reaches_the_agent_and_its_answer_the_task(
    agent: Agent, tmp_path: Path, pipelining: bool
) -> None:
    """What it changed, what it refused, that it failed, and that nobody is there."""
    path = str(agent.server_address)
    change = {"action": "set", "stamp": 7.5, "limits": {"a": {"cpu": 0.5}}, "duration": 60}
    asked = [
        {"socket": path, **change},
        {"socket": path, "action": "undo", "stamp": 8, "clients": ["a", "b"]},
        {"socket": path},
        {"socket": f"{path}.gone"},
    ]
    tasks = [
        {"client_limits": words, "register": f"answer{k}", "ignore_errors": True}
        for k, words in enumerate(asked)
    ]
    keep = {"content": "{{ [answer0, answer1, answer2, answer3] | to_json }}", "dest": f"{tmp_path}/answers"}
    play = {"hosts": "all", "gather_facts": False, "tasks": [*tasks, {"ansible.builtin.copy": keep}]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(tmp_path / "play.yml")]
    done = subprocess.run(
        [*command, "-i", "here,", "-c", "local", "--diff", "-vvv"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_PIPELINING": str(pipelining)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("python3 -I -" in done.stdout) == pipelining
    changed, refused, failed, gone = json.loads((tmp_path / "answers").read_text())
    request = {"limits": {"a": {"cpu": 0.5}}, "stamp": 7.5, "check": False, "duration": 60.0, "force": False}
    assert agent.seen == [
        {"do": "set", **request},
        {"do": "undo", "stamp": 8.0, "check": False, "clients": ["a", "b"]},
        {"do": "status"},
    ]
    assert changed["changed"] and changed["clients"] == ANSWERS["set"]["clients"]
    assert "+a: cpu=0.5" in done.stdout
    assert refused["failed"] and refused["msg"] == "- a, b: no\n- a: not now\n\nNothing was changed."
    assert failed["failed"] and failed["msg"] == "the engine does not answer"
    assert gone["failed"] and f"no agent answers at {path}.gone" in gone["msg"]


def test_a_run_asks_stages_and_ends_its_scenario(tmp_path: Path) -> None:
    """By the tasks of the playbooks; a machine without a part in it is not asked."""
    (tmp_path / "agent").mkdir()
    server = Agent(tmp_path / "agent" / "agent.sock")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mine = {
        "name": "x.yml",
        "rounds": 5,
        "quiet": 900.0,
        "entries": [{"number": 1, "do": "pause", "at": 2.5}],
    }
    asked = [
        ("{{ coldframe_plan | coldframe_scenario('here') }}", True),
        ("{{ coldframe_plan | coldframe_scenario('here', '77') }}", False),
        ("{{ coldframe_plan | coldframe_scenario('there', '77') }}", False),
        ("{{ coldframe_plan | coldframe_scenario_end('here', '77') }}", False),
    ]
    tasks = [
        {
            "ansible.builtin.include_tasks": {
                "file": str(ROOT / "playbooks" / "tasks" / "scenario.yml"),
                "apply": {"check_mode": check},
            },
            "vars": {"coldframe_request": request},
        }
        for request, check in asked
    ]
    known = {
        "ansible_become": False,
        "coldframe_state": str(tmp_path),
        "coldframe_plan": {
            "scenario": {"machines": {"here": mine}},
            "staged": {},
            "run": {"concurrent": False},
        },
    }
    play = {"hosts": "all", "gather_facts": False, "vars": known, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(tmp_path / "play.yml")]
    done = subprocess.run(
        [*command, "-i", "here,", "-c", "local"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.seen == [
        {"do": "scenario", **mine, "run": "", "check": True},
        {"do": "scenario", **mine, "run": "77", "check": False},
        {"do": "scenario", "run": "77", "entries": [], "check": False},
    ]


def test_it_waits_until_the_agent_answers_and_all_limits_hold(tmp_path: Path) -> None:
    """First nobody is there, then the engine does not answer, then one client's limits do not hold yet."""
    path = tmp_path / "agent.sock"
    answers = [ANSWERS["status"], *({"clients": {"a": {"holds": holds}}} for holds in (False, True, False))]
    asked = []

    class Starting(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            """Answer each time what comes next."""
            asked.append(json.loads(self.rfile.readline()))
            self.wfile.write(json.dumps(answers.pop(0)).encode() + b"\n")

    def begin() -> None:
        with socketserver.UnixStreamServer(str(path), Starting) as server:
            for _ in range(3):
                server.handle_request()

    agent = threading.Timer(0.3, begin)
    agent.start()
    assert ask(str(path), {"do": "status"}, 5, 60) == {"clients": {"a": {"holds": True}}}
    agent.join()
    assert asked == [{"do": "status"}] * 3


def test_it_returns_the_last_answer_where_limits_never_hold(agent: Agent) -> None:
    assert ask(str(agent.server_address), {"do": "status"}, 5, 0.3) == ANSWERS["status"]
    assert len(agent.seen) > 1
    with pytest.raises(OSError):
        ask(f"{agent.server_address}.gone", {"do": "status"}, 5, 0)


def test_preflight_asks_the_agent_in_the_call_that_looks_at_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that answers with an error, or none at all, tells nothing of the limits."""
    folder = tmp_path / "lab" / "agent"
    folder.mkdir(parents=True)
    server = Agent(folder / "agent.sock")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert limits(str(tmp_path), "lab") == {}
    monkeypatch.setitem(ANSWERS, "status", {"clients": {"a": {"desired": {}}}})
    assert limits(str(tmp_path), "lab") == {"clients": {"a": {"desired": {}}}}
    server.shutdown()
    server.server_close()
    assert limits(str(tmp_path), "lab") == {}
