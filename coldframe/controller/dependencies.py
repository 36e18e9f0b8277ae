"""What an app depends on beyond the image's packages: resolved for the image, and installed into a folder.

    python -m coldframe.controller.dependencies FAB CACHE IMAGE

IMAGE is what `coldframe.recording.packages` says of the image, as JSON. The last line on stdout is JSON: the
set's `name` (a hash of its files), its `path`, `bytes` and `packages`; `name` is empty where the image has
all that the app depends on; `error` says why it cannot be had.

uv resolves. The image's packages are given: for the time of the resolution each is a wheel without
dependencies of its own, so that nothing of the image is looked up (torch would bring CUDA) and nothing of it
is changed, and a package that needs another version of one is a conflict.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uv
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

# The image has them, and a request for another version changes nothing. Flower's own manifests name flwr in
# forms that are no valid requirement: these are told by their names.
GIVEN = ("flwr", "torch", "torchvision")
# torch brings it without a bound, and Hugging Face's datasets, which most of Flower's examples use, bounds it
# from above with each release anew: a warning, no conflict. datasets 4.8.5 with fsspec 2026.9.0 was seen to
# save, load and partition a data set on disk; reading from a hub was not tried.
UNBOUND = ("fsspec",)
NAME = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(.*)", re.DOTALL)
GLIBC = (17, 28, *range(31, 41))  # 2.x, as uv names platforms
KEPT = 10  # sets on the controller; others are resolved and installed again when they are wanted
# pip's options, uv's variables, and what separates several values there.
SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", ""),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", ""),
}


class Unresolved(Exception):
    """Why an app's dependencies cannot be had, and what to change."""


@dataclass(frozen=True)
class Image:
    """What is known of the FL image; `packages` by normalised name."""

    python: str
    machine: str
    glibc: str
    packages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def version(self, name: str) -> str:
        """Return a package's version; empty where the image has no such package."""
        return str(self.packages.get(name, {}).get("version", ""))

    @property
    def platform(self) -> str:
        """Return what uv calls the image's platform."""
        minor = int([*self.glibc.split("."), "0"][1] or 0)
        fitting = max((known for known in GLIBC if known <= minor), default=GLIBC[0])
        return f"{self.machine}-manylinux_2_{fitting}"

    @property
    def markers(self) -> dict[str, str]:
        """Return the values of environment markers."""
        return {
            "python_version": ".".join(self.python.split(".")[:2]),
            "python_full_version": self.python,
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
            "platform_release": "",
            "platform_version": "",
            "extra": "",
        }


def read_manifest(fab: Path) -> dict[str, Any]:
    """Return `[project]` of the manifest of an app."""
    with zipfile.ZipFile(fab) as archive:
        return dict(tomllib.loads(archive.read("pyproject.toml").decode()).get("project", {}))


def needed(project: Mapping[str, Any], image: Image) -> tuple[list[str], list[str]]:
    """Return what is to be resolved of an app's `[project]`, and warnings about what it gets otherwise.

    Raises
    ------
    Unresolved
        If a dependency cannot be read.
    """
    wanted, warnings = [], []
    python = project.get("requires-python", "")
    if python and not SpecifierSet(python).contains(image.python):
        warnings.append(f"the app requires Python {python}, and the image has {image.python}")
    for text in project.get("dependencies", []):
        found = NAME.fullmatch(text)
        name = canonicalize_name(found[1]) if found else ""
        try:
            item = Requirement(text)
        except InvalidRequirement as error:
            if name in GIVEN:
                continue
            raise Unresolved(
                f"the dependency {text!r} of the app's pyproject.toml cannot be read: write it like"
                " scipy>=1.10"
            ) from error
        if item.marker and not item.marker.evaluate(image.markers):
            continue
        version = image.version(name)
        if not version and name not in GIVEN:
            wanted.append(text)
            continue
        if version and not item.specifier.contains(version, prereleases=True):
            asked = f"{item.name}{item.specifier}"
            warnings.append(f"the app asks for {asked}, and gets {item.name} {version}, which the image has")
        if item.extras and name not in GIVEN:
            wanted.append(f"{item.name}[{','.join(sorted(item.extras))}]")
    return wanted, warnings


def pip_settings(python: str = sys.executable) -> dict[str, str]:
    """Return as variables of uv, which reads no configuration of pip, where pip finds packages."""
    done = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return as_uv(done.stdout.splitlines() if done.returncode == 0 else [])


