"""Answers a query about its data."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    bins = MetricRecord({"histogram": [1, 2, 3 + context.node_config["partition-id"]]})
    return Message(RecordDict({"answer": bins}), reply_to=message)
