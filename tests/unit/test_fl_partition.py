"""Every partitioner uses every sample once, obeys its seed, skews what it says, refuses what can't work."""

from typing import Any

import numpy as np
import pytest

from fl import partition
from fl.partition import PartitionError

LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 300))

CASES: list[tuple[str, dict[str, Any]]] = [
    ("iid", {}),
    ("dirichlet", {"alpha": 0.3}),
    ("dirichlet", {"alpha": 0.05, "min_samples": 1}),
    ("shards", {"classes_per_client": 2}),
    ("shards", {"classes_per_client": 3}),
    ("quantity_skew", {"alpha": 0.8}),
    ("quantity_skew", {"alpha": 1e6}),
    ("dirichlet", {"alpha": 1e6}),
]


def divide(
    scheme: str, args: dict[str, Any], seed: int = 0, clients: int = 7, **kwargs: Any
) -> list[np.ndarray]:
    return partition.partition(LABELS, scheme, args, seed, clients, **kwargs)


@pytest.mark.parametrize(("scheme", "args"), CASES)
@pytest.mark.parametrize("clients", [1, 3, 10])
def test_every_sample_goes_to_exactly_one_client(scheme: str, args: dict[str, Any], clients: int) -> None:
    parts = divide(scheme, args, clients=clients)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize(("scheme", "args"), CASES)
def test_one_seed_gives_one_division_and_another_seed_another(scheme: str, args: dict[str, Any]) -> None:
    first, again, other = (divide(scheme, args, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("scheme", "args"), CASES)
def test_max_samples_divides_a_seeded_subset(scheme: str, args: dict[str, Any]) -> None:
    used = np.concatenate(divide(scheme, args, max_samples=500))
    assert len(used) == len(set(used.tolist())) == 500
    assert set(used.tolist()) != set(np.concatenate(divide(scheme, args, 1, max_samples=500)).tolist())
    assert len(np.concatenate(divide(scheme, args, max_samples=10**6))) == len(LABELS)


def test_iid_parts_differ_by_one_sample_at_most() -> None:
    sizes = [len(part) for part in divide("iid", {})]
    assert max(sizes) - min(sizes) <= 1


def skew(alpha: float) -> float:
    """Return how far the clients' class shares are from equal ones, averaged over clients and classes."""
    counts = partition.histogram(LABELS, divide("dirichlet", {"alpha": alpha, "min_samples": 1}), 10)
    return float(np.abs(counts / counts.sum(axis=1, keepdims=True) - 0.1).mean())


def test_dirichlet_skews_more_the_smaller_alpha_is() -> None:
    assert skew(0.1) > 2 * skew(1) > 4 * skew(100)


def test_dirichlet_leaves_every_client_its_least_number_of_samples() -> None:
    assert min(len(part) for part in divide("dirichlet", {"alpha": 0.2, "min_samples": 100})) >= 100


def test_shards_give_a_client_the_classes_it_was_promised() -> None:
    counts = partition.histogram(LABELS, divide("shards", {"classes_per_client": 2}, clients=10), 10)
    assert (np.count_nonzero(counts, axis=1) <= 2).all()
    assert (counts.sum(axis=1) == 300).all()


def test_quantity_skew_changes_sizes_and_leaves_the_mix_of_classes() -> None:
    counts = partition.histogram(LABELS, divide("quantity_skew", {"alpha": 0.8, "min_samples": 50}), 10)
    sizes = counts.sum(axis=1)
    assert sizes.min() >= 50
    assert sizes.max() > 3 * sizes.min()
    large = counts[sizes > 400] / sizes[sizes > 400, None]
    assert np.abs(large - 0.1).max() < 0.06


@pytest.mark.parametrize(
    ("scheme", "args", "clients", "message"),
    [
        ("dirichlt", {}, 3, "did you mean 'dirichlet'"),
        ("random", {}, 3, "iid, dirichlet, shards, quantity_skew"),
        ("dirichlet", {"alpha": 0}, 3, "alpha must be a number above 0"),
        ("dirichlet", {"alpha": -1}, 3, "alpha must be a number above 0"),
        (
            "dirichlet",
            {"alpha": float("inf")},
            3,
            "alpha must be a number above 0 and up to 1000000, and is inf",
        ),
        ("dirichlet", {"alpha": float("nan")}, 3, "alpha must be a number above 0"),
        ("dirichlet", {"alpha": 10**400}, 3, "alpha must be a number above 0 and up to 1000000"),
        ("quantity_skew", {"alpha": 1e308}, 3, "alpha must be a number above 0 and up to 1000000"),
        ("quantity_skew", {"min_samples": float("inf")}, 3, "whole number from 1 on"),
        ("shards", {"classes_per_client": 0.5}, 3, "whole number from 1 on"),
        ("shards", {"classes_per_client": True}, 3, "whole number from 1 on"),
        ("dirichlet", {"alpha": "0.5"}, 3, "alpha must be a number above 0"),
        ("dirichlet", {"alhpa": 0.5}, 3, "no argument 'alhpa'; did you mean 'alpha'"),
        ("iid", {"alpha": 0.5}, 3, "takes no arguments"),
        ("shards", {"classes_per_client": 0}, 3, "whole number from 1 on"),
        ("shards", {"classes_per_client": 1.5}, 3, "whole number from 1 on"),
        ("iid", {}, 0, "at least 1"),
        ("iid", {}, 3001, "too few for 3001 clients"),
        ("dirichlet", {}, 301, "too few for 301 clients"),
        ("dirichlet", {"alpha": 0.001, "min_samples": 200}, 11, "use a larger alpha"),
        ("quantity_skew", {"alpha": 0.001, "min_samples": 200}, 10, "use a larger alpha"),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(
    scheme: str, args: dict[str, Any], clients: int, message: str
) -> None:
    with pytest.raises(PartitionError, match=message):
        divide(scheme, args, clients=clients)


def test_the_test_set_is_divided_as_the_training_set_was() -> None:
    counts = partition.histogram(LABELS, divide("shards", {"classes_per_client": 2}, clients=10), 10)
    test_labels = np.random.default_rng(2).integers(0, 10, 1000)
    parts = partition.mirror(counts, test_labels, 0)
    mirrored = partition.histogram(test_labels, parts, 10)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    assert ((mirrored > 0) == (counts > 0)).all()


def test_classes_that_nobody_trains_on_are_not_tested() -> None:
    counts = np.array([[5, 0], [5, 0]])
    parts = partition.mirror(counts, np.array([0, 1, 0, 1]), 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), [0, 2])
