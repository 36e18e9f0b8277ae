"""The panels of a run's checkpoints: how far it could be resumed, and what they cost."""

from __future__ import annotations

from dashboards.board import RUN, Board
from dashboards.panels import AMBER, BLUE, GREEN, GREY, RED, Query, curves, fixed


def add(built: Board) -> None:
    """Add a row of panels to a dashboard of one run."""
    built.row("Checkpoints")
    built.line(
        7,
        (
            6,
            curves(
                "Rounds kept",
                "The last round of which there is a checkpoint, from which the run can be resumed, beside the"
                " last finished one. 0 without checkpoints.",
                "none",
                Query(f"max(fl_run_round{{{RUN}}})", "finished"),
                Query(f"max(fl_run_checkpoint_round{{{RUN}}})", "kept"),
                steps=True,
                decimals=0,
                overrides={"finished": fixed(GREY), "kept": fixed(GREEN)},
            ),
        ),
        (
            6,
            curves(
                "Time of a checkpoint",
                "Seconds that the last checkpoint took to be written, beside the training, and for which the"
                " run waited for it.",
                "s",
                Query(f"max(fl_run_checkpoint_seconds{{{RUN}}})", "written in"),
                Query(f"max(fl_run_checkpoint_held_seconds{{{RUN}}})", "run waited"),
                steps=True,
                decimals=3,
                overrides={"written in": fixed(BLUE), "run waited": fixed(RED)},
            ),
        ),
        (
            6,
            curves(
                "Size of a checkpoint",
                "Bytes of the last checkpoint on the server's disk; of a run the last two are kept.",
                "bytes",
                Query(f"max(fl_run_checkpoint_bytes{{{RUN}}})", "last checkpoint"),
                steps=True,
                overrides={"last checkpoint": fixed(BLUE)},
            ),
        ),
        (
            6,
            curves(
                "Resumes and failed checkpoints",
                "How often the run was interrupted and went on, and how many of its checkpoints could not be"
                " written.",
                "none",
                Query(f"sum(fl_run_resumes_total{{{RUN}}})", "resumed"),
                Query(f"sum(fl_run_checkpoint_failures_total{{{RUN}}})", "failed"),
                steps=True,
                decimals=0,
                overrides={"resumed": fixed(AMBER), "failed": fixed(RED)},
            ),
        ),
    )
