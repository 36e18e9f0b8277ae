"""A server that lets clients count, and checks what they counted."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from counting import brought

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    if context.run_config["brings"]:
        brought.check()
    result = FedAvg(min_available_nodes=4).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(4)]),
        train_config=ConfigRecord({"step": context.run_config["step"]}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    # Where it stands, as Flower's own apps do.
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
    total = float(np.sum(result.arrays.to_numpy_ndarrays()[0]))
    expected = 4 * context.run_config["step"] * context.run_config["num-server-rounds"]
    if total != expected:
        raise RuntimeError(f"counted {total}, expected {expected}")
