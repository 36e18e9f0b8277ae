"""Tests of plugins/test/containers.py: a container is started again when its runtime died, and only then."""

import json
import re
import subprocess

from tests.unit.plays import one_task

DIED = (
    "Error starting container ec78: 500 Server Error: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: read init-p: connection reset by peer: unknown"
)
TAKEN = (
    "Error starting container ec78: 500 Server Error: Bind for 0.0.0.0:9092 failed: port is already allocated"
)


# How often a module that stands for docker_container fails, and with which words; how often it is tried.
CASES = {"died-once": (DIED, 1, 2), "dies-each-time": (DIED, 9, 3), "port-is-taken": (TAKEN, 1, 1)}
MODULE = """
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({name: {} for name in ("count", "words", "fails")})
given = module.params
with open(given["count"], "a") as file: file.write(".")
if len(open(given["count"]).read()) <= int(given["fails"]): module.fail_json(given["words"])
module.exit_json(changed=True)
"""


def test_only_a_runtime_that_died_is_worth_another_try(tmp_path):
    """A host for each case: the module fails so many times with the engine's words, then succeeds."""
    module = tmp_path / "library" / "container.py"
    module.parent.mkdir()
    module.write_text(MODULE)
    hosts = {
        name: {"count": f"{tmp_path}/{name}", "words": words, "fails": fails}
        for name, (words, fails, _tries) in CASES.items()
    }
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    given = {word: f"{{{{ {word} }}}}" for word in ("count", "words", "fails")}
    task = {"container": given, "until": "r is coldframe_settled", "retries": 2, "delay": 0}
    command, environment = one_task(tmp_path, task)
    environment["ANSIBLE_LIBRARY"] = str(module.parent)
    command[command.index("-i") + 1] = str(tmp_path / "inventory.json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    for name, (words, fails, tries) in CASES.items():
        assert (tmp_path / name).read_text() == tries * "."
        fatal = fails >= tries
        assert re.search(rf"^{name} +: .* failed={int(fatal)} ", done.stdout, re.MULTILINE), done.stdout
        told = re.search(rf"fatal: \[{name}\](.*?)(?=\nfatal|\nPLAY RECAP)", done.stdout, re.DOTALL)
        assert bool(told) == fatal, done.stdout
        assert not told or words.rsplit(": ", 1)[1] in told[1]
