"""A client of the legacy API."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class Client(NumPyClient):
    """Trains by adding 1."""

    def fit(self, parameters, config):
        return [parameter + 1 for parameter in parameters], 10, {"train_loss": 0.5}

    def evaluate(self, parameters, config):
        return 0.25, 5, {"accuracy": 0.75}


def client_fn(context: Context):
    return Client().to_client()


app = ClientApp(client_fn=client_fn)
