"""Flower's DefaultWorkflow, which names rounds in the groups of its messages."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.4, initial_parameters=ndarrays_to_parameters([np.zeros(3)]))
    rounds = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    DefaultWorkflow()(grid, LegacyContext(context=context, config=rounds, strategy=strategy))
