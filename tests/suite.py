"""Runs `make test`: two lanes of targets of the Makefile side by side, and a table of what they took.

    python -m tests.suite [--since SECONDS] [LANE ...]

Lane A deploys one federation and measures it; lane B is everything else. A target that fails does not keep
the others from running. JUnit files and the output of each target go to `build/tests/`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "tests"
LANES = {
    "A": ["test-lane-a"],
    "B": [
        "lint",
        "test-plugins",
        # Deployments first: a test of lane A that measures waits for them, and they for it.
        "test-lane-b",
        "test-vagrant",
        "test-runtime",
        "test-python313",
    ],
}
# The longer lane goes first. The kernel weighs a session as a whole: one that is not niced gets as much of a
# busy machine as all containers together, and clients far less than their limits.
NICE = {"A": "0", "B": "10"}
SLOWEST = 15
SHOWN = 300  # characters of either end of why a test failed


class Test(NamedTuple):
    """A test, and why it failed if it did."""

    seconds: float
    outcome: str
    name: str
    why: str = ""


@dataclass
class Phase:
    """A target of the Makefile, what it took, and what its tests said."""

    lane: str
    target: str
    seconds: float = 0.0
    code: int | None = None
    tests: list[Test] = field(default_factory=list)

    @property
    def report(self) -> Path:
        """Where pytest writes its JUnit file."""
        return OUTPUT / f"{self.target}.xml"

    def count(self, outcome: str) -> int:
        """Number of tests with an outcome: passed, failed or skipped."""
        return sum(test.outcome == outcome for test in self.tests)


class Suite:
    """The lanes, and the processes that run now."""

    def __init__(self, lanes: list[str]) -> None:
        self.phases = [Phase(lane, target) for lane in lanes for target in LANES[lane]]
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.writing = threading.Lock()
        self.stopped = False

    def run(self) -> None:
        """Run all lanes to their ends."""
        lanes = dict.fromkeys(phase.lane for phase in self.phases)
        threads = [threading.Thread(target=self.run_lane, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def run_lane(self, lane: str) -> None:
        """Run the targets of a lane, one after the other."""
        for phase in self.phases:
            if phase.lane == lane and not self.stopped:
                self.run_phase(phase)

    def run_phase(self, phase: Phase) -> None:
        """Run a target, pass on each line that it prints, and read what its tests said."""
        phase.report.unlink(missing_ok=True)
        options = f"--junitxml={shlex.quote(str(phase.report))} -o junit_family=xunit1"
        environment = {**os.environ, "PYTEST_ADDOPTS": options}
        environment.pop("MAKEFLAGS", None)
        begin = time.monotonic()
        process = subprocess.Popen(
            ["make", "--no-print-directory", phase.target],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a signal reaches it through us, once
        )
        self.processes[phase.lane] = process
        with suppress(OSError):  # a kernel that weighs each process
            Path(f"/proc/{process.pid}/autogroup").write_text(NICE[phase.lane])
        if self.stopped:  # meanwhile
            os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout is not None
        with (OUTPUT / f"{phase.target}.log").open("w") as log:
            for line in process.stdout:
                log.write(line)
                with self.writing:
                    self.say(f"{phase.lane} | {line}")
        phase.code = process.wait()
        phase.seconds = time.monotonic() - begin
        phase.tests = outcomes(phase.report)

    def say(self, text: str) -> None:
        """Print; where nobody reads any more, end the lanes."""
        try:
            print(text, end="", flush=True)
        except OSError:
            if not self.stopped:
                self.stop(signal.SIGTERM, None)

    def stop(self, number: int, _: object) -> None:
        """Pass a signal on to what runs: it removes what it has made, and the lanes end."""
        self.stopped = True
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def reason(failure: ElementTree.Element) -> str:
    """Say in one line why a test failed: what pytest marks as the error, however long."""
    marked = [line[1:] for line in (failure.text or "").splitlines() if line.startswith("E ")]
    return " ".join(" ".join(marked or [failure.get("message") or ""]).split())


def outcomes(report: Path) -> list[Test]:
    """Read the tests from a JUnit file; none where there is no file."""
    if not report.exists():
        return []
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        children = {child.tag: child for child in case}
        failure = children.get("failure", children.get("error"))
        outcome = "failed" if failure is not None else "skipped" if "skipped" in children else "passed"
        place = (case.get("file") or case.get("classname") or "").removeprefix("tests/")
        why = reason(failure) if failure is not None else ""
        if len(why) > 2 * SHOWN:
            why = f"{why[:SHOWN]} ... {why[-SHOWN:]}"
        found.append(Test(float(case.get("time") or 0), outcome, f"{place}::{case.get('name')}", why))
    return found


def table(phases: list[Phase], setup: float, total: float) -> list[str]:
    """What the phases took, and the slowest tests."""
    lines = ["", f"{'lane':5} {'phase':15} {'seconds':>8} {'passed':>7} {'failed':>7} {'skipped':>8}  exit"]
    lines.append(f"{'':5} {'setup':15} {setup:8.0f}")
    for phase in phases:
        counts = [phase.count(outcome) for outcome in ("passed", "failed", "skipped")]
        numbers = f"{counts[0]:7} {counts[1]:7} {counts[2]:8}" if phase.tests else f"{'':7} {'':7} {'':8}"
        code = "-" if phase.code is None else str(phase.code)
        lines.append(f"{phase.lane:5} {phase.target:15} {phase.seconds:8.0f} {numbers}  {code}")
    lines.append(f"{'':5} {'in all':15} {total:8.0f}   ({total / 60:.1f} min)")
    slowest = sorted((test for phase in phases for test in phase.tests), reverse=True)[:SLOWEST]
    lines += ["", f"the {len(slowest)} slowest tests, seconds"]
    lines += [f"{test.seconds:8.1f}  {test.name}" for test in slowest]
    failed = [
        line
        for phase in phases
        for test in phase.tests
        if test.outcome == "failed"
        for line in (test.name, f"  {test.why}")
    ]
    failed += [f"make {phase.target} ended with {phase.code}" for phase in phases if phase.code]
    if failed:
        lines += ["", "failed", *(f"  {name}" for name in failed)]
    return lines


def main() -> int:
    """Run the lanes, print the table; 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.suite", description=__doc__.partition("\n")[0])
    parser.add_argument("--since", type=float, help="when the set-up began, in seconds since 1970")
    parser.add_argument("lanes", nargs="*", metavar="LANE", default=list(LANES), help="A, B (default: both)")
    options = parser.parse_args()
    if unknown := [lane for lane in options.lanes if lane not in LANES]:
        parser.error(f"no lane {unknown[0]}: choose from {', '.join(LANES)}")
    now = time.time()
    begin = options.since or now
    OUTPUT.mkdir(parents=True, exist_ok=True)
    suite = Suite(options.lanes)
    signal.signal(signal.SIGINT, suite.stop)
    signal.signal(signal.SIGTERM, suite.stop)
    signal.signal(signal.SIGHUP, suite.stop)
    suite.run()
    print("\n".join(table(suite.phases, now - begin, time.time() - begin)))
    counts = {
        outcome: sum(phase.count(outcome) for phase in suite.phases)
        for outcome in ("passed", "failed", "skipped")
    }
    bad = [phase for phase in suite.phases if phase.code != 0]
    # A target without tests that fails, such as a linter, counts too.
    failed = counts["failed"] + sum(not phase.count("failed") for phase in bad)
    print(f"\n{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped", flush=True)
    return 1 if bad or suite.stopped else 0


if __name__ == "__main__":
    sys.exit(main())
