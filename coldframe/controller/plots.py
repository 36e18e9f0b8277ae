"""Draws a run's pictures: accuracy, loss and time per round, time per client, classes per client."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, StrMethodFormatter

from coldframe.controller.records import natural

# Okabe and Ito's colours: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
)
GREY = "#8C8C8C"
PHASE_COLOURS = {
    "configure": GREY,
    "train": BLUE,
    "aggregate": PURPLE,
    "evaluate": SKY,
    "server_evaluate": ORANGE,
}
# The curves of a picture: key of the journal's `round` event -> label; the first one names it.
CURVES = (
    {"accuracy": "server's test set", "client_accuracy": "clients' mean"},
    {"loss": "server's test set", "client_loss": "clients' mean", "train_loss": "in training"},
)
OTHER_PHASES = (GREEN, YELLOW, RED, "#000000")  # phases that an app has made up, in order of appearance
LINES = 8  # more clients than this are a heat map: nobody follows nine lines
NAMED = 50  # with more clients than this only every nth row has its name, and the rows share one page
PAGE = 8.6  # inches: the height of the rows on one page
MOST_METRICS = 9  # of the replies: more pictures than this do not fit on a page
TICKED = 12  # with so many rounds each has its tick
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "text.parse_math": False,  # names of people's own may have dollars
    # Text stays text in SVG: it can be searched, and takes the page's typeface.
    "svg.fonttype": "none",
}
UNTIMED = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # what matplotlib would write into an SVG
SERVER = ("accuracy", "loss")  # both missing: the server did not evaluate in that round, and no gap is drawn
MINUTES = 600.0  # from so many seconds on a time axis counts minutes


def number(value: Any) -> float:
    """Give a figure that may be missing; NaN leaves a gap in a line."""
    return float("nan") if value is None else float(value)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the kind of file that the path names."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path)


def svg(figure: Figure, name: str) -> str:
    """Give a figure as an SVG element for a page; `name` keeps its ids apart from other figures'."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=UNTIMED)
    text = file.getvalue()
    return re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{name}-", text[text.index("<svg") :])


def curves_of(events: Mapping[int, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Give the curves of accuracy, and those of loss, that have any value after a round of training."""
    return [
        curves
        for curves in CURVES
        if any(event.get(key) is not None for n, event in events.items() if n > 0 for key in curves)
    ]


def title_of(curves: Mapping[str, str], events: Mapping[int, Mapping[str, Any]]) -> str:
    """Give the heading; what the untrained model reached stands in words: as a point it would press all
    others together."""
    key = next(iter(curves))
    untrained = events.get(0, {}).get(key)
    return key.capitalize() + (f" (untrained: {untrained:.3g})" if untrained is not None else "")


def rounds(events: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Draw accuracy, loss and seconds by phase over the rounds.

    Parameters
    ----------
    events
        Round number -> the journal's `round` event.
    """
    trained = {n: events[n] for n in sorted(events) if n > 0}
    found = curves_of(events)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        *grid, right = figure.subplots(1, len(found) + 1, squeeze=False)[0]
        for axes, curves in zip(grid, found, strict=True):
            draw_curves(axes, trained, curves)
            axes.set(title=title_of(curves, events))
        draw_phases(right, trained)
        for axes in (*grid, right):
            count_rounds(axes, list(trained))
    return figure


def convergence(events: Mapping[int, Mapping[str, Any]], begin: float) -> Figure:
    """Draw accuracy and loss over the rounds, and below over the time since `begin` (unix seconds)."""
    trained = {n: events[n] for n in sorted(events) if n > 0}
    moments = [float(event["time"]) - begin for event in trained.values()]
    found = curves_of(events)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.2), layout="constrained")
        grid = figure.subplots(2, len(found), sharey="col", squeeze=False)
        for column, curves in enumerate(found):
            draw_curves(grid[0][column], trained, curves)
            draw_curves(grid[1][column], trained, curves, at=moments)
            grid[0][column].set(title=title_of(curves, events))
            count_rounds(grid[0][column], list(trained))
            count_time(grid[1][column], moments[-1] if moments else 0.0)
            for axes in grid[:, column]:
                axes.set(ylabel=next(iter(curves)).capitalize())
    return figure


