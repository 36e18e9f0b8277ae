"""The dashboard Run comparison: all runs in a table, and two of them laid upon each other."""

from __future__ import annotations

from dashboards.board import (
    ENDED,
    FEDERATION,
    Board,
    against_variable,
    federation_variable,
    run_variable,
    shift_variable,
)
from dashboards.panels import AMBER, BLUE, Column, Query, bars, curves, fixed, rows, run_links

# The run is drawn at its own time; the other one is moved so that both begin together.
PAIR = {"this run": fixed(BLUE), "compared with": fixed(AMBER)}


def pair(metric: str, function: str = "max") -> tuple[Query, Query]:
    """Give the metric of the run, and that of the other run moved to the same start."""
    return (
        Query(f'{function}({metric}{{{FEDERATION}, run="$run"}})', "this run"),
        Query(f'{function}({metric}{{{FEDERATION}, run="$against"}} offset ${{shift}}ms)', "compared with"),
    )


def of_run(metric: str, function: str = "max") -> str:
    """Give one value per run, with its title: name, strategy, id."""
    return f"{function} by (run) ({metric}{{{FEDERATION}}})"


def titled(expr: str) -> str:
    """Put name and strategy of its run on every series."""
    return (
        f"{expr} * on (run) group_left (run_name, strategy)"
        f" max by (run, run_name, strategy) (fl_run_info{{{FEDERATION}}})"
    )


def board() -> Board:
    """Build the dashboard."""
    built = Board(
        "run",
        "Run comparison",
        "All runs side by side, and two runs laid upon each other: the other run is moved in time to"
        " begin with this one.",
        [federation_variable(), run_variable(), against_variable(), shift_variable()],
        since="now-3h",
        refresh="30s",
    )
    _table(built)
    _pairs(built)
    _totals(built)
    return built


def _table(built: Board) -> None:
    seconds = {"custom.width": 100, "decimals": 1}
    narrow = {"custom.minWidth": 90}  # with Grafana's 150 the last columns would not fit
    built.line(
        7,
        (
            24,
            rows(
                "Runs",
                "Every run that the server remembers, the newest first: its configuration and how it ended."
                " A run's id leads to the run in its own time, and to its comparison.",
                Column("Run", label="run", properties={**run_links(), "custom.width": 190}),
                Column("Name", label="run_name", properties=narrow),
                Column("Strategy", label="strategy", properties=narrow),
                Column("Data set", label="dataset", properties=narrow),
                Column("Partitioner", label="partitioner", properties=narrow),
                Column("Seed", label="seed", properties={"custom.width": 70}),
                Column(
                    "Started",
                    f"1000 * max by (run, run_name, strategy, dataset, partitioner, seed)"
                    f" (fl_run_started_timestamp_seconds{{{FEDERATION}}} * on (run) group_left"
                    f" (run_name, strategy,"
                    f" dataset, partitioner, seed) fl_run_info{{{FEDERATION}}})",
                    unit="dateTimeAsIso",
                    properties={"custom.width": 170},
                ),
                Column(
                    "Until",
                    f"1000 * max by (run) ({ENDED.format(selector=FEDERATION)})",
                    unit="dateTimeAsIso",
                    properties={"custom.width": 170},
                ),
                Column("Rounds", of_run("fl_run_round"), unit="none", properties={"custom.width": 80}),
                Column(
                    "Accuracy",
                    of_run("fl_run_accuracy"),
                    unit="percentunit",
                    properties={"custom.width": 100, "decimals": 2},
                ),
                Column(
                    "Loss", of_run("fl_run_loss"), unit="none", properties={"custom.width": 90, "decimals": 3}
                ),
                Column("In rounds", of_run("fl_run_seconds_total", "sum"), unit="s", properties=seconds),
                Column(
                    "Data up",
                    f'max by (run) (fl_run_bytes_total{{{FEDERATION}, direction="up"}})',
                    unit="bytes",
                    properties=narrow,
                ),
                Column(
                    "Failures",
                    of_run("fl_run_failures_total", "sum"),
                    unit="none",
                    properties={"custom.width": 90},
                ),
                sort="Started",
                descending=True,
            ),
        ),
    )


def _pairs(built: Board) -> None:
    built.row("This run and the one it is compared with, from their starts on")
    built.line(
        9,
        (
            12,
            curves(
                "Accuracy",
                "Of the global model on the server's test set.",
                "percentunit",
                *pair("fl_run_accuracy"),
                steps=True,
                low=None,
                high=1,
                decimals=1,
                overrides=PAIR,
            ),
        ),
        (
            12,
            curves(
                "Loss",
                "Of the global model on the server's test set.",
                "none",
                *pair("fl_run_loss"),
                steps=True,
                decimals=3,
                overrides=PAIR,
            ),
        ),
    )
    built.line(
        8,
        (
            8,
            curves(
                "Round time",
                "Seconds of the last finished round.",
                "s",
                *pair("fl_round_seconds"),
                steps=True,
                decimals=1,
                overrides=PAIR,
            ),
        ),
        (
            8,
            curves(
                "Straggler gap",
                "Reply of the slowest client less the median reply, in the last finished round.",
                "s",
                *pair("fl_round_straggler_gap_seconds"),
                steps=True,
                decimals=1,
                overrides=PAIR,
            ),
        ),
        (
            8,
            curves(
                "Rounds finished",
                "How far each run was at the same distance from its start.",
                "none",
                *pair("fl_run_round"),
                steps=True,
                decimals=0,
                overrides=PAIR,
            ),
        ),
    )


def _totals(built: Board) -> None:
    name = "{{run_name}} {{strategy}} {{run}}"
    built.row("Totals of every run")
    built.line(
        8,
        (
            8,
            bars(
                "Accuracy",
                "At the end of the run, or now.",
                "percentunit",
                Query(titled(of_run("fl_run_accuracy")), name),
                high=1,
            ),
        ),
        (
            8,
            bars(
                "Time in rounds",
                "Sum of the phases of all finished rounds.",
                "s",
                Query(titled(of_run("fl_run_seconds_total", "sum")), name),
            ),
        ),
        (
            8,
            bars(
                "Data moved",
                "Up and down, from the server's point of view.",
                "bytes",
                Query(titled(of_run("fl_run_bytes_total", "sum")), name),
            ),
        ),
    )
