"""FedAsync: asynchronous training whose server takes each update at once (arXiv:1903.03934)."""

from __future__ import annotations

from typing import Any

import numpy as np

from coldframe.strategies.aggregation import Mixture, Staleness, constant, hinge, polynomial
from coldframe.strategies.asynchronous import Asynchronous

STALENESS = ("constant", "polynomial", "hinge")


class FedAsync(Asynchronous):
    """Asynchronous federated optimisation (Xie, Koyejo and Gupta 2019, arXiv:1903.03934, §3, Algorithm 1).

    Each update that comes makes a version of the model: w ← (1 - a) w + a w_local with a = alpha · s(τ), for
    an update that is τ versions behind (§5.2). The clients minimise their loss and mu/2 · ‖w - w_sent‖² (§3,
    with the paper's rho for mu): mu is in each message's config under `proximal-mu`, as Flower's FedProx has
    it, and the ClientApp has to add the term.

    Parameters
    ----------
    alpha : float
        The weight of an update that is not stale, in (0, 1].
    staleness : str
        s of §5.2: `constant`; `polynomial`, (1 + τ)^-a; `hinge`, 1 up to b and then 1 / (a (τ - b) + 1).
    staleness_exponent : float
        a of the polynomial.
    hinge_slope, hinge_threshold : float
        a and b of the hinge.
    proximal_mu : float
        mu.
    updates_per_round : int, optional
        How many updates make a round: the model is evaluated after each. The default is one for each client
        that trains at a time.
    """

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        alpha: float = 0.6,
        max_staleness: int | None = None,
        staleness: str = "polynomial",
        staleness_exponent: float = 0.5,
        hinge_slope: float = 10.0,
        hinge_threshold: float = 4.0,
        proximal_mu: float = 0.005,
        updates_per_round: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(concurrency=concurrency, max_staleness=max_staleness, **common)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha={alpha} is not a number > 0 and ≤ 1")
        if staleness not in STALENESS:
            raise ValueError(f"staleness={staleness} is none of {', '.join(STALENESS)}")
        if updates_per_round is not None and updates_per_round < 1:
            raise ValueError(f"updates_per_round={updates_per_round} is not 1 or more")
        self.alpha, self.staleness, self.staleness_exponent = alpha, staleness, staleness_exponent
        self.hinge_slope, self.hinge_threshold = hinge_slope, hinge_threshold
        self.proximal_mu, self.updates_per_round = proximal_mu, updates_per_round

    def make_state(self, weights: dict[str, np.ndarray]) -> Mixture:
        """Return the model, at version 0."""
        kinds: dict[str, Staleness] = {
            "constant": constant,
            "polynomial": polynomial(self.staleness_exponent),
            "hinge": hinge(self.hinge_slope, self.hinge_threshold),
        }
        return Mixture(weights, self.alpha, staleness=kinds[self.staleness], max_staleness=self.max_staleness)

    def updates_of_round(self, concurrency: int) -> int:
        """Return how many updates come before the next evaluation."""
        return self.updates_per_round or concurrency

    def client_config(self) -> dict[str, float]:
        """Return mu, under FedProx's key."""
        return {"proximal-mu": self.proximal_mu}

    def settings(self) -> dict[str, Any]:
        """Return what the log says."""
        return {"alpha": self.alpha, "staleness": self.staleness, "proximal_mu": self.proximal_mu}
