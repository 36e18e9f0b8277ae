"""Every query of every dashboard finds its data while a federation works, and a typo in it would be found.

On the federation that stands. A Prometheus 3 stands beside the deployed one, with the same
files, and has to say the same.
"""

from __future__ import annotations

import copy
import json
import os
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dashboards.__main__ import DIRECTORY
from tests.cluster.federation import FEDERATION, MACHINES
from tests.cluster.watch import NEXT, NEXT_PORT, PORTS, THROTTLED, WatchedLab
from tests.dashboards import Prometheus, misspelt, problems, queries

DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DIRECTORY.glob("*.json"))
}
CHOSEN = {"federation": FEDERATION, "machine": "c1", "client": THROTTLED}
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


each_version = pytest.mark.parametrize("port", [PORTS["prometheus"], NEXT_PORT], ids=["2.x", "3.x"])
CACHE = Path(os.environ.get("COLDFRAME_CACHE", Path.home() / ".cache" / "coldframe"))


@dataclass(frozen=True)
class Work:
    """What both Prometheus saw of a run, during which one client was throttled."""

    watched: WatchedLab
    start: float
    end: float
    ports: tuple[int, ...]

    def prometheus(self, port: int) -> Prometheus:
        """That of a port."""
        if port not in self.ports:
            pytest.skip("Prometheus 3 is not tested: scripts/prometheus3.sh says why")
        address = f"https://{self.watched.server.address}:{port}"
        authority = str(self.watched.authority)
        return Prometheus(address, "coldframe", self.watched.password("prometheus"), authority)


@pytest.fixture(scope="module")
def ports(watched: WatchedLab) -> Iterator[tuple[int, ...]]:
    """Where a Prometheus answers: the deployed one, and beside it a 3.x where one was to be had."""
    programs = CACHE / "tools" / "prometheus-3"
    if not programs.is_dir():
        yield (PORTS["prometheus"],)
        return

    def ready() -> bool:
        try:
            return bool(watched.prometheus("query", NEXT_PORT, query="up")["result"])
        except (OSError, urllib.error.URLError):
            return False

    try:
        watched.start_prometheus3(programs)
        watched.wait_for("Prometheus 3", ready)
        yield (PORTS["prometheus"], NEXT_PORT)
    finally:
        watched.stop_prometheus3()


@pytest.fixture(scope="module")
def work(watched: WatchedLab, ports: tuple[int, ...]) -> Work:
    """A run with a throttle of one client; test_monitoring.py may have left one behind."""
    if watched.observed is None:
        watched.observe()()
    assert watched.observed is not None
    return Work(watched, *watched.observed, ports)


@each_version
@each_dashboard
def test_every_query_returns_data_with_the_labels_that_are_shown(work: Work, name: str, port: int) -> None:
    assert problems(DASHBOARDS[name], work.prometheus(port), work.start, work.end, CHOSEN) == []


@each_dashboard
def test_a_typo_in_any_query_is_found(work: Work, name: str) -> None:
    wrong = copy.deepcopy(DASHBOARDS[name])
    for item in [
        *(target for panel in wrong["panels"] for target in panel.get("targets", [])),
        *wrong["annotations"]["list"],
    ]:
        item["expr"] = misspelt(item["expr"])
    prometheus = work.prometheus(PORTS["prometheus"])
    found = problems(wrong, prometheus, work.start, work.end, CHOSEN)
    assert [problem.split(": no data")[0] for problem in found] == [query.where for query in queries(wrong)]


@each_version
def test_prometheus_2_and_3_take_the_same_files(work: Work, port: int) -> None:
    prometheus, watched = work.prometheus(port), work.watched
    version = watched.prometheus("status/buildinfo", port)["version"]
    assert version.startswith("3." if port == NEXT_PORT else "2.")
    up = prometheus.instant("up", work.end)
    assert {(labels["job"], labels["machine"]) for labels, (value,) in up if value == 1} == {
        *((job, machine) for job in ("node", "containers") for machine in MACHINES),
        ("fl", "server"),
        ("prometheus", "server"),
    }
    groups = watched.prometheus("rules", port)["groups"]
    rules = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert {"FlClientDown", "client:cpu_use:ratio"} <= set(rules)
    assert set(rules.values()) == {"ok"}
    container = NEXT if port == NEXT_PORT else f"{FEDERATION}-prometheus"
    for words in ("config /etc/coldframe/prometheus.yml", "web-config /etc/coldframe/web.yml"):
        watched.on_server(f"docker exec {container} promtool check {words}")
