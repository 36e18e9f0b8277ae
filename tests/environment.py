"""Makes the .venv of another checkout, as scripts/setup.sh does where the shared environment is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MARK = Path(sys.prefix, ".checkout")
# The shared environment, also where the tests run in a checkout's own.
SHARED = Path(MARK.read_text(encoding="utf-8").split("\n")[0] if MARK.exists() else sys.prefix)


def make(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Make the environment of a checkout."""
    command = [str(SHARED / "bin" / "python"), str(checkout / "scripts" / "checkout_venv.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False)
