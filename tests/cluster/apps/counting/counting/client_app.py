"""A client that counts, with a package and a folder of data that came with the app."""

import os
from pathlib import Path

import numpy as np
import tally
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    assert tally.VERSION == 1
    words = Path(context.node_config["app-data"]) / "words.txt"
    assert words.read_text() == "a few" and os.environ["COLDFRAME_APP_DATA"] == str(words.parent)
    arrays = [a + msg.content["config"]["step"] for a in msg.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    value = float(np.sum(msg.content["arrays"].to_numpy_ndarrays()[0]))
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "sum": value})})
    return Message(content=content, reply_to=msg)
