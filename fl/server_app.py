"""The server's side of a run: a strategy's rounds over the clients, the journal, the model at the end."""

import importlib.metadata
import json
import os
import platform
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

import coldframe
from coldframe import cgroups
from coldframe.recording.journal import Journal
from coldframe.recording.named_grid import GRACE, JournalingGrid, read_roster
from coldframe.recording.replies import Rules
from fl import data, model, partition, strategy, training

app = ServerApp()


class Diverged(RuntimeError):
    """The model has become NaN or infinite."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a training, and leave a journal of it however it ends."""
    state = os.environ.get("COLDFRAME_STATE")
    folder = Path(state or ".") / "runs" / str(context.run_id)
    journal = Journal(folder / "journal.jsonl")
    try:
        Training(grid, context, journal, folder, Path(state or ".") / "nodes.json").run()
    except Diverged as error:
        journal.append("run_finished", status="diverged", error=str(error))
        raise
    except BaseException as error:
        journal.append("run_finished", status="failed", error=f"{type(error).__name__}: {error}")
        raise
    else:
        journal.append("run_finished", status="completed", error=None)
    finally:
        journal.close()


@dataclass
class Round:
    """The figures of one round as they come in; times in seconds."""

    number: int
    started: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    clients: int = 0
    failures: int = 0

    def timed(self, phase: str, since: float) -> None:
        """Add the time since a moment to a phase."""
        self.phases[phase] = self.phases.get(phase, 0.0) + time.monotonic() - since


