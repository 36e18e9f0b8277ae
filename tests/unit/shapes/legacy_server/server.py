"""A server of the legacy API: components instead of a main function, a thread per client."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def evaluate(number, parameters, config):
    return 1.0 - number / 10, {"accuracy": number / 10}


def server_fn(context: Context) -> ServerAppComponents:
    strategy = FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(3)]), evaluate_fn=evaluate)
    rounds = context.run_config["num-server-rounds"]
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
