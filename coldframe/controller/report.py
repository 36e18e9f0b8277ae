"""Writes a run's report.html: one page that needs nothing but itself, to read, to print, and to attach.

Every figure of it stands in the other files of the results folder too; what is not known is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import jinja2
from markupsafe import Markup

from coldframe.controller import plots, records, submission, timeline
from coldframe.controller.records import Event, Run, duration, happened, natural

TEMPLATE = "report.html.j2"
ROUNDS = 25  # of more rounds the table shows some; rounds.csv has all
CLIENTS = 25  # of a crowd the table shows some; clients.csv has all
NOTHING = "\u2013"
TOGETHER = 2.0  # seconds: the same change of several clients within this time is one line
CAUSES = {cause: words for cause, (_, _, words) in timeline.MARKS.items()}
# Columns of the table of rounds: key of the event -> heading and format.
COLUMNS = {
    "round": ("Round", "d"),
    "accuracy": ("Accuracy", ".4f"),
    "loss": ("Loss", ".4f"),
    "client_accuracy": ("Accuracy, clients' mean", ".4f"),
    "client_loss": ("Loss, clients' mean", ".4f"),
    "train_loss": ("Loss in training", ".4f"),
    "seconds": ("Seconds", ".1f"),
    "clients": ("Clients", "d"),
    "failures": ("Failures", "d"),
    "late": ("Late", "d"),
    "folded": ("Folded in", "d"),
}


def write(
    path: Path,
    run: Run,
    summary: Mapping[str, Any],
    *,
    events: Sequence[Event] = (),
    inventory: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the report.

    Parameters
    ----------
    summary
        Content of `summary.json`.
    events
        The agents' events of the run's time.
    inventory
        Content of `inventory.json`.
    settings
        The run's variables as they were typed, for a run without a journal.
    record
        What SuperLink says of the run: app, times, traffic.
    """
    inventory, record = inventory or {}, record or {}
    environment = pages()
    environment.filters.update(text=text, size=size, when=when, named=records.named)
    clients = client_rows(run, events, inventory.get("clients", []))
    page = environment.get_template(TEMPLATE).render(
        title=summary["run_name"] or f"Run {summary['run_id']}",
        summary=summary,
        federation=inventory.get("federation"),
        headline=headline(run, summary, record),
        figures=figures(run, events, inventory, clients),
        columns=[COLUMNS[key][0] for key in columns(run)],
        rounds=round_rows(run),
        rounds_in_all=len(run.rounds),
        round_zero=0 in run.rounds,
        clients=notable(clients),
        clients_in_all=len(clients),
        spread=spread(clients),
        throttled=in_force_words(events),
        limits_known=bool(run.replies) or any("baseline" in item for item in inventory.get("clients", [])),
        failures=failure_rows(run.failures),
        changes=changes(events, run.first or 0.0),
        machines=inventory.get("machines", []),
        settings=configuration(run, settings or {}),
        versions=summary["versions"],
        app=record.get("app") or (settings or {}).get("app"),
    )
    path.write_text(page, encoding="utf-8")


def pages() -> jinja2.Environment:
    """Return what renders the templates beside this module."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def text(value: Any) -> str:
    """Write a value of a table: floats with four digits that count, nothing as a dash."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value)
    return str(value)


def size(value: float | None) -> str:
    """Write a number of bytes in units of 1024; a negative one is no limit."""
    if value is None:
        return NOTHING
    if value < 0:
        return "none"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def when(moment: str | None) -> str:
    """Write a moment of summary.json for people."""
    return (
        datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if moment
        else NOTHING
    )


