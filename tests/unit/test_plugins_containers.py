"""Tests of plugins/test/containers.py: a container is started again when its runtime died, and only then."""

import subprocess

import pytest

from tests.unit.plays import one_task

DIED = (
    "Error starting container ec78: 500 Server Error: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: read init-p: connection reset by peer: unknown"
)
TAKEN = (
    "Error starting container ec78: 500 Server Error: Bind for 0.0.0.0:9092 failed: port is already allocated"
)


@pytest.mark.parametrize(
    ("words", "fails", "tries", "code"),
    [(DIED, 1, 2, 0), (DIED, 9, 3, 2), (TAKEN, 1, 1, 2)],
    ids=["the runtime died once", "it dies each time", "the port is taken"],
)
def test_only_a_runtime_that_died_is_worth_another_try(tmp_path, words, fails, tries, code):
    """A module stands for docker_container: it fails so many times with the engine's words, then succeeds."""
    count = tmp_path / "count"
    module = tmp_path / "library" / "container.py"
    module.parent.mkdir()
    module.write_text(
        "import pathlib\n"
        "from ansible.module_utils.basic import AnsibleModule\n"
        "module = AnsibleModule({})\n"
        f"with open({str(count)!r}, 'a') as file: file.write('.')\n"
        f"if len(open({str(count)!r}).read()) <= {fails}: module.fail_json({words!r})\n"
        "module.exit_json(changed=True)\n"
    )
    task = {"container": {}, "until": "r is coldframe_settled", "retries": 2, "delay": 0}
    command, environment = one_task(tmp_path, task)
    environment["ANSIBLE_LIBRARY"] = str(module.parent)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert count.read_text() == tries * "."
    assert f"failed={int(code > 0)}" in done.stdout
    if code:
        assert words.rsplit(": ", 1)[1] in done.stdout
