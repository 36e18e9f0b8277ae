"""Finds the Flower app that run.yml is to run, and judges it before anything is changed.

An app is a folder, a FAB (what `flwr build` makes), or a folder of a git repository, written as pip does:
`git+https://host/repository.git@REF#subdirectory=DIR`.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from coldframe.controller.settings import nearest

MANIFEST = "pyproject.toml"
CONTENT = ".info/CONTENT"
CONFIG = "[tool.flwr.app.config]"
GIT = "git+"
GIT_SCHEMES = ("https", "ssh", "file", "http")
GIT_EXAMPLE = "git+https://HOST/REPOSITORY.git@REF#subdirectory=DIR"
PATIENCE = 300  # seconds for a repository to arrive
WHOLE = 2**63  # of a run's configuration: whole numbers are smaller
OTHERWISE = (
    f"type -e app=DIR with the folder of a Flower app, -e app=FILE.fab, or -e 'app={GIT_EXAMPLE}'; "
    "or leave it out to run ours"
)


class Refused(ValueError):
    """An app that cannot be run: what is wrong, and what to type instead."""

    def __init__(self, problem: str, remedy: str = OTHERWISE) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True)
class Found:
    """Where an app is, and which state of a repository it is.

    Attributes
    ----------
    given : str
        As it was typed.
    path : Path
        A folder, or a FAB.
    commit : str or None
        Of the repository that the folder is in; None where it is in none.
    clean : bool or None
        Whether nothing of the folder has been changed since; None where that is not known.
    """

    given: str
    path: Path
    commit: str | None = None
    clean: bool | None = None


# --- where it is


def find(given: str, base: Path, cache: Path, name: str = "") -> Found:
    """Find an app; one of a git repository is brought into the cache first.

    Parameters
    ----------
    base : Path
        Relative paths start here.
    name : str
        What messages call it, where that is not ``given``.

    Raises
    ------
    Refused
        If there is none.
    """
    if given.startswith(GIT):
        return fetch(given, cache / "apps")
    path = base / Path(given).expanduser()
    given = name or given
    if not path.exists():
        remedy = f"type -e 'app={GIT}{given}'" if "://" in given else OTHERWISE
        raise Refused(f"app={given} is no folder and no file", remedy)
    if path.is_file():
        return Found(given, path)
    return Found(given, path, *state_of(path))


def state_of(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit that a folder is of, and whether nothing in it has been changed since."""
    try:
        commit = git(["-C", str(folder), "rev-parse", "HEAD"])
        return commit.strip(), not git(["-C", str(folder), "status", "--porcelain", "--", "."]).strip()
    except (OSError, subprocess.SubprocessError):
        return None, None


