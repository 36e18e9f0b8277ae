"""The action machine_facts runs its module past Ansible's wrapper, and by it where that way is closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldframe.controller.direct import script_of

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "plugins/modules/machine_facts.py"
OPTIONS = {"ports": [22, 9092], "federation": "unittest", "limits": True, "data": "mnist"}
MOVING = {"time", "load", "memory_available", "disk_free", "disk_files", "engine_disks"}  # between two calls
WRAPPER = "AnsiballZ_machine_facts.py"
CLOCK = {"controller_before", "controller_after"}


def facts(folder: Path, options: dict[str, Any], **environment: str) -> tuple[dict[str, Any], str]:
    """What a task with these options returns on this machine, and what Ansible printed."""
    look = {"machine_facts": {"path": str(folder), **options}, "register": "found"}
    keep = {"ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": f"{folder}/found"}}
    play = [{"hosts": "all", "gather_facts": False, "tasks": [look, keep]}]
    (folder / "play.yml").write_text(yaml.safe_dump(play))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, str(folder / "play.yml"), "-i", "here,", "-c", "local", "-vvv"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_PYTHON_INTERPRETER": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads((folder / "found").read_text()) if done.returncode == 0 else {}
    return found, done.stdout + done.stderr


def test_both_ways_find_the_same(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"speed": "ü"}')
    past, said = facts(tmp_path, OPTIONS)
    assert " -I -" in said and WRAPPER not in said
    by_module, said = facts(tmp_path, OPTIONS, ANSIBLE_PIPELINING="false")
    assert " -I -" not in said
    assert past.keys() == by_module.keys()
    same = past.keys() - MOVING - CLOCK
    assert {key: past[key] for key in same} == {key: by_module[key] for key in same}
    assert past["controller_before"] <= past["time"] <= past["controller_after"]
    assert past["calibration"] == {"speed": "ü"}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"data": 7}, None), ({"limit": True}, "Unsupported parameters for (machine_facts) module: limit")],
    ids=["converted", "refused"],
)
def test_what_the_script_does_not_take_is_the_modules(
    tmp_path: Path, options: dict[str, Any], words: str | None
) -> None:
    found, said = facts(tmp_path, options)
    assert " -I -" in said
    assert bool(found) == (words is None)
    assert words is None or words in said


def test_the_script_is_small(tmp_path: Path) -> None:
    """It goes to each machine with each verb."""
    script = script_of(MODULE, ("engine", "standing"), {"path": str(tmp_path)})
    assert len(script) < 64_000
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=script, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["disk_path"] == str(tmp_path)


def test_files_of_clients_are_put_together_past_the_wrapper(tmp_path: Path) -> None:
    """What the module refuses ends without an answer: the wrapper runs it then, and it says why."""
    work = tmp_path / "scratch" / "c1-0" / "runs" / "7" / "app" / "files"
    work.mkdir(parents=True)
    (work / "note").write_text("x")
    given = {"scratch": str(tmp_path / "scratch"), "run_id": "7", "dest": str(tmp_path / "files")}

    def run(**changed: str) -> subprocess.CompletedProcess[str]:
        script = script_of(MODULE.with_name("client_files.py"), (), given | changed)
        return subprocess.run([sys.executable, "-I", "-"], input=script, capture_output=True, text=True)

    assert json.loads(run().stdout) == {"changed": False, "clients": {"c1-0": 1}}
    assert (tmp_path / "files" / "clients" / "c1-0" / "note").read_text() == "x"
    assert run(run_id="../8").stdout == ""
