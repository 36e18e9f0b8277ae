"""Writes what Prometheus would have of a run that never was, to look at the dashboards of many clients.

    python -m tests.synthetic_metrics 20 --kind foreign --out metrics.txt
    promtool tsdb create-blocks-from openmetrics metrics.txt DIRECTORY
    prometheus --storage.tsdb.path DIRECTORY --config.file EMPTY

The FL exporter's own code makes the series of the run from a journal; those of machines and containers, and
what the recording rules make of them, are invented.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

from coldframe.exporters import runs
from tests.unit.journals import make_journal, name_of

STEP = 5  # seconds between two scrapes
BEFORE, AFTER = 60, 30  # seconds shown before and after the run
CORES = 8
SERVER = {"federation": "coldframe", "machine": "server", "job": "fl", "instance": "server:9093"}


class Samples:
    """Samples by metric: OpenMetrics wants those of a metric together, each series in the order of time."""

    def __init__(self) -> None:
        self.series: dict[str, dict[str, list[str]]] = {}

    def add(self, moment: float, name: str, value: float, **labels: object) -> None:
        """Add one."""
        text = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        self.series.setdefault(name, {}).setdefault(text, []).append(f"{value:.10g} {moment:.3f}\n")

    def write(self, path: Path) -> None:
        """Write all."""
        with path.open("w", encoding="utf-8") as file:
            for name, series in sorted(self.series.items()):
                file.write(f"# TYPE {name} unknown\n")
                for text, lines in series.items():
                    file.writelines(f"{name}{{{text}}} {line}" for line in lines)
            file.write("# EOF\n")


def write_run(samples: Samples, run_id: str, events: list[dict[str, Any]], moments: list[float]) -> None:
    """Add what the FL exporter would show of a run at these moments."""
    run, rest = runs.Run(run_id, None), list(events)
    for moment in moments:
        while rest and rest[0]["time"] <= moment:
            event = rest.pop(0)
            run.last = event["time"]
            handle = getattr(run, f"_on_{event['event']}", None)
            if handle:
                handle(event)
        if not run.about:
            continue
        run._pages.clear()
        for page in (run.page(), run.clients_page()):
            for name, lines in page.samples.items():
                for line in lines:
                    text, _, value = line.rpartition(" ")
                    pairs = text[text.index("{") + 1 : -1].split('",')
                    labels = {
                        key: word.strip('"') for key, _, word in (pair.partition("=") for pair in pairs)
                    }
                    samples.add(moment, name, float(value), **labels, **SERVER)


def working(events: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Give the times at which each client was at work."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event["event"] == "reply":
            found.setdefault(event["client"], []).append((event["time"] - event["seconds"], event["time"]))
    return found


def write_clients(
    samples: Samples, clients: int, events: list[dict[str, Any]], moments: list[float], throttle: float
) -> None:
    """Add what the exporters and the rules would show of containers; every third client is throttled."""
    dice, work = random.Random(1), working(events)
    used = dict.fromkeys(range(clients), 0.4)
    for moment in moments:
        for i in range(clients):
            name, machine = name_of(i), name_of(i).split("-")[0]
            own = {
                "federation": "coldframe",
                "machine": machine,
                "job": "containers",
                "instance": f"{machine}:9101",
            }
            mine = {**own, "client": name}
            slow = i % 10 == 9
            throttled = i % 3 == 0 and throttle <= moment < throttle + 120
            cpu = 0.1 if throttled else 0.25 if slow else 0.5
            busy = any(start <= moment <= stop for start, stop in work.get(name, []))
            used[i] = 0.6 * used[i] + 0.4 * (0.97 if busy else 0.08) * dice.uniform(0.9, 1.02)
            for kind in ("desired", "verified", "baseline"):
                samples.add(moment, f"fl_client_limit_{kind}", cpu, limit="cpu", **mine)
                samples.add(moment, f"fl_client_limit_{kind}", 1 << 30, limit="memory", **mine)
            samples.add(moment, "fl_client_info", 1, partition=i, profile="", **mine)
            for metric in ("fl_client_limits_hold", "fl_client_online", "fl_client_running"):
                samples.add(moment, metric, 1, **mine)
            samples.add(moment, "fl_client_oom_kills_total", 0, **mine)
            changes = (moment >= throttle) + (moment >= throttle + 120) if i % 3 == 0 else 0
            samples.add(moment, "fl_client_limit_changes_total", changes, cause="throttle", **mine)
            samples.add(moment, "client:cpu_use:ratio", used[i], **mine)
            samples.add(moment, "client:cpu_usage:rate", used[i] * cpu, **mine)
            samples.add(moment, "client:cpu_throttled:ratio", used[i] * (0.9 if cpu < 0.5 else 0.35), **mine)
            samples.add(moment, "client:memory_use:ratio", 0.3 + 0.1 * used[i] + 0.002 * (i % 40), **mine)
            for way in ("receive", "transmit"):
                samples.add(
                    moment, f"client:network_{way}:rate", 4e5 * dice.random() * (1.2 - used[i]), **mine
                )
            memory = (0.3 + 0.1 * used[i]) * (1 << 30)
            samples.add(moment, "container_memory_working_set_bytes", memory, role="client", **mine)
            connected = {"client": name, "partition": i, **SERVER}
            samples.add(moment, "fl_client_connected", 1, **connected)
        samples.add(moment, "fl_clients", clients, state="online", **SERVER)
        samples.add(moment, "fl_clients", clients, state="registered", **SERVER)


def write_machines(samples: Samples, clients: int, moments: list[float]) -> None:
    """Add what the node exporters would show."""
    machines = sorted({name_of(i).split("-")[0] for i in range(clients)})
    for place, moment in enumerate(moments):
        for machine in machines:
            own = {
                "federation": "coldframe",
                "machine": machine,
                "job": "node",
                "instance": f"{machine}:9100",
            }
            samples.add(moment, "up", 1, **own)
            for core in range(CORES):
                samples.add(moment, "node_cpu_seconds_total", 3 * place, cpu=core, mode="idle", **own)
            samples.add(moment, "node_load1", 3.2, **own)
            samples.add(moment, "machine:cpu_use:ratio", 0.55, **own)
            samples.add(moment, "machine:memory_use:ratio", 0.41, **own)


def span_of(events: list[dict[str, Any]]) -> list[float]:
    """Give the moments of the scrapes around a run."""
    first, last = int(events[0]["time"]), int(events[-1]["time"])
    return [float(moment) for moment in range(first - BEFORE, last + AFTER, STEP)]


def main() -> None:
    """Write the file; print the first and the last moment."""
    parser = argparse.ArgumentParser(prog="python -m tests.synthetic_metrics", description=__doc__)
    parser.add_argument("clients", type=int)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--kind", default="ours")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    events = make_journal(given.clients, given.rounds, given.kind, float(int(time.time()) - 3600))
    moments, samples = span_of(events), Samples()
    write_run(samples, "7315460291850046281", events, moments)
    write_clients(samples, given.clients, events, moments, events[0]["time"] + 60)
    write_machines(samples, given.clients, moments)
    samples.write(given.out)
    print(f"{moments[0]:.0f} {moments[-1]:.0f}")


if __name__ == "__main__":
    main()
