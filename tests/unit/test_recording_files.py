"""Where an app may write: a directory of its own per run, bounded, and collected from the server."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk

from coldframe import cgroups
from coldframe.recording import apps, files, task_log, task_note
from coldframe.recording.journal import read_journal
from tests.unit.flower import SERVER, Federation, federation, tool, wait_until, write_app
from tests.unit.forkserver import ADAPTED

CLIENT = """
import getpass, os, tempfile
from pathlib import Path
import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.query()
def query(message, context):
    order = message.content["order"]
    answer = {"cwd": os.getcwd(), "home": str(Path.home()), "tmp": tempfile.gettempdir()}
    answer |= {"user": getpass.getuser(), "found": sorted(os.listdir())}
    print(f"the order is to {order['do']}")
    match order["do"]:
        case "write":
            Path(order["name"]).write_bytes(b"x" * order["bytes"])
            Path("../beside").write_text("x")
            os.chdir("/")
        case "threads":
            from coldframe.recording import threads
            answer["blas"] = [library.get() for library in threads.loaded_blas()]
            answer["variables"] = [int(os.environ[name]) for name in threads.VARIABLES]
        case "fill":
            for number in range(2):
                Path(str(number)).write_bytes(b"x" * order["bytes"])
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""
# A client whose files may take 1 MB, each 0.7 MB.
BOUNDED = """
from coldframe.recording import files
files.check.__defaults__ = (1_000_000,)
files.enter.__defaults__ = (700_000,)
from coldframe.client import container; container.preload(); container.run_executor([])
"""


def write_shims(directory: Path) -> Path:
    """Write the commands that stand first on the image's PATH, as coldframe/Dockerfile does."""
    directory.mkdir()
    for app in ("serverapp", "clientapp"):
        shim = directory / f"flwr-{app}"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m coldframe.recording {app} "$@"\n')
        shim.chmod(0o755)
    return directory


@pytest.fixture(scope="module", params=["warm", "stock"])
def started(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Federation]:
    """A SuperLink whose ServerApps, and a client whose ClientApps, may write; with and without adapters."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    with federation(tmp_path / "federation") as it:
        it.environment["PATH"] = f"{write_shims(tmp_path / 'bin')}{os.pathsep}{it.environment['PATH']}"
        it.environment |= {"COLDFRAME_STATE": str(tmp_path / "state"), "COLDFRAME_PRELOAD": "numpy"}
        it.environment["COLDFRAME_APPS"] = str(tmp_path / "apps")
        scratch = {"COLDFRAME_SCRATCH": str(tmp_path / "scratch")}
        warm = request.param == "warm"
        it.start_recorded_link(warm)
        it.start_node(
            [*ADAPTED, "supernode"] if warm else [tool("flower-supernode")],
            [sys.executable, "-P", "-c", BOUNDED] if warm else [tool("flower-superexec")],
            **scratch,
        )
        it.state, it.scratch, it.warm = tmp_path / "state", tmp_path / "scratch", warm
        it.apps = tmp_path / "apps"
        yield it


def newest(it: Federation) -> Path:
    """Return the folder of the run that began last."""
    return max((it.state / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)


def test_an_app_has_a_directory_a_home_and_no_more_room_than_its_bounds(
    started: Federation, tmp_path: Path
) -> None:
    orders: list[dict[str, Any]] = [{"do": "write", "name": "kept.txt", "bytes": 9}, {"do": "threads"}]
    if started.warm:
        orders += [{"do": "write", "name": "big", "bytes": 800_000}, {"do": "fill", "bytes": 600_000}]
        orders += [{"do": "look"}]
    answers = started.run(write_app(tmp_path / "app", CLIENT), orders)
    run = newest(started)
    first, second = answers[:2]
    assert first["cwd"] == second["cwd"] == str(started.scratch / "runs" / run.name / "app" / "files")
    assert first["home"] == str(started.scratch / "home")
    assert first["tmp"] == str(started.scratch / "runs" / run.name / "app" / "tmp")
    assert first["user"] == "coldframe"
    assert (first["found"], second["found"]) == ([], ["kept.txt"]), "kept between messages"
    expected = cgroups.threads(cgroups.own().cpu_limit(), cgroups.own().cpuset_count())
    assert (second["blas"], set(second["variables"])) == ([expected], {expected})
    if started.warm:
        one, together, after = answers[2:]
        assert "File too large" in one["reason"]
        assert "may take 0.0 GB: they were removed" in together["reason"]
        assert after["found"] == [], "the next message works"
    assert list((run / "app" / "files").iterdir()) == [], "the ServerApp's own directory"
    noted = json.loads((started.scratch / task_note.NAME).read_text())
    assert noted == {"run": run.name, "round": None, "phase": "query"}, "for the machine's agent"
    events = read_journal(run / "journal.jsonl")
    recorded = [event["system"] for event in events if event["event"] == "reply"]
    assert len(recorded) == len([answer for answer in answers if "code" not in answer])
    assert all(system["train_seconds"] >= 0 for system in recorded), "under both runtimes"
    assert {system["threads"] for system in recorded} == {expected}
    (log,) = started.home.glob("executor-*.log")  # in a container, its log
    wait_until(
        lambda: log.read_text().count(task_log.END) == len(answers), 10, f"a task has not ended: {log}"
    )
    lines = list(task_log.of_run(log.read_text().splitlines(), run.name))
    said = [line.removeprefix("the order is to ") for line in lines if line.startswith("the order is")]
    assert said == [order["do"] for order in orders]


def test_entering_bounds_files_and_sets_the_environment(tmp_path: Path) -> None:
    """In a process of its own, for what it changes is the process's."""
    code = (
        "import os, pathlib, tempfile; from coldframe.recording import files; tempfile.gettempdir();"
        f"files.enter(pathlib.Path({str(tmp_path)!r}), '7', pathlib.Path({str(tmp_path / 'home')!r}), 1000);"
        "print(os.getcwd(), tempfile.gettempdir(), os.path.expanduser('~'));"
        "pathlib.Path('fits').write_bytes(b'x' * 1000);"
        "pathlib.Path('big').write_bytes(b'x' * 1001)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    work = tmp_path / "7" / "app"
    assert done.stdout.split() == [str(work / "files"), str(work / "tmp"), str(tmp_path / "home")]
    assert "File too large" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert tempfile.gettempdir() != str(work / "tmp")


def test_only_the_newest_runs_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number) / "app").mkdir(parents=True)
        os.utime(tmp_path / str(number), (number, number))
    (tmp_path / "other").mkdir()
    files.forget_old(tmp_path, kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "other"]


