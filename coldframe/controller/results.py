"""Turns a run's journal into its results folder: summary, tables, copies, pictures, report, closing words.

    python -m coldframe.controller.results DIR --results results       makes results/<time>-<run>/
    python -m coldframe.controller.results --purge NAME --results results

DIR holds what was fetched from the machines: `submitted.json`, `journal.jsonl` and, where the run got that
far, `model.npz` (`model.pt` of an older version), the containers' `logs/`, in `written/` what the ServerApp
has written, and in `files/<machine>/clients/<client>/` what the ClientApps have. A run whose ServerApp never
started has no journal; then the folder holds what is known without one: what the SuperLink says of the run
(`--record`) and what the agents have recorded.
Whatever cannot be known is null in `summary.json` and empty in the tables, never a guess.
With `--purge` the results of one federation are removed, and their folders named.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coldframe.controller import (
    assertions,
    latest,
    oversubscription,
    plots,
    report,
    scenario_outcome,
    submission,
    verdicts,
)
from coldframe.controller.asynchronous import summary_of
from coldframe.controller.closing_words import closing_words
from coldframe.controller.records import LEFT_OUT, Event, Run, folders_of, gather, happened, iso, jain
from coldframe.controller.rows import client_rows, round_rows
from coldframe.controller.tables import write_table
from coldframe.controller.terminal import plain
from coldframe.recording import task_log
from coldframe.recording.journal import read_lines

STATUSES = ("completed", "failed", "diverged", "stopped", "running")
CUT_OFF = "the journal ends in the middle of the run: the server stopped before it could finish"


def outcome(run: Run, status: str | None, error: str | None) -> tuple[str, str | None]:
    """Decide how the run ended, from what the caller was told and what the journal says.

    The caller knows what SuperLink says, which the journal cannot know when the server died; but a
    failure that the journal records stays a failure.
    """
    recorded = run.finished.get("status")
    if recorded == "diverged":
        return recorded, run.finished.get("error") or error
    if recorded == "failed":
        return "failed", error or run.finished.get("error") or None
    ended = status or recorded
    if ended == "completed":
        return ended, None
    return ended or "failed", error or (CUT_OFF if ended in (None, "failed") else None)


def summarise(
    run: Run,
    *,
    run_id: str,
    status: str | None = None,
    error: str | None = None,
    versions: dict[str, Any] | None = None,
    concurrent_with: list[str] | None = None,
) -> dict[str, Any]:
    """Make the content of `summary.json`.

    Accuracy and loss are those of the last round that the server evaluated; `rounds` counts the
    training rounds that were completed, and `round_seconds` has one entry for each. `concurrent_with` names
    the runs that ran on the same clients at the same time. `policy` is null where no round_deadline was asked
    for; `late` counts the messages that a phase did not wait for, `folded` those of them whose replies are in
    the model of a later round. `updates_jain` is Jain's index of the clients' replies that are in the model.
    `resumed` counts how often the run was interrupted and went on, `resumed_from` is the id of the part
    before the last, `resumed_at` when that went on, and `wall_seconds` is without the `interrupted_seconds`.
    """
    status, error = outcome(run, status, error)
    trained = run.trained_rounds
    evaluated = [run.rounds[n] for n in sorted(run.rounds) if run.rounds[n].get("accuracy") is not None]
    final = evaluated[-1] if evaluated else {}
    started = run.started
    privacy = (started.get("config", {}).get("dp") or None) if started.get("partitioner") else None
    wall = None
    if run.first is not None and run.last is not None:
        wall = run.last - run.first - run.interrupted
    return {
        "run_id": str((run.resumes[-1:] or [{}])[0].get("run_id") or started.get("run_id", run_id)),
        "run_name": started.get("run_name") or None,
        "status": status,
        "error": error,
        "rounds": len(trained) if started else None,
        "clients": len(started["clients"]) if started else None,
        "strategy": started.get("strategy"),
        "strategy_args": started.get("strategy_args"),
        "dp": privacy,
        "dp_args": json.loads(started["config"].get("dp-args") or "{}") if privacy else None,
        "dataset": started.get("dataset"),
        "partitioner": started.get("partitioner"),
        "partitioner_args": started.get("partitioner_args"),
        "seed": started.get("seed"),
        "accuracy": final.get("accuracy"),
        "loss": final.get("loss"),
        "wall_seconds": wall,
        "round_seconds": [event["seconds"] for event in trained],
        "model_sha256": run.model_sha256,
        **{f"round_{name}": run.policy.get(name) for name in ("deadline", "goal", "minimum", "late")},
        "policy": policy_words(run.policy),
        "late": len(run.late) if started else None,
        "folded": len(run.folded) if started else None,
        "updates_jain": jain(run.contributions().values()),
        "updates": summary_of(run),
        "resumed": len(run.resumes) if started else None,
        "resumed_from": run.resumes[-1]["resumed_from"] if run.resumes else None,
        "interrupted_seconds": run.interrupted if run.resumes else None,
        "resumed_at": iso(run.resumes[-1]["time"]) if run.resumes else None,
        "oversubscribed": started.get("oversubscribed"),
        "oversubscribed_because": [],
        "concurrent_with": concurrent_with,
        "started": iso(run.first),
        "finished": None if status == "running" else iso(run.last),
        "versions": {**(versions or {}), **started.get("versions", {})},
        "failures": [
            {key: event.get(key) for key in ("round", "phase", "client", "code", "reason")}
            for event in run.failures
        ],
    }


def policy_words(policy: Event) -> str | None:
    """Say whether the policy that was asked for was applied, and why not."""
    if not policy:
        return None
    if policy["applied"] and policy.get("late_reason"):
        return f"applied, but round_late={policy['late']}: {policy['late_reason']}"
    return "applied" if policy["applied"] else f"not applied: {policy['reason']}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read and compare."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def copy(source: Path | None, target: Path) -> None:
    """Copy a file into the folder, unless there is none, it lies there already, or it is a link.

    What was fetched keeps its links, and whoever made them knew nothing good of the controller's files.
    """
    if source is None or source.is_symlink():
        return
    if source.exists() and source.resolve() != target.resolve():
        shutil.copyfile(source, target)


def copy_files(source: Path, out: Path) -> None:
    """Copy what ServerApp and ClientApps have written, and name what had to be left out."""
    written = [
        ("server", source / "written"),
        *((path.name, path) for path in source.glob("files/*/clients/*")),
    ]
    for name, folder in written:
        if folder.is_dir() and not folder.is_symlink():
            shutil.copytree(folder, out / "files" / name, dirs_exist_ok=True, symlinks=True)
    server = out / "files" / "server"
    own = server / "model.pt"
    if own.is_file() and not own.is_symlink():
        own.replace(out / own.name)  # beside the model that was recorded
    if server.is_dir() and not any(server.iterdir()):
        server.rmdir()
    left_out: dict[str, dict[str, str]] = {}
    if (source / "written.json").exists():
        left_out["server"] = read_json(source / "written.json")["left_out"]
    for path in sorted(source.glob("files/*/left_out.json")):
        left_out |= read_json(path)
    if any(left_out.values()):
        (out / "files").mkdir(exist_ok=True)
        write_json(out / "files" / LEFT_OUT, {name: files for name, files in left_out.items() if files})


def folder_name(summary: dict[str, Any]) -> str:
    """Name a run's folder by its start in UTC and its name, so that folders sort by time.

    A run is always given the same folder: to fetch it again makes no second one.
    """
    started = summary["started"]
    moment = datetime.fromisoformat(started) if started else datetime.now(UTC)
    name = re.sub(r"[^\w.-]+", "-", summary["run_name"] or summary["run_id"])
    if summary["run_name"] and summary["resumed"]:
        name += f"-resumed-{summary['run_id']}"  # the part before, and another resume of it, have their own
    return f"{moment:%Y%m%d-%H%M%S}-{name}"


def purge(results: Path, federation: str) -> list[Path]:
    """Remove the results of one federation; a folder whose inventory names another, or none, stays.

    What was made of them goes too: an experiment without a run, and, once there is no run at all, comparisons
    and exports.
    """
    removed = folders_of(results, federation)
    for folder in removed:
        shutil.rmtree(folder)
    if removed:
        latest.point(results)
        left = False
        for experiment in results.glob("experiments/*"):
            if any(experiment.glob("runs/*/summary.json")):
                left = True
            elif experiment.is_dir() and not experiment.is_symlink():
                shutil.rmtree(experiment)
        if not left and not any(results.glob("*/summary.json")):
            for name in ("experiments", "comparisons", "exports"):
                shutil.rmtree(results / name, ignore_errors=True)
    return removed


def write_events(events: Sequence[Event], run: Run, begin: Sequence[Event], target: Path) -> list[Event]:
    """Keep what was in force at the begin, and what happened in the run's time."""
    first, last = run.first or 0.0, run.last or float("inf")
    kept = [*begin, *(event for event in events if first <= happened(event) <= last)]
    target.write_text("".join(json.dumps(event) + "\n" for event in kept), encoding="utf-8")
    return kept


