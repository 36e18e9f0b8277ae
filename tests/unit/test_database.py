"""SQL on Flower's own tables: a table that lacks a column is an error that says so, never empty data."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import create_engine, insert

from coldframe.flower import database


def superlink(path: Path) -> Any:
    """Return Flower's own state in a file."""
    return LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory()).state()


def alter(path: Path, statement: str) -> None:
    """Change the tables, as a release of flwr may."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


USES: list[Any] = [
    database.read_nodes_and_runs,
    database.mark_nodes_offline,
    lambda path: database.fail_started_tasks(path, "restarted"),
    lambda path: database.delete_unregistered_node(path, b"key"),
    database.running_fabs,
    lambda path: database.fetched_at(path, "m"),
]


@pytest.mark.parametrize("use", USES)
def test_columns_that_flwr_has_no_longer_are_named(tmp_path: Path, use: Any) -> None:
    path = tmp_path / database.NAME
    superlink(path)
    use(path)
    alter(path, "ALTER TABLE node RENAME COLUMN online_until TO connected_until")
    alter(path, "ALTER TABLE task RENAME COLUMN details TO reason")
    with pytest.raises(database.SchemaError, match=r"no node\.online_until, task\.details: install flwr"):
        use(path)


def test_table_that_flwr_has_no_longer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / database.NAME
    superlink(path)
    alter(path, "ALTER TABLE task RENAME TO job")
    with pytest.raises(database.SchemaError, match=r"task\.active_until, task\.details"):
        database.read_nodes_and_runs(path)


def test_apps_of_the_runs_that_have_not_ended_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / database.NAME
    state = superlink(path)
    about = ({}, "@none/default", None, None, TaskType.SERVER_APP)
    *_, ended = [state.create_run("us/app", "1.0", fab, *about) for fab in ("b", "a", "a", "c")]
    assert database.running_fabs(path) == ["a", "b", "c"]
    assert state.stop_run(ended)
    assert database.running_fabs(path) == ["a", "b"]


def test_message_has_been_fetched_when_flower_says_so(tmp_path: Path) -> None:
    path = tmp_path / database.NAME
    superlink(path)
    rows = (("fetched", "2026-11-30T10:00:00+00:00"), ("waiting", ""))
    with create_engine(f"sqlite:///{path}").begin() as connection:
        for name, moment in rows:
            connection.execute(insert(MessageIns).values(message_id=name, delivered_at=moment))
    moment = datetime(2026, 11, 30, 10, tzinfo=UTC).timestamp()
    assert [database.fetched_at(path, name) for name in ("fetched", "waiting", "lost")] == [moment, 0, None]


@pytest.mark.parametrize("use", USES)
def test_superlink_that_has_no_tables_yet_has_nothing(tmp_path: Path, use: Any) -> None:
    path = tmp_path / "a folder #1" / database.NAME
    path.parent.mkdir()
    for _ in range(2):
        assert use(path) in (None, [], ({}, {}))
        path.touch()


def test_node_that_was_unregistered_can_register_again_once_its_record_is_deleted(tmp_path: Path) -> None:
    state = superlink(tmp_path / database.NAME)
    node = state.create_node("me", "me", b"key", 30.0)
    database.delete_unregistered_node(tmp_path / database.NAME, b"key")
    assert state.get_node_info(node_ids=[node]), "it is still registered"
    state.delete_node("me", node)
    with pytest.raises(ValueError, match="already in use"):
        state.create_node("me", "me", b"key", 30.0)
    database.delete_unregistered_node(tmp_path / database.NAME, b"key")
    assert state.create_node("me", "me", b"key", 30.0) != node