def headline(run: Run, summary: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Give the figures that come first: what it is, the figure, a note; only those that are known."""
    found: list[tuple[str, str, str]] = []
    evaluated = [event for event in run.rounds.values() if event.get("accuracy") is not None]
    if summary["accuracy"] is not None:
        best = max(evaluated, key=lambda event: event["accuracy"])
        note = f"best {best['accuracy']:.4f} in round {best['round']}"
        found.append(("Accuracy", f"{summary['accuracy']:.4f}", note))
    if summary["loss"] is not None:
        found.append(("Loss", f"{summary['loss']:.4f}", "on the server's test set"))
    if summary["rounds"] is not None:
        planned = run.started.get("rounds")
        done = str(summary["rounds"]) if planned is None else f"{summary['rounds']} of {planned}"
        note = f"{len(run.failures)} failures" if run.failures else "no failures"
        note += f", {len(run.late)} late" if run.late else ""
        note += f" ({len(run.folded)} folded in)" if run.folded else ""
        note += "".join(f", resumed after round {event['round']}" for event in run.resumes)
        note += "".join(f", no checkpoint of round {event['round']}" for event in run.unwritten[:1])
        note += f" and {len(run.unwritten) - 1} more" if len(run.unwritten) > 1 else ""
        found.append(("Rounds", done, note))
        found.append(("Clients", str(summary["clients"]), client_words(summary)))
    if summary["wall_seconds"] is not None:
        seconds = summary["round_seconds"]
        note = f"median round {duration(median(seconds))}" if seconds else ""
        found.append(("Wall time", duration(summary["wall_seconds"]), note))
    traffic = (record.get("bytes_sent") or 0) + (record.get("bytes_received") or 0)
    if traffic:
        found.append(("Traffic", size(traffic), "sent and received by the server"))
    return found


def client_words(summary: Mapping[str, Any]) -> str:
    """Say how the data were divided, and how evenly the clients took part where they did not alike."""
    jain = summary["updates_jain"]
    words = [str(summary["partitioner"] or ""), "" if jain in (None, 1) else f"evenness {jain:.2f}"]
    return ", ".join(filter(None, words))


def figures(
    run: Run, events: Sequence[Event], inventory: Mapping[str, Any], clients: Sequence[Mapping[str, Any]]
) -> list[tuple[Markup, str, str]]:
    """Give each picture as an SVG element with its title and what one has to know to read it."""
    drawn: list[tuple[Any, str, str]] = []
    trained = {number: event for number, event in run.rounds.items() if number > 0}
    curves = plots.curves_of(run.rounds)
    if curves:
        note = "By round above, by time below; the clients' mean is weighted with their numbers of examples."
        heading = " and ".join(next(iter(found)) for found in curves).capitalize()
        drawn.append((plots.convergence(run.rounds, run.first or 0.0), heading, f"{note}{own_names(run)}"))
    if trained:
        note = (
            "What each round's time went into. The train and evaluate phases last until the last client has"
            " replied; configure and aggregate are the server's own."
        )
        drawn.append((plots.round_times(run.rounds), "Time by phase of the round", note))
    baselines = {item["name"]: item.get("cpu") for item in inventory.get("clients", [])}
    rows = timeline.lanes(run, events, baselines)
    if any(lane.spans or lane.marks or lane.failures for lane in rows):
        note = (
            "What each client did when, from message to reply, under which CPU limit (cores, as read from the"
            " kernel), and what happened to it. Thin lines are the ends of rounds."
        )
        if len(rows) > timeline.LANES:
            note = (
                f"Above, how many of the {len(rows)} clients were at work, from message to reply. Below,"
                f" {timeline.SHOWN} of them, the slowest and those to which most happened, under"
                " which CPU limit (cores, as read from the kernel). Thin lines are the ends of rounds."
            )
        drawn.append((timeline.draw(rows, run), "Clients over time", note))
    work = plots.work_of(run.replies, run.failures)
    if work and work.seconds:
        own = "each client trained in each round, by its own clock"
        waited = "each client took in each round, from message to reply"
        heading = "Training time by client" if work.label.startswith("Training") else "Time by client"
        note = f"The seconds that {waited if 'message' in work.label else own}."
        drawn.append((plots.clients(work), heading, note))
    others = plots.metrics_of(run.replies, covered(run))
    if others:
        note = (
            "Under the app's own names, in brackets the phase. Each line is the median over the clients, the"
            " band reaches from the lowest to the highest."
        )
        drawn.append((plots.metrics(others), "Metrics of the clients' replies", note))
    if run.started.get("histogram"):
        names = {int(item["partition_id"]): item["name"] for item in run.started["clients"]}
        note = "How many training examples of each class each client holds."
        drawn.append((plots.class_map(run.started["histogram"], names), "Classes by client", note))
    return [
        (Markup(plots.svg(figure, f"figure-{place}")), title, note)
        for place, (figure, title, note) in enumerate(drawn, start=1)
    ]


def own_names(run: Run) -> str:
    """Say what the app itself calls the figures."""
    keys: dict[str, str] = {}
    for event in run.rounds.values():
        keys |= event.get("keys") or {}
    words = [f"{COLUMNS[figure][0].lower()}: {name}" for figure, name in keys.items() if figure in COLUMNS]
    return f" The app's own names: {'; '.join(words)}." if words else ""


def covered(run: Run) -> set[str]:
    """Give the metrics that the curves of accuracy and loss are made of."""
    keys = {name for event in run.rounds.values() for name in (event.get("keys") or {}).values()}
    return {"accuracy", "loss", "train_loss", *keys}


def columns(run: Run) -> list[str]:
    """Give the columns of the table of rounds that have any value."""
    return [key for key in COLUMNS if any(event.get(key) is not None for event in run.rounds.values())]


def round_rows(run: Run) -> list[list[str]]:
    """Give the table of rounds, each cell written as its column wants it."""
    return [
        [NOTHING if event.get(key) is None else format(event[key], COLUMNS[key][1]) for key in columns(run)]
        for event in thinned([run.rounds[number] for number in sorted(run.rounds)])
    ]


def thinned(rows: list[Event]) -> list[Event]:
    """Leave out rows of a long table, evenly; the first and the last stay."""
    if len(rows) <= ROUNDS:
        return rows
    return [rows[round(place * (len(rows) - 1) / (ROUNDS - 1))] for place in range(ROUNDS)]


def client_rows(
    run: Run, events: Sequence[Event], inventory: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Give a row per client: where it is, what it may use, what it used, in the order of partition ids."""
    known = {item["name"]: dict(item) for item in inventory}
    for item in run.started.get("clients", []):
        known.setdefault(item["name"], {}).update(item)
    of_client: dict[str, list[Event]] = {name: [] for name in known}
    for reply in run.replies:
        of_client.setdefault(reply["client"], []).append(reply)
    failed = Counter(failure["client"] for failure in run.failures)
    kills: Counter[str] = Counter()
    for event in events:
        kills[event["client"]] += int(event.get("kills", 1)) if event["cause"] == "oom" else 0
    registered = {client["name"] for client in run.started.get("clients", [])}
    rows = []
    for name, item in known.items():
        # An app may have no phase of training.
        trained = [reply for reply in of_client[name] if reply["phase"] == "train"]
        replies = trained or of_client[name]
        if run.started and not replies and name not in registered:
            continue  # it came to the federation after the run
        seen = {
            key: [r["system"][key] for r in replies if r.get("system", {}).get(key) is not None]
            for key in ("cpu_limit", "memory_limit", "train_seconds", "samples_per_second")
        } | {
            key: [r["system"][key] for r in replies if r.get("system", {}).get(key, -1.0) >= 0]
            for key in ("throttled_share", "memory_peak")
        }
        memory = seen["memory_limit"][-1] if seen["memory_limit"] else item.get("memory")
        rows.append(
            {
                "name": name,
                "machine": item.get("machine"),
                "partition_id": item.get("partition_id"),
                "profile": item.get("profile"),
                "examples": replies[-1].get("examples") if replies else None,
                "cpu": cpu_text(seen["cpu_limit"] or held_cpus(name, item, events), item.get("cpu")),
                "memory": memory,
                "train_seconds": median(seen["train_seconds"]) if seen["train_seconds"] else None,
                "samples_per_second": median(seen["samples_per_second"])
                if seen["samples_per_second"]
                else None,
                "throttled": f"{mean(seen['throttled_share']):.0%}" if seen["throttled_share"] else None,
                "memory_peak": max(seen["memory_peak"], default=None),
                "traffic": sum((r.get("bytes_down") or 0) + (r.get("bytes_up") or 0) for r in replies)
                or None,
                "failures": failed[name],
                "oom_kills": kills[name],
            }
        )
    return sorted(
        rows, key=lambda row: (row["partition_id"] is None, row["partition_id"] or 0, natural(row["name"]))
    )


def notable(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows of a long table of clients: those that failed stay, and the slowest; in order."""
    if len(rows) <= timeline.LANES:
        return list(rows)

    def weight(place: int) -> tuple[int, float]:
        row = rows[place]
        return row["failures"] + row["oom_kills"], row["train_seconds"] or 0.0

    return [rows[place] for place in sorted(sorted(range(len(rows)), key=weight, reverse=True)[:CLIENTS])]


def spread(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Give the lowest, the middle and the highest figure of a crowd of clients, by column."""
    if len(rows) <= timeline.LANES:
        return []
    keys = ("examples", "train_seconds", "samples_per_second", "memory_peak", "traffic")
    values = {key: sorted(row[key] for row in rows if row[key] is not None) for key in keys}
    kinds = (("lowest", min), ("median", median), ("highest", max))
    return [(word, {key: pick(own) if own else None for key, own in values.items()}) for word, pick in kinds]


def held_cpus(name: str, item: Mapping[str, Any], events: Sequence[Event]) -> list[float]:
    """Give the CPU limits that the agents read: at the start, and after each change; -1 is none."""
    if item.get("cpu") is None or "baseline" not in item:
        return []
    mine = [event["verified"] for event in events if event["client"] == name and event.get("verified")]
    changed = [verified["cpu"] for verified in mine if "cpu" in verified]
    return [-1.0 if value is None else float(value) for value in [item["cpu"], *changed]]


def cpu_text(seen: Sequence[float], baseline: float | None) -> str | None:
    """Write a client's CPU limit in cores: as a range if it changed while the client trained."""
    values = sorted({value for value in seen if value > 0})
    if not values and (seen or baseline is None):
        return "none" if seen else None
    values = values or [float(baseline or 0.0)]
    return f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} to {values[-1]:.3g}"


def changes(events: Iterable[Event], begin: float) -> list[dict[str, Any]]:
    """Give the events as lines: the same change of several clients at one time is one line."""
    lines: list[dict[str, Any]] = []
    for event in sorted(events, key=happened):
        requested, cause = event.get("requested") or {}, str(event["cause"])
        what = ", ".join(f"{key} {limit_text(key, value)}" for key, value in sorted(requested.items()))
        what = f"{event['do']}: {what}" if event.get("do") else what
        after = happened(event) - begin
        problem = str(event.get("problem", ""))
        holds = event.get("holds")
        same = next(
            (
                line
                for line in reversed(lines)
                if (line["cause"], line["what"], line["holds"], line["problem"])
                == (CAUSES.get(cause, cause), what, holds, problem)
                and after - line["after"] <= TOGETHER
            ),
            None,
        )
        if same:
            if event["client"] not in same["clients"]:
                same["clients"].append(event["client"])
            continue
        lines.append(
            {
                "after": after,
                "clients": [event["client"]],
                "cause": CAUSES.get(cause, cause),
                "what": what,
                "holds": holds,
                "problem": problem,
            }
        )
    return lines


def failure_rows(failures: Iterable[Event]) -> list[dict[str, Any]]:
    """Give the failures as lines: several clients that failed alike in one round are one line."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for failure in failures:
        key = tuple(failure.get(name) for name in ("round", "phase", "reason"))
        line = lines.setdefault(key, dict(zip(("round", "phase", "reason"), key, strict=True), clients=[]))
        line["clients"].append(failure["client"])
    return list(lines.values())


def limit_text(key: str, value: Any) -> str:
    """Write a limit with its unit."""
    if value is None:
        return "none"
    if key == "memory":
        return size(float(value))
    if key in ("down", "up"):
        return f"{float(value) / 1e6:.3g} Mbit/s"
    if key in ("delay", "jitter"):
        return f"{float(value) * 1000:.3g} ms"
    return text(value) + (" cores" if key == "cpu" else " %" if key == "loss" else "")


def in_force_words(events: Iterable[Event]) -> list[str]:
    """Say which limits clients had when the run began, and which they were deployed with."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for event in events:
        if event["cause"] == submission.CAUSE:
            words = tuple(
                ", ".join(f"{key} {limit_text(key, value)}" for key, value in event[name].items())
                for name in ("verified", "baseline")
            )
            alike.setdefault(words, []).append(event["client"])
    return [
        f"{records.named(clients)} had {had} when the run began, and"
        f" {'were' if len(clients) > 1 else 'was'} deployed with {own}"
        for (had, own), clients in alike.items()
    ]


def configuration(run: Run, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give the run's configuration: what the run itself recorded, else what was typed for it."""
    known = run.started.get("config") or {
        **{key: settings[key] for key in ("app",) if settings.get(key)},
        **(settings.get("run_config") or {}),
    }
    return [(key, text(value)) for key, value in sorted(known.items())]
