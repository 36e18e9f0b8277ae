"""Tests of preflight on an inventory of this machine alone.

What a user meets of it, by ansible-playbook (`play`); cases beyond that in this process (`preflight`).
"""

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ansible.release import __version__ as ansible_version

from tests.unit.preflights import INVENTORY, judge

ROOT = Path(__file__).parents[2]
ANSIBLE = tuple(int(part) for part in ansible_version.split(".")[:2])
PLAY = """
- import_playbook: {root}/playbooks/preflight.yml
  vars:
    coldframe_verb: {verb}
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        content: "{{{{ coldframe_preflight | to_json }}}}"
        dest: {folder}/plan.json
        mode: "0600"
- hosts: fl_machines
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        content: "{{{{ fl_port | default }}}}"
        dest: {folder}/fl_port
        mode: "0600"
"""


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def play(tmp_path, free_port):
    """Run preflight by ansible-playbook; its exit code, output, and (where it passed) what it returned."""

    def run(*extra, verb="site", inventory=INVENTORY):
        (tmp_path / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
        (tmp_path / "play.yml").write_text(
            PLAY.format(root=ROOT, verb=verb, folder=tmp_path), encoding="utf-8"
        )
        values = [*([f"fl_port={free_port}"] if verb == "site" else []), *extra]
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                *("-i", str(tmp_path / "inventory.json"), str(tmp_path / "play.yml")),
                *(word for value in values for word in ("-e", value)),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "plugins" / "callback"),
                "ANSIBLE_STDOUT_CALLBACK": "coldframe",
                "ANSIBLE_BECOME": "false",
                "ANSIBLE_FORCE_COLOR": "false",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        plan = tmp_path / "plan.json"
        return (
            done.returncode,
            done.stdout + done.stderr,
            json.loads(plan.read_text()) if plan.exists() else None,
        )

    return run


@pytest.fixture
def preflight(tmp_path, free_port, monkeypatch):
    """The same without a process: whether it refuses, its output, and (where it passed) what it returned."""

    def run(*extra, verb="site", inventory=INVENTORY):
        path = tmp_path / "inventory.json"
        path.write_text(json.dumps(inventory), encoding="utf-8")
        monkeypatch.chdir(ROOT)
        return judge(path, verb, *([f"fl_port={free_port}"] if verb == "site" else []), *extra)

    return run


def test_a_good_inventory_passes_and_returns_typed_values(play):
    code, output, plan = play("rounds=3", "strategy_args={}")
    assert code == 0, output
    assert plan["verb_arguments"].endswith("inventory.json")
    assert (plan["run"]["rounds"], plan["run"]["train"], plan["run"]["strategy_args"]) == (3, True, {})
    assert plan["run_config"]["num-server-rounds"] == 3
    assert [client["name"] for client in plan["roster"]] == ["one-0", "one-1", "one-2"]
    assert {client["memory"] for client in plan["roster"]} == {384 << 20}
    assert plan["oversubscribed"] is False
    assert plan["changed"] is False


DOCKER = """#!/bin/sh
case "$*" in
  version*) echo '{{"Version": "27.0", "ApiVersion": "1.47"}}' ;;
  *json*) echo '{{"Names": "unittest-server", "Ports": "", "Labels": "coldframe.federation=unittest"}}' ;;
esac
"""