def as_uv(lines: Iterable[str]) -> dict[str, str]:
    """Return the lines of `pip config list` as variables of uv.

    >>> as_uv(["global.extra-index-url='https://a https://b'", ":env:.find-links='/w'"])["UV_INDEX"]
    'https://a https://b'
    """
    options: dict[str, str] = {}
    for level in ("global", "download", "install", ":env:"):  # a later one wins, as with pip
        for line in lines:
            name, _, value = line.partition("=")
            section, _, option = name.rpartition(".")
            if section == level:
                with suppress(ValueError, SyntaxError):
                    options[option] = str(ast.literal_eval(value))
    found = {
        variable: (separator or " ").join(options[option].split())
        for option, (variable, separator) in SETTINGS.items()
        if options.get(option, "").strip()
    }
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        found["UV_NO_INDEX"] = "1"
    if "UV_INDEX" in found:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip: the best of all indexes, not of the first
    return found


def environment() -> dict[str, str]:
    """Return the environment of uv: what the user has set for uv counts, else pip's configuration."""
    own = dict(os.environ)
    settings = pip_settings()
    if "UV_INDEX_URL" in own:
        settings.pop("UV_DEFAULT_INDEX", None)
    return {**settings, **own}


def write_stub(folder: Path, name: str, package: Mapping[str, Any]) -> Path:
    """Write a wheel that stands for a package of the image: no files, no dependencies but those of extras."""
    stem = f"{name.replace('-', '_')}-{package['version']}"
    extras = package.get("extras", [])
    names = {found for text in extras for found in re.findall(r"extra *== *['\"]([^'\"]+)['\"]", text)}
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {package['version']}"]
    lines += [f"Provides-Extra: {extra}" for extra in sorted(names)]
    lines += [f"Requires-Dist: {text}" for text in extras]
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join([*lines, ""]))
        wheel.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def target_options(image: Image, variables: Mapping[str, str]) -> list[str]:
    """Return the options of uv that both of its commands take."""
    target = ["--python-version", image.python, "--python-platform", image.platform]
    index = ["--no-index"] if variables.get("UV_NO_INDEX") else []
    return [*target, "--only-binary", ":all:", "--python", sys.executable, *index]


