"""A client that fits a line to its own points."""

import os

import tally
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from regression.task import Net, load_data
from regression.task import train as fit

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    assert tally.VERSION == 2 and "COLDFRAME_APP_DATA" not in os.environ
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    x, y = load_data(node["partition-id"], node["num-partitions"])
    loss = fit(net, x, y, msg.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    net = Net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    x, y = load_data(node["partition-id"], node["num-partitions"])
    with torch.no_grad():
        loss = torch.nn.functional.mse_loss(net(x), y).item()
    content = RecordDict({"metrics": MetricRecord({"eval_loss": loss, "num-examples": len(x)})})
    return Message(content=content, reply_to=msg)
