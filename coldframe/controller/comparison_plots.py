"""Draws a comparison: learning curves, figures with their intervals, time to the target, limits over time."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coldframe.controller import intervals
from coldframe.controller.comparison import METRICS, Comparison, Metric, RunData
from coldframe.controller.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    count_time,
    save,
)
from coldframe.controller.records import natural

__all__ = ["figures", "save"]

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, "#000000", GREY)
GRID = 200  # places at which curves over time and traffic are averaged
CURVES = 9  # points whose curves are told apart in one figure
WIDTH = 9.6  # inches
MEGABYTE = 1e6
LIMITED = 8  # clients of a run whose limits are drawn


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Draw all figures of a comparison, by name; one without data is left out."""
    drawn = {}
    for key in ("accuracy", "loss"):
        if any(row[key] is not None for run in comparison.runs for row in run.rounds):
            drawn[f"curves_{key}"] = curves(comparison, key)
    if found := measures(comparison):
        drawn["intervals"] = found
    if len(comparison.points) > 1 and (found := differences(comparison)):
        drawn["differences"] = found
    if comparison.target and any(comparison.of(point) for point in comparison.points):
        drawn["to_target"] = to_target(comparison)
    if found := limits_over_time(comparison):
        drawn["limits"] = found
    return drawn


class Course(Protocol):
    """What the course of a run is drawn from."""

    @property
    def seed(self) -> int: ...

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]: ...


def colour(place: int) -> str:
    """The colour of a point, by its place."""
    return COLOURS[place % len(COLOURS)]


