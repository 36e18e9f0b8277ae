"""A client that counts, with a package and a folder of data that came with the app."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from counting import brought

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    if context.run_config["brings"]:
        assert str(brought.check()) == context.node_config["app-data"]
    arrays = [a + msg.content["config"]["step"] for a in msg.content["arrays"].to_numpy_ndarrays()]
    np.savez("local_model.npz", *arrays)
    Path("local_model.npz").chmod(0o600)
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    value = float(np.sum(msg.content["arrays"].to_numpy_ndarrays()[0]))
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "sum": value})})
    return Message(content=content, reply_to=msg)
