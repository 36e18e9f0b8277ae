"""Why a run failed: the client and its error first, wherever the ServerApp ended because of it."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coldframe.recording.app_errors import FLWR_PREFIX, ClientErrors, describe, readable
from tests.unit.flower import federation, wait_until, write_app
from tests.unit.forkserver import ADAPTED, EXECUTOR

CLIENT = """
import os

import no_such_package

app = no_such_package.app
"""
SERVER = """
import os, time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    print("printed by the ServerApp")
    os.system("echo printed by a process of it")
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    waiting = set(grid.push_messages([Message(RecordDict(), nodes[0], "train")]))
    while not (replies := list(grid.pull_messages(waiting))):
        time.sleep(0.1)
    return [reply for reply in replies if reply.has_content()][0]
"""
KILLED = """
import os, signal
from pathlib import Path
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    score = Path("/proc/self/oom_score_adj").read_text()
    Path(context.run_config["out"]).write_text(f"[{score}]")
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where the memory is used up
"""


def test_a_run_fails_with_its_clients_error_and_keeps_the_serverapps_output(tmp_path: Path) -> None:
    secret, home, state = tmp_path / "secret", tmp_path / "federation", tmp_path / "state"
    secret.write_bytes(secrets.token_bytes(32))
    state.mkdir()
    auth = ["--superexec-auth-secret-file", str(secret)]
    app = write_app(tmp_path / "app", CLIENT)
    (app / "probe" / "server.py").write_text(SERVER)
    details: list[Any] = []

    def ended() -> bool:
        with closing(sqlite3.connect(home / "link.db")) as database:
            details[:] = database.execute(
                "SELECT run_id, details FROM task WHERE finished_at IS NOT NULL"
            ).fetchall()
        return bool(details)

    with federation(home) as started:
        started.environment |= {"COLDFRAME_STATE": str(state), "COLDFRAME_PRELOAD": "numpy"}
        started.start_link(
            [*ADAPTED, "superlink"], "--isolation", "process", *auth, "--database", str(home / "link.db")
        )
        started.start_node([*ADAPTED, "supernode"], EXECUTOR)
        address = ["--insecure", "--runtime-api-address", f"127.0.0.1:{started.link_port}"]
        started.start("superexec", [*ADAPTED, "serverapp-superexec", *address, *auth])
        with pytest.raises(TimeoutError):  # such an app answers nothing
            started.run(app, [], timeout=0)
        wait_until(ended, 60, "the run does not end")
        run_id, reason = details[0]
        log = state / "runs" / str(run_id % 2**64) / "logs" / "serverapp.log"
        wait_until(lambda: "Exit Code" in log.read_text(), 10, "its output is not there")
        first, app = list(details), write_app(tmp_path / "killed", CLIENT, "killed")
        (app / "killed" / "server.py").write_text(KILLED)
        assert started.run(app, []) == [500], "where memory is short, the kernel ends it before the SuperLink"
        wait_until(lambda: ended() and len(details) > 1, 30, "the killed ServerApp's run does not end")
        failed = [item[1] for item in details if item not in first]
        assert failed == ["ServerApp: its process was killed by SIGKILL"]
    cause = "ModuleNotFoundError: No module named 'no_such_package' (in client.py line 4)"
    own = "IndexError: list index out of range (in server.py line 16)"
    node = reason.removeprefix(FLWR_PREFIX).partition(":")[0]
    assert node.startswith("node-"), "no roster names it"
    assert reason == f"{FLWR_PREFIX}{node}: {cause}. After that the ServerApp failed: {own}"
    text = log.read_text()
    for line in ("printed by the ServerApp", "printed by a process of it", "IndexError: list index"):
        assert line in text
    assert "printed by the ServerApp" in (home / "superexec.log").read_text(), "also in the container's log"
    assert not list((state / "output").iterdir())


def raised_in(path: Path, source: str) -> BaseException:
    """Return what a file raises when it is executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    try:
        exec(compile(source, path, "exec"), {})
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def test_an_error_is_described_by_its_own_line_of_the_app(tmp_path: Path) -> None:
    apps = tmp_path / "apps"
    import_error = raised_in(apps / "one" / "client_app.py", "import os\n\nimport pandas_is_not_here\n")
    assert describe(import_error, apps) == (
        "ModuleNotFoundError: No module named 'pandas_is_not_here' (in client_app.py line 3)"
    )
    below = raised_in(apps / "one" / "data.py", "import json\njson.loads('{')\n")
    assert describe(below, apps).endswith("(in data.py line 2)")
    assert "(in" not in describe(below, tmp_path / "elsewhere")
    assert describe(KeyError("x"), apps) == "KeyError: 'x'"
    assert describe(AssertionError(), apps) == "AssertionError"
    try:
        compile("def f(:\n", str(apps / "one" / "server_app.py"), "exec")
    except SyntaxError as error:
        assert describe(error, apps) == "SyntaxError: invalid syntax (in server_app.py line 1)"


def test_what_flwr_says_that_it_cannot_load_is_replaced_by_why(tmp_path: Path) -> None:
    class LoadClientAppError(Exception):
        pass

    error = LoadClientAppError("Unable to load attribute app")
    error.__cause__ = AttributeError("module has no attribute 'app'")
    assert describe(error, tmp_path) == "AttributeError: module has no attribute 'app'"


def test_reasons_of_stock_clients_are_made_readable() -> None:
    stock = "<class 'ModuleNotFoundError'>:<'No module named 'pandas''>"
    assert readable(stock) == "ModuleNotFoundError: No module named 'pandas'"
    assert readable("<class 'torch.OutOfMemoryError'>:<'no\nmore'>") == "OutOfMemoryError: no more"
    assert readable("ClientApp: killed\x1b[2J") == "ClientApp: killed[2J"
    assert len(readable("x" * 10_000)) <= 400


def test_clients_come_first_where_none_of_them_did_well() -> None:
    errors, names = ClientErrors(), {1: "c1-0", 2: "c1-1", 3: "c2-0"}
    for node in names:
        errors.sent(f"m{node}", node)
    errors.replied("m1", 1, "ValueError: no")
    errors.replied("m2", 1, "ValueError: no")  # for a lost node the SuperLink is the source
    assert errors.explain("IndexError: x", names) == (
        "c1-0, c1-1: ValueError: no. After that the ServerApp failed: IndexError: x"
    )
    errors.replied("m3", 3, None)
    assert errors.explain("IndexError: x", names) == (
        "ServerApp: IndexError: x. Clients that failed before: c1-0, c1-1: ValueError: no"
    )
    for node in (1, 2):
        errors.sent(f"n{node}", node)
        errors.replied(f"n{node}", node, None)
    assert errors.explain("IndexError: x", names) == "ServerApp: IndexError: x"
