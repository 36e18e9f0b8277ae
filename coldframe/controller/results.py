"""Turns a run's journal into its results folder: summary, tables, copies, pictures, report, closing words.

    python -m coldframe.controller.results DIR --results results       makes results/<time>-<run>/
    python -m coldframe.controller.results --purge NAME --results results

DIR holds what was fetched from the machines: `journal.jsonl` and, where the run got that far, `model.pt`
(`model.npz` of an app that is not ours), the containers' `logs/`, and in `written/` what the ServerApp has
written. A run whose ServerApp never started has no journal; then the folder holds what is known without one:
what the SuperLink says of the run (`--record`) and what the agents have recorded.
Whatever cannot be known is null in `summary.json` and empty in the tables, never a guess.
With `--purge` the results of one federation are removed, and their folders named.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from coldframe.controller import plots, report
from coldframe.controller.records import Event, Run, duration, gather, iso
from coldframe.journal import read_journal

STATUSES = ("completed", "failed", "stopped", "running")
PHASES = ("configure", "train", "aggregate", "evaluate", "server_evaluate")
SYSTEM_FIGURES = (
    "cpu_limit",
    "memory_limit",
    "threads",
    "train_seconds",
    "cpu_seconds",
    "throttled_share",
    "cpu_pressure",
    "samples_per_second",
    "memory_peak",
)
CUT_OFF = "the journal ends in the middle of the run: the server stopped before it could finish"


def outcome(run: Run, status: str | None, error: str | None) -> tuple[str, str | None]:
    """Decide how the run ended, from what the caller was told and what the journal says.

    The caller knows what SuperLink says, which the journal cannot know when the server died; but a
    failure that the journal records stays a failure.
    """
    recorded = run.finished.get("status")
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
    the runs that ran on the same clients at the same time.
    """
    status, error = outcome(run, status, error)
    trained = run.trained_rounds
    evaluated = [run.rounds[n] for n in sorted(run.rounds) if run.rounds[n].get("accuracy") is not None]
    final = evaluated[-1] if evaluated else {}
    started = run.started
    wall = run.last - run.first if run.first is not None and run.last is not None else None
    return {
        "run_id": str(started.get("run_id", run_id)),
        "run_name": started.get("run_name") or None,
        "status": status,
        "error": error,
        "rounds": len(trained) if started else None,
        "clients": len(started["clients"]) if started else None,
        "strategy": started.get("strategy"),
        "dataset": started.get("dataset"),
        "partitioner": started.get("partitioner"),
        "seed": started.get("seed"),
        "accuracy": final.get("accuracy"),
        "loss": final.get("loss"),
        "wall_seconds": wall,
        "round_seconds": [event["seconds"] for event in trained],
        "model_sha256": run.model_sha256,
        "oversubscribed": started.get("oversubscribed"),
        "concurrent_with": concurrent_with,
        "started": iso(run.first),
        "finished": None if status == "running" else iso(run.last),
        "versions": {**(versions or {}), **started.get("versions", {})},
        "failures": [
            {key: event.get(key) for key in ("round", "phase", "client", "code", "reason")}
            for event in run.failures
        ],
    }


def round_rows(run: Run) -> list[dict[str, Any]]:
    """Make the rows of `rounds.csv`: one per round, round 0 included; all times in seconds."""
    return [
        {
            "round": number,
            **{key: event.get(key) for key in ("accuracy", "loss", "client_accuracy", "client_loss")},
            "train_loss": event.get("train_loss"),
            "seconds": event.get("seconds"),
            **{f"{phase}_seconds": event.get("phases", {}).get(phase) for phase in PHASES},
            "clients": event.get("clients"),
            "failures": event.get("failures"),
        }
        for number, event in sorted(run.rounds.items())
    ]


