"""Draws a run's pictures: accuracy, loss and time per round, time per client, classes per client."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, StrMethodFormatter

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
LINES = 8  # more clients than this are a heat map: nobody follows nine lines
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


def rounds(events: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Draw accuracy, loss and seconds by phase over the rounds.

    What the untrained model reached stands in words: as a point it would press all others together.

    Parameters
    ----------
    events
        Round number -> the journal's `round` event.
    """
    trained = {n: events[n] for n in sorted(events) if n > 0}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        draw_curves(
            left,
            trained,
            {"accuracy": "server's test set", "client_accuracy": "clients' mean"},
        )
        draw_curves(
            middle,
            trained,
            {"loss": "server's test set", "client_loss": "clients' mean", "train_loss": "in training"},
        )
        draw_phases(right, trained)
        for axes, key in ((left, "accuracy"), (middle, "loss")):
            untrained = events.get(0, {}).get(key)
            title = f"{key.capitalize()}" + (
                f" (untrained: {untrained:.3g})" if untrained is not None else ""
            )
            axes.set(title=title)
        for axes in (left, middle, right):
            count_rounds(axes)
    return figure


def convergence(events: Mapping[int, Mapping[str, Any]], begin: float) -> Figure:
    """Draw accuracy and loss over the rounds, and below over the time since `begin` (unix seconds)."""
    trained = {n: events[n] for n in sorted(events) if n > 0}
    moments = [float(event["time"]) - begin for event in trained.values()]
    curves = (
        {"accuracy": "server's test set", "client_accuracy": "clients' mean"},
        {"loss": "server's test set", "client_loss": "clients' mean", "train_loss": "in training"},
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.2), layout="constrained")
        grid = figure.subplots(2, 2, sharey="col")
        for column, found in enumerate(curves):
            key = next(iter(found))
            untrained = events.get(0, {}).get(key)
            note = f" (untrained: {untrained:.3g})" if untrained is not None else ""
            draw_curves(grid[0][column], trained, found)
            draw_curves(grid[1][column], trained, found, at=moments)
            grid[0][column].set(title=f"{key.capitalize()}{note}")
            count_rounds(grid[0][column])
            count_time(grid[1][column], moments[-1] if moments else 0.0)
            for axes in grid[:, column]:
                axes.set(ylabel=key.capitalize())
    return figure


