"""Named connections in the configuration of the `flwr` command ($FLWR_HOME/config.toml).

The file is its user's: of it only the lines of one connection are changed, so that comments stay.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "config.toml"
DEFAULT = "default"  # the key of [superlink] that names a connection


def path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where `flwr` has its configuration."""
    home = environment.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / FILE


def connections(text: str) -> dict[str, Any]:
    """Return what a configuration says of the SuperLinks, by name.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    try:
        return dict(tomllib.loads(text).get("superlink", {}))
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"it is not valid TOML ({error})") from error


def put(text: str, name: str, entry: Mapping[str, str] | None) -> str:
    """Return a configuration with a connection put in place of the one of that name, or without it (None).

    Raises
    ------
    ValueError
        If that needs more than to change the connection's own lines.
    """
    before = connections(text)
    lines, inside = [], False
    header = re.compile(rf"""\s*\[\s*superlink\s*\.\s*(["']?){re.escape(name)}\1\s*(\.[^\]]*)?\]""")
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = bool(header.match(line))
        if not inside:
            lines.append(line)
    changed = "".join(lines).rstrip("\n")
    changed += "\n" if changed else ""
    if entry is not None:
        keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
        changed += f"{chr(10) if changed else ''}[superlink.{name}]\n{keys}"
    wanted = {key: value for key, value in before.items() if key != name}
    wanted |= {} if entry is None else {name: dict(entry)}
    if connections(changed) != wanted:
        raise ValueError(f"the connection {name} is not written as [superlink.{name}] with a key per line")
    return changed


def update(file: Path, name: str, entry: Mapping[str, str] | None) -> None:
    """Write a connection, or its removal, into the file; one that is missing is made as `flwr` makes it."""
    if file.exists():
        text = file.read_text(encoding="utf-8")
    elif entry is None:
        return
    else:
        from flwr.cli.constant import DEFAULT_FLOWER_CONFIG_TOML

        text = DEFAULT_FLOWER_CONFIG_TOML
    changed = put(text, name, entry)
    if file.exists() and changed == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    target = file.resolve()  # a link stays one
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(changed, encoding="utf-8")
    if target.exists():
        part.chmod(target.stat().st_mode & 0o7777)
    part.replace(target)
