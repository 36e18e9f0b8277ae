"""After a restart of the server no client counts as connected until it says so again."""

from __future__ import annotations

import contextlib
import sqlite3
import ssl
from pathlib import Path

import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from coldframe.flower import database
from coldframe.recording.journal import Journal, note_stop, read_journal
from coldframe.server.container import (
    RESTARTED,
    SUPERLINK,
    fail_interrupted_runs,
    make_certificate,
)


def test_a_restart_forgets_who_was_online_and_a_heartbeat_brings_it_back(tmp_path: Path) -> None:
    """With Flower's own database."""
    path = tmp_path / database.NAME
    state = LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory()).state()
    nodes = [state.create_node("", "", bytes([i]), 30.0, name=f"c1-{i}") for i in range(3)]
    for node in nodes[:2]:
        assert state.activate_node(node, 30.0)

    def online() -> set[int]:
        return {node.node_id for node in state.get_node_info(statuses=["online"])}

    assert online() == set(nodes[:2])
    database.mark_nodes_offline(path)
    assert online() == set()
    assert {node.status for node in state.get_node_info(node_ids=nodes[2:])} == {"registered"}
    assert state.acknowledge_node_heartbeat(nodes[0], 30.0)
    assert online() == {nodes[0]}


def test_a_server_that_never_ran_has_nothing_to_forget(tmp_path: Path) -> None:
    """No database, or one that Flower has not filled yet."""
    path = tmp_path / database.NAME
    database.mark_nodes_offline(path)
    fail_interrupted_runs(tmp_path)
    assert not path.exists()
    path.touch()
    database.mark_nodes_offline(path)
    fail_interrupted_runs(tmp_path)


@pytest.mark.parametrize("phase", ["starting", "running"])
def test_a_restart_fails_the_runs_that_were_going_and_says_why(tmp_path: Path, phase: str) -> None:
    """With Flower's own database: a run that waits for its start is left alone, and so is one that ended."""
    state = LinkStateFactory(
        str(tmp_path / "superlink.db"), NoOpFederationManager(), ObjectStoreFactory()
    ).state()
    going, waiting, ended = (
        state.create_run(None, None, "", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
        for _ in range(3)
    )
    tasks = {task.run_id: task.task_id for task in state.get_tasks()}
    for run in (going, ended):
        assert state.claim_task(tasks[run])
        if phase == "running" or run == ended:
            assert state.activate_task(tasks[run])
    assert state.finish_task(tasks[ended], "completed", "")
    journal = Journal(tmp_path / "runs" / str(going) / "journal.jsonl")
    journal.append("run_started", run_id=str(going))

    # What preflight looks for (machine_facts) is there.
    unended = "SELECT run_id FROM task WHERE finished_at IS NULL"
    with contextlib.closing(sqlite3.connect(tmp_path / "superlink.db")) as link:
        assert {number % 2**64 for (number,) in link.execute(unended)} == {going, waiting}

    fail_interrupted_runs(tmp_path)

    found = state.get_run_status({going, waiting, ended})
    assert (found[going].status, found[going].sub_status) == ("finished", "failed")
    assert found[going].details == RESTARTED
    assert found[waiting].status == "pending"
    assert found[ended].sub_status == "completed"
    last = read_journal(journal.path)[-1]
    assert (last["event"], last["status"], last["error"]) == ("run_finished", "failed", RESTARTED)
    assert not (tmp_path / "runs" / str(ended)).exists()
    fail_interrupted_runs(tmp_path)  # a second restart says it once
    assert len(read_journal(journal.path)) == 2


def test_a_stopped_run_whose_serverapp_had_no_time_left_is_recorded_as_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs" / "7" / "journal.jsonl")
    journal.append("run_started", run_id="7")
    note_stop(journal.path)
    note_stop(journal.path)  # it has one end
    ends = [event for event in read_journal(journal.path) if event["event"] == "run_finished"]
    assert [(event["status"], event["error"]) for event in ends] == [("stopped", "the run was stopped")]
    note_stop(tmp_path / "journal.jsonl")  # of a ServerApp that ended before it knew its run
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_superlinks_own_certificate_is_trusted_by_who_speaks_to_it(tmp_path: Path) -> None:
    """By the names under which nginx and Flower's processes call it, also where Python checks strictly."""
    certificate, key = tmp_path / "superlink.crt", tmp_path / "superlink.key"
    make_certificate(certificate, key)
    assert key.stat().st_mode & 0o777 == 0o600
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cadata=certificate.read_text())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("localhost", SUPERLINK.partition(":")[0]):
        shake_hands(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client, "fl.example.org")


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """TLS between the two, the server called by a name."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(down, up, server_hostname=name)
    called = server.wrap_bio(up, down, server_side=True)
    for _ in range(3):
        for side in (caller, called):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert caller.version()