def client_rows(run: Run) -> list[dict[str, Any]]:
    """Make the rows of `clients.csv`: one per client, round and phase, failures included.

    `seconds` is the time from sending the message to having its reply; the client's own figures keep
    their names, and each metric of the reply has a column `metric_<name>`.
    """
    metrics = sorted({name for reply in run.replies for name in reply.get("metrics", {})})
    rows = []
    for event in [*run.replies, *run.failures]:
        system = event.get("system", {})
        rows.append(
            {
                **{key: event.get(key) for key in ("round", "phase", "client", "partition_id", "node_id")},
                "status": "ok" if event["event"] == "reply" else "failed",
                **{key: event.get(key) for key in ("seconds", "examples", "bytes_down", "bytes_up")},
                **{key: system.get(key) for key in SYSTEM_FIGURES},
                **{f"metric_{name}": event.get("metrics", {}).get(name) for name in metrics},
                "code": event.get("code"),
                "reason": event.get("reason"),
            }
        )
    order = {"train": 0, "evaluate": 1}
    nowhere = -1  # messages of no round come first, clients without a partition last
    return sorted(
        rows,
        key=lambda row: (
            nowhere if row["round"] is None else row["round"],
            order.get(row["phase"], 2),
            row["partition_id"] is None,
            row["partition_id"] or 0,
            row["client"],
        ),
    )


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys as CSV; no rows make an empty file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read and compare."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def copy(source: Path | None, target: Path) -> None:
    """Copy a file into the folder, unless there is none or it lies there already."""
    if source is not None and source.exists() and source.resolve() != target.resolve():
        shutil.copyfile(source, target)


def copy_files(source: Path, out: Path) -> None:
    """Copy what the ServerApp has written, and the list of it where something had to be left out."""
    if (source / "written").exists():
        shutil.copytree(source / "written", out / "files" / "server", dirs_exist_ok=True)
    manifest = source / "written.json"
    if manifest.exists() and read_json(manifest)["left_out"]:
        (out / "files").mkdir(exist_ok=True)
        copy(manifest, out / "files" / "server.json")


def file_lines(out: Path) -> list[str]:
    """Say what the ServerApp has written, and what of it had to be left out."""
    found = [path for path in (out / "files" / "server").rglob("*") if path.is_file()]
    lines = [f"  files       {len(found)} of the ServerApp, in {out}/files/server/"] if found else []
    if (out / "files" / "server.json").exists():
        left_out = read_json(out / "files" / "server.json")["left_out"]
        lines += [f"  left out    {name}: {reason}" for name, reason in list(left_out.items())[:5]]
    return lines


def folder_name(summary: dict[str, Any]) -> str:
    """Name a run's folder by its start in UTC and its name, so that folders sort by time.

    A run is always given the same folder: to fetch it again makes no second one.
    """
    started = summary["started"]
    moment = datetime.fromisoformat(started) if started else datetime.now(UTC)
    name = re.sub(r"[^\w.-]+", "-", summary["run_name"] or summary["run_id"])
    return f"{moment:%Y%m%d-%H%M%S}-{name}"


def check_latest(results: Path) -> Path:
    """Give the path of the link `latest`, if it is free to be one."""
    link = results / "latest"
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is no symbolic link: move it away, then collect the run again")
    return link


def point_latest(results: Path) -> None:
    """Let `latest` point to the run that started last; without any run there is no link.

    The link is replaced in one step, so that a reader never finds it missing.
    """
    link = check_latest(results)
    runs = [
        (str(json.loads(path.read_text(encoding="utf-8")).get("started") or ""), path.parent.name)
        for path in results.glob("*/summary.json")
        if not path.parent.is_symlink()
    ]
    if not runs:
        link.unlink(missing_ok=True)
        return
    fresh = results / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(max(runs)[1])
    fresh.replace(link)


def purge(results: Path, federation: str) -> list[Path]:
    """Remove the results of one federation; a folder whose inventory names another, or none, stays."""
    removed = []
    for inventory in sorted(results.glob("*/inventory.json")):
        folder = inventory.parent
        if folder.is_symlink() or not (folder / "summary.json").exists():
            continue
        if json.loads(inventory.read_text(encoding="utf-8")).get("federation") == federation:
            shutil.rmtree(folder)
            removed.append(folder)
    if removed:
        point_latest(results)
    return removed


