"""A line, and points near it."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x)


def load_data(partition_id, num_partitions):
    generator = torch.Generator().manual_seed(partition_id)
    x = torch.randn(200, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [3.0]]) + 0.5


def train(net, x, y, lr):
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()
