"""The version policy: with an untested flwr a run completes on Flower's own runtime, and the log says so."""

from __future__ import annotations

import json
import os
import runpy
import secrets
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr
import pytest

from coldframe.client import container as client
from coldframe.flower import changes, database, version
from coldframe.recording import flower as recording
from coldframe.server import container as server
from coldframe.server import control
from coldframe.supervise import Child
from tests.unit.flower import ROOT, federation, wait_until, write_app
from tests.unit.forkserver import ADAPTED, EXECUTOR
from tests.unit.test_executor import CLIENT
from tests.unit.test_recording_files import write_shims

FAKE = "1.99.0"
# What a process finds that has another flwr installed; Python imports it before anything else.
SITECUSTOMIZE = f"""
from importlib import metadata
installed = metadata.version
metadata.version = lambda name: "{FAKE}" if name == "flwr" else installed(name)
"""
SITE_PACKAGES = Path(flwr.__file__).parents[1]


def test_the_installed_flwr_is_a_tested_one() -> None:
    assert version.is_tested(version.installed())
    assert version.runtime() == version.Runtime("warm")
    assert version.warning(version.runtime()) == ""


@pytest.mark.parametrize(
    "other", ["1.41.0", "1.42.1", "1.99.0", "2.0.0", "1.42.0rc1", "1.42.0.dev20261101", "?"]
)
def test_another_flwr_is_untested(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version.metadata, "version", lambda _: other)
    found = version.runtime()
    assert not found.is_warm
    assert str(found) == f"stock (flwr {other} is untested)"
    assert version.tested() in version.warning(found), "it says what to install"
    monkeypatch.setenv("COLDFRAME_RUNTIME", "stock")
    assert str(version.runtime()) == "stock"
    assert version.warning(version.runtime()) == "", "it is what was asked for"


# What the app of test_executor.py says of its parent: here with which command that was started.
PARENT = '"parent": os.getppid()'
COMMAND = '"parent": open(f"/proc/{os.getppid()}/cmdline").read()'


def test_run_on_an_untested_flwr_completes_is_recorded_and_says_so(tmp_path: Path) -> None:
    """With real processes, started as in the containers; the recording finds all that it needs."""
    fake, secret, state = tmp_path / "fake", tmp_path / "secret", tmp_path / "state"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text(SITECUSTOMIZE)
    secret.write_bytes(secrets.token_bytes(32))
    auth = ["--superexec-auth-secret-file", str(secret)]
    with federation(tmp_path / "federation", forks=False) as started:
        started.environment["PYTHONPATH"] = f"{fake}{os.pathsep}{started.environment['PYTHONPATH']}"
        started.environment["PATH"] = (
            f"{write_shims(tmp_path / 'bin')}{os.pathsep}{started.environment['PATH']}"
        )
        started.environment["COLDFRAME_STATE"] = str(state)
        started.start_link([*ADAPTED, "superlink"], "--isolation", "process", *auth)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{started.link_port}"]
        started.start("superexec", [*ADAPTED, "serverapp-superexec", *address, *auth])
        started.start_node([*ADAPTED, "supernode"], EXECUTOR)
        app = CLIENT.format(generation=1).replace(PARENT, COMMAND)
        (answer,) = started.run(write_app(tmp_path / "app", app), [{"do": "echo"}])
        [journal] = (state / "runs").glob("*/journal.jsonl")

        def events() -> list[dict[str, Any]]:
            return [json.loads(line) for line in journal.read_text().splitlines()]

        wait_until(lambda: events()[-1]["event"] == "run_finished", 20, "the run is not recorded to its end")
        logs = [path.read_text() for path in started.home.glob("*.log")]
    assert "coldframe.recording" in answer["parent"], "a command for this task, and no zygote"
    assert (events()[0]["versions"]["flwr"], events()[-1]["status"]) == (FAKE, "completed")
    said = [log.count(f"runtime: stock (flwr {FAKE} is untested)") for log in logs]
    assert said == [1] * len(logs), "each process warns once"