def git(words: Sequence[str], text: bool = True) -> Any:
    """Call git, which asks nobody; return what it writes."""
    environment = {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
    }
    done = subprocess.run(
        ["git", *words],
        capture_output=True,
        text=text,
        check=True,
        timeout=PATIENCE,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def read_url(given: str) -> tuple[str, str, str]:
    """Return repository, ref (HEAD where there is none) and folder of what pip writes.

    >>> read_url("git+https://example.org/flower.git@v1.41.0#subdirectory=examples/quickstart-numpy")
    ('https://example.org/flower.git', 'v1.41.0', 'examples/quickstart-numpy')
    >>> read_url("git+ssh://git@example.org/me/app")
    ('ssh://git@example.org/me/app', 'HEAD', '')
    """
    parts = urlsplit(given.removeprefix(GIT))
    wanted = f"type -e 'app={GIT_EXAMPLE}'"
    if parts.scheme not in GIT_SCHEMES or not parts.path.strip("/"):
        raise Refused(f"app={given} is no address of a git repository", wanted)
    if parts.password or (parts.username and parts.scheme.startswith("http")):
        raise Refused("the address of app= has a login in it", "leave it out, and give it to git's own store")
    if parts.query:
        raise Refused(f"app={given} has a ?: a # comes before subdirectory", wanted)
    options = parse_qs(parts.fragment, keep_blank_values=True)
    if set(options) - {"subdirectory"} or (parts.fragment and not options.get("subdirectory", [""])[0]):
        raise Refused(f"app={given} has after its # something else than subdirectory=DIR", wanted)
    folder = options.get("subdirectory", [""])[0].strip("/")
    path, at, ref = parts.path.rpartition("@")
    path, ref = (path, ref) if at else (parts.path, "HEAD")
    if not re.fullmatch(r"[A-Za-z0-9_][\w./+-]*", ref):
        raise Refused(f"app={given} has no branch, tag or commit after its @", wanted)
    if ".." in PurePosixPath(folder).parts:
        raise Refused(f"app={given} leads out of its repository", wanted)
    return f"{parts.scheme}://{parts.netloc}{unquote(path) if parts.scheme == 'file' else path}", ref, folder


def fetch(given: str, cache: Path) -> Found:
    """Bring a folder of a git repository, as it is in one commit; one that is here already is not fetched."""
    url, ref, folder = read_url(given)
    if not shutil.which("git"):
        raise Refused(f"app={given} needs git", "install it: sudo apt-get install git")
    store = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.git"
    here = ["--git-dir", str(store)]
    try:
        if not store.exists():
            git(["init", "--quiet", "--bare", str(store)])
        if not (re.fullmatch(r"[0-9a-f]{40}", ref) and has(here, ref)):
            git([*here, "fetch", "--quiet", "--depth=1", "--no-tags", "--force", url, ref])
            commit = git([*here, "rev-parse", "FETCH_HEAD^{commit}"]).strip()
        else:
            commit = ref
    except subprocess.TimeoutExpired:
        raise Refused(
            f"app={given} did not arrive within {PATIENCE} s", "clone it yourself, and type -e app=DIR"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        why = " ".join(str(getattr(error, "stderr", "") or error).split())
        hint = (
            ""
            if ref == "HEAD" or len(ref) >= 40 or not re.fullmatch(r"[0-9a-f]{6,39}", ref)
            else " (a whole one)"
        )
        raise Refused(
            f"git could not fetch app={given} ({why})",
            f"check address and branch, tag or commit{hint}: type git ls-remote {url}",
        ) from None
    target = cache / commit / hashlib.sha256(f"{url} {folder}".encode()).hexdigest()[:16]
    if not target.exists():
        unpack(given, here, commit, folder, target)
    return Found(given, target, commit, True)


def has(here: Sequence[str], commit: str) -> bool:
    """Return whether a commit is in the cache."""
    try:
        git([*here, "cat-file", "-e", f"{commit}^{{commit}}"])
    except subprocess.CalledProcessError:
        return False
    return True


def unpack(given: str, here: Sequence[str], commit: str, folder: str, target: Path) -> None:
    """Write a folder of a commit; nothing that it holds leads out of it."""
    try:
        archive = git([*here, "archive", "--format=tar", f"{commit}:{folder}"], text=False)
    except subprocess.CalledProcessError:
        raise Refused(
            f"app={given}: there is no folder {folder} in commit {commit[:12]}",
            f"correct what follows subdirectory=: type git --git-dir {here[1]} ls-tree {commit[:12]}",
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as part:
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(part, filter="data")
        except tarfile.TarError as error:
            raise Refused(
                f"app={given} cannot be unpacked ({error})", "clone it, and type -e app=DIR"
            ) from None
        Path(part).chmod(0o755)
        shutil.copytree(part, target, symlinks=True)


# --- what it is


def read_manifest(found: Found) -> dict[str, Any]:
    """Return the content of an app's manifest, which has the parts that Flower needs."""
    given, packed = found.given, found.path.is_file()
    name = f"{MANIFEST} of {given}" if packed else f"{given}/{MANIFEST}"
    if packed:
        text = read_fab(given, found.path.read_bytes())[MANIFEST]
    else:
        path = found.path / MANIFEST
        if not path.is_file():
            raise Refused(f"app={given} is no Flower app: there is no {name}")
        text = path.read_bytes()
    try:
        manifest = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{name} cannot be read ({error})", "correct it") from None
    flower = manifest.get("tool", {}).get("flwr", {}).get("app")
    if not isinstance(flower, dict):
        raise Refused(f"app={given} is no Flower app: its {MANIFEST} has no [tool.flwr.app]")
    components = flower.get("components")
    if not isinstance(components, dict):
        raise Refused(
            f"{name} has no [tool.flwr.app.components]",
            'write there serverapp = "PACKAGE.MODULE:app" and clientapp = "PACKAGE.MODULE:app"',
        )
    for kind in ("serverapp", "clientapp"):
        reference = components.get(kind)
        if not isinstance(reference, str) or not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", reference):
            shown = (
                "has no" if reference is None else f"has {kind} = {json.dumps(reference, default=str)} as its"
            )
            raise Refused(
                f"[tool.flwr.app.components] of {given} {shown} {kind}",
                f'write {kind} = "PACKAGE.MODULE:app"',
            )
    return manifest


def read_fab(given: str, content: bytes) -> dict[str, bytes]:
    """Return the files of a FAB, by their names; they are those that it was made of."""
    again = "make it again (flwr build), or type -e app=DIR with the folder of the app"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise Refused(f"app={given} is no FAB: {str(error).rstrip('.')}", again) from None
    except Exception as error:  # zlib and its like, of a file that was cut or changed
        raise Refused(f"app={given} is damaged ({error})", again) from None
    if MANIFEST not in files:
        raise Refused(f"app={given} is no FAB: there is no {MANIFEST} in it", again)
    if CONTENT not in files:
        raise Refused(f"app={given} is no FAB: there is no {CONTENT} in it", again)
    for line in files[CONTENT].decode(errors="replace").splitlines():
        path, _, rest = line.partition(",")
        if path not in files or hashlib.sha256(files[path]).hexdigest() != rest.partition(",")[0]:
            raise Refused(f"{path} in app={given} is not what the FAB was made with", again)
    return files


def judge_size(found: Found, size: int, most: int, files: Mapping[str, bytes]) -> None:
    """Refuse a FAB that is larger than Flower takes; its largest files are named."""
    if size <= most:
        return
    largest = sorted(files, key=lambda name: len(files[name]), reverse=True)[:3]
    shown = ", ".join(f"{name} ({len(files[name]) / 1e6:.1f} MB)" for name in largest)
    raise Refused(
        f"app={found.given} has {size / 1e6:.1f} MB packed, and Flower takes {most / 1e6:.1f} MB: {shown}",
        "leave files out with fab-exclude in [tool.flwr.app]; data has its own way (docs/own-app.md)",
    )


def judge_components(found: Found, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Refuse components whose modules, or names in these, are not in the FAB."""
    components = manifest["tool"]["flwr"]["app"]["components"]
    dependencies = [str(item) for item in manifest.get("project", {}).get("dependencies", [])]
    provided = {re.split(r"[^\w.-]", item, maxsplit=1)[0].lower().replace("-", "_") for item in dependencies}
    for kind in ("serverapp", "clientapp"):
        module, _, attribute = components[kind].partition(":")
        stem = module.replace(".", "/")
        top = module.partition(".")[0]
        ours = any(name == f"{top}.py" or name.startswith(f"{top}/") for name in files)
        if not ours and top.lower() in provided:
            continue  # a package that the app depends on
        path = next((name for name in (f"{stem}.py", f"{stem}/__init__.py") if name in files), None)
        where = f"{kind} = {json.dumps(components[kind])} of {found.given}"
        if path is None:
            left_out = found.path.is_dir() and (found.path / f"{stem}.py").exists()
            raise Refused(
                f"{where} names a module that is not in the app: there is no {stem}.py",
                "take it into fab-include of [tool.flwr.app], and out of .gitignore and fab-exclude"
                if left_out
                else "correct [tool.flwr.app.components]",
            )
        try:
            known = defined(files[path])
        except (SyntaxError, ValueError) as error:
            raise Refused(f"{path} of {found.given} is no Python ({error})", "correct it") from None
        name = attribute.partition(".")[0]
        if known is not None and name not in known:
            near = nearest(name, known)
            raise Refused(
                f"{where}: {path} defines no {name}",
                f"did you mean {near}?" if near else "correct [tool.flwr.app.components]",
            )


def defined(source: bytes) -> set[str] | None:
    """Return the names that a module may have; None where that cannot be told."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            if node.name == "__getattr__":
                return None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any(alias.name == "*" for alias in node.names):
                return None
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


# --- its configuration


def flatten(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return a configuration as Flower has it: the keys of a table with its name before them.

    >>> flatten({"lr": 0.1, "model": {"width": 3}})
    {'lr': 0.1, 'model.width': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def kind_of(value: object) -> str:
    """Return what a value is, for people."""
    kinds = ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a text"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a list" if value else "nothing")


def fits(value: object, default: object) -> bool:
    """Return whether an app that has this default can read a value: a whole number is a number too."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    # A subclass counts: a value of Ansible's bears where it stands.
    same = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
    return same and not (isinstance(value, int) and abs(value) >= WHOLE)


def meant(value: object, default: object) -> object:
    """Return the value of the default's type that was meant, or the default."""
    text = str(value).strip()
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), default)
    if isinstance(default, str):
        return text if isinstance(value, int | float) else default
    try:
        number = float(text)
    except ValueError:
        return default
    if isinstance(default, int):
        return int(number) if number.is_integer() and abs(number) < WHOLE else default
    return number


def judge_config(given: Mapping[str, Any], manifest: Mapping[str, Any], app: str) -> list[tuple[str, str]]:
    """Return what is wrong with a run's configuration, each with what to type instead.

    Parameters
    ----------
    manifest : mapping
        The app's: its configuration says which keys there are, and the defaults say of which type.
    """
    known = flatten(manifest.get("tool", {}).get("flwr", {}).get("app", {}).get("config") or {})
    problems = []
    for key, value in flatten(given).items():
        if key not in known:
            near = nearest(key, known)
            remedy = f"did you mean {near}?" if near else f"it has {', '.join(known) or 'none'}."
            problem = f"run_config has the key {key}, which {CONFIG} of {app} does not have"
            problems.append((problem, f"{remedy} A key has to stand there first, with its default"))
        elif not fits(value, known[key]):
            wanted = json.dumps({"run_config": {key: meant(value, known[key])}})
            problem = (
                f"run_config has {key}={json.dumps(value, default=str)}, which is {kind_of(value)}, "
                f"and {CONFIG} of {app} has {kind_of(known[key])} there"
            )
            problems.append((problem, f"type -e '{wanted}'"))
    return problems


def commit(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return which commit a packed app is of, for the run's records."""
    return {f"app_{key}": packed[key] for key in ("commit", "clean") if packed}