@pytest.fixture
def deployed(preflight, tmp_path, monkeypatch, free_port):
    """A federation of two clients, by its note and its engine, where the inventory says three."""
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text(DOCKER.format(), encoding="utf-8")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{engine.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(
        "DOCKER_HOST", "tcp://192.0.2.1"
    )  # this command is asked, not the socket of this machine
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = f"coldframe_root={tmp_path}/root"
    code, output, plan = preflight(root, "fl_client_count=2", '{"fl_client_cpu": 0.1}')
    assert code == 0, output
    note = tmp_path / "root" / "unittest" / "deployed.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({key: plan[key] for key in ("plan", "description")}), encoding="utf-8")
    return root, plan["site_arguments"]


def test_every_later_verb_follows_what_was_deployed(play, preflight, deployed, tmp_path, free_port):
    """Nothing is repeated: else run.yml would record three clients, and throttle.yml look for them."""
    root, typed = deployed
    assert f"inventory.json -e fl_client_count=2 -e fl_client_cpu=0.1 -e fl_port={free_port}" in typed
    for ask, verb, words in (
        (play, "run", ()),
        (preflight, "throttle", ("cpu=0.2",)),
        (preflight, "status", ()),
    ):
        code, output, plan = ask(root, *words, verb=verb)
        assert code == 0, output
        assert "WARNING" not in output
        assert [(client["name"], client["cpu"]) for client in plan["roster"]] == [
            ("one-0", 0.1),
            ("one-1", 0.1),
        ]
        assert {"machine": "one", "name": "fl_port", "value": free_port} in plan["to_set"]
        assert plan["verb_arguments"].endswith("inventory.json")
    assert (tmp_path / "fl_port").read_text() == str(free_port), "a playbook sets them"


def test_what_contradicts_what_was_deployed_is_refused(preflight, deployed):
    """But teardown.yml, status.yml and an earlier run's end are never in the way."""
    root, typed = deployed
    for verb, words in (("run", ()), ("throttle", ("cpu=0.2",))):
        code, output, _plan = preflight(root, *words, "fl_client_count=1", verb=verb)
        text = " ".join(output.split())
        assert code != 0
        assert "the clients would be 1 (one-0) instead of 2 (one-0, one-1)" in text
        remedy = typed.replace("fl_client_count=2", "fl_client_count=1")
        assert "leave it out, or deploy it first: " in text
        assert f"ansible-playbook site.yml {remedy} -e train=false" in text
    for verb, words in (("run", ("stop=7",)), ("teardown", ())):
        code, output, plan = preflight(root, *words, "fl_client_count=1", verb=verb)
        assert code == 0, output
        assert "[WARNING]: fl_client_count is typed, and the federation stands otherwise" in output
        assert len(plan["roster"]) == 2


def test_only_what_writes_results_needs_a_folder_for_them(preflight, deployed, tmp_path):
    """Before anything is deployed or trained, and not after."""
    root, _ = deployed
    (tmp_path / "file").touch()
    results = f"fl_results_dir={tmp_path}/file/results"
    for verb, words in (
        ("site", ()),
        ("run", ()),
        ("run", ("collect=7",)),
        ("experiment", ()),
        ("compare", ("runs=a,b",)),
        ("export", ("run=a",)),
    ):
        code, output, _ = preflight(root, *words, results, verb=verb)
        assert code and f"results cannot be written to {tmp_path}/file/results" in output, (verb, words)
    for verb, words in (
        ("site", ("train=false",)),
        ("run", ("stop=7",)),
        ("throttle", ("cpu=0.2",)),
        ("status", ()),
        ("teardown", ("purge=true", "yes=true")),
    ):
        code, output, _ = preflight(root, *words, results, verb=verb)
        assert not code, output


def test_a_builder_that_is_no_machine_is_refused(preflight):
    code, output, _ = preflight("fl_image_builder=tow")
    assert code != 0
    assert "fl_image_builder=tow is no machine of the inventory -> name one" in " ".join(output.split())


def test_data_of_a_folder_is_known_by_its_content(preflight, tmp_path):
    """Other content of the same size and time is other data; another name for the same content is not."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for part, size in (("train", 60), ("test", 10)):
        np.save(folder / f"{part}_x.npy", np.full((size, 28, 28), 9, np.uint8))
        np.save(folder / f"{part}_y.npy", np.arange(size) % 10)
    plans = []
    for labels in (np.arange(60) % 10, np.arange(60) % 9):
        np.save(folder / "train_y.npy", labels)
        os.utime(folder / "train_y.npy", (1, 1))
        code, output, plan = preflight(f"fl_data_dir={folder}")
        assert code == 0, output
        assert plan["data_folder"] == str(folder)
        plans.append(plan["data_plan"])
    folder.rename(tmp_path / "moved")
    _, _, plan = preflight(f"fl_data_dir={os.path.relpath(tmp_path / 'moved', ROOT)}")
    assert Path(plan["data_folder"]).is_absolute()
    assert plans[0] != plans[1] == plan["data_plan"]
    (tmp_path / "moved" / "test_x.npy").write_bytes(b"")
    code, output, _ = preflight(f"fl_data_dir={tmp_path / 'moved'}", "partitioner=shards")
    assert code != 0 and f"1. fl_data_dir: {tmp_path}/moved/test_x.npy is empty" in output


def test_every_bad_input_is_found_in_one_go(play, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, output, plan = play(
            "rounds=abc",
            "fl_strategy=fedfoo",
            "roundz=3",
            "min_train_clients=9",
            f"fl_data_dir={tmp_path}/missing",
            "fl_min_disk=9999t",
            f"fl_port={port}",
        )
    assert code != 0
    assert plan is None
    for message in (
        "rounds=abc is not a whole number ≥ 1\n     -> type -e rounds=5",
        "fl_strategy=fedfoo is not known (one of fedavg,",
        "unknown variable 'roundz' for site.yml\n     -> did you mean 'rounds'? Type -e rounds=5",
        "min_train_clients=9 is more than the 3 clients of the inventory\n     -> type -e min_train",
        f"fl_data_dir={tmp_path}/missing is not a folder on this machine",
        "TB needed\n     -> make room",
        f"port {port} is in use by ",
        "Nothing was changed.",
    ):
        assert output.count(message) == 1, f"{message!r} in\n{output}"
    assert "  7. " in output
    assert "  8. " not in output


def test_a_policy_of_rounds_is_judged_before_anything_runs(preflight):
    code, output, _plan = preflight("round_goal=0.5", "round_deadline=soon", verb="run")
    assert code != 0 and output.count("\n     -> type -e round_deadline=") == 2, output
    code, output, plan = preflight("round_goal=0.5", "round_deadline=1m", verb="run")
    assert code == 0, output
    assert (plan["run"]["round_goal"], plan["run"]["round_deadline"]) == (0.5, 60.0)
    assert not any("round-goal" in key or "round-deadline" in key for key in plan["run_config"])


def test_more_quota_than_cores_is_warned_of_and_recorded(preflight):
    code, output, plan = preflight("fl_client_cpu=999", verb="run")
    assert code == 0, output
    assert "[WARNING]: one: its 3 clients may use 2997 cores" in output
    assert plan["oversubscribed"] is True and "oversubscribed" not in plan["run_config"]


def test_group_variables_of_the_inventory_count_as_much_as_extra_variables(preflight):
    machines = INVENTORY["fl_machines"]
    inventory = {
        "fl_machines": {**machines, "vars": {**machines["vars"], "rounds": "many", "fl_client_cpu": "x"}}
    }
    code, output, _plan = preflight(inventory=inventory)
    assert code != 0
    assert "fl_client_cpu=x is not a number" in output
    assert "rounds=many is not a whole number ≥ 1\n     -> write in the inventory rounds=5" in output


def test_wrong_types_and_nothing_at_all_are_found_with_machine_and_variable(play):
    machines = INVENTORY["fl_machines"]
    wrong = {
        "fl_client_count": None,
        "fl_client_list": [{"name": None, "cpu": [1]}, 7],
        "fl_port": {"a": 1},
        "fl_metrics_port": None,
        "fl_federation": None,
        "fl_monitoring": None,
        "fl_image_registry": None,
        "fl_results_dir": None,
        "ansible_port": "ssh",
        "rounds": None,
        "dataset": ["mnist"],
        "grafana_image": None,
        "fl_client_delay": 50,
    }
    port = "ansible_port=ssh is not a whole number from 1 to 65535 -> write in the inventory ansible_port=22"
    if ANSIBLE >= (2, 21):  # refuses it by itself, before preflight
        del wrong["ansible_port"]
        port = ""
    inventory = {"fl_machines": {**machines, "vars": {**machines["vars"], **wrong}}}
    inventory["fl_machines"]["children"] = {
        group: {"hosts": {"one": {}}} for group in ("fl_server", "fl_clients")
    }
    code, output, _plan = play(inventory=inventory)
    assert code != 0
    assert "Task failed" not in output
    assert "Traceback" not in output
    assert "Nothing was changed." in output
    words = " ".join(output.split())
    for message in (
        "one: 1. ",
        "fl_client_count is empty -> write in the inventory fl_client_count=3, or leave it out",
        "fl_client_list[0]: name is empty -> write name: node1-0",
        "fl_client_list[0]: cpu=[1] is not a number ≥ 0.05 -> write cpu: 0.5",
        "fl_client_list[1] is not a dictionary",
        port,
        "rounds is empty -> write in the inventory rounds=5",
        "dataset=",
        "fl_client_delay=50 has no unit -> write in the inventory fl_client_delay=50ms (milliseconds) or fl_",
        *(f"{name} is empty" for name, value in wrong.items() if value is None),
    ):
        assert message in words, f"{message!r} in\n{output}"


def test_a_machine_that_does_not_answer_is_a_finding_but_no_hindrance_to_teardown(play):
    machines = INVENTORY["fl_machines"]
    vanished = {
        "fl_machines": {
            **machines,
            "vars": {**machines["vars"], "ansible_connection": "ssh", "ansible_host": "no.invalid"},
        }
    }
    code, output, _plan = play(inventory=vanished)
    assert code != 0
    assert "machine one did not answer (" in output
    assert "\nunreachable: [one]\n" in output
    assert output.count("Could not resolve hostname no.invalid") == 1
    assert "check that this works: ssh no.invalid" in output
    _code, output, plan = play(verb="teardown", inventory=vanished)
    assert plan["run"] == {"purge": False, "yes": False, "interrupt": False}, output
    assert "[WARNING]: machine one did not answer" in output


@pytest.fixture
def with_results(tmp_path, monkeypatch):
    """A federation that has results, one of them another's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name, federation in (("20260101-000000-a", "unittest"), ("20260102-000000-b", "other")):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        (folder / "inventory.json").write_text(json.dumps({"federation": federation}))
        (folder / "summary.json").write_text("{}")
    return f"fl_results_dir={tmp_path}/results"


@pytest.mark.one_python
def test_purge_names_what_it_deletes_and_wants_a_yes(play, preflight, with_results, tmp_path):
    code, output, plan = play(with_results, "purge=true", verb="teardown")
    assert code != 0 and plan is None
    for line in (
        "purge=true deletes for good what federation unittest has:",
        f"1 result of its runs in {tmp_path}/results/, with what was made of them:\n      20260101-000000-a",
        "/unittest on one: runs and models",
        f"{tmp_path}/state/coldframe/unittest on this controller",
        "Nothing was changed.",
    ):
        assert line in output, f"{line!r} in\n{output}"
    assert re.search(r"ansible-playbook teardown.yml -i \S+ .*-e purge=true -e yes=true\n", output)
    assert "20260102-000000-b" not in output
    code, output, plan = preflight(with_results, "purge=true", "yes=true", verb="teardown")
    assert code == 0, output
    assert plan["run"] == {"purge": True, "yes": True, "interrupt": False}


def test_purge_asks_where_there_is_a_terminal(with_results, tmp_path):
    """Twice here: the first answer lets it pass, the second ends it."""
    asks = f"- import_playbook: {ROOT}/playbooks/preflight.yml\n  vars: {{coldframe_verb: teardown}}\n"
    (tmp_path / "play.yml").write_text(asks * 2, encoding="utf-8")
    (tmp_path / "inventory.json").write_text(json.dumps(INVENTORY), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "ansible-playbook"), str(tmp_path / "play.yml")]
    command += ["-i", str(tmp_path / "inventory.json"), "-e", with_results, "-e", "purge=true"]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_BECOME": "false",
        "TERM": "xterm",
    }
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(command[0], command, environment)
    refused, question = b"It was not answered with yes", b"Type yes to delete all of it"
    text, answers, asked, deadline = b"", [b"yes\r", b"y\r"], 0, time.monotonic() + 120
    with contextlib.suppress(OSError):  # its end
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                text += os.read(terminal, 65536)
            elif text.count(question) > asked:  # what comes before it listens is thrown away
                os.write(terminal, answers[asked])
                assert refused not in text
                asked += 1
        else:
            os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2, text.decode()
    assert asked == 2 and refused in text.rpartition(question)[2], text.decode()
    os.close(terminal)


