"""What an asynchronous server computes: the model's versions, and what each client's update does to it.

Pure: arrays and numbers of dispatches in, arrays out. It knows neither Flower nor who trains or when, so that
updates which are added in the same order make the same model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Staleness = Callable[[int], float]  # server versions that an update is behind -> its weight, in (0, 1]

# How the names end of arrays that describe data and are not trained: BatchNorm's, as PyTorch calls them.
STATISTICS = ("running_mean", "running_var")


def constant(_staleness: int) -> float:
    """Weigh all updates alike: s(τ) = 1 (FedAsync, arXiv:1903.03934, §5.2)."""
    return 1.0


def polynomial(exponent: float) -> Staleness:
    """Weigh by s(τ) = (1 + τ)^-a (FedAsync, arXiv:1903.03934, §5.2; FedBuff, arXiv:2106.06639, §5: a = 1/2).

    >>> polynomial(0.5)(3)
    0.5
    """
    return lambda staleness: float((1 + staleness) ** -exponent)


def hinge(slope: float, threshold: float) -> Staleness:
    """Weigh by s(τ) = 1 if τ ≤ b, else 1 / (a (τ - b) + 1) (FedAsync, arXiv:1903.03934, §5.2).

    >>> hinge(10, 4)(4), hinge(10, 4)(5)
    (1.0, 0.09090909090909091)
    """
    return lambda staleness: 1.0 if staleness <= threshold else 1.0 / (slope * (staleness - threshold) + 1.0)


class Sgd:
    """Server optimiser: w ← w - η m, with m ← β m + delta (FedOpt, arXiv:2003.00295, Algorithm 1, SERVEROPT).

    Parameters
    ----------
    learning_rate : float
        η, of the server.
    momentum : float
        β; 0 is plain SGD.
    """

    def __init__(self, learning_rate: float = 1.0, momentum: float = 0.0) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum
        self._mean: dict[str, np.ndarray] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return m, by array."""
        return {"mean": dict(self._mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` has returned."""
        self._mean = dict(state["mean"])

    def step(self, name: str, delta: np.ndarray) -> np.ndarray:
        """Return what to subtract from an array, given its averaged delta (w_sent - w_local) in float64."""
        if not self.momentum:
            return self.learning_rate * delta
        mean = self.momentum * self._mean.get(name, 0.0) + delta
        self._mean[name] = mean
        return self.learning_rate * mean


class Adam:
    """Server optimiser: FedAdam (FedOpt, arXiv:2003.00295, Algorithm 2), without correction of the bias.

    m ← β1 m + (1 - β1) delta; v ← β2 v + (1 - β2) delta²; w ← w - η m / (√v + τ). At first m = 0 and v = τ².
    """

    def __init__(
        self, learning_rate: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3
    ) -> None:
        self.learning_rate, self.beta_1, self.beta_2, self.tau = learning_rate, beta_1, beta_2, tau
        self._mean: dict[str, np.ndarray] = {}
        self._square: dict[str, np.ndarray] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return m and v, by array."""
        return {"mean": dict(self._mean), "square": dict(self._square)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` has returned."""
        self._mean, self._square = dict(state["mean"]), dict(state["square"])

    def step(self, name: str, delta: np.ndarray) -> np.ndarray:
        """Return what to subtract from an array, given its averaged delta (w_sent - w_local) in float64."""
        mean = self.beta_1 * self._mean.get(name, 0.0) + (1 - self.beta_1) * delta
        square = self.beta_2 * self._square.get(name, self.tau**2) + (1 - self.beta_2) * delta**2
        self._mean[name], self._square[name] = mean, square
        return self.learning_rate * mean / (np.sqrt(square) + self.tau)


@dataclass(frozen=True)
class Update:
    """What became of one client's update.

    Attributes
    ----------
    dispatch : int
        The message that it answers, counted from 0 in the order of sending.
    base, version : int
        Versions of the model: that which the client was sent, and that to which the update was added.
    weight : float
        s(τ), with FedAsync times alpha; 0 where it was not used.
    reason : str
        Why it was not used; empty where it was.
    """

    dispatch: int
    base: int
    version: int
    weight: float
    reason: str = ""

    @property
    def staleness(self) -> int:
        """Versions that the model went on while the client trained: τ."""
        return self.version - self.base


class State(ABC):
    """The server's model and its versions, and which of them each client has that trains.

    Floating-point arrays are averaged as the paper has it. Others are not, for a mean of counters means
    nothing: of integers and truth values the newest update's are taken, and running statistics (`statistics`)
    are averaged as values, since no learning rate or momentum of the server may move a variance below zero.

    Parameters
    ----------
    weights : mapping
        The first model, version 0.
    staleness : callable
        The weight of an update by its staleness.
    max_staleness : int, optional
        An update that is more versions behind is not used.
    statistics : sequence of str
        How the names of running statistics end.
    """

    def __init__(
        self,
        weights: Arrays,
        *,
        staleness: Staleness,
        max_staleness: int | None = None,
        statistics: Sequence[str] = STATISTICS,
    ) -> None:
        self.weights: dict[str, np.ndarray] = dict(weights)
        self.version = 0
        self.discarded = 0
        self._staleness, self._max_staleness = staleness, max_staleness
        self._statistics = tuple(statistics)
        self._sent: dict[int, int] = {}  # dispatch -> version
        self._bases: dict[int, dict[str, np.ndarray]] = {}  # the models of those versions

    keeps_bases = False  # whether an update needs the model that its client was sent

    @property
    def bases(self) -> int:
        """How many models are kept for updates that are still to come."""
        return len(self._bases)

    def send(self, dispatch: int) -> int:
        """Note that the present model is sent; return its version."""
        self._sent[dispatch] = self.version
        if self.keeps_bases:
            self._bases.setdefault(self.version, self.weights)
        return self.version

    def base_of(self, dispatch: int) -> dict[str, np.ndarray]:
        """Return the model that a dispatch was sent with, where those are kept."""
        return self._bases[self._sent[dispatch]]

    def state_dict(self) -> dict[str, Any]:
        """Return what there is besides the model: the version, what is in the buffer, and the dispatches that
        are not answered yet, with their models where those are kept."""
        return {
            **{"kind": type(self).__name__, "version": self.version, "discarded": self.discarded},
            **{"sent": dict(self._sent), "bases": {key: dict(base) for key, base in self._bases.items()}},
            "own": {name: copy(getattr(self, name)) for name in self.kept},
        }

    def load_state_dict(self, state: Mapping[str, Any], with_sent: bool = False) -> list[str]:
        """Take over what `state_dict` has returned; the dispatches only if they are to be sent again.

        Returns
        -------
        list of str
            What begins anew, since it was another class's: the versions go on all the same.
        """
        self.version, self.discarded = state["version"], state["discarded"]
        if with_sent:
            self._sent, self._bases = dict(state["sent"]), dict(state["bases"])
        if state.get("kind") != type(self).__name__:
            return [type(self).__name__]
        for name, value in state["own"].items():
            setattr(self, name, value)
        return []

    kept: tuple[str, ...] = ("_count",)  # attributes that describe what is in the buffer

    def drop(self, dispatch: int) -> None:
        """Forget a dispatch that has failed."""
        self._release(dispatch)

    def refuse(self, dispatch: int, reason: str) -> Update:
        """Forget a dispatch whose update cannot be used, and say so."""
        base, _ = self._release(dispatch)
        self.discarded += 1
        return Update(dispatch, base, self.version, 0.0, reason)

    def add(self, dispatch: int, arrays: Arrays) -> Update:
        """Use a client's model, unless it is too stale.

        Parameters
        ----------
        arrays : mapping
            w_local: names, shapes and dtypes are those of the model.
        """
        stale = self.version - self._sent[dispatch]
        if self._max_staleness is not None and stale > self._max_staleness:
            return self.refuse(dispatch, f"its staleness is {stale}, and max_staleness {self._max_staleness}")
        version = self.version  # FedAsync's is another one afterwards
        base, model = self._release(dispatch)
        weight = self._use(arrays, model, self._staleness(stale))
        return Update(dispatch, base, version, weight)

    @property
    @abstractmethod
    def due(self) -> int:
        """How many updates are in the buffer, or have changed the model since `apply`."""

    @abstractmethod
    def apply(self) -> None:
        """Finish the round."""

    @abstractmethod
    def _use(self, arrays: Arrays, base: Arrays, weight: float) -> float:
        """Take an update into account; return its weight."""

    def _release(self, dispatch: int) -> tuple[int, dict[str, np.ndarray]]:
        base = self._sent.pop(dispatch)
        model = self._bases.get(base, {})
        if base not in self._sent.values():
            self._bases.pop(base, None)
        return base, model

    def _kind(self, name: str) -> str:
        """Say how an array is treated: as a `weight`, a `statistic` or a `counter`."""
        if self.weights[name].dtype.kind not in "fc":
            return "counter"
        return "statistic" if name.endswith(self._statistics) else "weight"


class Buffer(State):
    """FedBuff's server: K updates make a version (Nguyen et al. 2022, arXiv:2106.06639, §3, Algorithm 1).

    With delta = w_sent - w_local (Algorithm 2) and staleness τ: w ← w - η_g · (1/K) · Σ s(τ) · delta (§5).
    The sum is divided by K, not by Σ s(τ): a buffer of stale updates makes a smaller step.

    Parameters
    ----------
    size : int
        K.
    optimizer : Sgd or Adam
        What makes the step of the averaged delta. The paper's is SGD with η_g.
    """

    keeps_bases = True

    def __init__(
        self,
        weights: Arrays,
        size: int = 10,
        *,
        optimizer: Sgd | Adam | None = None,
        staleness: Staleness,
        max_staleness: int | None = None,
        statistics: Sequence[str] = STATISTICS,
    ) -> None:
        super().__init__(weights, staleness=staleness, max_staleness=max_staleness, statistics=statistics)
        self.size = size
        self.optimizer = optimizer or Sgd()
        self._sums: dict[str, np.ndarray] = {}  # Σ s delta; of statistics Σ s w_local; in float64
        self._counters: dict[str, np.ndarray] = {}
        self._count, self._weight = 0, 0.0

    kept = ("_sums", "_counters", "_count", "_weight")

    def state_dict(self) -> dict[str, Any]:
        """Return that of any server, and the optimiser's."""
        optimizer = {"kind": type(self.optimizer).__name__, **self.optimizer.state_dict()}
        return {**super().state_dict(), "optimizer": optimizer}

    def load_state_dict(self, state: Mapping[str, Any], with_sent: bool = False) -> list[str]:
        """Take it over; of another optimiser nothing."""
        anew = super().load_state_dict(state, with_sent)
        kept, kind = state.get("optimizer", {}), type(self.optimizer).__name__
        if kept.get("kind") != kind:
            return [*anew, kind]
        self.optimizer.load_state_dict(kept)
        return anew

    @property
    def due(self) -> int:
        """How many updates are in the buffer."""
        return self._count

    def _use(self, arrays: Arrays, base: Arrays, weight: float) -> float:
        for name, array in arrays.items():
            kind = self._kind(name)
            if kind == "counter":
                self._counters[name] = array
                continue
            wide = np.result_type(array.dtype, np.float64)
            value = array.astype(wide) if kind == "statistic" else base[name].astype(wide) - array
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
        self._count += 1
        self._weight += weight
        return weight

    def apply(self) -> None:
        """Make the next version of what is in the buffer, K updates by right."""
        weights = dict(self.weights)
        for name, total in self._sums.items():
            if self._kind(name) == "statistic":
                new = total / self._weight
            else:
                new = self.weights[name] - self.optimizer.step(name, total / self.size)
            weights[name] = np.asarray(new, self.weights[name].dtype)
        weights.update(self._counters)
        self.weights = weights
        self.version += 1
        self._sums, self._counters, self._count, self._weight = {}, {}, 0, 0.0


class Mixture(State):
    """FedAsync's server: each update makes a version (Xie et al. 2019, arXiv:1903.03934, §3, Algorithm 1).

    w ← (1 - a) w + a w_local with a = alpha · s(τ) (§5.2). It needs no model but the present one. A mean of
    values is what running statistics need, too; counters are the update's.

    Parameters
    ----------
    alpha : float
        The weight of an update that is not stale, in (0, 1].
    """

    def __init__(
        self,
        weights: Arrays,
        alpha: float = 0.6,
        *,
        staleness: Staleness,
        max_staleness: int | None = None,
    ) -> None:
        super().__init__(weights, staleness=staleness, max_staleness=max_staleness)
        self.alpha = alpha
        self._count = 0

    @property
    def due(self) -> int:
        """How many updates have changed the model since `apply`."""
        return self._count

    def _use(self, arrays: Arrays, base: Arrays, weight: float) -> float:
        share = self.alpha * weight
        mixed: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            if self._kind(name) == "counter":
                mixed[name] = array
                continue
            old = self.weights[name]
            wide = np.result_type(old.dtype, np.float64)
            mixed[name] = np.asarray((1 - share) * old.astype(wide) + share * array, old.dtype)
        self.weights = mixed
        self.version += 1
        self._count += 1
        return share

    def apply(self) -> None:
        """Begin to count anew: each update has made its version already."""
        self._count = 0


def common_form(forms: Sequence[object]) -> set[int]:
    """Return the places of the form that most have; of two that are as frequent, of the one that comes first.

    >>> sorted(common_form(["a", "b", "a"]))
    [0, 2]
    """
    if not forms:
        return set()
    most = Counter(forms).most_common(1)[0][0]
    return {place for place, form in enumerate(forms) if form == most}
