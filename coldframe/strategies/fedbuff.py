"""FedBuff: asynchronous training whose server waits for a buffer of updates (arXiv:2106.06639)."""

from __future__ import annotations

from typing import Any

import numpy as np

from coldframe.strategies.aggregation import Adam, Buffer, Sgd, polynomial
from coldframe.strategies.asynchronous import Asynchronous

OPTIMIZERS = ("sgd", "adam")


class FedBuff(Asynchronous):
    """Federated learning with buffered asynchronous aggregation (Nguyen et al. 2022, arXiv:2106.06639).

    Clients train on the model that was the newest when they began, and send back w_local (Algorithm 2). The
    server takes delta = w_sent - w_local of each, and after K of them w ← w - η_g · (1/K) · Σ s(τ) · delta
    (Algorithm 1), with s(τ) = (1 + τ)^-½ for an update that is τ versions behind (§5). K updates are a round.

    Parameters
    ----------
    buffer_size : int
        K. At least 1; the paper's is 10.
    staleness_exponent : float
        a of s(τ) = (1 + τ)^-a; 0 weighs all updates alike.
    server_learning_rate : float
        η_g. Adam wants a smaller one, such as 0.01.
    server_optimizer : str
        What makes the step of the averaged delta: `sgd`, or `adam` (FedOpt, arXiv:2003.00295, Algorithm 2).
    server_momentum : float
        β of `sgd`; 0 is none, as in Algorithm 1. `adam` has its own.
    beta_1, beta_2, tau : float
        Of `adam`.
    """

    whole_rounds = True

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        buffer_size: int = 10,
        max_staleness: int | None = None,
        staleness_exponent: float = 0.5,
        server_learning_rate: float = 1.0,
        server_optimizer: str = "sgd",
        server_momentum: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **common: Any,
    ) -> None:
        super().__init__(concurrency=concurrency, max_staleness=max_staleness, **common)
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} is not 1 or more")
        if server_optimizer not in OPTIMIZERS:
            raise ValueError(f"server_optimizer={server_optimizer} is none of {', '.join(OPTIMIZERS)}")
        if server_optimizer == "adam" and server_momentum:
            raise ValueError("server_momentum is for server_optimizer=sgd: set beta_1 for adam")
        self.buffer_size, self.staleness_exponent = buffer_size, staleness_exponent
        self.server_learning_rate, self.server_optimizer = server_learning_rate, server_optimizer
        self.server_momentum, self.beta_1, self.beta_2, self.tau = server_momentum, beta_1, beta_2, tau

    def make_state(self, weights: dict[str, np.ndarray]) -> Buffer:
        """Return the empty buffer, at version 0."""
        optimizer = (
            Adam(self.server_learning_rate, self.beta_1, self.beta_2, self.tau)
            if self.server_optimizer == "adam"
            else Sgd(self.server_learning_rate, self.server_momentum)
        )
        return Buffer(
            weights,
            self.buffer_size,
            optimizer=optimizer,
            staleness=polynomial(self.staleness_exponent),
            max_staleness=self.max_staleness,
        )

    def updates_of_round(self, concurrency: int) -> int:
        """Return K."""
        return self.buffer_size

    def settings(self) -> dict[str, Any]:
        """Return what the log says."""
        return {
            "buffer_size": self.buffer_size,
            "staleness_exponent": self.staleness_exponent,
            "server_optimizer": self.server_optimizer,
            "server_learning_rate": self.server_learning_rate,
        }
