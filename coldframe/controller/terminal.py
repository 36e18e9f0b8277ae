"""What a terminal can show, and what can be typed there."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def plain(text: str) -> str:
    """Return lines without colours and other control characters, which a terminal would obey.

    >>> plain("\\x1b[91mERROR\\x1b[0m:\\tno\\x07\\n")
    'ERROR:\\tno\\n'
    """
    return "".join(char for char in _COLOURS.sub("", text) if char.isprintable() or char in "\t\n")


def ansible_playbook() -> str:
    """Name the command that the user can type: the one on PATH, or else that of our own environment."""
    if shutil.which("ansible-playbook"):
        return "ansible-playbook"
    own, linked = Path(sys.executable).with_name("ansible-playbook"), Path(".venv/bin/ansible-playbook")
    return str(linked if linked.exists() and linked.samefile(own) else own)
