"""Trains a layer with torch, on data that a DataLoader's worker hands over in shared memory."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    model = torch.nn.Linear(4, 2)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    data = torch.utils.data.TensorDataset(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for features, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"train_loss": loss.item(), "num-examples": len(data)})
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"eval_loss": 0.5, "eval_acc": 0.5, "num-examples": 8})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
