"""Writes tables as CSV that neither a spreadsheet nor a statistics library misreads."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys as CSV; no rows make an empty file.

    A text that a spreadsheet would take for a formula gets an apostrophe in front: then it is none.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: no_formula(value) for key, value in row.items()} for row in rows)


def no_formula(value: Any) -> Any:
    """Return a cell that no spreadsheet computes.

    >>> no_formula('=HYPERLINK("http://example.org")'), no_formula(-1.5)
    ('\'=HYPERLINK("http://example.org")', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r\n")) else value