def test_collected_are_regular_files_up_to_the_limit_and_the_rest_is_named(tmp_path: Path) -> None:
    source = tmp_path / "app" / "files"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "results.json").write_text("{}")
    (source / "model.npz").write_bytes(b"x" * 100)
    (source / "huge").write_bytes(b"x" * 10_000)
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    for _ in range(2):  # as often as one likes
        found = files.collect(tmp_path, limit=1000)
    assert found["files"] == {"deep/results.json": 2, "model.npz": 100}
    assert sorted(found["left_out"]) == ["huge", "link", "pipe"]
    assert json.loads((tmp_path / "written.json").read_text()) == found
    kept = {str(path.relative_to(tmp_path / "written")) for path in (tmp_path / "written").rglob("*.*")}
    assert kept == {"deep/results.json", "model.npz"}


def test_nothing_is_collected_of_a_run_that_wrote_nothing(tmp_path: Path) -> None:
    assert files.collect(tmp_path) == {"files": {}, "left_out": {}}
    assert not (tmp_path / "written").exists()


SAVES = """
import numpy as np
from flwr.serverapp import ServerApp
from flwr.superlink.grid import http_grid
app = ServerApp()

@app.main()
def main(grid, context):
    np.savez("final_model.npz", np.zeros(3))
    print("replies are read by", http_grid.inflate_object_from_contents.__module__)
    open(context.run_config["out"], "w").write("[]")
"""


