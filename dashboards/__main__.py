"""Write the dashboards as Grafana provisions them: `python -m dashboards [DIRECTORY]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dashboards import client, comparison, federation, machine

DIRECTORY = Path(__file__).resolve().parents[1] / "roles" / "grafana" / "files" / "dashboards"


def generate() -> dict[str, str]:
    """Give the files: name -> content."""
    boards = [module.board() for module in (federation, client, machine, comparison)]
    return {
        f"{board.name}.json": json.dumps(board.build(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        for board in boards
    }


def main(arguments: list[str]) -> None:
    """Write them into the role, or into the directory given."""
    directory = Path(arguments[0]) if arguments else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in generate().items():
        (directory / name).write_text(content, encoding="utf-8")
        print(directory / name)


if __name__ == "__main__":
    main(sys.argv[1:])
