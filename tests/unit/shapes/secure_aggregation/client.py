"""Its update leaves it masked by Flower's modifier."""

from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import Context


class Client(NumPyClient):
    """Trains by adding its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters, config):
        return [parameter + self.number for parameter in parameters], 1, {}

    def evaluate(self, parameters, config):
        return 0.0, 1, {}


def client_fn(context: Context):
    return Client(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
