"""When a client has fetched a message, which its SuperLink notes in its database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from coldframe.flower import database


def died_with_it(state: Path, message_id: str, activated: str) -> bool:
    """Say whether a client that has restarted had fetched a message before, so that nobody works on it.

    Parameters
    ----------
    state : Path
        The folder of the SuperLink's database. Where there is none, or its tables are not those that we know,
        nobody can tell: then it had.
    activated : str
        When the client was connected again, as the SuperLink says it.
    """
    try:
        fetched, again = database.fetched_at(state / database.NAME, message_id), database.unix(activated)
    except (sqlite3.Error, database.SchemaError, ValueError):
        return True
    return fetched is None or 0 < fetched < (again or 0)