def test_a_serverapp_that_saves_its_model_where_it_stands_completes(
    started: Federation, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app", CLIENT)
    (app / "probe" / "server.py").write_text(SAVES)
    assert started.run(app, [], nodes=0) == []
    run = newest(started)
    wait_until(lambda: not (run / "app" / "tmp").exists(), 10, "the ServerApp has not ended")
    assert list(files.collect(run)["files"]) == ["final_model.npz"]
    log = run / "logs" / "serverapp.log"
    assert "replies are read by coldframe.recording.reading" in log.read_text()


KILLED = """
import os, signal
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    print("it was here", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_serverapp_that_is_killed_is_a_failed_run_at_once(started: Federation, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", CLIENT)
    (app / "probe" / "server.py").write_text(KILLED)
    run_id = started.submit(app)
    run = started.state / "runs" / run_id
    wait_until((run / "journal.jsonl").exists, 60, "the ServerApp has not started")
    reason = "ServerApp: its process was killed by SIGKILL"
    run = started.state / "runs" / run_id
    log = run / "logs" / "serverapp.log"
    wait_until(lambda: log.exists() and "it was here" in log.read_text(), 60, f"it has not begun: {log}")
    status = started.ended(run_id, 25)  # flwr finds out after half a minute, and cannot say why
    assert (status.sub_status, status.details) == ("failed", reason)
    wait_until(lambda: "run_finished" in (run / "journal.jsonl").read_text(), 5, "the journal has no end")
    assert read_journal(run / "journal.jsonl")[-1]["error"] == reason


# Says which packages it finds, which data, and which process it was forked of.
SEES = """
import importlib.util, os, sys
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
if importlib.util.find_spec("tiny"):
    import tiny
app = ClientApp()

@app.query()
def query(message, context):
    data = os.environ.get("COLDFRAME_APP_DATA", "")
    answer = {"parent": os.getppid(), "data": data, "config": context.node_config.get("app-data", "")}
    for name in ("tiny", "linked", "numpy"):
        module = sys.modules.get(name)
        answer[name] = module.__version__ if module else str(importlib.util.find_spec(name) is not None)
    answer["content"] = open(data + "/words.txt").read() if data else ""
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""
SEES_TOO = SERVER.replace(
    "import json, time", "import json, os, time\ntry:\n    import tiny\nexcept ImportError:\n    tiny = None"
)
SEES_TOO = SEES_TOO.replace(
    "json.dump(replies, file)",
    "json.dump([*replies, {'tiny': tiny and tiny.__version__, 'data': os.environ.get('COLDFRAME_APP_DATA'),"
    " 'config': context.node_config.get('app-data')}], file)",
)


def bring(root: Path, app: Path, **note: str) -> None:
    """Note for an app what has been brought along for it."""
    (root / "by-fab").mkdir(parents=True, exist_ok=True)
    fab_hash = hashlib.sha256(build_fab_from_disk(app)).hexdigest()
    python = ".".join(map(str, sys.version_info[:3]))
    (root / "by-fab" / fab_hash).write_text(json.dumps({"python": python, **note}))


def test_apps_with_conflicting_packages_alternate_and_see_only_their_own(
    started: Federation, tmp_path: Path
) -> None:
    root = started.apps
    for number in (1, 2):
        folder = root / "dependencies" / f"set{number}"
        folder.mkdir(parents=True)
        (folder / "tiny.py").write_text(f"__version__ = 'tiny {number}'\n")
        (folder / "numpy.py").write_text("__version__ = 'not the image's'\n")
    (root / "dependencies" / "set2" / "linked.pth").write_text("sub\n")
    (root / "dependencies" / "set2" / "sub").mkdir()
    (root / "dependencies" / "set2" / "sub" / "linked.py").write_text("")
    (root / "data" / "words").mkdir(parents=True)
    (root / "data" / "words" / "words.txt").write_text("a few")
    names = ("one", "two", "none")
    folders = {name: write_app(tmp_path / name, SEES.replace("# Says", f"# {name}"), name) for name in names}
    for name, app in folders.items():
        (app / name / "server.py").write_text(SEES_TOO)
    bring(root, folders["one"], dependencies="set1", data="words")
    bring(root, folders["two"], dependencies="set2")
    found = {}
    for name in (*names, "one") if started.warm else ("one", "none"):  # there a process takes seconds
        found[name], server = started.run(folders[name], [{"do": "look"}])
        client = found[name]
        tiny = {"one": "tiny 1", "two": "tiny 2", "none": "False"}[name]
        assert client["tiny"] == tiny, name
        assert server["tiny"] == (None if name == "none" else tiny)
        data = str(root / "data" / "words") if name == "one" else ""
        assert (client["data"], client["config"]) == (data, data)
        assert (server["data"] or "", server["config"] or "") == (data, data)
        assert client["content"] == ("a few" if data else "")
        assert client["linked"] == str(name == "two"), ".pth files count"
        assert "not the image" not in client["numpy"], "the image's packages come first"
    if started.warm:
        assert len({client["parent"] for client in found.values()}) == 1, "the same zygote"


def test_what_is_noted_and_not_there_is_a_failure_with_a_remedy(started: Federation, tmp_path: Path) -> None:
    if not started.warm:
        pytest.skip("Flower's own SuperExec shows nothing of what its ServerApps print")
    app = write_app(tmp_path / "app", CLIENT)
    (app / "probe" / "client.py").write_text(CLIENT + "# lacks its packages\n")
    (app / "probe" / "server.py").write_text(SAVES)
    bring(started.apps, app, dependencies="gone")
    with pytest.raises(TimeoutError):
        started.run(app, [], nodes=0, timeout=0.1)
    log = started.home / "superexec.log"
    remedy = "dependencies are not on this machine: start it with run.yml"
    wait_until(lambda: remedy in log.read_text(errors="replace"), 60, "the ServerApp has not failed")


def test_dependencies_for_another_python_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLDFRAME_APPS", str(tmp_path))
    (tmp_path / "by-fab").mkdir()
    (tmp_path / "by-fab" / "abc").write_text('{"dependencies": "x", "python": "3.9.1"}')
    with pytest.raises(apps.NotHere, match=r"for Python 3\.9\.1"):
        apps.enter("abc", None)  # type: ignore[arg-type]
