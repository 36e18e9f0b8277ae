"""Packs a Flower app directory into a FAB, on the controller.

python -m coldframe.controller.fab APP_DIR OUT_DIR    prints the file's path
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from flwr.cli.build import build_fab_from_disk


def main(arguments: list[str]) -> int:
    """Build the FAB and name it by its content, so that an unchanged app is not shipped again."""
    app, directory = Path(arguments[0]), Path(arguments[1])
    content = build_fab_from_disk(app)
    path = directory / f"{hashlib.sha256(content).hexdigest()[:16]}.fab"
    directory.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(content)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
