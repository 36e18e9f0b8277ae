"""Time to accuracy beside slow clients: rounds that wait, rounds with a deadline, asynchronous strategies.

`python benchmarks/stragglers.py [--quick] [--seeds N] [--worlds A,B] [--policies A,B] [--results DIR]
[--json FILE] [--plot FILE]`, on three test hosts of its own: a server, and two hosts with four clients of 0.2
cores each. It writes the file of an experiment, has `experiment.yml` run it, and reads the tables that this
leaves. The clients train on 3200 images of MNIST, about 400 each, divided by Dirichlet(0.5).

The worlds:

- `no straggler`: all clients have 0.2 cores;
- `two slow`: two of the eight, one on each host, have a quarter of that;
- `one for a while`: one client has a quarter of it from the 30th to the 90th second of a run.

The policies, with so many rounds that each makes about the 80 client updates of `all`:

- `all`: FedAvg, which waits for every client; 10 rounds.
- `deadline`: `round_deadline=auto`, and late work is dropped; 13 rounds, which are 80 updates where two of
  eight are late. `auto`, since the speeds of the clients are not known before a run: a number that fits one
  world would be wrong in another. It has no `round_goal`: a goal ends each round without those clients that
  have most data, and what they have learnt would be lost in every world.
- `deadline and fold`: the same with `round_late=fold`, and `round_goal=0.75`, since two of eight may be slow.
  A goal costs no data here: who is late is in the model of a later round. 11 rounds.
- `fedbuff`: `buffer_size=4`; 20 rounds of 4 updates.
- `fedasync`: `updates_per_round=8`; 10 rounds of 8 updates.
- `longer fold` and `longer fedbuff`: the same as `deadline and fold` and `fedbuff`, with 15 rounds and with
  28: about half the time that `all` takes beside two slow clients, for who counts time and not updates.

`auto` needs the replies of 10 clients, so the first two rounds have neither deadline nor goal.

The target of a seed is the final accuracy of `all` without stragglers, less 0.005. A synchronous model does
not depend on the clients' speed: without that world, `all` of another one says the same. Each seed has a
target of its own, since it is a division of the data of its own. Times are from the start of a run to the end
of the first round that reaches the target; the ratio to `all` in the same world is taken seed by seed. Means
have 95 % intervals (Student's t over seeds). Where a seed did not reach its target there is no mean: it would
be one of the quick seeds alone.

`--quick` is one seed of `two slow`, with `all`, `deadline and fold` and `fedbuff`. With `--results`, a
benchmark that was interrupted goes on where it was, and the results folders of all runs stay.

Clients that still train at the end of an asynchronous run may be busy for some seconds when the next run
begins, which is a part of that run's first round.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from coldframe.controller import intervals
from tests.hosts import Hosts, fl_seed

ROOT = Path(__file__).resolve().parents[1]
NAME = "stragglers"
HOSTS = ["server", "c1", "c2"]
CLIENTS = 4  # on each host but the first
CPU = 0.2  # cores of a client
SLOW = CPU / 4
SETTLE = 240  # seconds within which all clients have to be connected
BELOW = 0.005  # of accuracy: the target is so much less than what `all` reaches
CONTROL = "docker exec coldframe-server python3 -m coldframe.server.control"
BASE: dict[str, Any] = {
    "dataset": "mnist",
    "max_samples": 3200,
    "partitioner": "dirichlet",
    "partitioner_args": {"alpha": 0.5},
    "learning_rate": 0.05,
    "fraction_evaluate": 0,  # the server evaluates
    "evaluate_samples": 4000,
    "min_train_clients": 1,  # a client that is busy is not asked
}
WARM_UP = {**BASE, "rounds": 1}
ALONE, TWO, WHILE = "no straggler", "two slow", "one for a while"
WORLDS: dict[str, dict[str, Any]] = {
    ALONE: {},
    TWO: {"limits": {"clients": "c1-0,c2-0", "cpu": SLOW}},
    WHILE: {"scenario": f"{NAME}-scenario.yml"},  # beside the experiment's file
}
SCENARIO = {"timeline": [{"at": "30s", "do": "throttle", "clients": "c2-0", "cpu": SLOW, "for": "60s"}]}
ALL, FOLD, FEDBUFF = "all", "deadline and fold", "fedbuff"
LONGER = (("fold", FOLD, 15), ("fedbuff", FEDBUFF, 28))
POLICIES: dict[str, dict[str, Any]] = {
    ALL: {"rounds": 10},
    "deadline": {"rounds": 13, "round_deadline": "auto"},
    FOLD: {"rounds": 11, "round_deadline": "auto", "round_goal": 0.75, "round_late": "fold"},
    FEDBUFF: {"rounds": 20, "fl_strategy": "fedbuff", "strategy_args": {"buffer_size": 4}},
    "fedasync": {"rounds": 10, "fl_strategy": "fedasync", "strategy_args": {"updates_per_round": 8}},
}
POLICIES |= {f"longer {name}": {**POLICIES[of], "rounds": n} for name, of, n in LONGER}


def write_experiment(
    folder: Path, worlds: Sequence[str], policies: Sequence[str], seeds: Sequence[int]
) -> Path:
    """Write the experiment's file, and the scenario that it names; return the former.

    It has no target: that is known after the runs.
    """
    scenario = folder / WORLDS[WHILE]["scenario"]
    scenario.write_text(yaml.safe_dump(SCENARIO, sort_keys=False))
    worlds_of = {name: dict(WORLDS[name]) for name in worlds}
    for values in worlds_of.values():
        if "scenario" in values:
            values["scenario"] = str(scenario)
    content = {
        "name": NAME,
        "description": "Policies of a round and asynchronous strategies, beside clients that are slow.",
        "base": BASE,
        "grid": {
            "world": [{"name": name, **values} for name, values in worlds_of.items()],
            "policy": [{"name": name, **POLICIES[name]} for name in policies],
        },
        "seeds": list(seeds),
    }
    path = folder / f"{NAME}.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@dataclass(frozen=True)
class Trained:
    """A run that counts, from the tables of the experiment.

    Attributes
    ----------
    accuracy : float
        After its last round, of the server's evaluation.
    updates : int
        Updates of clients that are in its model, late ones included.
    rounds : sequence of mapping
        By round, round 0 included: ``round``, ``elapsed_seconds`` since the run's start, and ``accuracy``
        (None where it is not known).
    """

    world: str
    policy: str
    seed: int
    accuracy: float
    updates: int
    rounds: Sequence[Mapping[str, Any]]

    def seconds_to(self, target: float) -> float | None:
        """Seconds until a round of training reached an accuracy; None if none did."""
        for row in self.rounds:
            if row["round"] > 0 and row["accuracy"] is not None and row["accuracy"] >= target:
                return float(row["elapsed_seconds"])
        return None


def table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float | None:
    """Read a cell; None of an empty one."""
    return float(text) if text else None


def read_runs(folder: Path) -> tuple[list[Trained], list[str]]:
    """Read the tables of an experiment's folder.

    Returns
    -------
    runs : list of Trained
        Those that count.
    left_out : list of str
        The others, each with the reason.
    """
    rounds: dict[str, list[dict[str, Any]]] = {}
    for row in table(folder / "rounds.csv"):
        rounds.setdefault(row["run_id"], []).append(
            {
                "round": int(row["round"]),
                "elapsed_seconds": float(row["elapsed_seconds"]),
                "accuracy": number(row["accuracy"]),
            }
        )
    updates = Counter(
        row["run_id"]
        for row in table(folder / "clients.csv")
        if row["phase"] == "train" and (row["status"] == "ok" or row["folded_into"])
    )
    runs, left_out = [], []
    for row in table(folder / "runs.csv"):
        world, policy, seed = row["factor_world"], row["factor_policy"], int(row["seed"])
        if row["left_out"] or not row["accuracy"]:
            left_out.append(f"{world}, {policy}, seed {seed}: {row['left_out'] or 'no accuracy'}")
            continue
        of_run = sorted(rounds.get(row["run_id"], []), key=lambda item: item["round"])
        count = updates[row["run_id"]]
        runs.append(Trained(world, policy, seed, float(row["accuracy"]), count, of_run))
    return runs, left_out


def targets(runs: Sequence[Trained]) -> dict[int, float]:
    """The accuracy that each seed has to reach: that of `all` without stragglers, less a little.

    A seed without such a run has that of `all` in another world, which is the same model.
    """
    found: dict[int, float] = {}
    for run in sorted(runs, key=lambda run: run.world != ALONE):
        if run.policy == ALL:
            found.setdefault(run.seed, run.accuracy - BELOW)
    return found


@dataclass(frozen=True)
class Result:
    """What a policy took in a world.

    Attributes
    ----------
    accuracy, updates : Interval
        After the last round.
    seconds : mapping
        By seed: to its target; None where it was not reached. Seeds without a target are not in it.
    ratios : mapping
        By seed: these seconds in those of `all` in the same world, where both are known.
    """

    world: str
    policy: str
    accuracy: intervals.Interval
    updates: intervals.Interval
    seconds: Mapping[int, float | None]
    ratios: Mapping[int, float]

    @property
    def missed(self) -> int:
        """How many seeds did not reach their target."""
        return sum(value is None for value in self.seconds.values())

    def cells(self) -> list[str]:
        """The row of the printed table."""
        time_text, ratio_text = "-", "-"
        if self.missed:
            time_text = f"not reached {self.missed} of {len(self.seconds)}"
        elif self.seconds:
            time_text = shown([value for value in self.seconds.values() if value is not None], 1)
        if not self.missed and self.ratios:
            ratio_text = shown(list(self.ratios.values()), 2)
        return [
            self.world,
            self.policy,
            interval_text(self.accuracy, 4),
            interval_text(self.updates, 0),
            time_text,
            ratio_text,
        ]

    def figures(self) -> dict[str, Any]:
        """What the JSON file has of it."""
        return {
            "world": self.world,
            "policy": self.policy,
            "accuracy": vars(self.accuracy),
            "updates": vars(self.updates),
            "seconds_to_target": {str(seed): value for seed, value in self.seconds.items()},
            "not_reached": self.missed,
            "ratio_to_all": {str(seed): value for seed, value in self.ratios.items()},
        }


HEADER = ["world", "policy", "final accuracy", "updates", "seconds to target", "time / all"]


def interval_text(found: intervals.Interval, digits: int) -> str:
    """Write a mean with half its interval, if it has one."""
    half = "" if found.half is None else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def shown(values: Sequence[float], digits: int) -> str:
    """Write the mean of some values and its interval."""
    found = intervals.interval(values)
    return "-" if found is None else interval_text(found, digits)


def results_of(runs: Sequence[Trained]) -> list[Result]:
    """Sum up the runs of each world and policy, in the order of these."""
    wanted = targets(runs)
    by_place: dict[tuple[str, str], list[Trained]] = {}
    for run in runs:
        by_place.setdefault((run.world, run.policy), []).append(run)
    seconds = {
        place: {run.seed: run.seconds_to(wanted[run.seed]) for run in found if run.seed in wanted}
        for place, found in by_place.items()
    }
    found_results = []
    for world in WORLDS:
        for policy in POLICIES:
            these = by_place.get((world, policy), [])
            accuracy = intervals.interval([run.accuracy for run in these])
            updates = intervals.interval([run.updates for run in these])
            if accuracy is None or updates is None:
                continue
            mine, base = seconds[world, policy], seconds.get((world, ALL), {})
            ratios = {}
            for seed, value in mine.items():
                of_all = base.get(seed)
                if value is not None and of_all:
                    ratios[seed] = value / of_all
            found_results.append(Result(world, policy, accuracy, updates, mine, ratios))
    return found_results


def lines(results: Sequence[Result]) -> list[str]:
    """Write the table."""
    rows = [HEADER, *(result.cells() for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def draw(runs: Sequence[Trained], path: Path) -> None:
    """Draw accuracy over seconds, a panel for each world: the mean of the seeds, and its interval."""
    import matplotlib
    from matplotlib.figure import Figure

    from coldframe.controller.comparison_plots import WIDTH, colour, curve, save
    from coldframe.controller.plots import GREY, STYLE, count_time

    worlds = [world for world in WORLDS if any(run.world == world for run in runs)]
    wanted = intervals.interval(list(targets(runs).values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, len(worlds), sharey=True, squeeze=False)[0]
        for axes, world in zip(panels, worlds, strict=True):
            longest = 0.0
            for place, policy in enumerate(POLICIES):
                these = [run for run in runs if (run.world, run.policy) == (world, policy)]
                if not these:
                    continue
                at, means, low, high = curve(these, "accuracy", "elapsed_seconds")
                longest = max([longest, *at])
                axes.plot(at, means, color=colour(place), label=policy)
                axes.fill_between(at, low, high, color=colour(place), alpha=0.18, linewidth=0)
            if wanted:
                axes.axhline(wanted.mean, color=GREY, linewidth=0.8, linestyle=":")
            axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
            axes.set(title=world)
            count_time(axes, longest)
        low_end, high_end = panels[0].get_ylim()
        panels[0].set(ylabel="Accuracy", ylim=(max(low_end, 0.0), min(high_end, 1.0)))
        named = {
            label: handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=len(POLICIES))
        save(figure, path)


class Bench:
    """Hosts with a federation, and the verbs that work on it."""

    def __init__(self, hosts: Hosts, directory: Path, results: Path) -> None:
        self.hosts, self.directory = hosts, directory
        inventory = yaml.safe_load(hosts.inventory())
        inventory["fl_machines"]["vars"] |= {
            "fl_client_count": CLIENTS,
            "fl_client_cpu": CPU,
            "fl_client_memory": "512m",
            "fl_monitoring": False,
            "fl_results_dir": str(results),
        }
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))

    def play(self, verb: str, *extra: str) -> None:
        """Run a verb; what it says goes to the standard error."""
        command = [str(Path(sys.executable).with_name("ansible-playbook")), verb]
        command += ["-i", str(self.directory / "inventory.yml")]
        command += [word for pair in extra for word in ("-e", pair)]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.directory / "state")}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed")

    def deploy(self) -> None:
        """Deploy, wait for all clients, and train once: clients prepare their data with their first task."""
        self.play("site.yml", "train=false")
        wanted, end = CLIENTS * (len(HOSTS) - 1), time.monotonic() + SETTLE
        while self.online() < wanted:
            if time.monotonic() > end:
                sys.exit(f"not all of the {wanted} clients were connected within {SETTLE} s")
            time.sleep(2)
        self.play("run.yml", json.dumps(WARM_UP))

    def online(self) -> int:
        """How many clients are connected."""
        nodes = json.loads(self.hosts[0].run(f"{CONTROL} nodes").stdout.splitlines()[-1])["nodes"]
        return sum(node["status"] == "online" for node in nodes)


def choice(known: Sequence[str], text: str | None) -> list[str]:
    """Read a list of names, in the order in which they are known.

    Raises
    ------
    ValueError
        If one is not known.
    """
    given = [name.strip() for name in text.split(",")] if text is not None else list(known)
    for name in given:
        if name not in known:
            raise ValueError(f"{name!r} is not known: type some of '{','.join(known)}'")
    return [name for name in known if name in given]


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed of one world, three policies")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds, 3 unless this says otherwise")
    parser.add_argument("--worlds", metavar="A,B", help=f"some of {', '.join(WORLDS)}")
    parser.add_argument("--policies", metavar="A,B", help=f"some of {', '.join(POLICIES)}")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the results folders stay")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw accuracy over time")
    arguments = parser.parse_args()
    quick = arguments.quick
    try:
        worlds = choice(list(WORLDS), arguments.worlds or (TWO if quick else None))
        policies = choice(
            list(POLICIES), arguments.policies or (f"{ALL},{FOLD},{FEDBUFF}" if quick else None)
        )
    except ValueError as error:
        parser.error(str(error))
    if ALL not in policies:
        parser.error(f"the others are compared with {ALL!r}: type --policies '{','.join([ALL, *policies])}'")
    seeds = arguments.seeds if arguments.seeds is not None else 1 if quick else 3
    if seeds < 1:
        parser.error(f"--seeds {seeds} is no number of seeds: type --seeds 3")
    # Ended from outside, it still removes its hosts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory() as directory, Hosts(names=HOSTS, seed=fl_seed()) as hosts:
        results = arguments.results.resolve() if arguments.results else Path(directory) / "results"
        bench = Bench(hosts, Path(directory), results)
        path = write_experiment(Path(directory), worlds, policies, range(seeds))
        bench.deploy()
        bench.play("experiment.yml", f"file={path}")
        runs, left_out = read_runs(results / "experiments" / NAME)
    found = results_of(runs)
    print("\n".join(lines(found)))
    print("targets by seed: " + ", ".join(f"{value:.4f}" for _, value in sorted(targets(runs).items())))
    for line in left_out:
        print(f"left out: {line}")
    if arguments.json:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "platform": platform.platform()}
        content = {
            "figures": [result.figures() for result in found],
            "targets": {str(seed): value for seed, value in targets(runs).items()},
            "left_out": left_out,
            "machine": machine,
        }
        arguments.json.write_text(json.dumps(content))
    if arguments.plot:
        draw(runs, arguments.plot)


if __name__ == "__main__":
    main()
