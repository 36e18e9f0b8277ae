"""Runs preflight in this process: on an inventory that Ansible has read, and on what this machine says.

A call of ansible-playbook takes two seconds of CPU time, most of it to start. What the playbook, the callback
and a terminal make of an answer is shown by the tests that call it.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ansible import context
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader, init_plugin_loader
from ansible.template import Templar
from ansible.utils.context_objects import CLIArgs
from ansible.utils.vars import load_extra_vars
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from plugins.action import preflight as action_plugin
from plugins.modules import machine_facts

ROOT = Path(__file__).parents[2]
# This machine, with three clients.
INVENTORY = {
    "fl_machines": {
        "children": {
            "fl_server": {"hosts": {"one": {}}},
            "fl_clients": {"hosts": {"one": {"fl_client_count": 3}}},
        },
        "vars": {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "fl_federation": "unittest",
            "fl_client_memory": "384m",
            "fl_min_disk": "1m",
        },
    }
}


@contextmanager
def typed(inventory: Path, extra: tuple[str, ...]) -> Iterator[None]:
    """Have Ansible see a command line with this inventory and these words after ``-e``."""
    given = CLIArgs({"extra_vars": extra, "inventory": (str(inventory),)})
    load_extra_vars.extra_vars = {}  # what another call has typed
    try:
        with mock.patch.object(context, "CLIARGS", given):
            yield
    finally:
        load_extra_vars.extra_vars = {}


@functools.cache
def load_plugins() -> None:
    """Have Ansible find collections, and our filters."""
    init_plugin_loader()
    filter_loader.add_directory(str(ROOT / "plugins" / "filter"))


def facts_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the module machine_facts says of this machine; the arguments are cast as Ansible casts them."""
    answers: list[dict[str, Any]] = []

    class Module:
        def __init__(self, argument_spec: dict[str, Any], supports_check_mode: bool) -> None:
            cast = ArgumentSpecValidator(argument_spec).validate(arguments)
            assert supports_check_mode and not cast.error_messages, cast.error_messages
            self.params = cast.validated_parameters

        def exit_json(self, **answer: Any) -> None:
            answers.append(answer)

    with mock.patch.object(machine_facts, "AnsibleModule", Module):
        machine_facts.main()
    found: dict[str, Any] = json.loads(json.dumps(answers[0]))
    return {**found, "controller_before": found["time"], "controller_after": found["time"]}


def judge(inventory: Path, verb: str, *extra: str) -> tuple[bool, str, dict[str, Any] | None]:
    """Whether preflight refuses, what it says, and where it passes what it returns."""
    load_plugins()
    with typed(inventory, extra):
        loader = DataLoader()
        loader.set_basedir(str(ROOT / "playbooks"))
        machines = InventoryManager(loader=loader, sources=[str(inventory)])
        variables = VariableManager(loader=loader, inventory=machines)
        hostvars = HostVars(inventory=machines, variable_manager=variables, loader=loader)
        (look, _judge, _limited) = loader.load_from_file(
            str(ROOT / "playbooks" / "preflight.yml"), trusted_as_template=True
        )
        (arguments,) = [task["machine_facts"] for task in look["tasks"] if "machine_facts" in task]
        for name in machines.get_groups_dict()["fl_machines"]:
            known = {**variables.get_vars(host=machines.get_host(name)), "coldframe_verb": verb}
            found = facts_of(Templar(loader=loader, variables=known).template(arguments))
            variables.set_nonpersistent_facts(name, {"machine_facts": found})
        task = SimpleNamespace(args={"verb": verb}, async_val=0, check_mode=False, diff=False)
        task.action = "preflight"
        parts = dict.fromkeys(("connection", "play_context", "templar", "shared_loader_obj"), mock.Mock())
        action = action_plugin.ActionModule(task=task, loader=loader, **parts)
        with mock.patch.object(action_plugin.display, "display") as shown:
            answer = action.run(None, {"groups": machines.get_groups_dict(), "hostvars": hostvars})
        said = [str(call.args[0]) for call in shown.call_args_list]
        if answer.get("failed"):
            return True, "\n".join([*said, answer["msg"], ""]), None
        return False, "\n".join([*said, ""]), json.loads(json.dumps(answer))