def resolve(wanted: Sequence[str], image: Image, work: Path, variables: Mapping[str, str]) -> list[str]:
    """Return what has to be installed, each with its version.

    Raises
    ------
    Unresolved
        With uv's explanation, if there is nothing that fits the image.
    """
    stubs = work / "stubs"
    stubs.mkdir()
    given = {name: write_stub(stubs, name, package) for name, package in image.packages.items()}
    (work / "wanted.txt").write_text("\n".join([*wanted, ""]))
    constraints = [f"{name} @ {path.as_uri()}" for name, path in given.items() if name not in UNBOUND]
    (work / "image.txt").write_text("\n".join([*constraints, ""]))
    command = [uv.find_uv_bin(), "pip", "compile", "--no-header", "--no-annotate", "--quiet"]
    command += [*target_options(image, variables), "--constraint", "image.txt", "wanted.txt"]
    whole = {**variables, "COLUMNS": "10000"}  # uv breaks its lines to fit
    done = subprocess.run(command, cwd=work, env=whole, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unresolved(explain(done.stderr, wanted, image))
    pins = []
    for line in done.stdout.splitlines():
        name, _, version = line.partition("==")
        if name in UNBOUND and name in given:
            has = image.version(name)
            if version != has:
                print(f"warning: {name} {version} is asked for, and the app gets {has}, which the image has")
        elif line and stubs.as_uri() not in line:
            pins.append(line)
    return pins


def explain(told: str, wanted: Sequence[str], image: Image) -> str:
    """Return why nothing fits, in uv's words, and what to do."""
    words = {canonicalize_name(word) for word in re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*", told)}
    has = ", ".join(f"{name} {image.version(name)}" for name in sorted(image.packages) if name in words)
    lines = [
        f"the app's dependencies ({', '.join(wanted)}) cannot be had for the image (Python {image.python},"
        f" {image.machine}). uv says:",
        *(f"  {line.strip()}" for line in told.strip().splitlines()),
    ]
    lines += [f"The image has {has}, and keeps them."] if has else []
    lines += [
        "Change [project].dependencies in the app's pyproject.toml. If an index did not answer, name one that"
        " does: pip config set global.index-url URL"
    ]
    return "\n".join(lines)


def local_wheels(variables: Mapping[str, str]) -> list[Path]:
    """Return the wheels in the folders of this machine that uv looks into."""
    places = filter(None, variables.get("UV_FIND_LINKS", "").split(","))
    folders = [Path(place.removeprefix("file://")) for place in places]
    return sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*.whl"))


def install(pins: Sequence[str], image: Image, work: Path, variables: Mapping[str, str]) -> Path:
    """Install what was resolved into a folder, without commands and without notes of where it came from.

    Raises
    ------
    Unresolved
        If a package cannot be fetched.
    """
    folder = work / "set"
    (work / "pins.txt").write_text("\n".join([*pins, ""]))
    command = [uv.find_uv_bin(), "pip", "install", "--no-deps", "--target", str(folder)]
    command += [*target_options(image, variables), "--link-mode", "copy", "--requirement", "pins.txt"]
    # uv's cache takes a wheel that was built anew, in the same version, for the old one.
    local = {canonicalize_name(path.name.split("-")[0]) for path in local_wheels(variables)}
    pinned = {canonicalize_name(found[1]) for pin in pins if (found := NAME.fullmatch(pin))}
    command += [f"--refresh-package={name}" for name in sorted(local & pinned)]
    told = []
    with subprocess.Popen(
        command, cwd=work, env=dict(variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            told.append(line)
            if re.match(r" *(Downloading|Prepared|Installed) ", line):
                print(line.strip(), flush=True)
    if process.returncode != 0:
        raise Unresolved(explain("".join(told), pins, image))
    shutil.rmtree(folder / "bin", ignore_errors=True)
    (folder / ".lock").unlink(missing_ok=True)
    for name in ("direct_url.json", "uv_cache.json", "uv_build.json"):
        for path in folder.glob(f"*.dist-info/{name}"):
            path.unlink()
    return folder


def digest(folder: Path) -> tuple[str, int]:
    """Return a hash of a folder's files, and their bytes."""
    total, whole = 0, hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        total += len(content)
        whole.update(f"{path.relative_to(folder)} {hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()[:16], total


def key_of(wanted: Sequence[str], image: Image, variables: Mapping[str, str]) -> str:
    """Return a hash of all that a resolution depends on, except for what an index will offer tomorrow."""
    names = ("python", "machine", "glibc", "packages")
    settings = {name: value for name, value in variables.items() if name.startswith("UV_")}
    links = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in local_wheels(variables)]
    made_from = [sorted(wanted), {name: getattr(image, name) for name in names}, settings, links]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def prune(sets: Path, kept: int = KEPT) -> None:
    """Remove all but the sets that were used last."""
    found = sorted(sets.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found[kept:]:
        shutil.rmtree(path, ignore_errors=True)


def bring(wanted: Sequence[str], image: Image, cache: Path) -> dict[str, Any]:
    """Resolve and install what an app needs, unless that has been done before; return what there is.

    Parameters
    ----------
    cache : Path
        Keeps sets of dependencies.
    """
    if not wanted:
        return {"name": "", "path": "", "bytes": 0, "packages": []}
    variables = environment()
    sets, resolved = cache / "sets", cache / "resolved"
    for folder in (sets, resolved):
        folder.mkdir(parents=True, exist_ok=True)
    record = resolved / f"{key_of(wanted, image, variables)}.json"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be preparing the same
        with suppress(OSError, ValueError):
            known = dict(json.loads(record.read_text()))
            os.utime(sets / known["name"])  # used: others are pruned first
            return {**known, "path": str(sets / known["name"])}
        with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as directory:
            work = Path(directory).resolve()
            print(f"resolving {', '.join(wanted)} for Python {image.python}", flush=True)
            pins = resolve(wanted, image, work, variables)
            if not pins:  # extras of packages whose parts the image has
                return {"name": "", "path": "", "bytes": 0, "packages": []}
            print(f"fetching {len(pins)} packages: {', '.join(pins)}", flush=True)
            folder = install(pins, image, work, variables)
            name, size = digest(folder)
            if not (sets / name).exists():
                folder.chmod(0o755)
                folder.rename(sets / name)
            os.utime(sets / name)
        prune(sets)
        known = {"name": name, "bytes": size, "packages": pins}
        record.write_text(json.dumps(known))
    print(f"{len(pins)} packages, {size / 1e6:.0f} MB", flush=True)
    return {**known, "path": str(sets / name)}


def main(arguments: list[str]) -> int:
    """Prepare the dependencies of one app."""
    fab, cache, image = Path(arguments[0]), Path(arguments[1]), Image(**json.loads(arguments[2]))
    answer: dict[str, Any] = {"error": "", "fab_hash": hashlib.sha256(fab.read_bytes()).hexdigest()}
    try:
        wanted, warnings = needed(read_manifest(fab), image)
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
        answer |= bring(wanted, image, cache)
    except Unresolved as error:
        answer["error"] = str(error)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
