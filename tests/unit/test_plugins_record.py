"""What was deployed is noted only where all of it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYS = [
    {"hosts": "fl_machines", "gather_facts": False, "any_errors_fatal": True, "tasks": [{"ping": None}]},
    {"import_playbook": f"{ROOT}/playbooks/record.yml"},
]
INVENTORY = {
    "fl_machines": {
        "hosts": {
            "here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
            "gone": {"ansible_host": "127.0.0.1", "ansible_port": 1},
        }
    }
}


@pytest.mark.one_python
def test_a_machine_that_is_lost_on_the_way_leaves_no_note_on_the_controller(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    plan = {"plan": "p", "data_plan": "d", "run": {"app": "", "dataset": "mnist"}}
    values = {"coldframe_plan": plan, "coldframe_controller_state": str(state), "coldframe_state": str(state)}
    (tmp_path / "play.yml").write_text(json.dumps(PLAYS), encoding="utf-8")
    (tmp_path / "inventory.json").write_text(json.dumps(INVENTORY), encoding="utf-8")
    program = str(Path(sys.executable).parent / "ansible-playbook")
    done = subprocess.run(
        [program, "-i", "inventory.json", "play.yml", "-e", json.dumps(values)],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_BECOME": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "The deployment is not complete on here, gone" in " ".join(done.stdout.split()), done.stdout
    assert list(state.iterdir()) == []
