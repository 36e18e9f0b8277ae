"""What the image holds, for whoever resolves an app's dependencies: its Python, its packages, its platform.

    python -m coldframe.recording.packages     prints it as JSON, with the apps of the running runs

Nothing but the standard library is imported, so it takes a fraction of a second beside a run.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from coldframe.flower import database


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


if __name__ == "__main__":
    _state = Path(os.environ.get("COLDFRAME_STATE", "/state"))
    _running = database.running_fabs(_state / database.NAME)
    print(json.dumps({"image": image(), "running": _running}))
