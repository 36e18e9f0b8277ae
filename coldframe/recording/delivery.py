"""When a client has fetched a message, which its SuperLink notes in its database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path


def died_with_it(database: Path, message_id: str, activated: str) -> bool:
    """Say whether a client that has restarted had fetched a message before, so that nobody works on it.

    Parameters
    ----------
    database : Path
        The SuperLink's. Without one, or where it is another than ours, nobody knows: then it had.
    activated : str
        When the client was connected again, as the SuperLink says it.
    """
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as file:
            found = file.execute(
                "SELECT delivered_at FROM message_ins WHERE message_id = ?", (message_id,)
            ).fetchone()
        if not found:
            return True
        fetched = str(found[0] or "")
        return bool(fetched) and _moment(fetched) < _moment(activated)
    except (sqlite3.Error, ValueError):
        return True


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
