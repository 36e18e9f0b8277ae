"""Shows, for each of Coldframe's changes to flwr, how the sources it relies on differ between two releases.

`PYTHONPATH=. .venv/bin/python scripts/flwr_diff.py OLD NEW`: each is a version, which pip downloads, or the
path of a wheel or of a directory that holds `flwr/`. Ends with 1 if anything differs, as diff does. It is for
whoever raises flwr's version: read what it prints, run the tests, then widen `coldframe/flower/version.py`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import pkgutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from coldframe import flower as package
from coldframe.recording import flower as recording

DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Reader = Callable[[str], "str | None"]


def changes() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Give the name of each change and what it relies on."""
    for item in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name, found in sorted(vars(importlib.import_module(item.name)).items()):
            if getattr(found, "__module__", None) == item.name and hasattr(found, "relies_on"):
                yield f"{item.name}.{name}", found.relies_on
    for process, places in recording.RELIES_ON.items():
        yield f"coldframe.recording ({process})", places


def reader(release: str, directory: Path) -> Reader:
    """Return a function that reads a file of a release: of a path, or downloaded into a directory."""
    path = Path(release)
    if not path.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory)]
        done = subprocess.run([*download, f"flwr=={release}"], check=False)
        wheels = list(directory.glob("*.whl"))
        if done.returncode or not wheels:
            sys.exit(f"flwr {release} cannot be downloaded: type a version that pip finds, or a wheel's path")
        path = wheels[0]
    if path.is_dir():
        if not (path / "flwr").is_dir():
            sys.exit(
                f"{path} has no flwr/: type the directory above it, as .venv/lib/python3.11/site-packages"
            )
        return lambda name: (path / name).read_text() if (path / name).is_file() else None
    archive = zipfile.ZipFile(path)
    names = set(archive.namelist())
    return lambda name: archive.read(name).decode() if name in names else None


def source(read: Reader, place: str) -> str | None:
    """Return the source of `module:name`, or of the whole module; None if there is none."""
    module, _, path = place.partition(":")
    file = module.replace(".", "/")
    text = read(f"{file}.py") or read(f"{file}/__init__.py")
    if text is None or not path:
        return text
    tree = ast.parse(text)
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and path in [name.asname or name.name for name in line.names]:
            return ast.unparse(line) + "\n"
    node: ast.AST = tree
    for part in path.split("."):
        inside = (child for child in ast.walk(node) if getattr(child, "name", None) == part)
        found = next((child for child in inside if isinstance(child, DEFINITIONS)), None)
        if found is None:
            return None
        node = found
    assert isinstance(node, DEFINITIONS)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"


def main() -> int:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", metavar="OLD", help="version, wheel or directory")
    parser.add_argument("new", metavar="NEW")
    arguments = parser.parse_args()
    differs = 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        old, new = reader(arguments.old, Path(one)), reader(arguments.new, Path(other))
        for name, places in changes():
            for place in places:
                before, after = source(old, place), source(new, place)
                if before == after and after is not None:
                    continue
                differs += 1
                print(f"== {name} relies on {place}")
                if after is None:
                    print(f"   it is not in flwr {arguments.new}")
                print("".join(unified(before or "", after or "", arguments.old, arguments.new)), end="")
    print(f"{differs} of the sources that Coldframe's changes rely on differ", file=sys.stderr)
    return int(differs > 0)


def unified(before: str, after: str, old: str, new: str) -> Iterator[str]:
    """Give the lines of a unified diff."""
    return difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"flwr {old}", f"flwr {new}"
    )


if __name__ == "__main__":
    sys.exit(main())
