"""Gives embeddings of its features, and takes the gradients of them."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("generate_embeddings")
def generate_embeddings(message: Message, context: Context) -> Message:
    if "head" not in context.state:
        context.state["head"] = ArrayRecord([np.zeros(2)])
    return Message(RecordDict({"embedding": context.state["head"]}), reply_to=message)


@app.train("apply_gradients")
def apply_gradients(message: Message, context: Context) -> Message:
    (gradients,) = message.content["gradients"].to_numpy_ndarrays()
    (head,) = context.state["head"].to_numpy_ndarrays()
    context.state["head"] = ArrayRecord([head - gradients])
    return Message(RecordDict(), reply_to=message)
