"""Every command that a message offers can be pasted as it stands."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ansible import context

from coldframe.controller import commands, terminal
from coldframe.controller.settings import VERBS
from tests.unit.plays import one_task

ROOT = Path(__file__).parents[2]
OFFER = re.compile(r"ansible-playbook (\w+)\.yml([^\n`\"]*)")
# What reaches a user's screen: by say, follow, preflight and the callback, which all complete the commands.
MESSAGES = [
    path
    for pattern in (
        *("coldframe/**/*.py", "fl/*.py", "plugins/**/*.py", "playbooks/**/*.yml", "roles/**/*.yml"),
    )
    for path in sorted(ROOT.glob(pattern))
]


@pytest.fixture
def typed(monkeypatch):
    """Set what this call of ansible-playbook was typed with."""

    def set_it(**arguments):
        monkeypatch.setattr(context, "CLIARGS", arguments)
        monkeypatch.setattr(commands, "ansible_playbook", lambda: "ansible-playbook")

    return set_it


def test_a_command_gets_inventory_and_federation(typed):
    typed(inventory=["/srv/my lab.yml"], become_ask_pass=True)
    extra = {"fl_federation": "x", "max_samples": 900}
    assert commands.complete("type ansible-playbook status.yml", extra) == (
        "type ansible-playbook status.yml -i '/srv/my lab.yml' -K -e fl_federation=x"
    )


def test_every_command_of_a_text_is_completed_once(typed):
    typed(inventory=["/srv/lab.yml"])
    extra = {"fl_federation": "x"}
    text = "watch ansible-playbook status.yml, or end it: ansible-playbook run.yml -e stop=4\nor not"
    done = commands.complete(text, extra)
    assert done == (
        "watch ansible-playbook status.yml -i /srv/lab.yml -e fl_federation=x, "
        "or end it: ansible-playbook run.yml -i /srv/lab.yml -e fl_federation=x -e stop=4\nor not"
    )
    assert commands.complete(done, extra) == done
    other = "ansible-playbook site.yml -e fl_federation=y"
    assert commands.complete(other, extra) == (
        "ansible-playbook site.yml -i /srv/lab.yml -e fl_federation=y"
    ), "what a message names is not named twice"


def test_the_default_inventory_is_not_repeated(typed):
    typed(inventory=[str(path) for path in commands.C.DEFAULT_HOST_LIST])
    assert commands.complete("ansible-playbook status.yml", {}) == "ansible-playbook status.yml"


def test_a_command_names_the_program_that_the_user_can_type(typed, monkeypatch):
    typed()
    monkeypatch.setattr(commands, "ansible_playbook", lambda: ".venv/bin/ansible-playbook")
    once = commands.complete("ansible-playbook run.yml", {})
    assert once == ".venv/bin/ansible-playbook run.yml"
    assert commands.complete(once, {}) == once


def test_another_run_repeats_what_was_typed_about_the_training():
    extra = {"max_samples": "900", "app": "my app", "collect": "4", "wait": "false", "fl_federation": "x"}
    assert commands.of_the_run(extra) == ["-e 'app=my app'", "-e max_samples=900"]
    assert commands.of_the_run({"run_config": {"lr": 0.1}}) == ["""-e '{"run_config": {"lr": 0.1}}'"""]


def test_control_characters_do_not_reach_the_terminal():
    assert terminal.plain("\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\u202e\tx\ny") == "red ]0;title2J\tx\ny"


@pytest.mark.parametrize("module", ["say", "assert"])
def test_messages_reach_the_screen_with_whole_commands_and_without_control_characters(tmp_path, module):
    text = "ansible-playbook run.yml -e stop=4 \x1b[2J\x07"
    tasks = {"say": {"lines": [text]}, "assert": {"that": False, "fail_msg": text}}
    name = {"say": "say", "assert": "ansible.builtin.assert"}[module]
    command, environment = one_task(tmp_path, {name: tasks[module]})
    done = subprocess.run(
        [*command, "-e", json.dumps({"fl_federation": "x"})],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ansible-playbook run.yml -i one, -e fl_federation=x -e stop=4 [2J" in re.sub(
        r"\S*ansible-playbook", "ansible-playbook", done.stdout
    ), done.stdout + done.stderr
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_messages_offer_verbs_that_exist_and_none_that_trains_by_the_way():
    """Where a deployment is offered, a training on other settings than the user's must not come with it."""
    offers = [
        (path.relative_to(ROOT), *offer)
        for path in MESSAGES
        for offer in OFFER.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(offers) > 15
    for path, verb, rest in offers:
        assert verb in VERBS, path
        assert verb != "site" or "-e train=false" in rest, f"{path}: site.yml{rest}"


def test_whoever_shows_messages_completes_their_commands():
    """A message that is displayed in another way would offer commands that act on another federation."""
    for path in sorted([*ROOT.glob("plugins/action/*.py"), *ROOT.glob("plugins/callback/*.py")]):
        text = path.read_text(encoding="utf-8")
        shows = re.search(r"display\.(display|warning|error)\(|\b_show\(", text)
        if shows and path.name not in ("ship.py",):  # progress of a transfer
            assert "complete(" in text, path


@pytest.mark.parametrize(
    ("folder", "collections", "line"),
    [
        ("elsewhere", True, "has not read ansible.cfg: type cd with the checkout's folder, then the same"),
        ("here", False, "This is another environment's Ansible: type .venv/bin/ansible-playbook, or"),
    ],
)
def test_ansible_shows_the_line_that_helps_where_it_cannot_read_the_verb(tmp_path, folder, collections, line):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    if not collections:
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(tmp_path)
        environment["ANSIBLE_COLLECTIONS_SCAN_SYS_PATH"] = "false"
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), str(ROOT / "status.yml")],
        cwd=tmp_path if folder == "elsewhere" else ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert line in done.stderr


def test_another_virtual_environment_is_told_which_one_to_take():
    path = ROOT / "plugins" / "callback" / "coldframe.py"
    spec = importlib.util.spec_from_file_location("coldframe_callback", path)
    callback = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(callback)
    assert callback.foreign_environment() == ""
    lacking = callback.foreign_environment(packages=("json", "no_such_package"))
    assert "lacks no_such_package: it is of another virtual environment. Type " in lacking
    assert f".venv/bin/ansible-playbook in {ROOT} instead." in lacking
    assert "is of ansible-core 2.14.3, too old" in callback.foreign_environment(version="2.14.3")
    assert callback.foreign_environment(version="2.21.0rc1") == ""
