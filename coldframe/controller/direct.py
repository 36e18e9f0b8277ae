"""Runs Python on a machine past Ansible's module wrapper, which takes 0.2 s of a core on each machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.plugins.action import ActionBase

UTILITIES = Path(__file__).parents[1] / "machine"
# In the place of what the wrapper brings: enough for a module that only reads its parameters and ends.
# Whatever else it meets ends without an answer, and the wrapper runs the module in its own way.
SCRIPT = '''\
import json, sys, types
utilities, source, given = json.loads({text!r})
TYPES = {{"str": str, "path": str, "bool": bool, "list": list, "int": int}}

def fitting(value, option):
    """A value of exactly the option's type."""
    if type(value) is not TYPES[option["type"]]:
        raise SystemExit(f"{{value!r}} is not of type {{option['type']}}")
    if option["type"] == "list":
        any(fitting(item, {{"type": option["elements"]}}) for item in value)
    return value

class AnsibleModule:
    check_mode = False

    def __init__(self, argument_spec, supports_check_mode=False):
        if unknown := set(given) - set(argument_spec):
            raise SystemExit(f"unknown: {{unknown}}")
        self.params = {{
            name: fitting(given[name], option) if name in given else option["default"]
            for name, option in argument_spec.items()
        }}

    def exit_json(self, **result):
        print(json.dumps(result))

def provide(name, text=""):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)
    return module

for name in ("ansible", "ansible.module_utils"):
    provide(name).__path__ = []
provide("ansible.module_utils.basic").AnsibleModule = AnsibleModule
for name, text in utilities.items():
    provide("ansible.module_utils." + name, text)
provide("module", source).main()
'''


def script_of(module: Path, utilities: Iterable[str], arguments: Mapping[str, Any]) -> str:
    """Return the script that runs a module with some of `coldframe.machine` and prints its result."""
    sources = {name: (UTILITIES / f"{name}.py").read_text(encoding="utf-8") for name in utilities}
    text = json.dumps([sources, module.read_text(encoding="utf-8"), dict(arguments)])
    return SCRIPT.format(text=text)


def run_script(action: ActionBase, script: str, task_vars: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a script prints last, a JSON object; None where the way past the wrapper is closed, or ends
    in something that the wrapper explains better."""
    configured = C.config.get_config_value("INTERPRETER_PYTHON", variables=task_vars)
    interpreter = action._templar.template(task_vars.get("ansible_python_interpreter", configured))
    if interpreter.startswith("auto") or not action._is_pipelining_enabled("new"):
        return None
    done = action._low_level_execute_command(f"{shlex.quote(interpreter)} -I -", in_data=script.encode())
    try:
        answer = json.loads(done["stdout"].strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return answer if isinstance(answer, dict) else None
