"""Every query of every dashboard finds its data while a federation works, and a typo in it would be found.

It shares the federation of test_monitoring.py.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass

import pytest

from dashboards.__main__ import DIRECTORY
from tests.cluster.watch import FEDERATION, PORTS, WatchedLab
from tests.dashboards import Prometheus, misspelt, problems, queries

DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DIRECTORY.glob("*.json"))
}
CLIENT = "c1-0"
CHOSEN = {"federation": FEDERATION, "machine": "c1", "client": CLIENT}
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


@dataclass(frozen=True)
class Work:
    """What Prometheus saw of a run, during which one client was throttled."""

    prometheus: Prometheus
    start: float
    end: float


@pytest.fixture(scope="module")
def work(watched: WatchedLab) -> Work:
    """A run with a throttle of everything that this kernel can limit; a run before it, to compare with."""
    if not watched.query("fl_run_info"):
        watched.run()
    start = time.time()
    _, wait = watched.start("run.yml", rounds="3", dataset="synthetic", run_name="observed")
    watched.wait_for("the run", lambda: bool(watched.query('fl_run_info{run_name="observed"}')))
    limits = {"cpu": "0.3", "memory": "900m", "pids": "200", "down": "50mbit", "up": "50mbit"}
    watched.must("throttle.yml", clients=CLIENT, **limits)
    play = wait()
    assert play.code == 0, play.output
    watched.wait_for(
        "the end of the run",
        lambda: (
            watched.value(
                'fl_run_state{state="completed"} and on (run) fl_run_info{run_name="observed"}'
                ' or on (run) fl_run_info{run_name="observed"} * 0'
            )
            == 1
        ),
    )
    end = time.time()
    watched.must("throttle.yml", clients=CLIENT, undo="true")
    address = f"https://{watched.server.address}:{PORTS['prometheus']}"
    authority = str(watched.state / "pki" / "ca.crt")
    return Work(Prometheus(address, "coldframe", watched.password("prometheus"), authority), start, end)


@each_dashboard
def test_every_query_returns_data_with_the_labels_that_are_shown(work: Work, name: str) -> None:
    assert problems(DASHBOARDS[name], work.prometheus, work.start, work.end, CHOSEN) == []


@each_dashboard
def test_a_typo_in_any_query_is_found(work: Work, name: str) -> None:
    wrong = copy.deepcopy(DASHBOARDS[name])
    for item in [
        *(target for panel in wrong["panels"] for target in panel.get("targets", [])),
        *wrong["annotations"]["list"],
    ]:
        item["expr"] = misspelt(item["expr"])
    found = problems(wrong, work.prometheus, work.start, work.end, CHOSEN)
    assert [problem.split(": no data")[0] for problem in found] == [query.where for query in queries(wrong)]
