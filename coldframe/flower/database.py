"""All SQL of Coldframe's on the SuperLink's database, whose tables are flwr's and may change with a release.

`connect` compares the columns that are used here with those that are there, and raises `SchemaError` instead
of letting a query return nothing. Plain SQL: flwr's own state keeps 100 MB of imports in a small process.
Nothing but the standard library is imported.
`plugins/modules/machine_facts.py` has a query of its own, since it runs without this package; a test runs it
against flwr's schema, too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coldframe.flower.version import installed, tested

NAME = "superlink.db"  # in the directory that outlives the server's container
HEARTBEATS = 2  # a node counts as online for so many intervals after its last heartbeat
COLUMNS = {
    "node": {
        *("node_id", "public_key", "status", "online_until", "heartbeat_interval", "last_deactivated_at"),
    },
    "run": {"run_id", "fab_id", "fab_hash", "bytes_sent", "bytes_recv", "primary_task_id"},
    "task": {
        *("task_id", "run_id", "pending_at", "starting_at", "running_at", "finished_at", "active_until"),
        *("sub_status", "details", "token"),
    },
    "message_ins": {"message_id", "delivered_at"},
}


class SchemaError(RuntimeError):
    """The database's tables are not those that this module was written for."""


@dataclass(frozen=True)
class Node:
    """What the SuperLink knows of a node; the last heartbeat in unix seconds, 0 if there was none."""

    online: bool
    heard: float


@dataclass(frozen=True)
class Record:
    """What the SuperLink knows of a run; times are unix seconds, or None."""

    run_id: str
    app: str
    down: int
    up: int
    started: float | None
    finished: float | None
    status: str


@contextmanager
def connect(path: Path, timeout: float = 30.0, readonly: bool = False) -> Iterator[sqlite3.Connection | None]:
    """Give a connection, as a transaction; None where the SuperLink has made no tables yet.

    Raises
    ------
    SchemaError
        If a table or column that is used here is missing.
    sqlite3.Error
        If the database is busy or no database.
    """
    if not path.exists():
        yield None
        return
    address = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rw'}"
    with closing(sqlite3.connect(address, uri=True, timeout=timeout)) as connection, connection:
        yield connection if check_schema(connection) else None


def check_schema(connection: sqlite3.Connection) -> bool:
    """Whether there are tables; raise SchemaError if they lack something."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    if not COLUMNS.keys() & {name for (name,) in connection.execute(query)}:
        return False
    missing: list[str] = []
    for table, columns in COLUMNS.items():
        rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        missing += [f"{table}.{column}" for column in sorted(columns - {name for (name,) in rows})]
    if missing:
        raise SchemaError(
            f"the SuperLink's database (flwr {installed()}) has no {', '.join(missing)}: install flwr"
            f" {tested()}, which this Coldframe was tested with"
        )
    return True


def uint64(number: int) -> str:
    """Return an id as flwr shows it: the database holds it with a sign."""
    return str(number % 2**64)


def mark_nodes_offline(path: Path) -> None:
    """Mark every node as offline, as Flower does when a node says goodbye.

    A node counts as online for two heartbeats (60 s) after its last one. After a restart of the server that
    would include clients that are gone, and a run submitted at once would be given to them. Those that live
    report with their next heartbeat.
    """
    with connect(path) as connection:
        if connection is not None:
            now = datetime.now(UTC)
            connection.execute(
                "UPDATE node SET status = 'offline', last_deactivated_at = ?, online_until = ?"
                " WHERE status = 'online'",
                (now.isoformat(), now.timestamp()),
            )


def fail_started_tasks(path: Path, reason: str) -> list[str]:
    """Mark the tasks that have started and not ended as failed; return the ids of their runs.

    Flower would notice a minute later, and say that they had expired. Runs that nobody has started yet are
    left as they are.
    """
    with connect(path) as connection:
        if connection is None:
            return []
        ended = connection.execute(
            "UPDATE task SET finished_at = ?, sub_status = 'failed', details = ?, active_until = NULL,"
            " token = NULL WHERE starting_at IS NOT NULL AND finished_at IS NULL RETURNING run_id",
            (datetime.now(UTC).isoformat(), reason),
        ).fetchall()
    return [uint64(number) for (number,) in ended]


def delete_unregistered_node(path: Path, key: bytes) -> None:
    """Delete the record of a node that was unregistered: with it the SuperLink refuses the key for good.

    The key is that of a client that has left the roster and comes back with its machine.
    """
    with connect(path) as connection:
        if connection is not None:
            connection.execute("DELETE FROM node WHERE public_key = ? AND status = 'unregistered'", (key,))


def read_nodes_and_runs(path: Path) -> tuple[dict[str, Node], dict[str, Record]]:
    """Return the registered nodes and the runs by id."""
    now = time.time()
    with connect(path, timeout=1.0, readonly=True) as connection:
        if connection is None:
            return {}, {}
        nodes = {
            uint64(node_id): Node(
                status == "online" and until > now, until - HEARTBEATS * interval if until else 0.0
            )
            for node_id, status, until, interval in connection.execute(
                "SELECT node_id, status, coalesce(online_until, 0), coalesce(heartbeat_interval, 0) "
                "FROM node WHERE status != 'unregistered'"
            )
        }
        return nodes, {record.run_id: record for record in _records(connection)}


def _records(connection: sqlite3.Connection) -> Iterator[Record]:
    rows = connection.execute(
        "SELECT run.run_id, fab_id, bytes_sent, bytes_recv, pending_at, running_at, finished_at, sub_status "
        "FROM run JOIN task ON task.task_id = run.primary_task_id"
    )
    for run_id, app, down, up, pending, running, finished, status in rows:
        started = unix(running) or unix(pending)
        yield Record(uint64(run_id), app or "", down, up, started, unix(finished), status if finished else "")


def running_fabs(path: Path) -> list[str]:
    """Return the hashes of the FABs of the runs that have not ended."""
    with connect(path, timeout=5.0, readonly=True) as connection:
        if connection is None:
            return []
        rows = connection.execute(
            "SELECT DISTINCT run.fab_hash FROM run JOIN task ON task.run_id = run.run_id"
            " WHERE task.finished_at IS NULL AND run.fab_hash IS NOT NULL"
        ).fetchall()
    return sorted(name for (name,) in rows)


def fetched_at(path: Path, message_id: str) -> float | None:
    """Return when a client fetched a message, in unix seconds: 0 if it has not, None if nothing is known."""
    with connect(path, timeout=5.0, readonly=True) as connection:
        if connection is None:
            return None
        query = "SELECT delivered_at FROM message_ins WHERE message_id = ?"
        found = connection.execute(query, (message_id,)).fetchone()
    return (unix(found[0]) or 0.0) if found else None


def unix(text: str | None) -> float | None:
    """Return the unix seconds of one of flwr's times, which are UTC, whether or not they say so."""
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
