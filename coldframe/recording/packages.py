"""What the image holds, for whoever resolves an app's dependencies: its Python, its packages, its platform.

    python -m coldframe.recording.packages     prints it as JSON, with the apps of the running runs

Nothing but the standard library is imported: it takes a fraction of a second beside a run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any


def packages(path: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the installed packages by normalised name: `version`, and `extras`, what their extras require.

    Parameters
    ----------
    path : iterable of str, optional
        Where to look; the default is where this Python looks.
    """
    found: dict[str, dict[str, Any]] = {}
    where: dict[str, Any] = {} if path is None else {"path": list(path)}
    for item in metadata.distributions(**where):
        name = re.sub(r"[-_.]+", "-", item.metadata["Name"] or "").lower()
        if name and name not in found:  # the first on the path is the one that is imported
            extras = [text for text in item.requires or [] if re.search(r";.*\bextra\b", text)]
            found[name] = {"version": item.version, **({"extras": extras} if extras else {})}
    return found


def image() -> dict[str, Any]:
    """Return Python's version, the processor, the version of glibc and the packages."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1],
        "packages": packages(),
    }


def running_fabs(database: Path) -> list[str]:
    """Return the hashes of the FABs of the runs that have not ended."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5.0)) as link:
        rows = link.execute(
            "SELECT DISTINCT run.fab_hash FROM run JOIN task ON task.run_id = run.run_id"
            " WHERE task.finished_at IS NULL AND run.fab_hash IS NOT NULL"
        ).fetchall()
    return sorted(name for (name,) in rows)


if __name__ == "__main__":
    _state = Path(os.environ.get("COLDFRAME_STATE", "/state"))
    print(json.dumps({"image": image(), "running": running_fabs(_state / "superlink.db")}))
