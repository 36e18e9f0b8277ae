"""Draws what each client did when, under which CPU limit, and what happened to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from coldframe.controller.plots import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, STYLE, count_time
from coldframe.controller.records import Event, Run, happened, natural

# What is marked: cause of the event -> marker, colour, words of the legend. Each has a shape of its own.
MARKS = {
    "throttle": ("v", RED, "throttled"),
    "in force": ("<", RED, "throttled before the start"),
    "undo": ("^", GREEN, "throttle undone"),
    "expiry": (">", GREEN, "throttle expired"),
    "trace": ("d", PURPLE, "limits of a trace"),
    "trace ended": ("s", PURPLE, "trace ended"),
    "scenario": ("h", ORANGE, "an entry of the scenario"),
    "scenario ended": ("H", GREEN, "an entry of the scenario was over"),
    "inventory": ("P", "#000000", "limits of the inventory changed"),
    "container restarted": ("p", ORANGE, "its container restarted"),
    "restart": ("*", ORANGE, "restarted, limits applied anew"),
    "drift": ("D", "#000000", "limits mended"),
    "oom": ("X", "#000000", "killed for lack of memory"),
}
ACTIVITIES = {"train": (BLUE, "trains"), "evaluate": (SKY, "evaluates"), "query": (GREEN, "answers a query")}
OTHER = (PURPLE, "works on another phase")  # one that an app has made up
LANES = 50  # more clients than this are counted, and only the most notable ones have a row
SHOWN = 16  # rows beside that
STEPS = 480  # in which they are counted over the run's time
NAMED = 16  # with more clients than this the limits' values would not fit into their rows
# Of the run as a whole: from its last kept event until it was resumed, and a checkpoint that is not there.
GAP: dict[str, Any] = {"facecolor": "#F3EAF5", "edgecolor": PURPLE, "hatch": "//", "linewidth": 0.0}
UNWRITTEN: dict[str, Any] = {"color": RED, "linewidth": 1.0, "linestyle": ":"}
# Heights within a row, which is 1 high: what the client does, and above it its limit.
ACTIVITY, LIMIT, ROOM = 0.06, 0.34, 0.5


@dataclass
class Lane:
    """One client's row.

    Attributes
    ----------
    spans
        Phase, begin and end of each message's work, in unix seconds.
    limits
        Moment and cores of each change of the CPU limit, the first at the run's start; None is no limit
        that is known.
    marks
        Moment and cause of what happened to it.
    failures
        Moments at which a message ended without a reply.
    """

    name: str
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    limits: list[tuple[float, float | None]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)


def lanes(run: Run, events: Sequence[Event], baselines: Mapping[str, float | None]) -> list[Lane]:
    """Give a lane per client, in the order of partition ids.

    Parameters
    ----------
    events
        The agents' events of the run's time.
    baselines
        Client -> cores that the inventory gives it, as far as they are known.
    """
    partition = {event["client"]: event.get("partition_id") for event in run.replies}
    partition |= {item["name"]: item["partition_id"] for item in run.started.get("clients", [])}
    partition |= dict.fromkeys((name for name in baselines if name not in partition), None)
    names = sorted(partition, key=lambda name: (partition[name] is None, partition[name] or 0, natural(name)))
    by_name = {name: Lane(name) for name in names}
    seen: dict[str, list[Event]] = {name: [] for name in names}
    changes: dict[str, list[Event]] = {name: [] for name in names}
    for reply in run.replies:
        seen[reply["client"]].append(reply)
        if reply.get("seconds") is not None:
            end = float(reply["time"])
            span = (reply["phase"], end - float(reply["seconds"]), end)
            by_name[reply["client"]].spans.append(span)
    for failure in run.failures:
        if failure["client"] in by_name:
            by_name[failure["client"]].failures.append(float(failure["time"]))
    for event in events:
        if event["client"] in by_name:
            changes[event["client"]].append(event)
            if event["cause"] in MARKS:
                by_name[event["client"]].marks.append((happened(event), event["cause"]))
    for name, lane in by_name.items():
        lane.limits = limits(run.first or 0.0, seen[name], changes[name], baselines.get(name))
    return list(by_name.values())


def notable(rows: Sequence[Lane]) -> list[Lane]:
    """Give the lanes of a crowd that are worth a row: the slowest, and those with most events; in order."""

    def pace(lane: Lane) -> float:
        work = [stop - start for _, start, stop in lane.spans]
        return median(work) if work else 0.0

    chosen = {lane.name for lane in sorted(rows, key=pace, reverse=True)[: SHOWN // 2]}
    others = [lane for lane in rows if lane.name not in chosen]
    others.sort(key=lambda lane: (len(lane.failures), len(lane.marks)), reverse=True)
    chosen |= {lane.name for lane in others[: SHOWN - len(chosen)]}
    return [lane for lane in rows if lane.name in chosen]


def limits(
    begin: float, replies: Sequence[Event], events: Sequence[Event], baseline: float | None
) -> list[tuple[float, float | None]]:
    """Give the CPU limit over time: what the kernel said, in the agents' events or else in the replies."""
    seen = [
        (float(reply["time"]) - float(reply.get("seconds") or 0.0), cores(reply["system"]["cpu_limit"]))
        for reply in replies
        if reply.get("system", {}).get("cpu_limit") is not None
    ]
    changes = [
        (float(event["time"]), cores(event["verified"]["cpu"]))
        for event in events
        if "cpu" in (event.get("verified") or {})
    ]
    known = changes or seen
    # Before any change the client itself has said what it found.
    start = seen[0][1] if seen and (not changes or seen[0][0] < changes[0][0]) else baseline
    steps = [(begin, start)]
    for moment, value in known:
        if value != steps[-1][1]:
            steps.append((moment, value))
    return steps


