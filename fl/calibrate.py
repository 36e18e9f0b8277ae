"""Times a fixed piece of training on one thread: how fast a core of this machine is.

    python -m fl.calibrate [SECONDS]

Prints JSON: the training steps per second of CPU time, over SECONDS of it (5). The step is always the same
(the CNN for MNIST, a batch of 32, SGD), so that the figures of machines can be compared; CPU time leaves out
what others take. Under a CPU limit a second of CPU time does fewer steps: in the pause between two slices the
caches are lost (the step goes through some 15 MB of weights, gradients and momentum).
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
    """Train on noise for that much CPU time, and return the steps per second of it."""
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
    steps, used, begin = 0, 0.0, time.process_time()
    while used < seconds:
        step()
        steps += 1
        used = time.process_time() - begin
    return steps / used


if __name__ == "__main__":
    speed = steps_per_second(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
    print(json.dumps({"steps_per_second": round(speed, 3), "time": time.time(), "threads": 1}))
