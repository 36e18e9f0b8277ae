"""The controller installs what the verbs import, and no more: the first part of requirements.txt."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.static.repository import ROOT

SETUP = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
VERBS = [
    path for folder in ("plugins", "coldframe/controller") for path in sorted((ROOT / folder).rglob("*.py"))
]
# Packages that no file of ours imports on the controller, and who needs them there.
BY_OTHERS = {
    "pip": "make_wheelhouse.sh",
    "ansible-core": "the commands",
    "requests": "community.docker, on a controller that is a machine too",
}
# Everything that a verb runs in a process of its own on the controller, in one.
PROGRAMS = """
import importlib, pathlib, sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it fails
for path in pathlib.Path("coldframe/controller").glob("*.py"):
    importlib.import_module(f"coldframe.controller.{path.stem}".removesuffix(".__init__"))
from fl import data
"""


def parts() -> tuple[set[str], set[str]]:
    """Read the names of requirements.txt: those of the controller, and those that come with --dev."""
    marker = re.search(r"sed '/(\^.*)/,\$d' requirements\.txt", SETUP)
    assert marker, "scripts/setup.sh does not say where the first part ends"
    halves = re.split(marker[1], (ROOT / "requirements.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(halves) == 2, f"requirements.txt must hold one line like {marker[1]}"
    first, second = (set(re.findall(r"^[a-z][\w-]*", half, re.MULTILINE)) for half in halves)
    return first, second


def imported(path: Path) -> Iterator[str]:
    """Give the top-level names of a file's imports, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def with_dependencies(names: set[str]) -> set[str]:
    """Add what these distributions require in this environment."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name not in found:
            found.add(name)
            wanted = map(Requirement, metadata.requires(name) or [])
            queue += [item.name for item in wanted if not item.marker or item.marker.evaluate({"extra": ""})]
    return found


def test_the_verbs_import_only_packages_of_the_controller() -> None:
    there = with_dependencies(parts()[0])
    ours = {"coldframe", "plugins", "fl", "ansible_collections"} | set(sys.stdlib_module_names)
    owners = metadata.packages_distributions()
    foreign = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in VERBS
        for name in set(imported(path)) - ours
        if not {owner.lower() for owner in owners.get(name, [])} & there
    }
    assert foreign == set(), "add the package to the first part of requirements.txt"


def test_the_verbs_need_every_package_of_the_controller() -> None:
    names = {name for path in VERBS for name in imported(path)}
    unused = {name for name in parts()[0] if name not in names}
    assert unused == set(BY_OTHERS)


def test_programs_of_the_controller_run_without_the_packages_of_the_training() -> None:
    absent = [name.replace("-", "_") for name in parts()[1]]
    assert "torch" in absent
    subprocess.run([sys.executable, "-c", PROGRAMS, *absent], cwd=ROOT, check=True)


def test_the_controller_packs_the_app_without_the_packages_of_the_training(tmp_path: Path) -> None:
    absent = [name.replace("-", "_") for name in parts()[1]]
    code = f"{PROGRAMS}\nfrom coldframe.controller import fab; fab.main(['.', {str(tmp_path)!r}])"
    subprocess.run([sys.executable, "-c", code, *absent], cwd=ROOT, check=True)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".fab"]
