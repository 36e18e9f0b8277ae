"""Writes a comparison's page: one file that needs nothing but itself; it links to the runs' own reports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from coldframe.controller import comparison_plots, intervals, plots
from coldframe.controller.comparison import METRICS, TO_TARGET, Comparison, Metric, interval_text
from coldframe.controller.report import NOTHING, pages

TEMPLATE = "comparison.html.j2"
CAPTIONS = {
    "curves_accuracy": "Accuracy on the server's test set: mean over the seeds, and its 95 % interval.",
    "curves_loss": "Loss on the server's test set: mean over the seeds, and its 95 % interval.",
    "intervals": "A dot per seed, the mean, and its 95 % interval.",
    "differences": "Difference to the baseline with the same seed: mean and 95 % interval. An interval that "
    "does not reach zero is a difference that the seeds do not explain; the grey row, if there is one, shows "
    "the baseline against itself.",
    "to_target": "When each run reached the target; an empty mark is a run that ended without.",
    "limits": "CPU limits that the kernel held in the first run of each point.",
}


def write(path: Path, comparison: Comparison, figures: Mapping[str, Figure]) -> None:
    """Write the page."""
    environment = pages()
    page = environment.get_template(TEMPLATE).render(
        comparison=comparison,
        count=sum(not run.left_out for run in comparison.runs),
        diverged=sum(run.summary["status"] == "diverged" and not run.left_out for run in comparison.runs),
        seeds=sorted({run.seed for run in comparison.runs}),
        measures=measures(comparison),
        rows=rows(comparison),
        differences=differences(comparison),
        target=", ".join(f"{key} {value:g}" for key, value in comparison.target.items()),
        targets=targets(comparison),
        figures=[
            (Markup(plots.svg(figure, name)), caption(name, comparison)) for name, figure in figures.items()
        ],
        runs=runs(comparison, path.parent),
        commits=sorted({str(row["commit"]) for row in map(comparison.row, comparison.runs) if row["commit"]}),
        made=datetime.now(UTC),
    )
    path.write_text(page, encoding="utf-8")


def caption(name: str, comparison: Comparison) -> str:
    """Say what a figure shows."""
    most = comparison_plots.CURVES
    cut = f" The first {most} points." if name.startswith("curves") and len(comparison.points) > most else ""
    return CAPTIONS[name] + cut


def measures(comparison: Comparison) -> list[Metric]:
    """The figures that any point has."""
    return [
        metric
        for metric in METRICS
        if any(comparison.interval(point, metric.key) for point in comparison.points)
    ]


def cell(found: intervals.Interval | None, metric: Metric) -> str:
    """Write an interval for a table."""
    return NOTHING if found is None else interval_text(found, metric)


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per point: its name, how many runs count, and its figures."""
    return [
        {
            "name": comparison.label(point),
            "baseline": point == comparison.baseline and len(comparison.points) > 1,
            "runs": len(comparison.of(point)),
            "left_out": sum(run.point == point and bool(run.left_out) for run in comparison.runs),
            "cells": [
                cell(comparison.interval(point, metric.key), metric) for metric in measures(comparison)
            ],
        }
        for point in comparison.points
    ]


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per other point, and one for the baseline against itself where it was repeated."""
    found = [
        {
            "name": comparison.label(point),
            "cells": [
                cell(comparison.difference(point, metric.key), metric) for metric in measures(comparison)
            ],
        }
        for point in comparison.points
        if point != comparison.baseline
    ]
    noise = [comparison.noise(metric.key) for metric in measures(comparison)]
    if any(noise):
        cells = [cell(item, metric) for item, metric in zip(noise, measures(comparison), strict=True)]
        found.append({"name": "baseline, repeated (noise)", "cells": cells})
    return found


def targets(comparison: Comparison) -> list[dict[str, Any]]:
    """A row per point: how many runs reached the target, and the medians of what it took."""
    if not comparison.target:
        return []
    found = []
    for point in comparison.points:
        taken = [comparison.row(run) for run in comparison.of(point)]
        told = [
            # A run that reached it without telling this figure says nothing of it.
            intervals.to_target(
                [
                    row[metric.key]
                    for row in taken
                    if row["target_round"] is None or row[metric.key] is not None
                ]
            )
            for metric in TO_TARGET
        ]
        if told[0] is not None:
            cells = [
                NOTHING if item is None or item.median is None else metric.shown(item.median)
                for item, metric in zip(told, TO_TARGET, strict=True)
            ]
            reached = f"{told[0].reached} of {told[0].count}"
            found.append({"name": comparison.label(point), "reached": reached, "cells": cells})
    return found


def runs(comparison: Comparison, folder: Path) -> list[dict[str, Any]]:
    """A row per run, with the way to its own report."""
    listed = []
    for run in comparison.runs:
        row = comparison.row(run)
        report = run.folder / "report.html"
        listed.append(
            {
                "link": os.path.relpath(report, folder) if report.exists() else "",
                "name": comparison.label(run.point),
                "cells": [
                    row["seed"],
                    row["repeat"],
                    row["status"],
                    NOTHING if row["accuracy"] is None else f"{row['accuracy']:.4f}",
                    NOTHING if row["wall_seconds"] is None else METRICS[2].shown(row["wall_seconds"]),
                    row["rounds"] if row["rounds"] is not None else NOTHING,
                ],
                "left_out": run.left_out,
                "id": row["run_id"],
            }
        )
    return listed
