"""A server that averages lines, and checks the one that was learnt."""

import tally
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from regression.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    assert tally.VERSION == 2
    result = FedAvg(min_available_nodes=4).start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    weight = result.arrays.to_torch_state_dict()["linear.weight"][0]
    if not all(abs(a - b) < 0.3 for a, b in zip(weight.tolist(), [1.0, -2.0, 3.0], strict=True)):
        raise RuntimeError(f"learnt {weight.tolist()}")