def curves(comparison: Comparison, key: str) -> Figure:
    """Draw a figure of the server's over rounds, time and traffic: mean of the seeds, and its interval."""
    axes_of: Sequence[tuple[str, str, float]] = (
        ("round", "Round", 1.0),
        ("elapsed_seconds", "Time", 1.0),
        ("traffic_bytes", "Traffic (MB)", MEGABYTE),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        grid = figure.subplots(1, len(axes_of), sharey=True)
        for axes, (along, label, unit) in zip(grid, axes_of, strict=True):
            longest = 0.0
            for place, point in enumerate(list(comparison.points)[:CURVES]):
                at, means, low, high = curve(comparison.of(point), key, along)
                at = [value / unit for value in at]
                longest = max([longest, *at])
                axes.plot(at, means, color=colour(place), label=comparison.label(point))
                axes.fill_between(at, low, high, color=colour(place), alpha=0.18, linewidth=0)
            if key in comparison.target:
                axes.axhline(comparison.target[key], color=GREY, linewidth=0.8, linestyle=":")
            axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
            if along == "elapsed_seconds":
                count_time(axes, longest)
            else:
                axes.set(xlabel=label)
            if along == "round":
                axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        grid[0].set(ylabel=key.capitalize())
        if key == "accuracy":  # an interval may go beyond what there is
            grid[0].set(ylim=(max(grid[0].get_ylim()[0], 0.0), min(grid[0].get_ylim()[1], 1.0)))
        handles, labels = grid[0].get_legend_handles_labels()
        if len(labels) > 1:
            columns = 1 if max(map(len, labels)) > 60 else 2 if max(map(len, labels)) > 28 else 4
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return figure


def curve(
    runs: Sequence[Course], key: str, along: str
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Average a figure over the seeds.

    Along rounds it is averaged where it is known. Along time and traffic a run keeps its last value until it
    has a new one, its end included; the curve begins where all runs have one.

    Returns
    -------
    at, mean, low, high : lists of the same length
    """
    known: list[tuple[int, list[float], list[float]]] = []
    for run in runs:
        rows = [row for row in run.rounds if row[key] is not None and row[along] is not None]
        rows = [row for row in rows if row["round"] > 0] or rows
        if rows:
            known.append((run.seed, [row[along] for row in rows], [row[key] for row in rows]))
    if not known:
        return [], [], [], []
    ends = [places[-1] for _, places, _ in known]
    begin = max(places[0] for _, places, _ in known)
    if along == "round":
        grid = sorted({place for _, places, _ in known for place in places})
    else:
        grid = [begin + (max(ends) - begin) * step / GRID for step in range(GRID + 1)]
    at, means, low, high = [], [], [], []
    for place in grid:
        told: list[tuple[int, float | None]] = []
        for seed, places, values in known:
            before = bisect_right(places, place) - 1
            exact = along != "round" or (before >= 0 and places[before] == place)
            told.append((seed, values[before] if before >= 0 and exact else None))
        found = intervals.interval(list(intervals.by_seed(told).values()))
        if found:
            at.append(float(place))
            means.append(found.mean)
            low.append(found.mean if found.low is None else found.low)
            high.append(found.mean if found.high is None else found.high)
    return at, means, low, high


def measures(comparison: Comparison) -> Figure | None:
    """Draw each figure's mean and interval, a row per point, and a dot per seed."""
    known = [
        metric
        for metric in METRICS
        if any(comparison.values(point, metric.key) for point in comparison.points)
    ]

    def row(axes: Axes, metric: Metric, point: str, place: int, tint: str) -> None:
        values = list(comparison.values(point, metric.key).values())
        axes.plot(values, [place] * len(values), "o", color=tint, alpha=0.35, markersize=4, mew=0)
        draw_interval(axes, comparison.interval(point, metric.key), place, tint)

    return rows_of(comparison, known, list(comparison.points), row)


def differences(comparison: Comparison) -> Figure | None:
    """Draw the differences to the baseline, seed by seed, and below them the baseline against itself."""
    others = [point for point in comparison.points if point != comparison.baseline]
    known = [
        metric for metric in METRICS if any(comparison.difference(point, metric.key) for point in others)
    ]
    noisy = any(comparison.noise(metric.key) for metric in known)

    def row(axes: Axes, metric: Metric, point: str, place: int, tint: str) -> None:
        found = comparison.difference(point, metric.key) if point else comparison.noise(metric.key)
        draw_interval(axes, found, place, tint)

    figure = rows_of(comparison, known, [*others, *([""] if noisy else [])], row)
    if figure is not None:
        for axes in figure.axes:
            axes.axvline(0.0, color=GREY, linewidth=0.8, zorder=0)
    return figure


def rows_of(
    comparison: Comparison,
    metrics: Sequence[Metric],
    points: Sequence[str],
    draw: Callable[[Axes, Metric, str, int, str], None],
) -> Figure | None:
    """Draw a column per figure with a row per point; the point without an id is the baseline's noise."""
    if not metrics or not points:
        return None
    places = {point: place for place, point in enumerate(comparison.points)}
    names = [comparison.label(point) if point else "baseline, repeated" for point in points]
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    with matplotlib.rc_context(STYLE):
        height = 0.7 + 0.28 * len(points)
        figure = Figure(figsize=(WIDTH, height * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(metrics) :]:
            axes.set_visible(False)
        for number, (axes, metric) in enumerate(zip(grid.flat, metrics, strict=False)):
            for place, point in enumerate(points):
                tint = colour(places[point]) if point else GREY
                draw(axes, metric, point, place, tint)
            shown = names if number % columns == 0 else [""] * len(names)
            axes.set_yticks(range(len(points)), shown)
            axes.set(title=metric.label, ylim=(len(points) - 0.5, -0.5))
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(lambda value, _, show=metric.shown: show(value))
            axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
            axes.tick_params(axis="x", labelsize=7.5)
    return figure


def draw_interval(axes: Axes, found: intervals.Interval | None, place: int, tint: str) -> None:
    """Draw a mean as a point and its interval as a line."""
    if found is None:
        return
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [place, place], "-", color=tint, linewidth=2)
    axes.plot([found.mean], [place], "D", color=tint, markersize=5)


def to_target(comparison: Comparison) -> Figure:
    """Draw when each run reached the target; one that did not is an empty mark where it ended."""
    with matplotlib.rc_context(STYLE):
        points = list(comparison.points)
        figure = Figure(figsize=(WIDTH, 1.0 + 0.34 * len(points)), layout="constrained")
        axes = figure.subplots()
        longest = 0.0
        for place, point in enumerate(points):
            for run in comparison.of(point):
                at = run.to_target(comparison.target)["target_seconds"]
                missed = at is None
                at = (run.summary.get("wall_seconds") or 0.0) if at is None else at
                longest = max(longest, at)
                tint = colour(place)
                axes.plot([at], [place], "o", color=tint, markerfacecolor="none" if missed else tint)
        axes.plot([], [], "o", color="black", label="reached the target")
        axes.plot([], [], "o", color="black", markerfacecolor="none", label="ended without")
        axes.set_yticks(range(len(points)), [comparison.label(point) for point in points])
        count_time(axes, longest)
        axes.set(ylim=(len(points) - 0.5, -0.5), xlim=(0, 1.05 * longest or 1.0))
        axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def limits_over_time(comparison: Comparison) -> Figure | None:
    """Draw the CPU limits of the clients in the first run of each point, where any two of them differ."""
    found = {}
    for point in comparison.points:
        runs = comparison.of(point)
        if runs and (steps := cpu_limits(runs[0])):
            found[point] = steps
    distinct = {json.dumps(sorted(steps.items())) for steps in found.values()}
    within = any(len({value for _, value in line}) > 1 for steps in found.values() for line in steps.values())
    if not found or (len(distinct) < 2 and not within):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * len(found)), layout="constrained")
        grid = figure.subplots(len(found), 1, squeeze=False, sharex=True)[:, 0]
        longest = max(comparison.of(point)[0].summary.get("wall_seconds") or 0.0 for point in found)
        for axes, (point, steps) in zip(grid, found.items(), strict=True):
            end = comparison.of(point)[0].summary.get("wall_seconds") or 0.0
            groups: dict[str, list[str]] = {}
            for name in sorted(steps, key=natural):
                groups.setdefault(json.dumps(steps[name]), []).append(name)
            for number, (text, names) in enumerate(list(groups.items())[:LIMITED]):
                line = json.loads(text)
                times = [at for at, _ in line] + [end]
                values = [value for _, value in line] + [line[-1][1]]
                label = names[0] if len(names) == 1 else f"{len(names)} clients"
                axes.step(times, values, where="post", color=colour(number), label=label)
            axes.set(title=comparison.label(point), ylabel="Cores", ylim=(0, None))
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        count_time(grid[-1], longest)
    return figure


def cpu_limits(run: RunData) -> dict[str, list[tuple[float, float]]]:
    """By client: seconds since the run's begin and the cores that the kernel held from then on."""
    path = run.folder / "inventory.json"
    if not path.exists():
        return {}
    clients: Sequence[Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["clients"]
    steps = {item["name"]: [(0.0, float(item["cpu"]))] for item in clients if item.get("cpu")}
    events = run.folder / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    for event in map(json.loads, lines):
        held = (event.get("verified") or {}).get("cpu")
        at = event["time"] - (run.run.first or event["time"])
        if held is not None and at > 0 and event["client"] in steps:
            steps[event["client"]].append((at, float(held)))
    return steps
