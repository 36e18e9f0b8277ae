"""What a checkpoint after each round costs: the time for which the run waits, and that of the file's writing.

`python benchmarks/checkpoint.py [--quick] [--directory DIR] [--json FILE]`. A model of 1.2 million parameters
in 20 arrays, with strategies that keep nothing (FedAvg), a second model (FedAvgM), and another one and two of
double precision (FedAdam), and with FedAvg as our app has it; the files are on the disk of DIR. The
ratio is the time waited to that of a plain `np.savez` with fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy

from coldframe.recording.checkpoint import Checkpoints, path_of
from coldframe.recording.journal import Journal, read_journal
from coldframe.recording.rounds import Recorder
from fl.strategy import Reproducible

PARAMETERS, ARRAYS = 1_200_000, 20


def model(seed: int) -> ArrayRecord:
    """Make arrays that no two rounds share."""
    generator = np.random.default_rng(seed)
    size = PARAMETERS // ARRAYS
    return ArrayRecord({f"layer{i}": Array(generator.random(size, dtype=np.float32)) for i in range(ARRAYS)})


def fill(strategy: Strategy, arrays: ArrayRecord) -> None:
    """Give a strategy the state that it has after a round, in the types that it has then."""
    if isinstance(strategy, Reproducible):
        fill(strategy.strategy, strategy._pack(arrays))  # as when it configures a phase
        return
    values = {key: array.numpy() for key, array in arrays.items()}
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays, strategy.momentum_vector = arrays, list(values.values())
    elif isinstance(strategy, FedAdam):
        strategy.current_arrays = values
        strategy.m_t = {key: value.astype("float64") for key, value in values.items()}
        strategy.v_t = {key: value.astype("float64") for key, value in values.items()}


def measure(strategy: Strategy, folder: Path, rounds: int) -> dict[str, float]:
    """Take a checkpoint after each of some rounds; return milliseconds and bytes."""
    recorder = Recorder(Journal(folder / "journal.jsonl"), folder / "nodes.json")
    taken = Checkpoints(recorder, folder)
    waited = []
    for number in range(1, rounds + 2):
        arrays = model(number)
        start = time.perf_counter()
        taken.configuring("train", strategy, number, (number, arrays, ConfigRecord()), {})
        if number > 1:
            waited.append(time.perf_counter() - start)
        fill(strategy, arrays)
        if taken._writer is not None:
            taken._writer.join()  # as in a round that is longer than the writing
    size = path_of(folder, rounds).stat().st_size
    taken.close()
    events = [event for event in read_journal(folder / "journal.jsonl") if event["event"] == "checkpoint"]
    assert len(events) == rounds
    return {
        "waited_ms": 1000 * statistics.median(waited),
        "waited_max_ms": 1000 * max(waited),
        "written_ms": 1000 * statistics.median(event["seconds"] for event in events),
        "megabytes": size / 1e6,
    }


def plain(folder: Path, rounds: int) -> float:
    """Return the milliseconds of np.savez and fsync, for the same arrays."""
    seconds = []
    for number in range(rounds):
        values = {key: array.numpy() for key, array in model(number).items()}
        start = time.perf_counter()
        with (folder / "plain.npz").open("wb") as file:
            np.savez(file, **values)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def main() -> int:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--directory", type=Path, help="on the disk that is to be measured (default: here)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rounds = 10 if arguments.quick else 30
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory or Path.cwd()) as folder:
        measured = {kind.__name__.lower(): kind() for kind in (FedAvg, FedAvgM, FedAdam)}
        for name, strategy in {**measured, "our app": Reproducible(FedAvg(), seed=1)}.items():
            (place := Path(folder, name)).mkdir()
            figures[name] = measure(strategy, place, rounds)
        figures["savez_ms"] = plain(Path(folder), rounds)
        ratios = {
            name: found["waited_ms"] / figures["savez_ms"]
            for name, found in figures.items()
            if name != "savez_ms"
        }
    for name, ratio in ratios.items():
        found = figures[name]
        waited = f"waited {found['waited_ms']:.2f} ms (at most {found['waited_max_ms']:.2f})"
        written = f"written in {found['written_ms']:.1f} ms, {found['megabytes']:.1f} MB"
        print(f"{name:8} {waited}, {written}; to np.savez {ratio:.2f}")
    print(f"np.savez and fsync {figures['savez_ms']:.1f} ms")
    if arguments.json:
        machine = {"cores": os.cpu_count(), "system": platform.platform()}
        arguments.json.write_text(json.dumps({"figures": figures, "ratios": ratios, "machine": machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