def cores(value: float | None) -> float | None:
    """Give the cores of a limit; none, which a client reports as a negative number, is None."""
    return None if value is None or value < 0 else float(value)


def draw(rows: Sequence[Lane], run: Run) -> Figure:
    """Draw the lanes, with a thin line where a round ended; of a crowd, how many were at work, and some."""
    begin, end = run.first or 0.0, run.last or 1.0
    crowd = len(rows) > LANES
    shown = notable(rows) if crowd else rows
    # Many clients get low rows: the picture stays on one page.
    height = min(0.46, max(0.15, 7.6 / max(1, len(shown))))
    with matplotlib.rc_context(STYLE):
        if crowd:
            above = 2.2
            figure = Figure(figsize=(9.6, 1.1 + above + height * len(shown)), layout="constrained")
            ratios = [above, height * len(shown)]
            count, axes = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
            draw_count(count, rows, begin, end)
            mark_rounds(count, run, begin)
            mark_gaps(count, run, begin)
            mark_rounds(axes, run, begin, numbered=False)
        else:
            figure = Figure(figsize=(9.6, 1.1 + height * len(shown)), layout="constrained")
            axes = figure.subplots()
            mark_rounds(axes, run, begin)
        mark_gaps(axes, run, begin)
        draw_rows(axes, shown, begin, end, height=height)
        entries = handles(rows, highest(shown)) + run_handles(run)
        figure.legend(handles=entries, loc="outside upper center", ncols=6)
    return figure


def highest(rows: Sequence[Lane]) -> float:
    """Give the highest CPU limit of the rows, in cores."""
    return max((value for lane in rows for _, value in lane.limits if value is not None), default=1.0)


