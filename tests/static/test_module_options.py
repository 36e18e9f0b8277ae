"""Options given to modules exist: ansible-lint passes a misspelt one, and the play fails on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible.playbook.block import Block
from ansible.playbook.handler import Handler
from ansible.playbook.play import Play

from tests.static.repository import ROOT, Task, task_files, tasks_in

KEYWORDS = {*Handler.fattributes, *Block.fattributes, *Play.fattributes, "import_playbook", "local_action"}
# Their keys are the user's own variables.
FREE = {"ansible.builtin.set_fact", "ansible.builtin.add_host"}

Options = dict[str, dict[str, Any]]


def module_of(task: Task) -> str | None:
    """Name the module that a task calls; None for an import of a playbook."""
    found = [key for key in task.keys if key not in KEYWORDS and not key.startswith("with_")]
    assert len(found) <= 1, f"{task} has unknown keywords among {found}"
    return found[0] if found else None


def all_tasks() -> list[tuple[Task, str]]:
    """Give every task with its module."""
    tasks = [task for path in task_files() for task in tasks_in(path)]
    return [(task, module) for task in tasks if (module := module_of(task)) is not None]


@cache
def documentation() -> dict[str, Options]:
    """Read the documented options of every module in use, by one call of ansible-doc."""
    modules = sorted({module for _, module in all_tasks()})
    command = [str(Path(sys.executable).with_name("ansible-doc")), "--type", "module", "--json", *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: entry["doc"].get("options") or {} for name, entry in json.loads(done.stdout).items()}


def wrong_options(given: dict[str, Any], options: Options, where: str = "") -> list[str]:
    """Say what is wrong with the options of a module, those within options too."""
    names = {alias: key for key, option in options.items() for alias in [key, *option.get("aliases", [])]}
    wrong = []
    for key, value in given.items():
        if key not in names:
            wrong.append(f"{where}{key} is no option")
            continue
        option = options[names[key]]
        plain = value if isinstance(value, list) else [value]
        for item in plain:
            if isinstance(item, dict) and option.get("suboptions"):
                wrong += wrong_options(item, option["suboptions"], f"{where}{key}.")
            elif isinstance(item, str) and "{{" not in item and option.get("choices"):
                choices = [str(choice) for choice in option["choices"]]
                if item not in choices:
                    wrong.append(f"{where}{key} can't be {item}: it is one of {', '.join(choices)}")
    required = [key for key, option in options.items() if option.get("required")]
    present = {names.get(key) for key in given}
    # `free_form` is documentation's word for text that is no option.
    wrong += [f"{where}{key} is missing" for key in required if key not in present and key != "free_form"]
    return wrong


def test_every_module_is_named_in_full() -> None:
    own = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}
    short = [
        f"{task} calls {module}" for task, module in all_tasks() if "." not in module and module not in own
    ]
    assert short == []


def test_options_exist() -> None:
    checked = 0
    wrong = []
    for task, module in all_tasks():
        given = task.keys[module]
        if module in FREE or not isinstance(given, dict):
            continue
        extra = task.keys.get("args", {})
        checked += 1
        wrong += [
            f"{task}: {module}: {what}" for what in wrong_options({**given, **extra}, documentation()[module])
        ]
    assert wrong == []
    assert checked > 20, "hardly any task was found: did the layout change?"


def test_arguments_beside_free_text_exist() -> None:
    wrong = []
    for task, module in all_tasks():
        if not isinstance(task.keys[module], dict) and isinstance(task.keys.get("args"), dict):
            options = documentation()[module]
            wrong += [f"{task}: {key} is no option" for key in task.keys["args"] if key not in options]
    assert wrong == []


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"src": "a", "mode": "0644"}, []),
        ({"source": "a"}, []),
        ({"src": "a", "moed": "0644"}, ["moed is no option"]),
        ({"mode": "0644"}, ["src is missing"]),
        ({"src": "a", "state": "gone"}, ["state can't be gone: it is one of present, absent"]),
        ({"src": "a", "state": "{{ any }}"}, []),
        ({"src": "a", "mounts": [{"type": "bind"}, {"tpye": "bind"}]}, ["mounts.tpye is no option"]),
    ],
)
def test_wrong_options_are_found(given: dict[str, Any], wrong: list[str]) -> None:
    options: Options = {
        "src": {"required": True, "aliases": ["source"]},
        "mode": {},
        "state": {"choices": ["present", "absent"]},
        "mounts": {"suboptions": {"type": {}}},
    }
    assert wrong_options(given, options) == wrong
