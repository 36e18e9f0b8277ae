"""What is said at the end of a run: how it went, where its results are, what to type next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coldframe.controller import assertions, asynchronous, report, scenario_outcome
from coldframe.controller.records import LEFT_OUT, Event, Run, duration, natural
from coldframe.controller.records import named as named_clients
from coldframe.controller.terminal import ansible_playbook

CLIENTS_SAID = 12  # more clients than this that failed are a number
REASONS_SAID = 4  # why more was asked of machines than they have


def closing_words(
    summary: dict[str, Any],
    run: Run,
    out: Path,
    arguments: str = "",
    training: str = "",
    events: Sequence[Event] = (),
) -> str:
    """Say how the run went, where its results are and what to type next.

    Parameters
    ----------
    events
        The agents' events of the run's time.
    arguments
        What the user gave every verb besides its variables, such as `-i inventory/lab.yml`.
    training
        What was typed about the training, such as `-e max_samples=6000`: another run repeats it.
    """
    name = f" ({summary['run_name']})" if summary["run_name"] else ""
    lines = [
        f"Run {summary['run_id']}{name}: {summary['status']}",
        *outcome_lines(summary, run.started.get("rounds")),
        *note_lines(summary, run),
        *scenario_outcome.lines(summary.get("scenario")),
        *assertions.lines(summary.get("assertions") or []),
        *throttle_lines(events),
        *failure_lines(summary["failures"]),
        *file_lines(out),
        f"  results     {out}/",
        "",
        "What to type next:",
        *next_lines(arguments, training),
    ]
    return "\n".join(lines)


def outcome_lines(summary: dict[str, Any], planned: int | None) -> list[str]:
    """Say what was trained and what came of it, as far as that is known; `planned` rounds were asked for."""
    lines = []
    if summary["error"]:
        lines.append(f"  because     {summary['error']}")
    if summary["rounds"] is not None:
        of = "" if planned is None else f" of {planned}"
        lines.append(f"  rounds      {summary['rounds']}{of}, {summary['clients']} clients")
    if summary["partitioner"] is not None:
        lines.append(f"  training    {training_words(summary)}")
    elif summary["strategy"] is not None:
        lines.append(f"  training    {summary['strategy']}")
    if summary["accuracy"] is not None:
        lines.append(f"  accuracy    {summary['accuracy']:.4f}")
    if summary["loss"] is not None:
        lines.append(f"  loss        {summary['loss']:.4f}")
    if summary["wall_seconds"] is not None:
        lines.append(f"  wall time   {duration(summary['wall_seconds'])}")
    return lines


def resumed_words(summary: dict[str, Any], run: Run) -> str:
    """Say after which rounds a run was interrupted, for how long, and what it was before."""
    places = ", ".join(str(event["round"]) for event in run.resumes)
    between = duration(summary["interrupted_seconds"])
    return f"after round {places}, {between} later (no wall time), from run {summary['resumed_from']}"


def note_lines(summary: dict[str, Any], run: Run) -> list[str]:
    """Say what a reader of the times has to know: what was shared, and who was late."""
    lines = []
    if summary["resumed"]:
        lines.append(f"  resumed     {resumed_words(summary, run)}")
    if summary["oversubscribed"]:
        lines.append("  note        more was asked of a machine than it has: times are the machine's")
        reasons = summary["oversubscribed_because"]
        lines += [f"              {reason}" for reason in reasons[:REASONS_SAID]]
        if len(reasons) > REASONS_SAID:
            lines.append(f"              {len(reasons) - REASONS_SAID} more: see summary.json")
    if summary["concurrent_with"]:
        beside = ", ".join(summary["concurrent_with"])
        lines.append(f"  note        trained beside run {beside}: times are shared")
    if summary["late"]:
        names = named_clients(event["client"] for event in run.late)
        folded = f", {summary['folded']} folded into later rounds" if summary["folded"] else ""
        lines.append(f"  late        {names}: {summary['late']} replies in all{folded}")
    if summary["policy"] not in (None, "applied") and (not summary["late"] or run.policy["applied"]):
        lines.append(f"  note        round_deadline was {summary['policy']}")
    return lines + asynchronous.closing_lines(summary)


def next_lines(arguments: str, training: str) -> list[str]:
    """Give the commands to type next, each with its purpose."""
    verb = f"{ansible_playbook()} {{}} {arguments}".rstrip()
    following = [
        (f"{verb.format('run.yml')} {training}".rstrip(), "the same again, on the standing federation"),
        (verb.format("throttle.yml") + " -e cpu=0.5", "change the clients' limits while they train"),
        (verb.format("status.yml"), "machines, clients, limits, runs"),
        (verb.format("teardown.yml") if arguments else "make down", "take the federation down"),
    ]
    width = max(len(command) for command, _ in following)
    return [f"  {command:<{width}}   {purpose}" for command, purpose in following]


def training_words(summary: dict[str, Any]) -> str:
    """Say what was trained, with the arguments that were given."""
    privacy = f", privacy {named(summary, 'dp')}" if summary["dp"] else ""
    return (
        f"{named(summary, 'strategy')} on {summary['dataset']}, partitioner {named(summary, 'partitioner')}, "
        f"seed {summary['seed']}{privacy}"
    )


def named(summary: dict[str, Any], key: str) -> str:
    """Name a strategy, partitioner or kind of privacy with its arguments."""
    given = ", ".join(f"{name} {value}" for name, value in sorted((summary[f"{key}_args"] or {}).items()))
    return f"{summary[key]} ({given})" if given else str(summary[key])


def throttle_lines(events: Sequence[Event]) -> list[str]:
    """Say which clients had other limits than their own when the run began, and whose were changed in it."""
    lines = report.in_force_words(events)
    during = {
        str(event["client"])
        for event in events
        if event["cause"] in ("throttle", "trace")
        or (event["cause"] == "scenario" and event.get("do") == "throttle")
    }
    lines += [f"{named_clients(during)}: throttled during the run, see events.jsonl"] if during else []
    return [f"  {'throttled' if index == 0 else '':<11} {line}" for index, line in enumerate(lines)]


def failure_lines(failures: Sequence[dict[str, Any]]) -> list[str]:
    """Say for each client in which rounds it failed, and why the last time."""
    by_client: dict[str, list[dict[str, Any]]] = {}
    for failure in failures:
        by_client.setdefault(str(failure["client"]), []).append(failure)
    lines = []
    for index, client in enumerate(sorted(by_client, key=natural)):
        found = by_client[client]
        if index == CLIENTS_SAID:
            lines.append(f"  {'':<11} {len(by_client) - index} more clients: see failures in summary.json")
            break
        head = "failures" if index == 0 else ""
        where = ", ".join(
            item["phase"] + ("" if item["round"] is None else f" of round {item['round']}") for item in found
        )
        lines.append(f"  {head:<11} {client}: {where} ({found[-1]['reason']})")
    return lines


def file_lines(out: Path) -> list[str]:
    """Say whose files were collected, and what of them had to be left out."""
    counts = {
        folder.name: sum(path.is_file() and not path.is_symlink() for path in folder.rglob("*"))
        for folder in (out / "files").glob("*")
        if folder.is_dir()
    }
    of_clients = sum(counts.values()) - counts.get("server", 0)
    words = [f"{counts['server']} of the ServerApp"] if counts.get("server") else []
    words += [f"{of_clients} of the ClientApps"] if of_clients else []
    lines = [f"  files       {', '.join(words)}, in {out}/files/"] if words else []
    path = out / "files" / LEFT_OUT
    if path.exists():
        left_out = [
            f"  left out    {client}: {name}: {reason}"
            for client, files in json.loads(path.read_text(encoding="utf-8")).items()
            for name, reason in files.items()
        ]
        lines += left_out[:5] + ([f"  {'':<11} and {len(left_out) - 5} more"] if len(left_out) > 5 else [])
    return lines
