"""Local training and evaluation on tensors in memory; knows nothing of Flower."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

EVALUATION_BATCH = 64  # bounds the memory of the activations; the result does not depend on it


@dataclass(frozen=True)
class Limit:
    """What a training may do; one step is made at least.

    Attributes
    ----------
    steps : int
        Of the optimiser, at most; 0: as many as all epochs have.
    until : float
        When no step is begun any more, by `time.monotonic`.
    """

    steps: int = 0
    until: float = math.inf

    def reached(self, steps: int) -> bool:
        """Whether so many steps were the last."""
        return steps >= (self.steps or math.inf) or time.monotonic() >= self.until


NO_LIMIT = Limit()


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes
    ----------
    metrics : dict
        `train_loss` and `train_accuracy` over the last epoch, or what was done of it, as seen while training
        (dropout on, the proximal term left out).
    steps, examples : int
        Of all epochs together.
    seconds : float
        That they took.
    """

    metrics: dict[str, float]
    steps: int
    examples: int
    seconds: float


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    proximal_mu: float = 0.0,
    seed: int = 0,
    limit: Limit = NO_LIMIT,
) -> Trained:
    """Train in place with SGD; one seed gives one result for a given number of threads and steps.

    Parameters
    ----------
    x, y : torch.Tensor
        Normalised samples (N, channels, height, width) as float32 and their classes (N,) as int64.
    proximal_mu : float
        Weight of FedProx's proximal term, mu/2 * ||w - w0||^2, where w0 are the weights at the start
        (Li et al. 2020, arXiv:1812.06127).
    limit : Limit
        Where it ends before all epochs are done.
    """
    if len(y) == 0:
        raise ValueError("there are no samples to train on")
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    start = [p.detach().clone() for p in model.parameters()] if proximal_mu else []
    begin = time.monotonic()
    steps = examples = seen = 0
    loss_sum = correct = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        order = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            if steps and limit.reached(steps):
                break
            loss_sum = correct = 0.0
            seen = 0
            for batch in torch.randperm(len(y), generator=order).split(batch_size):
                target = y[batch]
                optimizer.zero_grad()
                output = model(x[batch])
                loss = functional.nll_loss(output, target)
                loss_sum += loss.item() * len(batch)
                correct += (output.argmax(dim=1) == target).sum().item()
                if proximal_mu:
                    loss = loss + proximal_mu / 2 * sum(
                        (p - p0).square().sum() for p, p0 in zip(model.parameters(), start, strict=True)
                    )
                loss.backward()
                optimizer.step()
                steps, seen, examples = steps + 1, seen + len(batch), examples + len(batch)
                if limit.reached(steps):
                    break
    metrics = {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}
    return Trained(metrics, steps, examples, time.monotonic() - begin)


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the mean `loss` and the `accuracy` of a model; both are 0 where there are no samples."""
    model.eval()
    loss_sum = correct = 0.0
    for start in range(0, len(y), EVALUATION_BATCH):
        target = y[start : start + EVALUATION_BATCH]
        output = model(x[start : start + EVALUATION_BATCH])
        loss_sum += functional.nll_loss(output, target, reduction="sum").item()
        correct += (output.argmax(dim=1) == target).sum().item()
    samples = max(1, len(y))
    return {"loss": loss_sum / samples, "accuracy": correct / samples}
