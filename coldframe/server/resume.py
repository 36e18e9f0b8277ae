"""Which run is to be resumed, and whether what is asked for fits to what it was; nothing is started here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldframe.recording.checkpoint import Checkpoint, ancestors, diverged, newest, told_of
from coldframe.recording.roster import Client
from coldframe.recording.server import ROUNDS_KEYS, versions

AUTO = "auto"  # the newest run that has failed
CLIENTS_NAMED = 6  # of those that are others now
FORCE = "type -e resume_changed=true too"
# Of a run's settings those that may differ: they change nothing of what is computed.
FREE = ("run_name", "wait_timeout", "checkpoint")


class Refused(ValueError):
    """A run that is not resumed: why, and what to type instead."""


@dataclass(frozen=True)
class Asked:
    """What was typed.

    Attributes
    ----------
    typed : sequence of (name, key, value)
        Variables that were given; `key` is that of the app's config, empty for those that it does not get.
    changed : bool
        Whether other settings, another app and another image are wanted.
    fab : str
        The app that was given, packed; empty where the run's own is to go on.
    image : str
        That the server runs on; empty where it is not known.
    note : mapping
        What describes the federation now, for a run that was not submitted by run.yml.
    """

    typed: Sequence[tuple[str, str, Any]] = ()
    changed: bool = False
    fab: str = ""
    image: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)


def choose(runs: Sequence[Mapping[str, Any]], wanted: str, state: Path) -> tuple[str, Checkpoint]:
    """Return the run that is to be resumed, and its newest whole checkpoint.

    Parameters
    ----------
    runs : sequence of mapping
        All runs that the SuperLink knows, newest first: `run_id`, `status`, `sub_status`.
    wanted : str
        The id of a run, or `auto`: the newest that has failed, unless its model diverged or it was resumed
        already.

    Raises
    ------
    Refused
        If there is none.
    """
    if wanted == AUTO:
        wanted = _newest_failed(runs, state / "runs")
    run = {run["run_id"]: run for run in runs}.get(wanted)
    if run is None:
        known = ", ".join(run["run_id"] for run in runs) or "none"
        raise Refused(f"run {wanted} is not known here: type -e resume=auto, or one of those known: {known}")
    if run["status"] != "finished":
        raise Refused(f"run {wanted} has not ended: type -e follow={wanted} to see its rounds")
    if run["sub_status"] == "completed":
        raise Refused(
            f"run {wanted} has completed, and there is nothing to resume: type -e collect={wanted} for its"
            " results, or leave resume out to train anew"
        )
    found = newest(state / "runs" / wanted)
    if found is None:
        raise Refused(
            f"run {wanted} has no checkpoint: it ended in its first round, had checkpoint=false, has no"
            " strategy of Flower's Message API or several at once, or its files were removed. Leave resume"
            " out to train anew"
        )
    return wanted, found


def _newest_failed(runs: Sequence[Mapping[str, Any]], folder: Path) -> str:
    resumed: set[str] = set()  # those have what came of them in a later run
    for run in runs:
        run_id = str(run["run_id"])
        resumed |= set(ancestors(folder / run_id))
        failed = run["status"] == "finished" and run["sub_status"] == "failed" and not run.get("experiment")
        if failed and run_id not in resumed and not diverged(folder / run_id):
            return run_id
    raise Refused(
        "no run here can be resumed by resume=auto: none has failed, apart from those that were resumed"
        " already, whose model diverged, or that belong to an experiment. Type ansible-playbook status.yml to"
        " see the runs"
    )


def judge(
    run_id: str,
    found: Checkpoint,
    noted: Mapping[str, Any],
    fab_hash: str,
    fab: Path,
    clients: Iterable[Client],
    asked: Asked,
) -> None:
    """Refuse what would make another run of it, unless that is wanted.

    Parameters
    ----------
    noted : mapping
        The note of the run.
    fab_hash, fab : str, Path
        The hash of the run's app, and the app that the new run would have.
    clients : iterable of Client
        Of the federation now.

    Raises
    ------
    Refused
        With the first difference.
    """
    if experiment := noted.get("experiment"):
        raise Refused(
            f"run {run_id} belongs to experiment {experiment.get('name')}: type ansible-playbook"
            " experiment.yml -e file=FILE again, which repeats it"
        )
    if not fab.is_file():
        raise Refused(f"the app of run {run_id} is no longer on the server: type -e app=DIR too")
    for name, key, value in asked.typed:
        if key and key not in found.content["config"]:
            raise Refused(f"{name}: the app of run {run_id} has no setting {key}: leave it out")
        if key in ROUNDS_KEYS and int(value) <= found.round:
            raise Refused(f"round {found.round} of run {run_id} is over: type -e {name}={found.round + 1}")
    if asked.changed:
        return
    for name, key, value in asked.typed:
        settings = noted.get("settings") or {}
        was = found.content["config"][key] if key else settings.get(name)
        if name not in FREE and was != value and (key or (was or "") != (value or "")):
            raise Refused(f"run {run_id} has {name}={was}, and not {value}: leave it out, or {FORCE}")
    digest = hashlib.sha256(fab.read_bytes()).hexdigest()
    if digest != fab_hash:
        raise Refused(
            f"app={fab.stem} is not the app of run {run_id}, which is {fab_hash[:16]}: leave app out to go on"
            f" with that, or {FORCE}"
        )
    now = versions()
    if others := sorted(key for key, was in found.content["versions"].items() if now.get(key) != was):
        was, there = ([f"{key} {of.get(key)}" for key in others] for of in (found.content["versions"], now))
        raise Refused(
            f"run {run_id} had {', '.join(was)}, and the server has {', '.join(there)}: deploy what it had,"
            f" or {FORCE}"
        )
    if (image := noted.get("image")) and asked.image and image != asked.image:
        raise Refused(
            f"run {run_id} had the image {image}, and the server has {asked.image}: deploy the commit that it"
            f" had, or {FORCE}"
        )
    were, are = ({tuple(client) for client in each} for each in (found.content["clients"], told_of(clients)))
    if were != are:
        raise Refused(
            f"run {run_id} had other clients ({_clients_words(were, are)}): deploy the federation that it"
            f" had, or {FORCE}"
        )


def _clients_words(were: set[tuple[Any, ...]], are: set[tuple[Any, ...]]) -> str:
    """Name the clients that are gone, new, or have another partition."""
    old, new = dict(were - are), dict(are - were)
    words = [
        f"{name} is new"
        if name not in old
        else f"{name} is gone"
        if name not in new
        else f"{name} had partition {old[name]} and has {new[name]}"
        for name in sorted(old.keys() | new.keys())
    ]
    more = len(words) - CLIENTS_NAMED
    return ", ".join(words[:CLIENTS_NAMED] + ([f"and {more} more"] if more > 0 else []))


def note_of(run_id: str, submitted: str, noted: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Return the note of the new run: that of the run before, with what was changed.

    Parameters
    ----------
    submitted : str
        When the run before was submitted, in ISO 8601.
    """
    note = dict(noted) if noted.get("clients") else dict(asked.note)
    ours = {name: value for name, key, value in asked.typed if not key}
    settings = {**(note.get("settings") or {}), **ours, "resumed_from": run_id}
    settings.setdefault("began", submitted)
    variables = {**(note.get("variables") or {}), **{name: value for name, _, value in asked.typed}}
    return {**note, "settings": settings, "variables": variables}
