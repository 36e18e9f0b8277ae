"""The server's side of a run: a strategy's rounds over the clients, and the model at the end."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fl import arguments as limits
from fl import data, model, partition, strategy, training

MODEL_FILE = "model.pt"  # in the working directory

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for all rounds and save the model."""
    run = context.run_config
    dataset, seed, rounds = str(run["dataset"]), int(run["seed"]), int(run["num-server-rounds"])
    clients = max(len(list(grid.get_node_ids())), least_clients(run))
    samples = len(data.load_array(data.default_root(), dataset, "train_y"))
    samples = min(samples, int(run["max-samples"]) or samples)
    partition.validate(str(run["partitioner"]), arguments(run, "partitioner"), clients, samples)
    chosen = build_strategy(run, clients)
    net = model.build(dataset, seed)
    evaluate, holds = evaluation(net, run), False

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        nonlocal holds
        holds = True  # the global model; before that only what it was built with
        return evaluate(server_round, arrays)

    try:
        result = chosen.start(
            grid,
            ArrayRecord(net.state_dict()),
            num_rounds=rounds,
            timeout=float(run["round-timeout"]),
            evaluate_fn=evaluate_fn,
        )
    finally:  # what the rounds before a failure have made is not lost, nor what a run before has saved
        if holds:
            torch.save(net.state_dict(), MODEL_FILE)
    if rounds and not result.arrays and float(run["fraction-train"]) > 0:
        raise RuntimeError(f"no round of {rounds} trained the model; the failures of the clients say why")


def arguments(run: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Read the arguments of the strategy, the privacy or the partitioner, which are JSON."""
    try:
        value = json.loads(str(run[f"{key}-args"]))
    except ValueError as error:
        raise ValueError(f"{key}-args is no JSON ({error}): write e.g. '{{\"alpha\": 0.3}}'") from None
    if not isinstance(value, dict):
        raise ValueError(f"{key}-args must be a JSON object such as '{{\"alpha\": 0.3}}', and is {value!r}")
    return value


def least_clients(run: Mapping[str, Any]) -> int:
    """Return how many clients a round has to have at least."""
    kinds = ["available", "train"] + (["evaluate"] if float(run["fraction-evaluate"]) > 0 else [])
    return max(1, *(int(run[f"min-{kind}-clients"]) for kind in kinds))


def build_strategy(run: Mapping[str, Any], clients: int) -> strategy.Reproducible:
    """Make the run's strategy, for so many clients."""
    chosen = strategy.build(
        str(run["strategy"]),
        arguments(run, "strategy"),
        fraction_train=float(run["fraction-train"]),
        fraction_evaluate=float(run["fraction-evaluate"]),
        min_train=int(run["min-train-clients"]),
        min_evaluate=int(run["min-evaluate-clients"]),
        min_available=int(run["min-available-clients"]),
        learning_rate=float(run["learning-rate"]),
        clients=clients,
        dp=str(run["dp"]),
        dp_args=arguments(run, "dp"),
    )
    seconds = float(run["round-work"])
    if problems := limits.judge_work(seconds, str(run["dp"]), str(run["strategy"]).lower()):
        raise strategy.StrategyError(limits.together(problems))
    return strategy.Reproducible(
        chosen, int(run["seed"]), finite=not run["allow-nonfinite"], work_seconds=seconds
    )


def evaluation(net: nn.Module, run: Mapping[str, Any]) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    """Return what evaluates the global model on the server's test set, in the rounds in which that is due."""
    root, dataset = data.default_root(), str(run["dataset"])
    every, last, most = (int(run[key]) for key in ("evaluate-every", "num-server-rounds", "evaluate-samples"))
    labels, chosen = data.load_array(root, dataset, "test_y"), None
    if 0 < most < len(labels):
        generator = np.random.default_rng(int(run["seed"]))
        chosen = np.sort(generator.choice(len(labels), most, replace=False))
    x, y = data.load(root, dataset, "test", chosen)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        net.load_state_dict(arrays.to_torch_state_dict())
        if server_round % max(1, every) and server_round != last:
            return None
        return MetricRecord({**training.evaluate(net, x, y)})

    return evaluate