def ansible_playbook() -> str:
    """Name the command that the user can type: the one on PATH, or else that of our own environment."""
    if shutil.which("ansible-playbook"):
        return "ansible-playbook"
    own, linked = Path(sys.executable).with_name("ansible-playbook"), Path(".venv/bin/ansible-playbook")
    return str(linked if linked.exists() and linked.samefile(own) else own)


def closing_words(summary: dict[str, Any], run: Run, out: Path, arguments: str = "") -> str:
    """Say how the run went, where its results are and what to type next.

    Parameters
    ----------
    arguments
        What the user gave every verb besides its variables, such as `-i inventory/lab.yml`.
    """
    name = f" ({summary['run_name']})" if summary["run_name"] else ""
    lines = [f"Run {summary['run_id']}{name}: {summary['status']}"]
    if summary["error"]:
        lines.append(f"  because     {summary['error']}")
    if summary["rounds"] is not None:
        planned = run.started.get("rounds")
        of = "" if planned is None else f" of {planned}"
        lines.append(f"  rounds      {summary['rounds']}{of}, {summary['clients']} clients")
    if summary["dataset"] is not None:
        lines.append(
            f"  training    {summary['strategy']} on {summary['dataset']}, "
            f"partitioner {summary['partitioner']}, seed {summary['seed']}"
        )
    elif summary["strategy"] is not None:
        lines.append(f"  training    {summary['strategy']}")
    if summary["accuracy"] is not None:
        lines.append(f"  accuracy    {summary['accuracy']:.4f}")
    if summary["loss"] is not None:
        lines.append(f"  loss        {summary['loss']:.4f}")
    if summary["wall_seconds"] is not None:
        lines.append(f"  wall time   {duration(summary['wall_seconds'])}")
    if summary["oversubscribed"]:
        lines.append(
            "  note        the clients' cpu limits exceed a machine's cores: times are the machine's"
        )
    if summary["concurrent_with"]:
        lines.append(
            f"  note        trained beside run {', '.join(summary['concurrent_with'])}: times are shared"
        )
    lines += failure_lines(summary["failures"])
    lines += file_lines(out)
    lines.append(f"  results     {out}/")
    lines += ["", "What to type next:"]
    rounds = 2 * int(run.started.get("rounds") or 5)
    verb = f"{ansible_playbook()} {{}} {arguments}".rstrip()
    following = [
        (verb.format("run.yml") + f" -e rounds={rounds}", "another run on the standing federation"),
        (verb.format("throttle.yml") + " -e cpu=0.5", "change the clients' limits while they train"),
        (verb.format("status.yml"), "machines, clients, limits, runs"),
        (verb.format("teardown.yml") if arguments else "make down", "take the federation down"),
    ]
    width = max(len(command) for command, _ in following)
    lines += [f"  {command:<{width}}   {purpose}" for command, purpose in following]
    return "\n".join(lines)


def failure_lines(failures: Sequence[dict[str, Any]]) -> list[str]:
    """Say for each client in which rounds it failed, and why the last time."""
    by_client: dict[str, list[dict[str, Any]]] = {}
    for failure in failures:
        by_client.setdefault(str(failure["client"]), []).append(failure)
    lines = []
    for index, (client, found) in enumerate(sorted(by_client.items())):
        head = "failures" if index == 0 else ""
        where = ", ".join(
            item["phase"] + ("" if item["round"] is None else f" of round {item['round']}") for item in found
        )
        lines.append(f"  {head:<11} {client}: {where} ({found[-1]['reason']})")
    return lines


def write_events(source: Path, run: Run, target: Path) -> list[Event]:
    """Keep the changes of limits that fall into the run's time, and give them."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    first, last = run.first or 0.0, run.last or float("inf")
    kept = [line for line in lines if first <= json.loads(line)["time"] <= last]
    target.write_text("".join(kept), encoding="utf-8")
    return [json.loads(line) for line in kept]


def read_json(path: Path | None) -> dict[str, Any]:
    """Read what the caller has given, if it has."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path else {}


