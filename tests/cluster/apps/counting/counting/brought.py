"""What came with the app: a package that the image lacks, and a folder of data."""

import os
from pathlib import Path


def check() -> Path:
    """Check both; return the folder."""
    import tally

    assert tally.VERSION == 1
    folder = Path(os.environ["COLDFRAME_APP_DATA"])
    assert (folder / "words.txt").read_text() == "a few"
    return folder
