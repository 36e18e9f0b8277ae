"""A step of gradient descent on a line, with a list among its metrics; client 1 fails once to evaluate."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    np.savez("local_model.npz", weights)  # in the client's directory
    metrics = {
        "train_loss": 0.5,
        "per_class": [0.1, 0.9],
        "num-examples": 10 * (1 + context.node_config["partition-id"]),
    }
    content = {"arrays": ArrayRecord([weights + 1]), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 1 and message.content["config"]["server-round"] == 2:
        raise ValueError("no data")
    metrics = MetricRecord({"eval_acc": 0.75, "eval_loss": 0.25, "num-examples": 5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