def round_times(events: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Draw each round's seconds by phase."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.7), layout="constrained")
        axes = figure.subplots()
        trained = {n: events[n] for n in sorted(events) if n > 0}
        draw_phases(axes, trained)
        axes.set(title="", ylabel="Seconds")
        count_rounds(axes, list(trained))
    return figure


def count_rounds(axes: Axes, numbers: Sequence[int]) -> None:
    """Make the horizontal axis count rounds: whole ones, with room beside the first and the last."""
    axes.set(xlabel="Round")
    if numbers:
        # One round alone would be drawn as a bar as wide as the plot.
        room = 1.5 if len(numbers) < 3 else max(0.6, 0.02 * (numbers[-1] - numbers[0]))
        axes.set_xlim(numbers[0] - room, numbers[-1] + room)
    if len(numbers) <= TICKED:
        axes.xaxis.set_major_locator(FixedLocator(list(numbers)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def name_rows(axes: Axes, names: Sequence[str], middle: float = 0.0, **style: Any) -> None:
    """Write the names beside the rows, where there are too many every nth; `middle` is that of the first."""
    step = -(-len(names) // NAMED) if names else 1
    places = [place + middle for place in range(0, len(names), step)]
    axes.set_yticks(places, list(names[::step]), **style)


def row_height(rows: int, usual: float) -> float:
    """Give the height of a row in inches: the usual one, less where they would not fit on a page."""
    return min(usual, PAGE / max(1, rows))


def count_time(axes: Axes, end: float) -> None:
    """Make the horizontal axis, whose values are seconds, count seconds or minutes."""
    minutes = end >= MINUTES
    axes.set(xlabel="Minutes since the run's start" if minutes else "Seconds since the run's start")
    axes.set_xlim(0, max(1.03 * end, 1e-3))
    if minutes:
        axes.xaxis.set_major_locator(MultipleLocator(60 * max(1, round(end / 480))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:g}"))


def draw_curves(
    axes: Axes,
    events: Mapping[int, Mapping[str, Any]],
    curves: Mapping[str, str],
    at: Sequence[float] | None = None,
) -> None:
    """Draw those of the curves (key of the event -> label) that have any value, over the rounds or `at`."""
    markers = len(events) <= 20
    for (key, label), colour, dash, marker in zip(
        curves.items(), (BLUE, ORANGE, GREEN), ("-", "--", ":"), ("o", "s", "^"), strict=False
    ):
        points = [
            (place, number(event.get(key)))
            for place, event in zip(list(events) if at is None else at, events.values(), strict=True)
            if key not in SERVER or any(event.get(name) is not None for name in SERVER)
        ]
        if not all(math.isnan(value) for _, value in points):
            axes.plot(*zip(*points, strict=True), dash + marker * markers, color=colour, label=label)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axes.margins(y=0.12)
    if axes.lines:
        axes.legend()


def draw_phases(axes: Axes, events: Mapping[int, Mapping[str, Any]]) -> None:
    """Stack each round's seconds by phase; what no phase accounts for is drawn as `other`."""
    base = [0.0] * len(events)
    own = dict.fromkeys(phase for event in events.values() for phase in event.get("phases", {}))
    made_up = zip((phase for phase in own if phase not in PHASE_COLOURS), OTHER_PHASES, strict=False)
    for phase, colour in [*PHASE_COLOURS.items(), *made_up]:
        height = [number(event.get("phases", {}).get(phase, 0.0)) for event in events.values()]
        if any(height):
            axes.bar(list(events), height, 0.7, base, color=colour, label=phase.replace("_", " "))
            base = [low + high for low, high in zip(base, height, strict=True)]
    other = [
        max(0.0, number(event.get("seconds")) - low) for event, low in zip(events.values(), base, strict=True)
    ]
    if any(seconds > 0.05 for seconds in other):
        axes.bar(list(events), other, 0.7, base, color="#DDDDDD", label="other")
    axes.set(title="Seconds per round", ylim=(0, None))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)


@dataclass(frozen=True)
class Work:
    """How long each client worked in each round.

    Attributes
    ----------
    names
        Clients in the order of partition ids.
    seconds
        Client and round -> seconds; several messages of one round and phase add up.
    failed
        Client and round of the messages that failed.
    label
        What the seconds are.
    """

    names: list[str]
    rounds: list[int]
    seconds: dict[tuple[str, int], float]
    failed: set[tuple[str, int]]
    label: str


def work_of(replies: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> Work | None:
    """Give the clients' work by round, or nothing where no message belongs to a round.

    It is training; of an app that does not train, the phase that most of its messages have.
    """
    events = [event for event in [*replies, *failures] if event.get("round") is not None]
    phases = Counter(event["phase"] for event in events)
    if not phases:
        return None
    phase = "train" if "train" in phases else max(phases, key=phases.__getitem__)
    done = [reply for reply in replies if reply["phase"] == phase and reply["round"] is not None]
    own_clock = any(reply.get("system", {}).get("train_seconds") is not None for reply in done)
    seconds: dict[tuple[str, int], float] = {}
    for reply in done:
        value = reply.get("system", {}).get("train_seconds") if own_clock else reply.get("seconds")
        key = (reply["client"], int(reply["round"]))
        seconds[key] = number(value) + seconds.get(key, 0.0)
    failed = {
        (failure["client"], int(failure["round"]))
        for failure in failures
        if failure["phase"] == phase and failure["round"] is not None
    }
    what = "Training time" if phase == "train" else f"Time of {phase}"
    label = f"{what} (s)" if own_clock else f"{what}, message to reply (s)"
    rounds_seen = sorted({n for _, n in [*seconds, *failed]})
    return Work(in_order([*replies, *failures]), rounds_seen, seconds, failed, label)


def in_order(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Give the clients of replies and failures in the order of partition ids; those without one come last."""
    partition = {event["client"]: event.get("partition_id") for event in events}
    return sorted(partition, key=lambda name: (partition[name] is None, partition[name] or 0, natural(name)))


def clients(work: Work) -> Figure:
    """Draw each client's seconds over the rounds; a cross marks a failure."""
    with matplotlib.rc_context(STYLE):
        if len(work.names) <= LINES:
            figure = Figure(figsize=(9.6, 3.2), layout="constrained")
            draw_client_lines(figure.subplots(), work)
        else:
            height = row_height(len(work.names), 0.17) * len(work.names)
            figure = Figure(figsize=(9.6, 1.4 + height), layout="constrained")
            draw_client_map(figure, work)
    return figure


def draw_client_lines(axes: Axes, work: Work) -> None:
    """Draw a line per client, and its failures as crosses on the floor of the plot."""
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, "#000000", GREY)
    for name, colour in zip(work.names, colours, strict=False):
        values = [work.seconds.get((name, n), float("nan")) for n in work.rounds]
        axes.plot(work.rounds, values, "o-", color=colour, label=name)
        crosses = [n for n in work.rounds if (name, n) in work.failed]
        axes.plot(crosses, [0.0] * len(crosses), "x", color=colour, markersize=8, mew=2, clip_on=False)
    if work.failed:
        axes.plot([], [], "x", color="black", markersize=8, mew=2, label="failed")
    most = max((value for value in work.seconds.values() if not math.isnan(value)), default=1.0)
    axes.set(ylabel=work.label, ylim=(0, 1.12 * (most or 1.0)))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    count_rounds(axes, work.rounds)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_client_map(figure: Figure, work: Work) -> None:
    """Draw a row per client and a column per round; empty cells had no part in the round."""
    axes = figure.subplots()
    numbers = work.rounds
    cells = [[work.seconds.get((name, n), float("nan")) for n in numbers] for name in work.names]
    image = axes.imshow(cells, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label=work.label)
    rows = {name: place for place, name in enumerate(work.names)}
    columns = {n: place for place, n in enumerate(numbers)}
    crosses = sorted((columns[n], rows[name]) for name, n in work.failed)
    if crosses:
        size = 6 if len(work.names) <= NAMED else 3
        axes.plot(*zip(*crosses, strict=True), "x", color=RED, mew=size / 4, markersize=size, label="failed")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0))
    name_rows(axes, work.names, fontsize=7)
    step = -(-len(numbers) // TICKED)
    axes.set_xticks(range(0, len(numbers), step), [str(n) for n in numbers[::step]])
    axes.set(xlabel="Round")


@dataclass(frozen=True)
class Metric:
    """A metric of the clients' replies over the rounds, by the app's own name."""

    name: str
    phase: str
    values: dict[int, list[float]]  # round -> one value per reply


def metrics_of(replies: Sequence[Mapping[str, Any]], known: Collection[str]) -> list[Metric]:
    """Give the metrics of the replies, except those known; a list is no curve, and is left to clients.csv."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for reply in replies:
        for name, value in (reply.get("metrics") or {}).items():
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            if plain and name not in known and reply["round"] is not None:
                of_round = found.setdefault((name, reply["phase"]), {}).setdefault(int(reply["round"]), [])
                of_round.append(float(value))
    return [Metric(name, phase, values) for (name, phase), values in found.items()][:MOST_METRICS]


def metrics(found: Sequence[Metric]) -> Figure:
    """Draw each metric's median over the clients by round, and the band in which they all lie."""
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.3 + 2.2 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)
        for axes, metric in zip(grid.flat, found, strict=False):
            numbers = sorted(metric.values)
            rows = [sorted(metric.values[n]) for n in numbers]
            low, high = [row[0] for row in rows], [row[-1] for row in rows]
            axes.fill_between(numbers, low, high, color=BLUE, alpha=0.18, linewidth=0)
            marker = "o" if len(numbers) <= 20 else ""
            axes.plot(numbers, [median(row) for row in rows], f"-{marker}", color=BLUE)
            if len(numbers) == 1:  # a band of one round has no width
                axes.vlines(numbers, low, high, color=BLUE, alpha=0.3, linewidth=6)
            axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
            axes.margins(y=0.12)
            axes.set(title=f"{metric.name} ({metric.phase})")
            count_rounds(axes, numbers)
    return figure


def partitions(histogram: Mapping[str, Sequence[int]], names: Mapping[int, str]) -> Figure:
    """Draw how many examples of each class each client holds.

    Parameters
    ----------
    histogram
        Partition id (as text) -> examples per class.
    names
        Partition id -> client name.
    """
    ids = sorted(int(key) for key in histogram)
    labels = [names.get(key, f"partition {key}") for key in ids]
    with matplotlib.rc_context(STYLE):
        height = row_height(len(ids), 0.24) * len(ids)
        figure = Figure(figsize=(6.4, 1.2 + height), layout="constrained")
        axes = figure.subplots()
        classes = draw_partitions(axes, [histogram[str(key)] for key in ids], labels)
        if classes <= 20:
            axes.legend(title="Class", loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=1 + (len(ids) < 8))
    return figure


def class_map(histogram: Mapping[str, Sequence[int]], names: Mapping[int, str]) -> Figure:
    """Draw a row per client and a column per class, dark where there are many examples, with the counts.

    Parameters
    ----------
    histogram, names
        As for `partitions`; a partition without a name has no client, and is left out.
    """
    ids = [key for key in sorted(int(key) for key in histogram) if key in names]
    counts = [list(histogram[str(key)]) for key in ids]
    most = max((max(row) for row in counts), default=1) or 1
    with matplotlib.rc_context(STYLE):
        crowded = len(ids) > NAMED
        height = row_height(len(ids), 0.24) * len(ids)
        figure = Figure(figsize=(9.6, 0.9 + height), layout="constrained")
        axes = figure.subplots()
        edges = [[place - 0.5 for place in range(n + 1)] for n in (len(counts[0]) if counts else 0, len(ids))]
        edge, line = ("none", 0.0) if crowded else ("white", 0.5)
        image = axes.pcolormesh(
            *edges, counts, cmap="Blues", vmin=0, vmax=most, edgecolors=edge, linewidth=line
        )
        if crowded:
            figure.colorbar(image, ax=axes, label="Training examples")
        for place, row in enumerate([] if crowded else counts):
            for column, count in enumerate(row if len(row) <= 20 else ()):
                colour = "white" if count > 0.6 * most else "black"
                axes.text(column, place, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
            note = f"{sum(row):,} in all"
            axes.text(len(row) - 0.4, place, note, ha="left", va="center", fontsize=8, clip_on=False)
        name_rows(axes, [names[key] for key in ids], fontsize=7 if crowded else 9)
        axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="Class", ylim=(len(ids) - 0.5, -0.5))
    return figure


def draw_partitions(axes: Axes, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> int:
    """Stack the classes of each partition; give the number of classes.

    Parameters
    ----------
    counts
        Examples of each class, shape (partitions, classes).
    labels
        What stands beside each bar.
    """
    classes = max(len(row) for row in counts)
    palette = matplotlib.colormaps["tab10" if classes <= 10 else "tab20" if classes <= 20 else "turbo"]
    base = [0] * len(counts)
    for number in range(classes):
        width = [row[number] for row in counts]
        colour = palette(number if classes <= 20 else number / (classes - 1))
        axes.barh(
            range(len(counts)),
            width,
            0.75,
            base,
            color=colour,
            label=str(number),
            edgecolor="white",
            linewidth=0.3 if len(counts) <= NAMED else 0.0,
        )
        base = [low + high for low, high in zip(base, width, strict=True)]
    name_rows(axes, labels)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="Training examples", ylim=(len(counts) - 0.5, -0.5))
    axes.margins(x=0.01)
    return classes
