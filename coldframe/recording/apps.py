"""Gives an app's processes what was brought along for it: the packages that it depends on, and its data.

Both stand on the machine's disk, read-only in the containers, below the directory that COLDFRAME_APPS names:

- `by-fab/<hash of the FAB>`   JSON: which `dependencies`, which `data`, and the `python` they are for
- `dependencies/<name>/`       packages beyond those of the image, as `pip install --target` lays them out
- `data/<name>/`               the folder that was given as `app_data`

Only the process of a task and that of a ServerApp enter it. A zygote never does: what it imports, the tasks
of all apps would share.
"""

from __future__ import annotations

import json
import os
import platform
import site
from pathlib import Path

from flwr.app import Context

DATA_VARIABLE = "COLDFRAME_APP_DATA"
DATA_KEY = "app-data"  # of node_config
AGAIN = "start it with run.yml, which ships them"


class NotHere(RuntimeError):
    """What an app depends on, or its data, is not on this machine."""


def enter(fab_hash: str, context: Context) -> None:
    """Put the app's packages behind those of the image, and its data into environment and node_config.

    Raises
    ------
    NotHere
        If the machine does not hold what is noted for this app.
    """
    os.environ.pop(DATA_VARIABLE, None)
    root = os.environ.get("COLDFRAME_APPS")
    if not root or not fab_hash:
        return
    try:
        note = json.loads(Path(root, "by-fab", fab_hash).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # it brought nothing along
    if name := note.get("dependencies"):
        if note["python"].split(".")[:2] != platform.python_version().split(".")[:2]:
            raise NotHere(f"the app's dependencies are for Python {note['python']}: {AGAIN}")
        folder = _folder(root, "dependencies", name)
        site.addsitedir(str(folder))  # behind the image's packages; reads .pth files
    if name := note.get("data"):
        os.environ[DATA_VARIABLE] = context.node_config[DATA_KEY] = str(_folder(root, "data", name))


def _folder(root: str, kind: str, name: str) -> Path:
    folder = Path(root, kind, name)
    if not folder.is_dir():
        raise NotHere(f"the app's {kind} are not on this machine: {AGAIN}")
    return folder
