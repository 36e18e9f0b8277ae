"""Four exchanges a round, after which the server knows the sum of the updates and none of them."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(
        min_fit_clients=5,
        min_available_clients=5,
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters([np.zeros(3)]),
    )
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
    fit = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, max_weight=10)
    DefaultWorkflow(fit_workflow=fit)(grid, legacy)
