"""The client's side of a round: take the global model, train or evaluate on the own partition, reply."""

import hashlib
import json
import math
import time

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn

from fl import data, model, partition, training, work

app = ClientApp()


def privacy(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Apply the client's half of the run's differential privacy, if it has one."""
    dp = context.run_config["dp"]
    if dp == "client-fixed":
        return fixedclipping_mod(message, context, call_next)
    if dp == "client-adaptive":
        return adaptiveclipping_mod(message, context, call_next)
    if dp == "local":
        return LocalDpMod(**json.loads(str(context.run_config["dp-args"])))(message, context, call_next)
    return call_next(message, context)


@app.train(mods=[privacy])
def train(message: Message, context: Context) -> Message:
    """Train on the own partition and return the weights."""
    begin = time.monotonic()
    run, config = context.run_config, message.content.config_records["config"]
    seed = seed_task(message, context)
    net = received_model(message, context)
    x, y = load(context, "train")
    seconds, epochs = float(str(config.get(work.SECONDS, math.inf))), int(run["local-epochs"])
    setup = time.monotonic() - begin
    trained = training.train(
        net,
        x,
        y,
        epochs=epochs,
        batch_size=int(run["batch-size"]),
        learning_rate=float(run["learning-rate"]),
        momentum=float(run["momentum"]),
        proximal_mu=float(str(config.get("proximal-mu", 0.0))),
        seed=seed,
        limit=training.Limit(int(str(config.get(work.STEPS, 0))), begin + seconds),
    )
    examples = len(y)
    told: dict[str, float] = {}
    if work.SECONDS in config:
        examples = work.weight(str(run["strategy"]).lower(), len(y), trained.examples, epochs)
        told = work.report(trained.steps, trained.examples, trained.seconds, setup)
    arrays = {key: Array(array) for key, array in model.pack(net.state_dict()).items()}
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord({**trained.metrics, **told, "num-examples": examples}),
        }
    )
    if not run["dp"]:  # else they are nobody's business
        counts = np.bincount(y.numpy(), minlength=data.SPECS[str(run["dataset"])].classes)
        content["partition"] = ConfigRecord({"class-counts": counts.tolist()})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on test samples distributed like the own partition."""
    seed_task(message, context)
    net = received_model(message, context)
    x, y = load(context, "test")
    metrics = MetricRecord({**training.evaluate(net, x, y), "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def seed_task(message: Message, context: Context) -> int:
    """Seed this task: every client differs in every round, and is the same in every run of a seed.

    Asynchronous strategies number their messages: a client can train twice in a round.
    """
    config = message.content.config_records["config"]
    number = config.get("dispatch", config["server-round"])
    kind = message.metadata.message_type
    seed = seed_of(context.run_config["seed"], number, context.node_config["partition-id"], kind)
    # A forked process inherits its parent's random state, the same in every client: set all of it.
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    return seed


def received_model(message: Message, context: Context) -> nn.Module:
    """Build the model with the weights that the server has sent."""
    net = model.build(str(context.run_config["dataset"]))
    packed = {key: array.numpy() for key, array in message.content.array_records["arrays"].items()}
    net.load_state_dict(model.unpack(packed, net.state_dict()))
    return net


def load(context: Context, part: str) -> tuple[Tensor, Tensor]:
    """Load this client's training samples, or the test samples that mirror them."""
    run, root = context.run_config, data.default_root()
    dataset, seed = str(run["dataset"]), int(run["seed"])
    labels = np.asarray(data.load_array(root, dataset, "train_y"))
    parts = partition.partition(
        labels,
        str(run["partitioner"]),
        json.loads(str(run["partitioner-args"])),
        seed,
        int(context.node_config["num-partitions"]),
        int(run["max-samples"]),
    )
    if part == "test":
        counts = partition.histogram(labels, parts, data.SPECS[dataset].classes)
        parts = partition.mirror(counts, np.asarray(data.load_array(root, dataset, "test_y")), seed)
    return data.load(root, dataset, part, parts[int(context.node_config["partition-id"])])


def seed_of(*parts: object) -> int:
    """Derive a seed from anything that can be printed; the same parts give the same seed on every machine."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
