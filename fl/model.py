"""The models, and how their weights leave the process: packed for the wire."""

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Cnn(nn.Module):
    """Two convolutions, two dense layers for 28x28 grey images; 1,199,882 parameters, log-softmax out."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(9216, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = functional.relu(self.conv2(x))
        x = self.dropout1(functional.max_pool2d(x, 2))
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return functional.log_softmax(self.fc2(self.dropout2(x)), dim=1)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = _norm(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), _norm(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _norm(channels: int) -> nn.Module:
    # GroupNorm, not BatchNorm: BatchNorm's running statistics are those of one client's classes. Averaged
    # over clients with different classes they describe nobody's data, and spoil the global model.
    return nn.GroupNorm(8, channels)


class ResNet(nn.Module):
    """A residual network with 14 layers of weights for 32x32 colour images: 175,258 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = _norm(16)
        widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(_Block(inside, outside, stride) for inside, outside, stride in widths))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.norm(self.conv(x))))
        return functional.log_softmax(self.fc(x.mean(dim=(2, 3))), dim=1)


def build(dataset: str, seed: int = 0) -> nn.Module:
    """Return a fresh model for a dataset; the same seed gives the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet() if dataset == "cifar10" else Cnn()


def pack(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Flatten a state into one array per dtype, in state_dict order.

    Flower moves every array of a record by requests of its own, so the number of arrays, not their size, is
    what a round costs. One flat array serves every array strategy as well as one per layer does: averages,
    medians and optimizers are elementwise, and the norms of Krum, q-FedAvg and differential privacy are taken
    over all layers together.

    Returns
    -------
    dict[str, numpy.ndarray]
        dtype name -> array of shape (number of elements with that dtype,)
    """
    groups: dict[str, list[np.ndarray]] = {}
    for tensor in state.values():
        array = tensor.detach().cpu().numpy()
        groups.setdefault(array.dtype.name, []).append(array.ravel())
    return {dtype: np.concatenate(arrays) for dtype, arrays in groups.items()}


def unpack(packed: Mapping[str, np.ndarray], like: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return the state that was packed; what a strategy returned in another dtype is cast back.

    Parameters
    ----------
    like : mapping
        A state with the names, shapes and dtypes of the packed one.
    """
    state: OrderedDict[str, Tensor] = OrderedDict()
    offsets = dict.fromkeys(packed, 0)
    for name, tensor in like.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        start, offsets[dtype] = offsets[dtype], offsets[dtype] + tensor.numel()
        flat = packed[dtype][start : offsets[dtype]].astype(dtype)
        state[name] = torch.from_numpy(flat).reshape(tensor.shape)
    for dtype, end in offsets.items():
        if end != packed[dtype].size:
            raise ValueError(f"the packed {dtype} array has {packed[dtype].size} elements, the model {end}")
    return state
