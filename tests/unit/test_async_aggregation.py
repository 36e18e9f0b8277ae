"""FedBuff and FedAsync equal the pseudo-code of their papers, in plain numpy, over random histories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.strategies.aggregation import Adam, Buffer, Mixture, Sgd, State, constant, hinge, polynomial

Weights = dict[str, np.ndarray]
NAMES = ("a", "b")


def weights(values: np.random.Generator) -> Weights:
    return {name: values.normal(size=(3, 2)) for name in NAMES}


@dataclass
class History:
    """What happens: numbers from 0 up; a positive share of them are dispatches, the others replies."""

    steps: list[tuple[bool, int]]  # whether a client begins; else which of those that train replies
    seed: int


@dataclass
class Reference:
    """All versions of the model are kept, and each delta of the buffer: nothing is added up on the way."""

    versions: list[Weights]
    sent: dict[int, int] = field(default_factory=dict)
    buffer: list[tuple[Weights, float]] = field(default_factory=list)
    told: list[tuple[int, int, int, float]] = field(default_factory=list)  # dispatch, base, version, weight
    discarded: int = 0

    def staleness(self, dispatch: int, most: int | None) -> int | None:
        """Return τ = t - τ_i of the paper's notation; None if the update is too old."""
        base, version = self.sent[dispatch], len(self.versions) - 1
        if most is not None and version - base > most:
            self.discarded += 1
            self.told.append((dispatch, base, version, 0.0))
            return None
        return version - base


def histories() -> st.SearchStrategy[History]:
    step = st.tuples(st.booleans(), st.integers(0, 30))
    return st.builds(History, st.lists(step, max_size=60), st.integers(0, 2**32 - 1))


def play(history: History, state: State, size: int) -> tuple[list[tuple[int, int, Weights]], list[Any]]:
    """Play a history; return (dispatch, replies so far, w_local) of the replies, and what became of them."""
    values = np.random.default_rng(history.seed)
    training: list[int] = []
    number, replies, updates = 0, [], []
    for begins, which in history.steps:
        if begins or not training:
            state.send(number)
            replies.append((number, -1, {}))
            training.append(number)
            number += 1
            continue
        dispatch = training.pop(which % len(training))
        local = weights(values)
        replies.append((dispatch, 1, local))
        updates.append(state.add(dispatch, local))
        if size and state.due == size:
            state.apply()
    return replies, updates


def told(updates: list[Any]) -> list[tuple[Any, ...]]:
    return [(update.dispatch, update.base, update.version) for update in updates]


def same(found: Weights, wanted: Weights) -> None:
    for name in NAMES:
        assert np.allclose(found[name], wanted[name], rtol=0, atol=1e-6)


@given(
    histories(),
    st.integers(1, 5),
    st.floats(0.01, 2),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([None, 0, 1, 3]),
)
def test_fedbuff_is_the_papers(
    history: History, size: int, rate: float, exponent: float, most: int | None
) -> None:
    """Algorithm 1: after K deltas w ← w - η_g · (1/K) · Σ s(τ) · delta; Algorithm 2: delta = w - w_local."""
    first = weights(np.random.default_rng(1))
    state = Buffer(first, size, optimizer=Sgd(rate), staleness=polynomial(exponent), max_staleness=most)
    replies, updates = play(history, state, size)
    paper = Reference([first])
    for dispatch, kind, local in replies:
        if kind < 0:
            paper.sent[dispatch] = len(paper.versions) - 1
            continue
        tau = paper.staleness(dispatch, most)
        if tau is None:
            continue
        scale = 1 / (1 + tau) ** exponent
        base = paper.versions[paper.sent[dispatch]]
        paper.buffer.append(({name: base[name] - local[name] for name in NAMES}, scale))
        paper.told.append((dispatch, paper.sent[dispatch], len(paper.versions) - 1, scale))
        if len(paper.buffer) == size:
            mean = {name: sum(s * delta[name] for delta, s in paper.buffer) / size for name in NAMES}
            last = paper.versions[-1]
            paper.versions.append({name: last[name] - rate * mean[name] for name in NAMES})
            paper.buffer = []
    same(state.weights, paper.versions[-1])
    assert state.version == len(paper.versions) - 1
    assert (state.discarded, state.due) == (paper.discarded, len(paper.buffer))
    assert told(updates) == [entry[:3] for entry in paper.told]
    assert [update.weight for update in updates] == pytest.approx([entry[3] for entry in paper.told])
    assert [update.staleness for update in updates] == [version - base for _, base, version, _ in paper.told]


def paper_scale(kind: str, tau: int) -> float:
    """§5.2 of FedAsync, as it stands there."""
    if kind == "constant":
        return 1.0
    if kind == "polynomial":
        return math.pow(tau + 1, -0.5)
    return 1.0 if tau <= 4 else 1 / (10 * (tau - 4) + 1)


SCALES = {"constant": constant, "polynomial": polynomial(0.5), "hinge": hinge(10, 4)}


@given(histories(), st.floats(0.01, 1), st.sampled_from(list(SCALES)), st.sampled_from([None, 0, 2, 6]))
def test_fedasync_is_the_papers(history: History, alpha: float, kind: str, most: int | None) -> None:
    """Algorithm 1: α_t ← α s(t - τ), then x_t ← (1 - α_t) x_(t-1) + α_t x_new."""  # noqa: RUF002
    first = weights(np.random.default_rng(1))
    state = Mixture(first, alpha, staleness=SCALES[kind], max_staleness=most)
    replies, updates = play(history, state, 0)
    paper = Reference([first])
    for dispatch, what, local in replies:
        if what < 0:
            paper.sent[dispatch] = len(paper.versions) - 1
            continue
        tau = paper.staleness(dispatch, most)
        if tau is None:
            continue
        share, last = alpha * paper_scale(kind, tau), paper.versions[-1]
        paper.told.append((dispatch, paper.sent[dispatch], len(paper.versions) - 1, share))
        paper.versions.append({name: (1 - share) * last[name] + share * local[name] for name in NAMES})
    same(state.weights, paper.versions[-1])
    assert state.version == len(paper.versions) - 1 and state.discarded == paper.discarded
    assert told(updates) == [entry[:3] for entry in paper.told]
    assert [update.weight for update in updates] == pytest.approx([entry[3] for entry in paper.told])