def write_logs(source: Path, target: Path, run_id: str, federation: str) -> None:
    """Copy the logs, and take out of each client's what the run's own tasks have printed.

    Parameters
    ----------
    source : Path
        With `serverapp.log`, and `<machine>/<federation>-<client>.log`: the logs of all containers.
    target : Path
        Gets `<client>.log` too, for each client that had a task of the run.
    """
    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)  # a client may have planted links
    for path in (path for path in sorted(source.glob("*/*.log")) if not path.is_symlink()):
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [plain(line) for line in task_log.of_run((line.rstrip("\n") for line in file), run_id)]
        if lines:
            name = path.name.removeprefix(f"{federation}-")
            (target / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = source / "serverapp.log"
    if own.exists() and not own.is_symlink():
        text = plain(own.read_text(encoding="utf-8", errors="replace"))
        (target / own.name).write_text(text, encoding="utf-8")


def read_json(path: Path | None) -> dict[str, Any]:
    """Read what the caller has given, if it has."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path else {}


def write_surroundings(
    arguments: argparse.Namespace, noted: dict[str, Any], run: Run, out: Path
) -> tuple[dict[str, Any], list[Event]]:
    """Write the inventory, with the limits that held when the run began, and the agents' events; give both.

    A run that was not submitted by run.yml has no note: then what the agents tell at the collection counts.
    """
    inventory = read_json(arguments.inventory)
    given = arguments.events
    lines = given.read_text(encoding="utf-8").splitlines() if given and given.exists() else []
    events: list[Event] = [json.loads(line) for line in lines]
    begin: list[Event] = []
    if not noted and run.first is not None and (found := read_json(arguments.found)):
        took_part = {client["name"] for client in run.started.get("clients", [])}
        there = [client for client in found["clients"] if not took_part or client["name"] in took_part]
        clients = submission.looking_back(there, events, run.first)
        # What else the machines did is that of the collection, not of the run.
        machines = inventory.get("machines", [])
        inventory = submission.inventory({**found, "machines": machines}, clients, inventory)
        begin = submission.in_force(clients, run.first)
    elif noted:
        first = run.first or max((client["read_at"] for client in noted["clients"]), default=0.0)
        clients = submission.at_start(noted["clients"], events, first)
        inventory = submission.inventory(noted, clients, inventory)
        begin = submission.in_force(clients, first)
    if inventory:
        write_json(out / "inventory.json", inventory)
    if given or begin:
        events = write_events(events, run, begin, out / "events.jsonl")
    return inventory, events


def clients_of(machines: Iterable[str], inventory: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the clients that some machines have, by machine."""
    clients = inventory.get("clients", [])
    return {
        machine: [client["name"] for client in clients if client.get("machine") == machine]
        for machine in machines
    }


def write_config(noted: dict[str, Any], run: Run, target: Path) -> dict[str, Any]:
    """Write the run's variables, and give them; without a note of them, what its journal knows."""
    known = noted.get("variables") or run.started.get("config", {})
    # A line `key: <JSON value>` is YAML too.
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in sorted(known.items()))
    target.write_text(text, encoding="utf-8")
    return dict(known)