class Training:
    """One run from its configuration to the saved model."""

    def __init__(self, grid: Grid, context: Context, journal: Journal, folder: Path, roster: Path) -> None:
        self.config = dict(context.run_config)
        self.run_id = str(context.run_id)
        self.journal, self.folder = journal, folder
        self.dataset = str(self.config["dataset"])
        self.seed = int(self.config["seed"])
        self.rounds = int(self.config["num-server-rounds"])
        self.timeout = float(self.config["round-timeout"])
        self.clients = read_roster(roster)
        least = [int(self.config[f"min-{kind}-clients"]) for kind in ("available", "train", "evaluate")]
        if float(self.config["fraction-evaluate"]) == 0:
            least[2] = 0
        self.required = max(1, *least)
        self.wait_timeout = float(self.config["wait-timeout"])
        self.finite = not self.config["allow-nonfinite"]
        self.grid = JournalingGrid(
            grid,
            journal,
            self.clients,
            required=self.required,
            wait_timeout=self.wait_timeout,
            rules=Rules(finite=self.finite),
        )
        self.model = model.build(self.dataset, self.seed)
        self.strategy_args, self.dp_args, self.partitioner_args = (
            self._json(f"{key}-args") for key in ("strategy", "dp", "partitioner")
        )

    def run(self) -> None:
        """Train for all rounds and save the model."""
        chosen = self._strategy()
        torch.set_num_threads(cgroups.threads(cgroups.own().cpu_limit(), cgroups.own().cpuset_count()))
        labels = np.asarray(data.load_array(data.default_root(), self.dataset, "train_y"))
        self.test = data.load(data.default_root(), self.dataset, "test")
        self.journal.append(
            "run_started",
            run_id=self.run_id,
            run_name=self.config["run-name"],
            rounds=self.rounds,
            strategy=self.config["strategy"],
            strategy_args=self.strategy_args,
            dataset=self.dataset,
            partitioner=self.config["partitioner"],
            partitioner_args=self.partitioner_args,
            seed=self.seed,
            config=self.config,
            clients=[
                {"name": client.name, "partition_id": client.partition_id, "node_id": str(client.node_id)}
                for client in self.clients.values()
            ],
            versions={
                **{name: importlib.metadata.version(name) for name in ("flwr", "torch", "numpy")},
                "python": platform.python_version(),
                "coldframe": coldframe.__version__,
            },
            oversubscribed=bool(self.config["oversubscribed"]),
            histogram=self._histogram(labels),
        )
        self.grid.wait_for_clients(self.required, self.wait_timeout, GRACE)
        try:
            self._train(chosen)
        finally:
            self._save()

    def _json(self, key: str) -> dict[str, Any]:
        try:
            value = json.loads(str(self.config[key]))
        except ValueError as error:
            raise ValueError(f"{key} is no JSON ({error}): write e.g. '{{\"alpha\": 0.3}}'") from None
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be a JSON object such as '{{\"alpha\": 0.3}}', and is {value!r}")
        return value

    def _strategy(self) -> Strategy:
        return strategy.build(
            str(self.config["strategy"]),
            self.strategy_args,
            fraction_train=float(self.config["fraction-train"]),
            fraction_evaluate=float(self.config["fraction-evaluate"]),
            min_train=int(self.config["min-train-clients"]),
            min_evaluate=int(self.config["min-evaluate-clients"]),
            min_available=int(self.config["min-available-clients"]),
            learning_rate=float(self.config["learning-rate"]),
            clients=len(self.clients) or self.required,
            dp=str(self.config["dp"]),
            dp_args=self.dp_args,
        )

    def _histogram(self, labels: np.ndarray) -> dict[str, list[int]]:
        """Count the classes of every partition; without a roster nobody here knows how many there are."""
        scheme, args = str(self.config["partitioner"]), self.partitioner_args
        if not self.clients:
            partition.validate(scheme, args, self.required)
            return {}
        parts = partition.partition(
            labels, scheme, args, self.seed, self._num_partitions(), int(self.config["max-samples"])
        )
        counts = partition.histogram(labels, parts, data.SPECS[self.dataset].classes)
        return {str(partition_id): row.tolist() for partition_id, row in enumerate(counts)}

    def _num_partitions(self) -> int:
        # Partition ids are never given twice, so those of clients that are gone leave gaps.
        return 1 + max(client.partition_id or 0 for client in self.clients.values())

    def _train(self, chosen: Strategy) -> None:
        shared: dict[str, Any] = {"num-partitions": self._num_partitions()} if self.clients else {}
        packed = model.pack(self.model.state_dict())
        self._finish_round(Round(0))
        trained = 0
        for number in range(1, self.rounds + 1):
            this = Round(number)
            self.grid.round, self.grid.failures = number, 0
            arrays = ArrayRecord({key: Array(array) for key, array in packed.items()})
            aggregated = self._train_phase(chosen, this, arrays, ConfigRecord(shared))
            if aggregated is not None:
                trained += 1
                packed = {key: array.numpy().astype(packed[key].dtype) for key, array in aggregated.items()}
                if self.finite and not all(np.isfinite(array).all() for array in packed.values()):
                    self._diverged(this, "the aggregated model")
                model.unpack(packed, self.model)
                arrays = ArrayRecord({key: Array(array) for key, array in packed.items()})
            self._evaluate_phase(chosen, this, arrays, ConfigRecord(shared))
            this.failures = self.grid.failures
            self._finish_round(this)
        if self.rounds and not trained and float(self.config["fraction-train"]) > 0:
            raise RuntimeError(
                f"no round of {self.rounds} trained the model; the journal says why, by client"
            )

    def _diverged(self, this: Round, what: str) -> None:
        raise Diverged(
            f"in round {this.number} {what} is NaN or infinite. Lower learning_rate or clip (fl_dp); "
            "allow_nonfinite=true goes on all the same"
        )

    def _train_phase(
        self, chosen: Strategy, this: Round, arrays: ArrayRecord, config: ConfigRecord
    ) -> ArrayRecord | None:
        # Strategies sample with the module `random`, and draw noise with numpy's global generator.
        random.seed(f"{self.seed} {this.number} train")
        np.random.seed((self.seed * 1_000_003 + this.number) % 2**32)
        start = time.monotonic()
        messages = list(chosen.configure_train(this.number, arrays, config, self.grid))
        this.timed("configure", start)
        start = time.monotonic()
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        this.timed("train", start)
        start = time.monotonic()
        if self.grid.diverged:
            self._diverged(this, "what all clients trained")
        this.clients = sum(not reply.has_error() for reply in replies)
        aggregated, metrics = chosen.aggregate_train(this.number, replies)
        this.timed("aggregate", start)
        if messages and not aggregated:
            self.journal.append(
                "not_aggregated",
                round=this.number,
                messages=len(messages),
                replies=this.clients,
                reason=f"{self.config['strategy']} made no model of them; the global model stays as it is",
            )
        this.metrics["train_loss"] = (metrics or MetricRecord()).get("train_loss")
        return aggregated or None

    def _evaluate_phase(
        self, chosen: Strategy, this: Round, arrays: ArrayRecord, config: ConfigRecord
    ) -> None:
        random.seed(f"{self.seed} {this.number} evaluate")
        start = time.monotonic()
        messages = list(chosen.configure_evaluate(this.number, arrays, config, self.grid))
        this.timed("configure", start)
        start = time.monotonic()
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        this.timed("evaluate", start)
        if self.grid.diverged:
            self._diverged(this, "the loss of all clients")
        start = time.monotonic()
        metrics = chosen.aggregate_evaluate(this.number, replies) or MetricRecord()
        this.timed("aggregate", start)
        this.metrics.update(client_loss=metrics.get("loss"), client_accuracy=metrics.get("accuracy"))

    def _finish_round(self, this: Round) -> None:
        start = time.monotonic()
        central = training.evaluate(self.model, *self.test)
        this.timed("server_evaluate", start)
        self.journal.append(
            "round",
            round=this.number,
            accuracy=central["accuracy"],
            loss=central["loss"],
            client_accuracy=this.metrics.get("client_accuracy"),
            client_loss=this.metrics.get("client_loss"),
            train_loss=this.metrics.get("train_loss"),
            seconds=round(time.monotonic() - this.started, 3),
            phases={phase: round(seconds, 3) for phase, seconds in this.phases.items()},
            clients=this.clients,
            failures=this.failures,
        )

    def _save(self) -> None:
        """Save the model so that a half-written file never bears its name."""
        state = self.model.state_dict()
        path = self.folder / "model.pt"
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.rename(path)
        self.journal.append(
            "model_saved", path=str(path), sha256=model.model_sha256(state), bytes=path.stat().st_size
        )