def round_times(events: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Draw each round's seconds by phase."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.7), layout="constrained")
        axes = figure.subplots()
        draw_phases(axes, {n: events[n] for n in sorted(events) if n > 0})
        axes.set(title="", ylabel="Seconds")
        count_rounds(axes)
    return figure


def count_rounds(axes: Axes) -> None:
    """Make the horizontal axis count rounds."""
    axes.set(xlabel="Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def count_time(axes: Axes, end: float) -> None:
    """Make the horizontal axis, whose values are seconds, count seconds or minutes."""
    minutes = end >= MINUTES
    axes.set(xlabel="Minutes since the run's start" if minutes else "Seconds since the run's start")
    axes.set_xlim(left=0)
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
    if axes.lines:
        axes.legend()


def draw_phases(axes: Axes, events: Mapping[int, Mapping[str, Any]]) -> None:
    """Stack each round's seconds by phase; what no phase accounts for is drawn as `other`."""
    base = [0.0] * len(events)
    for phase, colour in PHASE_COLOURS.items():
        height = [number(event.get("phases", {}).get(phase, 0.0)) for event in events.values()]
        if any(height):
            axes.bar(list(events), height, 0.7, base, color=colour, label=phase.replace("_", " "))
            base = [low + high for low, high in zip(base, height, strict=True)]
    other = [
        max(0.0, number(event["seconds"]) - low) for event, low in zip(events.values(), base, strict=True)
    ]
    if any(seconds > 0.05 for seconds in other):
        axes.bar(list(events), other, 0.7, base, color="#DDDDDD", label="other")
    axes.set(title="Seconds per round", ylim=(0, None))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)


def clients(replies: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each client's training seconds over the rounds; a cross marks a failure."""
    trained = [reply for reply in replies if reply["phase"] == "train" and reply["round"] is not None]
    own_clock = any(reply.get("system", {}).get("train_seconds") is not None for reply in trained)
    seconds = {
        (reply["client"], int(reply["round"])): number(
            reply.get("system", {}).get("train_seconds") if own_clock else reply.get("seconds")
        )
        for reply in trained
    }
    failed = {
        (failure["client"], int(failure["round"]))
        for failure in failures
        if failure["phase"] == "train" and failure["round"] is not None
    }
    partition = {event["client"]: event["partition_id"] for event in [*replies, *failures]}
    names = sorted(partition, key=lambda name: (partition[name] is None, partition[name] or 0, name))
    numbers = sorted({n for _, n in [*seconds, *failed]})
    label = "Training time (s)" if own_clock else "Time from message to reply (s)"
    with matplotlib.rc_context(STYLE):
        if len(names) <= LINES:
            figure = Figure(figsize=(9.6, 3.2), layout="constrained")
            draw_client_lines(figure.subplots(), names, numbers, seconds, failed, label=label)
        else:
            figure = Figure(figsize=(9.6, 1.4 + 0.17 * len(names)), layout="constrained")
            draw_client_map(figure, names, numbers, seconds, failed, label=label)
    return figure


def draw_client_lines(
    axes: Axes,
    names: Sequence[str],
    numbers: Sequence[int],
    seconds: Mapping[tuple[str, int], float],
    failed: set[tuple[str, int]],
    *,
    label: str,
) -> None:
    """Draw a line per client, and its failures as crosses on the floor of the plot."""
    colours = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, "#000000", GREY)
    for name, colour in zip(names, colours, strict=False):
        values = [seconds.get((name, n), float("nan")) for n in numbers]
        axes.plot(numbers, values, "o-", color=colour, label=name)
        crosses = [n for n in numbers if (name, n) in failed]
        axes.plot(crosses, [0.0] * len(crosses), "x", color=colour, markersize=8, mew=2, clip_on=False)
    if failed:
        axes.plot([], [], "x", color="black", markersize=8, mew=2, label="failed")
    axes.set(xlabel="Round", ylabel=label, ylim=(0, None))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_client_map(
    figure: Figure,
    names: Sequence[str],
    numbers: Sequence[int],
    seconds: Mapping[tuple[str, int], float],
    failed: set[tuple[str, int]],
    *,
    label: str,
) -> None:
    """Draw a row per client and a column per round; empty cells had no part in the round."""
    axes = figure.subplots()
    cells = [[seconds.get((name, n), float("nan")) for n in numbers] for name in names]
    image = axes.imshow(cells, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label=label)
    crosses = [(numbers.index(n), names.index(name)) for name, n in failed]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "x", color=RED, mew=2, label="failed")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axes.set_yticks(range(len(names)), names, fontsize=7)
    step = max(1, len(numbers) // 10)
    axes.set_xticks(range(0, len(numbers), step), [str(n) for n in numbers[::step]])
    axes.set(xlabel="Round")


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
        figure = Figure(figsize=(6.4, 1.2 + 0.24 * len(ids)), layout="constrained")
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
        figure = Figure(figsize=(9.6, 0.9 + 0.24 * len(ids)), layout="constrained")
        axes = figure.subplots()
        edges = [[place - 0.5 for place in range(n + 1)] for n in (len(counts[0]) if counts else 0, len(ids))]
        axes.pcolormesh(*edges, counts, cmap="Blues", vmin=0, vmax=most, edgecolors="white", linewidth=0.5)
        for place, row in enumerate(counts):
            for column, count in enumerate(row if len(row) <= 20 else ()):
                colour = "white" if count > 0.6 * most else "black"
                axes.text(column, place, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
            note = f"{sum(row):,} in all"
            axes.text(len(row) - 0.4, place, note, ha="left", va="center", fontsize=8, clip_on=False)
        axes.set_yticks(range(len(ids)), [names[key] for key in ids])
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
            labels, width, 0.75, base, color=colour, label=str(number), edgecolor="white", linewidth=0.3
        )
        base = [low + high for low, high in zip(base, width, strict=True)]
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="Training examples", ylim=(len(counts) - 0.5, -0.5))
    axes.margins(x=0.01)
    return classes
