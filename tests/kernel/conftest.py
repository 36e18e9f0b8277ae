"""Prints what was asked and what was measured, at the end of a run."""

from __future__ import annotations

import pytest

KEY = "kernel"


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that the tests have recorded."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    lines = [
        str(value)
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == KEY
    ]
    if lines:
        terminalreporter.section("the kernel: asked and measured")
        for line in lines:
            terminalreporter.line(line)
