"""The client's side of a round: take the global model, train or evaluate on the own partition, report."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn

from coldframe import cgroups
from fl import data, model, partition, training

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
    task = Task(message, context)
    x, y = task.load("train")
    config, run = message.content.config_records["config"], context.run_config
    task.start()
    metrics = training.train(
        task.model,
        x,
        y,
        epochs=int(run["local-epochs"]),
        batch_size=int(run["batch-size"]),
        learning_rate=float(run["learning-rate"]),
        momentum=float(run["momentum"]),
        proximal_mu=float(str(config.get("proximal-mu", 0.0))),
        seed=task.seed,
    )
    system = task.finish(len(y) * int(run["local-epochs"]))
    arrays = {key: Array(array) for key, array in model.pack(task.model.state_dict()).items()}
    return task.reply(metrics, len(y), system, ArrayRecord(arrays))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on test samples distributed like the own partition."""
    task = Task(message, context)
    x, y = task.load("test")
    task.start()
    metrics = training.evaluate(task.model, x, y)
    return task.reply(metrics, len(y), task.finish(len(y)))


def process_seconds() -> float:
    """Return the seconds since this process began: each message has one, so all that it took until now."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Task:
    """What one message asks for: the model, the partition and the seed; and the figures of the work."""

    def __init__(self, message: Message, context: Context) -> None:
        self.message, self.run = message, context.run_config
        config = message.content.config_records["config"]
        self.partition_id = int(context.node_config["partition-id"])
        # A federation that has grown since this client started is known to the server first.
        self.num_partitions = int(str(config.get("num-partitions") or context.node_config["num-partitions"]))
        self.dataset = str(self.run["dataset"])
        self.seed = seed_of(
            self.run["seed"], config["server-round"], self.partition_id, message.metadata.message_type
        )
        # A forked process inherits its parent's random state, the same in every client: set all of it.
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        self.cgroup = cgroups.own()
        # Limits change while a run goes on, so the number of threads is set anew for each message.
        torch.set_num_threads(cgroups.threads(self.cgroup.cpu_limit(), self.cgroup.cpuset_count()))
        self.model: nn.Module = model.build(self.dataset)
        arrays = message.content.array_records["arrays"]
        model.unpack({key: array.numpy() for key, array in arrays.items()}, self.model)

    def load(self, part: str) -> tuple[Tensor, Tensor]:
        """Load this client's training samples, or the test samples that mirror them."""
        root = data.default_root()
        labels = np.asarray(data.load_array(root, self.dataset, "train_y"))
        parts = partition.partition(
            labels,
            str(self.run["partitioner"]),
            json.loads(str(self.run["partitioner-args"])),
            int(self.run["seed"]),
            self.num_partitions,
            int(self.run["max-samples"]),
        )
        if part == "test":
            counts = partition.histogram(labels, parts, data.SPECS[self.dataset].classes)
            labels = np.asarray(data.load_array(root, self.dataset, "test_y"))
            parts = partition.mirror(counts, labels, int(self.run["seed"]))
        return data.load(root, self.dataset, part, parts[self.partition_id])

    def start(self) -> None:
        """Begin to measure."""
        self.started = time.monotonic(), time.process_time(), self.cgroup.cpu_periods()
        self.waited = self.waiting()

    def waiting(self) -> float | None:
        """Return the seconds so far in which a thread of this client waited for the CPU."""
        pressure = self.cgroup.pressure("cpu")
        return None if pressure is None else pressure["some"]["total"] / 1e6

    def finish(self, samples: int) -> dict[str, Any]:
        """Return the system figures of the work since start: seconds, bytes, cores; -1 where unlimited."""
        wall, cpu, (periods, throttled) = self.started
        seconds = time.monotonic() - wall
        periods_now, throttled_now = self.cgroup.cpu_periods()
        limit, memory = self.cgroup.cpu_limit(), self.cgroup.memory_limit()
        before, after = self.waited, self.waiting()
        pressure = -1.0 if before is None or after is None else (after - before) / max(seconds, 1e-9)
        return {
            "cpu_limit": -1.0 if limit is None else limit,
            "memory_limit": -1 if memory is None else memory,
            "threads": torch.get_num_threads(),
            "train_seconds": seconds,
            "task_seconds": process_seconds(),
            "cpu_pressure": pressure,
            "throttled_share": (throttled_now - throttled) / max(1, periods_now - periods),
            "memory_peak": self.cgroup.memory_peak() or -1,
            "samples_per_second": samples / seconds if seconds else 0.0,
            "cpu_seconds": time.process_time() - cpu,
            "partition_id": self.partition_id,
        }

    def reply(
        self,
        metrics: dict[str, float],
        examples: int,
        system: dict[str, Any],
        arrays: ArrayRecord | None = None,
    ) -> Message:
        """Answer the message: exactly one MetricRecord, which Flower averages; the figures go beside it."""
        content = RecordDict(
            {
                "metrics": MetricRecord({**metrics, "num-examples": examples}),
                "coldframe": ConfigRecord(system),
            }
        )
        if arrays is not None:
            content["arrays"] = arrays
        return Message(content, reply_to=self.message)


def seed_of(*parts: object) -> int:
    """Derive a seed from anything that can be printed; the same parts give the same seed on every machine."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
