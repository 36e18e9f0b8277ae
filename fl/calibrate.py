"""Times a fixed piece of training on one thread: how fast a core of this machine is.

    python -m fl.calibrate [SECONDS]

Prints JSON: the training steps per second of CPU time. The step is always the same (the CNN for MNIST, a
batch of 32, SGD), so that the figures of machines can be compared; CPU time leaves out what others take.
"""

import json
import sys
import time

import torch
from torch.nn import functional

from fl import model

BATCH = 32
WARM_UP = 3  # steps; the first ones allocate


def steps_per_second(seconds: float) -> float:
    """Train on noise for a time, and return the steps per second of CPU time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = model.build("mnist")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        functional.nll_loss(network(x), y).backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    steps, end, begin = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < end:
        step()
        steps += 1
    return steps / (time.process_time() - begin)


if __name__ == "__main__":
    speed = steps_per_second(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
    print(json.dumps({"steps_per_second": round(speed, 3), "time": time.time(), "threads": 1}))
