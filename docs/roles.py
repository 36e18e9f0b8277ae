"""Write the README of each role from its argument specification: `python docs/roles.py`, from the root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"
HEAD = """# {name}

{description}
{entries}
| variable | type | default | meaning |
|---|---|---|---|
{rows}

Made from `meta/argument_specs.yml` by `docs/roles.py`.
"""


def cell(value: Any) -> str:
    """Write a value into a cell of a table."""
    if value in (None, ""):
        return "none" if value == "" else "required"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`".replace("|", "\\|").replace("\n", " ")


def readme(role: Path) -> str:
    """Give the README of a role."""
    described = (role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    specs = yaml.safe_load(described)["argument_specs"]
    options: dict[str, Any] = {}
    for spec in specs.values():
        options |= spec.get("options", {})
    rows = [
        f"| `{name}` | {option['type']} | {cell(option.get('default'))} | {text(option['description'])} |"
        for name, option in options.items()
    ]
    entries = ", ".join(f"`{name}`" for name in sorted(specs))
    main = specs.get("main", next(iter(specs.values())))
    return HEAD.format(
        name=role.name,
        description=text(main["description"]),
        entries=f"\nEntry points (`tasks_from`): {entries}.\n" if len(specs) > 1 else "",
        rows="\n".join(rows),
    )


def text(description: str | list[str]) -> str:
    """Put a description into one line."""
    return " ".join(description if isinstance(description, list) else [description]).replace("|", "\\|")


if __name__ == "__main__":
    for role in sorted(ROLES.iterdir()):
        (role / "README.md").write_text(readme(role), encoding="utf-8")
        print(role / "README.md")