@given(histories(), st.integers(1, 4))
def test_a_model_is_kept_as_long_as_a_client_trains_on_it_and_no_longer(history: History, size: int) -> None:
    values = np.random.default_rng(history.seed)
    state = Buffer(weights(values), size, staleness=constant)
    training: dict[int, int] = {}
    for number, (begins, which) in enumerate(history.steps):
        if begins or not training:
            training[number] = state.send(number)
        else:
            dispatch = sorted(training)[which % len(training)]
            del training[dispatch]
            if which % 3:
                state.add(dispatch, weights(values))
            elif which % 2:
                state.drop(dispatch)
            else:
                state.refuse(dispatch, "it is none")
            if state.due == size:
                state.apply()
        assert state.bases == len(set(training.values()))


def test_fedasync_keeps_no_model_but_the_present_one() -> None:
    state = Mixture(weights(np.random.default_rng(0)), 0.5, staleness=constant)
    for number in range(5):
        state.send(number)
    assert state.bases == 0


def steps(optimizer: Sgd | Adam, deltas: list[float], first: float) -> float:
    """Return an array of one value after a buffer of one update for each delta."""
    state = Buffer({"a": np.array([first])}, 1, optimizer=optimizer, staleness=constant)
    for number, delta in enumerate(deltas):
        state.send(number)
        state.add(number, {"a": state.weights["a"] - delta})
        state.apply()
    return float(state.weights["a"][0])


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(0, 0.99), st.floats(0.01, 1))
def test_momentum_of_the_server_is_fedavgms(deltas: list[float], beta: float, rate: float) -> None:
    w, v = 1.0, 0.0
    for delta in deltas:
        v = beta * v + delta
        w = w - rate * v
    assert steps(Sgd(rate, beta), deltas, 1.0) == pytest.approx(w, abs=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(0, 0.99), st.floats(0, 0.999))
def test_adam_of_the_server_is_fedopts(deltas: list[float], beta_1: float, beta_2: float) -> None:
    """arXiv:2003.00295, Algorithm 2, with its Δ = -delta: the mean of w_local - w_sent."""
    x, m, v, eta, tau = 1.0, 0.0, 1e-6, 0.1, 1e-3
    for delta in deltas:
        m = beta_1 * m + (1 - beta_1) * -delta
        v = beta_2 * v + (1 - beta_2) * delta**2
        x = x + eta * m / (math.sqrt(v) + tau)
    assert steps(Adam(eta, beta_1, beta_2, tau), deltas, 1.0) == pytest.approx(x, abs=1e-6)


def normed(mean: float, variance: float, seen: int, weight: float) -> Weights:
    return {
        "norm.weight": np.array([weight], np.float32),
        "norm.running_mean": np.array([mean], np.float32),
        "norm.running_var": np.array([variance], np.float32),
        "norm.num_batches_tracked": np.array(seen, np.int64),
    }


def test_statistics_are_averaged_as_values_and_counters_not_at_all() -> None:
    """As deltas with a large step, a variance of 1 from which two clients are far would become negative."""
    state = Buffer(normed(0, 1, 0, 1), 2, optimizer=Sgd(5.0), staleness=polynomial(1))
    state.send(0)
    state.send(1)
    state.send(2)
    state.add(0, normed(1, 0.1, 10, 0))
    state.add(1, normed(3, 0.3, 20, 0))
    state.apply()
    found = {name: array.item() for name, array in state.weights.items()}
    assert found == pytest.approx(
        {
            "norm.weight": 1 - 5.0,
            "norm.running_mean": 2.0,
            "norm.running_var": 0.2,
            "norm.num_batches_tracked": 20,
        }
    )
    state.send(3)
    state.add(3, normed(0, 0.5, 30, 0))
    state.add(2, normed(3, 0.2, 7, 0))  # one version behind: half the weight
    state.apply()
    assert state.weights["norm.running_var"].item() == pytest.approx((0.5 + 0.2 / 2) / 1.5)
    assert state.weights["norm.num_batches_tracked"].item() == 7
    assert {name: array.dtype for name, array in state.weights.items()} == {
        name: array.dtype for name, array in normed(0, 0, 0, 0).items()
    }


def test_fedasync_mixes_statistics_and_takes_counters() -> None:
    state = Mixture(normed(0, 1, 5, 1), 0.5, staleness=constant)
    state.send(0)
    state.add(0, normed(2, 0.5, 30, 0))
    found = {name: array.item() for name, array in state.weights.items()}
    assert found == {
        "norm.weight": 0.5,
        "norm.running_mean": 1.0,
        "norm.running_var": 0.75,
        "norm.num_batches_tracked": 30,
    }
    assert state.weights["norm.weight"].dtype == np.float32


def test_small_floats_are_added_up_in_wide_ones() -> None:
    """In float16 the sum of a thousand deltas of 0.001 stops growing long before."""
    first = {"a": np.array([1.0], np.float16)}
    state = Buffer(first, 1000, staleness=constant)
    for number in range(1000):
        state.send(number)
        state.add(number, {"a": np.array([0.9], np.float16)})
    state.apply()
    assert state.weights["a"].dtype == np.float16
    assert state.weights["a"][0] == pytest.approx(0.9, abs=1e-3)
