"""Compares runs: tidy tables, intervals over seeds, paired differences, figures, one page.

    python -m coldframe.controller.compare results/experiments/NAME
    python -m coldframe.controller.compare --runs A,B,C --results results

The first form reads what `experiment.yml` has left in the folder, `experiment.json` and `runs/`; the second
takes any runs, and what tells their settings apart makes the points. Everything is read from the runs' own
folders, so it can be made again at any time.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from coldframe.controller import comparison_page, comparison_plots, intervals
from coldframe.controller.comparison import (
    METRICS,
    Comparison,
    ComparisonError,
    interval_text,
    of_experiment,
    of_runs,
    seconds_text,
)
from coldframe.controller.tables import write_table

COMPARISONS = "comparisons"  # below the results: a folder for each comparison of any runs


def write(comparison: Comparison, out: Path) -> None:
    """Write the tables, the figures and the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "runs.csv", [comparison.row(run) for run in comparison.runs])
    write_table(out / "rounds.csv", [{**run.ids, **row} for run in comparison.runs for row in run.rounds])
    rows = [{**run.ids, **row} for run in comparison.runs for row in table(run.folder / "clients.csv")]
    columns = dict.fromkeys(key for row in rows for key in row)
    write_table(out / "clients.csv", [{key: row.get(key) for key in columns} for row in rows])
    figures = comparison_plots.figures(comparison)
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        for kind in ("png", "pdf"):
            comparison_plots.save(figure, folder / f"{name}.{kind}")
    comparison_page.write(out / "comparison.html", comparison, figures)


def table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file; nothing of one that is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words(comparison: Comparison, out: Path) -> list[str]:
    """Say how the points compare, and where to read on."""
    lines = []
    width = max((len(comparison.label(point)) for point in comparison.points), default=0)
    for point in comparison.points:
        count = len(comparison.of(point))
        accuracy = comparison.interval(point, "accuracy")
        seconds = comparison.interval(point, "wall_seconds")
        parts = [f"{comparison.label(point):<{width}}  {count} run{'' if count == 1 else 's'}"]
        parts += [f"accuracy {interval_text(accuracy, METRICS[0])}"] if accuracy else []
        parts += [f"time {interval_text(seconds, METRICS[2])}"] if seconds else []
        if comparison.target and count:
            took = intervals.to_target(
                [comparison.row(run)["target_seconds"] for run in comparison.of(point)]
            )
            if took:
                median = "" if took.median is None else f", median {seconds_text(took.median)}"
                parts.append(f"target {took.reached} of {took.count}{median}")
        lines.append("  " + "  ".join(parts))
    if comparison.missing:
        plural = "run is" if comparison.missing == 1 else "runs are"
        lines.append(f"  missing     {comparison.missing} {plural} missing: type the same command again")
    if left_out := [run for run in comparison.runs if run.left_out]:
        reasons = sorted({run.left_out for run in left_out})
        plural = "run" if len(left_out) == 1 else "runs"
        lines.append(f"  left out: {len(left_out)} {plural} ({', '.join(reasons)})")
        if "oversubscribed" in reasons:
            lines.append("            -e oversubscribed=true counts them too")
    lines.append(f"  results     {out}/")
    lines.append(f"  the page    {out}/comparison.html")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, and say what came out; 1 if the runs cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m coldframe.controller.compare")
    parser.add_argument("folder", type=Path, nargs="?", help="an experiment's folder")
    parser.add_argument("--runs", help="runs to compare, separated by commas, instead of an experiment")
    parser.add_argument("--results", type=Path, help="folder that holds a folder per run")
    parser.add_argument("--baseline", default="", help="the run that the others are compared with")
    parser.add_argument("--accuracy", type=float, help="the accuracy to be reached")
    parser.add_argument(
        "--oversubscribed", type=json.loads, default=False, help="true: count oversubscribed runs too"
    )
    arguments = parser.parse_args(argv)
    if (arguments.folder is None) == (arguments.runs is None) or (arguments.runs and not arguments.results):
        parser.error("give an experiment's folder, or --runs with --results")
    try:
        if arguments.folder:
            compared, out = of_experiment(arguments.folder, arguments.oversubscribed), arguments.folder
        else:
            names = [name.strip() for name in arguments.runs.split(",") if name.strip()]
            target = {"accuracy": arguments.accuracy} if arguments.accuracy else {}
            compared = of_runs(names, arguments.results, arguments.baseline, target, arguments.oversubscribed)
            of_all = "".join(sorted(run.summary["run_id"] for run in compared.runs))
            name = hashlib.sha256(of_all.encode()).hexdigest()[:8]
            out = arguments.results / COMPARISONS / name
        write(compared, out)
    except (ComparisonError, OSError) as problem:
        print(f"{problem}", file=sys.stderr)
        return 1
    print("\n".join(words(compared, out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
