"""Who imports whom: layers without upward arrows, no circles, nothing found by an edited import path."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

from tests.static.repository import ROOT

# From below: each imports its own layer and those beneath. docs/architecture.md says what they are.
LAYERS = (
    ("fl",),
    (
        "coldframe",
        "coldframe.machine",
        "coldframe.strategies",
    ),  # the modules of coldframe itself: cgroups, limits, units, …
    ("coldframe.recording", "coldframe.flower"),
    ("coldframe.server", "coldframe.client", "coldframe.agent", "coldframe.exporters"),
    ("coldframe.controller",),
    ("plugins",),
)
# Upward arrows that stand. Each goes when its import does: the test fails where one is not needed any more.
STANDING = {
    ("coldframe.flower.adapters", "coldframe.server.serverapp_launcher"),
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("fl", "coldframe", "plugins")
    for path in (ROOT / folder).rglob("*.py")
}


def names(module: str) -> Iterator[str]:
    """All that a module imports, also inside functions, by full names."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{module} has a relative import: Ansible loads plugins by path"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from inner or [node.module]


def layer(module: str) -> int:
    parts = module.split(".")
    package = ".".join(parts[:2])
    known = next((n for n, row in enumerate(LAYERS) if package in row), None)
    return known if known is not None else next(n for n, row in enumerate(LAYERS) if parts[0] in row)


GRAPH = {module: {name for name in names(module) if name in MODULES} for module in MODULES}
ARROWS = {(module, name) for module, found in GRAPH.items() for name in found}


def test_no_layer_imports_one_above() -> None:
    upward = {(module, name) for module, name in ARROWS if layer(name) > layer(module)}
    assert upward == STANDING


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {
        module: found - {there for here, there in STANDING if here == module}
        for module, found in GRAPH.items()
    }
    TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


def test_no_plugin_imports_another() -> None:
    """Ansible gives a plugin's file a name of its own: whoever imports it loads it a second time."""
    assert {arrow for arrow in ARROWS if arrow[1].startswith("plugins")} == set()


def test_what_modules_import_on_a_machine_needs_nothing_there_but_python() -> None:
    for module in MODULES:
        if module.startswith("coldframe.machine"):
            assert {name.split(".")[0] for name in names(module)} <= sys.stdlib_module_names, module


def test_nobody_edits_the_import_path() -> None:
    for folder in ("plugins", "coldframe"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "sys.path" not in path.read_text(encoding="utf-8"), path


def test_sql_on_flowers_tables_stands_in_one_module() -> None:
    """It checks their columns. What runs on a machine has none of our packages: a test runs its one query."""
    found = {
        module
        for module, path in MODULES.items()
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "sqlite3.connect"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert found == {"coldframe.flower.database", "plugins.modules.machine_facts"}


def test_commands_of_the_controller_start_without_ansible() -> None:
    """They are processes of their own, and Ansible takes half a second to import."""
    commands = [
        module
        for module, path in MODULES.items()
        if module.startswith("coldframe.controller.")
        and "\nif __name__ ==" in path.read_text(encoding="utf-8")
    ]
    assert {"coldframe.controller.results", "coldframe.controller.compare"} <= set(commands)
    wrong = {}
    for command in commands:
        below, waiting = set(), [command]
        while waiting:
            module = waiting.pop()
            if module not in below:
                below.add(module)
                waiting += GRAPH[module]
        with_ansible = [m for m in below if any(name.split(".")[0] == "ansible" for name in names(m))]
        wrong |= {command: sorted(with_ansible)} if with_ansible else {}
    assert wrong == {}