def test_containers_run_flowers_own_commands_and_warn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server also starts where that flwr's database lacks a column; the log names it."""
    monkeypatch.setattr(version.metadata, "version", lambda _: FAKE)
    monkeypatch.setenv("COLDFRAME_STATE", str(tmp_path))
    started: list[Child] = []
    for module in (server, client):
        monkeypatch.setattr(module, "supervise", lambda children, *_: started.extend(children) or 0)
        monkeypatch.setattr(module, "write_secret", lambda path: path)
    monkeypatch.setattr(server, "make_certificate", lambda *_: None)
    monkeypatch.setattr(server.gateway, "note", lambda: None)
    with closing(sqlite3.connect(tmp_path / database.NAME)) as connection:
        connection.execute("CREATE TABLE node (node_id INTEGER)")
    assert server.main() == 0
    said = capsys.readouterr().err
    assert said.count(f"runtime: stock (flwr {FAKE} is untested)") == 1
    assert "node.status" in said
    monkeypatch.setattr(client, "CLIENTS", tmp_path)
    monkeypatch.setenv("COLDFRAME_CLIENT", "c1-0")
    monkeypatch.setenv("COLDFRAME_SUPERLINK", "192.0.2.1:9092")
    (tmp_path / "c1-0.json").write_text('{"partition_id": 0, "num_partitions": 1, "name": "c1-0"}')
    assert client.main() == 0
    assert capsys.readouterr().err.count(f"runtime: stock (flwr {FAKE} is untested)") == 1
    commands = {child.name: child.command[0] for child in started}
    assert commands["superlink"] == "flower-superlink"
    assert (commands["supernode"], commands["executor"]) == ("flower-supernode", "flower-superexec")


def test_status_and_run_show_the_runtime(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(version.metadata, "version", lambda _: FAKE)
    monkeypatch.setattr(control, "connect", lambda: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(control, "list_nodes", lambda _: [])
    monkeypatch.setattr(control, "follow", lambda *_, until: {"status": "finished"})
    monkeypatch.setattr(sys, "argv", ["control", "nodes"])
    control.main()
    shown = f"stock (flwr {FAKE} is untested)"
    assert json.loads(capsys.readouterr().out) == {"runtime": shown, "nodes": []}
    monkeypatch.setattr(control, "list_runs", lambda _: [{"run_id": "7", "started": ""}])
    monkeypatch.setattr(sys, "argv", ["control", "status"])
    control.main()
    runs = [{"run_id": "7", "started": "", "concurrent_with": []}]
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in ("runtime", "nodes", "runs")} == {
        "runtime": shown,
        "nodes": [],
        "runs": runs,
    }
    monkeypatch.setattr(sys, "argv", ["control", "follow", "7"])
    control.main()
    assert capsys.readouterr().out.splitlines()[0] == f"runtime: {shown}"


def test_recording_is_left_out_where_flwr_lacks_what_it_replaces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(version.metadata, "version", lambda _: FAKE)
    for process in recording.RELIES_ON:
        assert recording.is_known(process)
    monkeypatch.setitem(recording.RELIES_ON, "serverapp", ("flwr.serverapp.strategy.strategy:Plan",))
    assert not recording.is_known("serverapp")
    assert "Plan" in capsys.readouterr().err


def test_replacing_what_is_not_there_is_an_error() -> None:
    class Owner:
        there = 1

    changes.replace(Owner, "there", 2)
    assert Owner.there == 2
    with pytest.raises(changes.ChangeError, match=r"has no Owner\.elsewhere"):
        changes.replace(Owner, "elsewhere", 2)
    assert not hasattr(Owner, "elsewhere")


def diff(old: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Call the developer's tool in this process; how it ends."""
    monkeypatch.setattr(sys, "argv", ["flwr_diff.py", str(old), str(new)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "flwr_diff.py"), run_name="__main__")
    return ended.value.code


def test_all_that_the_changes_rely_on_is_in_this_flwr_and_a_difference_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The developer's tool finds every source by name, and names the change that an altered one concerns."""
    assert diff(SITE_PACKAGES, SITE_PACKAGES, monkeypatch) == 0
    assert capsys.readouterr().out == ""
    shutil.copytree(SITE_PACKAGES / "flwr", tmp_path / "flwr", ignore=shutil.ignore_patterns("*.pyc"))
    altered = tmp_path / "flwr" / "supernode" / "start_client_internal.py"
    altered.write_text(altered.read_text().replace("time.sleep(0.5)", "time.sleep(0.25)"))
    command = [sys.executable, "scripts/flwr_diff.py", str(SITE_PACKAGES), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as its user calls it
    other = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "coldframe.flower.supernode.hand_over_complete_replies" in other.stdout
    assert "+        time.sleep(0.25)" in other.stdout
    missing = diff(SITE_PACKAGES, tmp_path / "nowhere", monkeypatch)
    assert f"flwr {tmp_path}/nowhere cannot be downloaded" in str(missing)