def write_results(arguments: argparse.Namespace) -> tuple[dict[str, Any], Run, Path]:
    """Write the whole results folder, and move `latest` last."""
    source: Path = arguments.source
    run = gather(read_journal(source / "journal.jsonl"))
    versions, record = read_json(arguments.versions), read_json(arguments.record)
    if run.first is None and record.get("started"):
        run.first = datetime.fromisoformat(record["started"]).timestamp()
        run.last = datetime.fromisoformat(record["finished"]).timestamp() if record.get("finished") else None
    summary = summarise(
        run,
        run_id=arguments.run_id or source.resolve().name,
        status=arguments.status,
        error=arguments.error,
        versions=versions,
        concurrent_with=record.get("concurrent_with"),
    )
    check_latest(arguments.results)
    out: Path = arguments.results / folder_name(summary)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "summary.json", summary)
    write_json(out / "versions.json", summary["versions"])
    write_table(out / "rounds.csv", round_rows(run))
    write_table(out / "clients.csv", client_rows(run))
    copy(source / "journal.jsonl", out / "journal.jsonl")
    for name in ("model.pt", "model.npz"):
        copy(source / name, out / name)
    copy(arguments.inventory, out / "inventory.json")
    copy(arguments.record, out / "superlink.json")
    copy_files(source, out)
    if (source / "logs").exists():
        shutil.copytree(source / "logs", out / "logs", dirs_exist_ok=True)
    events: list[Event] = []
    if arguments.events and arguments.events.exists():
        events = write_events(arguments.events, run, out / "events.jsonl")
    if arguments.config:
        copy(arguments.config, out / "config.yml")
    elif run.started:
        # A line `key: <JSON value>` is YAML too, and needs no library.
        config = sorted(run.started.get("config", {}).items())
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in config)
        (out / "config.yml").write_text(text, encoding="utf-8")
    if run.rounds:
        plots.save(plots.rounds(run.rounds), out / "rounds.png")
    if run.replies:
        plots.save(plots.clients(run.replies, run.failures), out / "clients.png")
    if run.started.get("histogram"):
        names = {int(client["partition_id"]): client["name"] for client in run.started["clients"]}
        plots.save(plots.partitions(run.started["histogram"], names), out / "partitions.png")
    settings = (out / "config.yml").read_text(encoding="utf-8") if (out / "config.yml").exists() else ""
    report.write(
        out / "report.html",
        run,
        summary,
        events=events,
        inventory=read_json(arguments.inventory),
        settings=yaml.safe_load(settings),
        record=record,
    )
    point_latest(arguments.results)
    return summary, run, out


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
    parser.add_argument("--config", type=Path, help="YAML file: the run's variables")
    parser.add_argument("--versions", type=Path, help="JSON file: versions that the journal does not know")
    parser.add_argument("--events", type=Path, help="events.jsonl: changes of limits during the run")
    parser.add_argument("--status", choices=STATUSES, help="how the run ended, as SuperLink says")
    parser.add_argument("--error", help="why it failed")
    parser.add_argument("--verb-arguments", default="", help="goes into the commands to type next")
    arguments = parser.parse_args(argv)
    if (arguments.source is None) == (arguments.purge is None):
        parser.error("give either a run's folder or --purge")
    if arguments.source is not None and not arguments.source.is_dir():
        parser.error(f"{arguments.source} is no folder: give the one that holds the run's journal.jsonl")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder, say the closing words; 1 if the inputs cannot be used."""
    arguments = parse(argv)
    try:
        if arguments.purge is not None:
            for folder in purge(arguments.results, arguments.purge):
                print(folder)
            return 0
        summary, run, out = write_results(arguments)
    except (OSError, ValueError) as problem:
        print(f"results: {problem}", file=sys.stderr)
        return 1
    print(closing_words(summary, run, out, arguments.verb_arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
