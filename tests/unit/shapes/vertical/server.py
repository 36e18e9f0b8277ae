"""A loop of its own: it asks for embeddings, and sends gradients whose replies it never asks for."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    for number in range(3):
        nodes = list(grid.get_node_ids())
        asked = [Message(RecordDict(), node, "query.generate_embeddings") for node in nodes]
        replies = list(grid.send_and_receive(asked))
        if any(set(reply.content) != {"embedding"} for reply in replies):
            raise ValueError("a foreign record")
        heads = [reply.content["embedding"].to_numpy_ndarrays()[0][0] for reply in replies]
        if heads != [-float(number)] * len(nodes):
            raise ValueError(f"gradients were lost: {heads}")
        gradients = RecordDict({"gradients": ArrayRecord([np.ones(2)])})
        grid.push_messages([Message(gradients, node, "train.apply_gradients") for node in nodes])
