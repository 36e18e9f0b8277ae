"""The link `latest` in the results, to the folder of the run that started, or was resumed, last."""

from __future__ import annotations

import json
import os
from pathlib import Path


def check(results: Path) -> Path:
    """Give the path of the link `latest`, if it is free to be one."""
    link = results / "latest"
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it away, then collect the run again")
    return link


def point(results: Path) -> None:
    """Let `latest` point to the run that started, or was resumed, last; without any run there is no link.

    The link is replaced in one step, so that a reader never finds it missing.
    """
    link = check(results)
    runs = []
    for path in results.glob("*/summary.json"):
        if not path.parent.is_symlink():
            summary = json.loads(path.read_text(encoding="utf-8"))
            begin = str(summary.get("resumed_at") or summary.get("started") or "")
            runs.append((begin, path.parent.name))
    if not runs:
        link.unlink(missing_ok=True)
        return
    fresh = results / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(max(runs)[-1])
    fresh.replace(link)
