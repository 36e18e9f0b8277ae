"""Counts, in the state that Flower keeps for it, how often it has trained."""

from flwr.client import ClientApp, NumPyClient
from flwr.common import ConfigRecord, Context


class Client(NumPyClient):
    """Its loss is the number of rounds that it knows of."""

    def __init__(self, context: Context) -> None:
        self.state = context.state

    def fit(self, parameters, config):
        trained = self.state.config_records.setdefault("counts", ConfigRecord({"trained": 0}))
        trained["trained"] += 1
        return parameters, 1, {"train_loss": float(trained["trained"])}

    def evaluate(self, parameters, config):
        return 0.5, 1, {}


def client_fn(context: Context):
    return Client(context).to_client()


app = ClientApp(client_fn=client_fn)