def write_scenario(noted: dict[str, Any], records: verdicts.Records, out: Path) -> dict[str, Any]:
    """Write the run's scenario and what became of its assertions; give both for `summary.json`."""
    summary = records.summary
    played = scenario_outcome.outcome(noted, records.events or ())
    if played:
        (out / "scenario.yml").write_text(noted["scenario"]["text"], encoding="utf-8")
    # An assertion may be about the scenario itself.
    known = replace(records, summary={**summary, "scenario": played})
    asserted = (noted.get("scenario") or {}).get("asserts", [])
    judged = [asdict(verdicts.judge(assertions.parse(text), known)) for text in asserted]
    if judged:
        named_so = summary["run_name"] or summary["run_id"]
        text = assertions.junit(f"coldframe.{named_so}", judged)
        (out / "assertions.xml").write_text(text, encoding="utf-8")
    return {"scenario": played, "assertions": judged or None}


def write_results(arguments: argparse.Namespace) -> tuple[dict[str, Any], Run, Path, list[Event]]:
    """Write the whole results folder, and move `latest` last."""
    source: Path = arguments.source
    for name in ("journal.jsonl", "submitted.json", "written", "written.json", "logs", "files"):
        if (source / name).is_symlink():
            raise ValueError(f"{source / name} is a symbolic link: the run's folder was tampered with")
    journal = read_lines(source / "journal.jsonl")
    run = gather(event for _, event in journal)
    versions, record = read_json(arguments.versions), read_json(arguments.record)
    noted = submission.read(source)
    if run.first is None and record.get("started"):
        run.first = datetime.fromisoformat(record["started"]).timestamp()
        run.last = datetime.fromisoformat(record["finished"]).timestamp() if record.get("finished") else None
    summary = summarise(
        run,
        run_id=arguments.run_id or source.resolve().name,
        status=arguments.status,
        error=arguments.error,
        concurrent_with=record.get("concurrent_with"),
        versions={**versions, **noted.get("versions", {})},
    )
    summary["experiment"] = noted.get("experiment")
    latest.check(arguments.results)
    out: Path = arguments.results / folder_name(summary)
    out.mkdir(parents=True, exist_ok=True)
    inventory, events = write_surroundings(arguments, noted, run, out)
    alone = summary["experiment"] is None
    asked = arguments.events is not None and arguments.events.exists()
    silent = clients_of(filter(None, arguments.silent.split(",")), inventory)
    records = verdicts.Records(summary, run, journal, events if asked else None, silent)
    summary |= write_scenario(noted, records, out)
    exceeded = oversubscription.reasons(inventory, events, run.first or 0.0, alone)
    if exceeded is not None:
        summary |= {"oversubscribed": bool(exceeded), "oversubscribed_because": exceeded}
    write_json(out / "summary.json", summary)
    write_json(out / "versions.json", summary["versions"])
    write_table(out / "rounds.csv", round_rows(run))
    write_table(out / "clients.csv", client_rows(run))
    copy(source / "journal.jsonl", out / "journal.jsonl")
    for name in ("model.pt", "model.npz"):
        copy(source / name, out / name)
    copy(arguments.record, out / "superlink.json")
    copy_files(source, out)
    settings = write_config(noted, run, out / "config.yml")
    if (source / "logs").exists():
        write_logs(source / "logs", out / "logs", summary["run_id"], str(inventory.get("federation", "")))
    if run.rounds:
        plots.save(plots.rounds(run.rounds), out / "rounds.png")
    work = plots.work_of(run.replies, run.failures)
    if work and work.seconds:
        plots.save(plots.clients(work), out / "clients.png")
    if run.started.get("histogram"):
        names = {int(client["partition_id"]): client["name"] for client in run.started["clients"]}
        plots.save(plots.partitions(run.started["histogram"], names), out / "partitions.png")
    report.write(
        out / "report.html",
        run,
        summary,
        events=events,
        inventory=inventory,
        settings=settings,
        record=record,
    )
    latest.point(arguments.results)
    return summary, run, out, events


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    summary = (__doc__ or "").split("\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(prog="python -m coldframe.controller.results", description=summary)
    parser.add_argument("source", type=Path, nargs="?", help="folder with journal.jsonl and model.pt")
    parser.add_argument("--results", type=Path, required=True, help="folder that holds a folder per run")
    parser.add_argument("--purge", metavar="NAME", help="remove the results of this federation instead")
    parser.add_argument("--run-id", help="for a run without a journal (default: name of the source folder)")
    parser.add_argument("--record", type=Path, help="JSON file: what SuperLink says of the run")
    parser.add_argument("--inventory", type=Path, help="JSON file: federation, clients, machines of the run")
    parser.add_argument("--found", type=Path, help="JSON file: what the agents tell now, as submitted.json")
    parser.add_argument("--versions", type=Path, help="JSON file: versions that the journal does not know")
    parser.add_argument("--events", type=Path, help="events.jsonl: changes of limits during the run")
    parser.add_argument("--silent", default="", help="machines whose agents did not answer, with commas")
    parser.add_argument("--status", choices=STATUSES, help="how the run ended, as SuperLink says")
    parser.add_argument("--error", help="why it failed")
    parser.add_argument("--verb-arguments", default="", help="goes into the commands to type next")
    parser.add_argument("--run-arguments", default="", help="goes into the command of another run")
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.purge is None):
        parser.error("give either a run's folder or --purge")
    if arguments.source is not None and not arguments.source.is_dir():
        parser.error(f"{arguments.source} is no folder: give the one that holds the run's journal.jsonl")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder, say the closing words; 1 if the inputs cannot be used, 3 if an assertion failed."""
    arguments = parse(argv)
    try:
        if arguments.purge is not None:
            for folder in purge(arguments.results, arguments.purge):
                print(folder)
            return 0
        summary, run, out, events = write_results(arguments)
    except (OSError, ValueError) as problem:
        print(f"results: {problem}", file=sys.stderr)
        return 1
    print(closing_words(summary, run, out, arguments.verb_arguments, arguments.run_arguments, events))
    return 0 if all(verdict["passed"] for verdict in summary["assertions"] or ()) else assertions.FAILED


if __name__ == "__main__":
    raise SystemExit(main())
