"""Describes a run, or an experiment, as a Process Run Crate: RO-Crate 1.1 with its Workflow Run profile.

The crate is a copy of the results folder with `ro-crate-metadata.json`, which says which program made what
from what (https://w3id.org/ro/wfrun/process), and `README.md`, which says how to do it again.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from coldframe.controller import comparison, experiment_runs
from coldframe.controller.experiment_runs import RUNS
from coldframe.controller.settings import RUN

METADATA = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
FORMATS = {
    ".jsonl": "application/jsonl",
    ".npz": "application/octet-stream",
    ".pt": "application/octet-stream",
    ".yml": "application/yaml",
    ".log": "text/plain",
}
# What a run was made from; everything else in its folder came out of it.
INPUTS = ("config.yml", "inventory.json", "versions.json")
WHAT = {
    "config.yml": "The run's variables",
    "inventory.json": "Machines and clients with the limits that the kernel held when the run began",
    "versions.json": "Versions of the software",
    "summary.json": "How the run ended: status, accuracy, times, hash of the model",
    "rounds.csv": "A row per round",
    "clients.csv": "A row per client, round and phase",
    "events.jsonl": "Changes of limits during the run, as the agents read them from the kernel",
    "journal.jsonl": "Everything that the ServerApp's process recorded, in order of time",
    "report.html": "The run on one page",
    "model.npz": "The last aggregated model",
    "runs.csv": "A row per run of the experiment",
    "comparison.html": "The comparison of the experiment's points",
}
README = """# {title}

Made with Coldframe{commit}. `ro-crate-metadata.json` describes every file.

To do it again, check out that commit, deploy the federation that `{inventory}` describes, and type:

```bash
{command}
```
"""


def make(source: Path, out: Path) -> Path:
    """Copy a results folder and describe it.

    Parameters
    ----------
    source : Path
        The folder of a run, or of an experiment with its `runs/`.
    out : Path
        The crate; one that is there is made anew.

    Returns
    -------
    Path
        The crate's metadata file.
    """
    if out.exists():
        shutil.rmtree(out)
    # Links lead out of the crate: `latest` of an experiment's runs.
    shutil.copytree(
        source, out, ignore=lambda folder, names: [n for n in names if (Path(folder) / n).is_symlink()]
    )
    folders = sorted(path.parent for path in out.glob(f"{RUNS}/*/summary.json")) or [out]
    summaries = [experiment_runs.read(folder / "summary.json") for folder in folders]
    first, of_many = summaries[0], folders != [out]
    title = f"Experiment {source.name}" if of_many else f"Run {first.get('run_name') or first['run_id']}"
    commit = (first.get("versions") or {}).get("commit")
    inventory = folders[0].relative_to(out) / "inventory.json"
    (out / "README.md").write_text(
        README.format(
            title=title,
            commit=f", commit {commit}" if commit else "",
            inventory=inventory,
            command=command(out, folders[0], of_many),
        ),
        encoding="utf-8",
    )
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    programs = software(first.get("versions") or {})
    actions = [action(out, folder, summary) for folder, summary in zip(folders, summaries, strict=True)]
    finished = [summary["finished"] for summary in summaries if summary.get("finished")]
    about = {
        "name": title,
        "description": f"Results of {len(folders)} run(s) of federated learning on throttled clients",
        "datePublished": max(finished, default=first.get("started") or "1970-01-01"),
        "hasPart": [{"@id": ident(out, path)} for path in files],
        "mentions": [{"@id": item["@id"]} for item in actions],
    }
    content = {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [*root(about), *programs, *actions, *(entity(out, path) for path in files)],
    }
    path = out / METADATA
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def root(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe the crate itself."""
    return [
        {
            "@id": METADATA,
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {"@id": "./", "@type": "Dataset", "conformsTo": {"@id": PROFILE}, **about},
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
    ]


def software(versions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe Coldframe, and what it ran on."""
    others = {name: value for name, value in versions.items() if name not in ("commit", "clean")}
    parts = [
        {"@id": f"#{name}", "@type": "SoftwareApplication", "name": name, "softwareVersion": str(version)}
        for name, version in sorted(others.items())
    ]
    own = {
        "@id": "#coldframe",
        "@type": "SoftwareApplication",
        "name": "Coldframe",
        "softwareVersion": str(versions.get("commit") or "unknown"),
        "softwareRequirements": [{"@id": part["@id"]} for part in parts],
    }
    return [own, *parts]


def action(out: Path, folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a run: what it was made from, and what came out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != METADATA]
    if folder == out:
        files = [path for path in files if path != out / "README.md"]
    given = [path for path in files if path.parent == folder and path.name in INPUTS]
    status = "CompletedActionStatus" if summary["status"] in experiment_runs.GOOD else "FailedActionStatus"
    found: dict[str, Any] = {
        "@id": f"#run-{summary['run_id']}",
        "@type": "CreateAction",
        "name": f"Training run {summary.get('run_name') or summary['run_id']}",
        "instrument": {"@id": "#coldframe"},
        "actionStatus": f"http://schema.org/{status}",
        "object": [{"@id": ident(out, path)} for path in given],
        "result": [{"@id": ident(out, path)} for path in files if path not in given],
    }
    found |= {"startTime": summary["started"]} if summary.get("started") else {}
    found |= {"endTime": summary["finished"]} if summary.get("finished") else {}
    return found | ({"error": summary["error"]} if summary.get("error") else {})


def ident(out: Path, path: Path) -> str:
    """Give a file's identifier: its path as a relative URI."""
    return quote(str(path.relative_to(out)))


def entity(out: Path, path: Path) -> dict[str, Any]:
    """Describe a file."""
    kind = FORMATS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@id": ident(out, path),
        "@type": "File",
        "name": WHAT.get(path.name, path.name),
        "encodingFormat": kind,
        "contentSize": str(path.stat().st_size),
        "sha256": digest,
    }


def command(out: Path, folder: Path, of_many: bool) -> str:
    """Give the command that does it again: what differs from the defaults is typed."""
    if of_many:
        return "ansible-playbook experiment.yml -e file=experiment.yml"
    return shlex.join(["ansible-playbook", "run.yml", *typed(comparison.config_of(folder))])


def typed(settings: Mapping[str, Any]) -> Sequence[str]:
    """Give settings as they are typed with ``-e``."""
    words = []
    for name, value in sorted(settings.items()):
        if name in RUN and value not in (RUN[name].default, None, ""):
            plain = isinstance(value, str | int | float) and not isinstance(value, bool)
            words += ["-e", f"{name}={value}" if plain else json.dumps({name: value})]
    return words