def mark_rounds(axes: Axes, run: Run, begin: float, *, numbered: bool = True) -> None:
    """Draw a thin line where a round ended; of many rounds, every nth has its number."""
    step = -(-len(run.rounds) // 40)
    for event in run.rounds.values():
        axes.axvline(float(event["time"]) - begin, color="#D9D9D9", linewidth=0.6, zorder=0)
        if numbered and event["round"] and event["round"] % max(1, step) == 0:
            place = (float(event["time"]) - begin, 1.0)
            axes.annotate(
                f"{event['round']} ",
                place,
                xycoords=("data", "axes fraction"),
                ha="right",
                va="bottom",
                fontsize=7,
                color="#666666",
            )


def mark_gaps(axes: Axes, run: Run, begin: float) -> None:
    """Shade the times at which the run was interrupted, and mark checkpoints that could not be written."""
    for start, stop in run.gaps:
        axes.axvspan(start - begin, stop - begin, **GAP)
    for event in run.unwritten:
        axes.axvline(float(event["time"]) - begin, **UNWRITTEN)


def draw_rows(axes: Axes, rows: Sequence[Lane], begin: float, end: float, *, height: float) -> None:
    """Draw a row per lane, the first on top."""
    most = highest(rows)
    for floor, lane in enumerate(reversed(rows)):
        draw_lane(axes, lane, floor, begin, end, most=most, named=len(rows) <= NAMED)
    axes.set_yticks([floor + 0.5 for floor in range(len(rows))], [lane.name for lane in reversed(rows)])
    axes.tick_params(axis="y", length=0, labelsize=9 if height > 0.2 else 7)
    axes.set(ylim=(0, len(rows)))
    for line in range(1, len(rows)):
        axes.axhline(line, color="#EEEEEE", linewidth=0.6, zorder=0)
    axes.spines[["left"]].set_visible(False)
    count_time(axes, end - begin)
    axes.set_xlim(0, max(end - begin, 1e-3))


def draw_count(axes: Axes, rows: Sequence[Lane], begin: float, end: float) -> None:
    """Stack the numbers of clients at work by phase over time; what happened to clients is marked above."""
    moments = [begin + (end - begin) * place / STEPS for place in range(STEPS + 1)]
    base = [0] * STEPS
    for phase, (colour, _) in kinds(rows).items():
        counts = at_work(rows, phase, moments)
        top = [low + more for low, more in zip(base, counts, strict=True)]
        edges = [moment - begin for moment in moments]
        axes.stairs(top, edges, baseline=base, fill=True, color=colour)
        base = top
    for cause in {cause for lane in rows for _, cause in lane.marks}:
        marker, colour, _ = MARKS[cause]
        when = [moment - begin for lane in rows for moment, own in lane.marks if own == cause]
        axes.plot(when, [1.06 * len(rows)] * len(when), marker, color=colour, markersize=3.5, zorder=4)
    failed = [moment - begin for lane in rows for moment in lane.failures]
    axes.plot(failed, [1.12 * len(rows)] * len(failed), "x", color=RED, markersize=4, mew=1.2, zorder=4)
    axes.set(ylabel=f"Clients at work, of {len(rows)}", ylim=(0, 1.18 * len(rows)))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def at_work(rows: Sequence[Lane], phase: str, moments: Sequence[float]) -> list[int]:
    """Count the clients that worked on a phase in the middle of each of the steps between the moments."""
    steps = len(moments) - 1
    width = (moments[-1] - moments[0]) / steps or 1.0
    changes = [0] * (steps + 1)
    for lane in rows:
        for own, start, stop in lane.spans:
            if own == phase or (phase not in ACTIVITIES and own not in ACTIVITIES):
                first, last = (math.ceil((moment - moments[0]) / width - 0.5) for moment in (start, stop))
                changes[min(max(first, 0), steps)] += 1
                changes[min(max(last, 0), steps)] -= 1
    return list(itertools.accumulate(changes[:steps]))


def kinds(rows: Sequence[Lane]) -> dict[str, tuple[str, str]]:
    """Give the phases that have any work, with colour and words; those that apps make up are one."""
    found = {phase for lane in rows for phase, _, _ in lane.spans}
    known = {phase: look for phase, look in ACTIVITIES.items() if phase in found}
    return known | ({"other": OTHER} if found - set(ACTIVITIES) else {})


def draw_lane(
    axes: Any, lane: Lane, floor: float, begin: float, end: float, *, most: float, named: bool
) -> None:
    """Draw one row that stands on `floor`."""
    for phase, (colour, _) in kinds([lane]).items():
        spans = [
            (start - begin, stop - start)
            for own, start, stop in lane.spans
            if own == phase or (phase not in ACTIVITIES and own not in ACTIVITIES)
        ]
        axes.broken_barh(spans, (floor + ACTIVITY, 0.22), facecolors=colour, edgecolor="white", linewidth=0.3)
    moments = [moment - begin for moment, _ in lane.limits] + [end - begin]
    tops = [float("nan") if value is None else value / most for _, value in lane.limits]
    heights = [floor + LIMIT + ROOM * top for top in tops]
    axes.stairs(heights, moments, baseline=floor + LIMIT, fill=True, color="#E4E4E4", zorder=1)
    axes.stairs(heights, moments, baseline=None, color="#555555", linewidth=1.0, zorder=2)
    if named:
        for moment, (_, value), height in zip(moments, lane.limits, heights, strict=False):
            if value is not None:
                low = value < 0.45 * most  # no room for it below the line
                axes.annotate(
                    f"{value:.2g}",
                    (moment, height),
                    xytext=(3, 1 if low else -1.5),
                    textcoords="offset points",
                    va="bottom" if low else "top",
                    fontsize=7,
                    zorder=3,
                )
    for moment, cause in lane.marks:
        marker, colour, _ = MARKS[cause]
        axes.plot(
            moment - begin,
            floor + LIMIT + ROOM * 0.95,
            marker,
            color=colour,
            markersize=5 if named else 3.5,
            zorder=4,
        )
    crosses = [moment - begin for moment in lane.failures]
    axes.plot(
        crosses, [floor + ACTIVITY + 0.11] * len(crosses), "x", color=RED, markersize=6, mew=1.8, zorder=4
    )


def handles(rows: Sequence[Lane], most: float) -> list[Any]:
    """Give the legend's entries: only of what is drawn."""
    found: list[Any] = [Patch(color=colour, label=words) for colour, words in kinds(rows).values()]
    if any(value is not None for lane in rows for _, value in lane.limits):
        label = f"CPU limit (full height: {most:.3g} cores)"
        found.append(Patch(facecolor="#E4E4E4", edgecolor="#555555", label=label))
    causes = {cause for lane in rows for _, cause in lane.marks}
    found += [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=words)
        for cause, (marker, colour, words) in MARKS.items()
        if cause in causes
    ]
    if any(lane.failures for lane in rows):
        found.append(
            Line2D([], [], linestyle="", marker="x", color=RED, mew=1.8, markersize=6, label="failed")
        )
    return found


def run_handles(run: Run) -> list[Any]:
    """Give the legend's entries of what happened to the run as a whole."""
    found: list[Any] = [Patch(label="interrupted, then resumed", **GAP)] if run.gaps else []
    if run.unwritten:
        found.append(Line2D([], [], label="a checkpoint could not be written", **UNWRITTEN))
    return found