def test_two_clients_of_one_name_are_found(preflight):
    code, output, _plan = preflight('{"fl_client_list": [{"name": "a"}, {"name": "a"}]}')
    assert code != 0
    assert "two clients are called a (machines one and one)\n     -> give one of them another name" in output


@pytest.mark.one_python
def test_a_machine_that_stands_twice_in_the_inventory_is_an_error_with_its_line(tmp_path):
    """Ansible by itself would take the last of the two, and the first would never be deployed."""
    twice = (
        "fl_machines:\n  hosts:\n    bench: {ansible_host: 192.0.2.1}\n    bench: {ansible_host: 192.0.2.2}\n"
    )
    (tmp_path / "lab.yml").write_text(twice, encoding="utf-8")
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "status.yml",
        "-i",
        tmp_path / "lab.yml",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Found duplicate mapping key 'bench'" in done.stderr
    assert f"{tmp_path}/lab.yml:4:" in done.stderr
    assert "PLAY [" not in done.stdout


@pytest.mark.one_python
def test_an_app_is_packed_before_anything_is_changed_and_judged(preflight, tmp_path):
    """With its configuration; the message bears what was typed, and not where it was found."""
    cache = (f"coldframe_controller_state={tmp_path}/state", f"coldframe_cache={tmp_path}/cache")
    given = "app=tests/cluster/apps/counting"
    wrong = json.dumps({"run_config": {"num-server-rounds": "2", "steps": 1}})
    code, output, plan = preflight(given, wrong, *cache, verb="run")
    assert code != 0 and plan is None
    for words in (
        'num-server-rounds="2", which is a text, and [tool.flwr.app.config] of tests/cluster/apps/counting',
        """type -e '{"run_config": {"num-server-rounds": 2}}'""",
        "did you mean step?",
        "Nothing was changed.",
    ):
        assert words in " ".join(output.split()), output
    right = json.dumps({"run_config": {"num-server-rounds": 2}})
    code, output, plan = preflight(given, right, *cache, verb="run")
    assert code == 0, output
    assert Path(plan["fab"]).parent == tmp_path / "state" / "fabs"
    assert plan["run_config"] == {"num-server-rounds": 2}
    assert {"commit", "clean", "app_commit", "app_clean"} <= plan["checkout"].keys()
    code, output, _plan = preflight("app=nowhere", verb="run")
    assert code != 0
    assert "app=nowhere is no folder and no file -> type -e app=DIR" in " ".join(output.split())


def test_our_own_configuration_has_types_too(preflight):
    code, output, _plan = preflight('{"run_config": {"seed": "one"}}', verb="run")
    assert code != 0
    assert """type -e '{"run_config": {"seed": 0}}'""" in output
    code, output, _plan = preflight('{"run_config": {"seed": 1, "strategy": "fedavg"}}', verb="run")
    assert code == 0, output
