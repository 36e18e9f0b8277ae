"""A strategy with a `start` of its own: it keeps the best model and a table of results in a folder."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Keeping(FedAvg):
    """Trains without evaluation by clients."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.folder, self.best = folder, 0.0

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> ArrayRecord:
        arrays, results = initial_arrays, []
        for number in range(1, num_rounds + 1):
            messages = self.configure_train(number, arrays, ConfigRecord({"lr": 0.1 / number}), grid)
            arrays, metrics = self.aggregate_train(number, grid.send_and_receive(messages, timeout=timeout))
            found = evaluate_fn(number, arrays)
            results.append({"round": number, "train": dict(metrics), "server": dict(found)})
            (self.folder / "results.json").write_text(json.dumps(results))
            if found["accuracy"] > self.best:
                self.best = found["accuracy"]
                np.savez(self.folder / f"model_{number}.npz", *arrays.to_numpy_ndarrays())
        return arrays


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path.cwd() / "outputs" / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    folder.mkdir(parents=True)
    Keeping(folder).start(
        grid,
        ArrayRecord([np.zeros(3)]),
        num_rounds=2,
        evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": number / 4}),
    )
