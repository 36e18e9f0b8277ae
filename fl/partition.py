"""How a training set is divided among clients: pure functions from labels and a seed to index arrays.

Every client computes the whole division and takes its own part, so nothing but a seed has to be agreed on.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PARTITIONERS = ("iid", "dirichlet", "shards", "quantity_skew")

DEFAULTS: dict[str, dict[str, float | int]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "min_samples": 10},
    "shards": {"classes_per_client": 2},
    "quantity_skew": {"alpha": 1.0, "min_samples": 10},
}
MAX_DRAWS = 1000  # until every client has min_samples
MAX_ALPHA = 1e6  # shares are equal long before, and far beyond numpy can draw none


class PartitionError(ValueError):
    """A partitioner, or an argument of one, that cannot work; the message says what can.

    Attributes
    ----------
    argument : str
        The argument whose value is none for the partitioner; empty where it is something else.
    """

    def __init__(self, message: str, argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument


def validate(scheme: str, args: Mapping[str, Any], num_partitions: int, samples: int = 0) -> dict[str, Any]:
    """Return the partitioner's arguments with defaults filled in, or raise PartitionError.

    Parameters
    ----------
    samples : int
        How many samples there are to divide; 0 if not known yet.
    """
    if scheme not in PARTITIONERS:
        raise PartitionError(f"unknown partitioner {scheme!r}{_nearest(scheme, PARTITIONERS)}")
    defaults = DEFAULTS[scheme]
    for key, value in args.items():
        if key not in defaults:
            raise PartitionError(
                f"partitioner {scheme} has no argument {key!r}{_nearest(key, list(defaults))}"
                if defaults
                else f"partitioner {scheme} takes no arguments, but got {key!r}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "alpha" and not (number and 0 < value <= MAX_ALPHA):
            raise PartitionError(
                f"{scheme}: alpha must be a number above 0 and up to {MAX_ALPHA:.0f}, and is {value!r}", key
            )
        if key != "alpha" and not (number and isinstance(value, int) and value >= 1):
            raise PartitionError(f"{scheme}: {key} must be a whole number from 1 on, and is {value!r}", key)
    if num_partitions < 1:
        raise PartitionError(f"the number of partitions must be at least 1, and is {num_partitions}")
    merged = {**defaults, **args}
    need = num_partitions * merged.get("min_samples", merged.get("classes_per_client", 1))
    if samples and need > samples:
        less = ", a smaller min_samples" if "min_samples" in merged else ""
        raise PartitionError(
            f"{samples} samples are too few for {num_partitions} clients with partitioner {scheme} "
            f"(it needs {need}): use fewer clients{less}, or a larger max_samples if it is set"
        )
    return merged


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} It can be: {', '.join(known)}"


def partition(
    labels: np.ndarray,
    scheme: str,
    args: Mapping[str, Any],
    seed: int,
    num_partitions: int,
    max_samples: int = 0,
) -> list[np.ndarray]:
    """Divide the samples among clients; every sample goes to exactly one client.

    Parameters
    ----------
    labels : numpy.ndarray
        Class of each sample, shape (N,), integers from 0 on.
    scheme, args : str, mapping
        - `iid`: equal parts of a random order (sizes differ by at most one).
        - `dirichlet` (alpha, min_samples): label skew; each class is divided in proportions drawn from
          Dir(alpha) over clients: the smaller alpha, the stronger the skew. From Hsu et al. 2019
          (arXiv:1909.06335), in the per-class form of Yurochkin et al. 2019 (arXiv:1905.12022), which uses
          every sample once. Drawn anew until each client has min_samples.
        - `shards` (classes_per_client): label skew; samples sorted by class are cut into
          clients x classes_per_client equal shards, dealt out at random (McMahan et al. 2017,
          arXiv:1602.05629). A shard lies in one class where the borders allow it, else over a border.
        - `quantity_skew` (alpha, min_samples): the classes are mixed, the sizes are proportions from
          Dir(alpha) over clients (Li et al. 2022, arXiv:2102.02079).
    max_samples : int
        Divide only a random subset of this size; 0 for all.

    Returns
    -------
    list[numpy.ndarray]
        For each partition id its sorted sample indices.
    """
    rng = np.random.default_rng([seed, 0x636F6C64])
    chosen = rng.permutation(len(labels))
    if 0 < max_samples < len(labels):
        chosen = chosen[:max_samples]
    merged = validate(scheme, args, num_partitions, len(chosen))
    if scheme == "iid":
        parts = np.array_split(chosen, num_partitions)
    elif scheme == "dirichlet":
        parts = _dirichlet(rng, chosen, labels, num_partitions, **merged)
    elif scheme == "shards":
        parts = _shards(rng, chosen, labels, num_partitions, **merged)
    else:
        parts = _quantity_skew(rng, chosen, num_partitions, **merged)
    return [np.sort(part) for part in parts]


def _dirichlet(
    rng: np.random.Generator,
    chosen: np.ndarray,
    labels: np.ndarray,
    num_partitions: int,
    alpha: float,
    min_samples: int,
) -> list[np.ndarray]:
    by_class = [chosen[labels[chosen] == c] for c in np.unique(labels[chosen])]
    sizes = [len(members) for members in by_class]
    for _ in range(MAX_DRAWS):
        cuts = [_cuts(size, rng.dirichlet(np.full(num_partitions, alpha))) for size in sizes]
        totals = sum(np.diff(cut, prepend=0, append=size) for cut, size in zip(cuts, sizes, strict=True))
        if np.min(totals) >= min_samples:
            break
    else:
        raise PartitionError(
            f"dirichlet: with alpha {alpha} no draw of {MAX_DRAWS} left each of {num_partitions} clients "
            f"{min_samples} samples: use a larger alpha, a smaller min_samples or fewer clients"
        )
    split = [np.split(members, cut) for members, cut in zip(by_class, cuts, strict=True)]
    return [np.concatenate(parts) for parts in zip(*split, strict=True)]


def _shards(
    rng: np.random.Generator,
    chosen: np.ndarray,
    labels: np.ndarray,
    num_partitions: int,
    classes_per_client: int,
) -> list[np.ndarray]:
    ordered = chosen[np.argsort(labels[chosen], kind="stable")]
    shards = np.array_split(ordered, num_partitions * classes_per_client)
    dealt = rng.permutation(len(shards)).reshape(num_partitions, classes_per_client)
    return [np.concatenate([shards[i] for i in hand]) for hand in dealt]


def _quantity_skew(
    rng: np.random.Generator, chosen: np.ndarray, num_partitions: int, alpha: float, min_samples: int
) -> list[np.ndarray]:
    for _ in range(MAX_DRAWS):
        cut = _cuts(len(chosen), rng.dirichlet(np.full(num_partitions, alpha)))
        if np.min(np.diff(cut, prepend=0, append=len(chosen))) >= min_samples:
            return np.split(chosen, cut)
    raise PartitionError(
        f"quantity_skew: with alpha {alpha} no draw of {MAX_DRAWS} left each of {num_partitions} clients "
        f"{min_samples} samples: use a larger alpha, a smaller min_samples or fewer clients"
    )


def _cuts(size: int, shares: np.ndarray) -> np.ndarray:
    """Where to cut `size` items so that the pieces have these shares."""
    return np.rint(np.cumsum(shares)[:-1] * size).astype(int)


def histogram(labels: np.ndarray, parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Count the classes of each partition: shape (partitions, classes)."""
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def mirror(counts: np.ndarray, labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Divide a test set as a training set was divided: each client gets each class in the share it trains on.

    So a client evaluates on data like its own, whatever the partitioner, and every test sample of a class
    that somebody trains on is used once.

    Parameters
    ----------
    counts : numpy.ndarray
        The training set's histogram, shape (partitions, classes).
    labels : numpy.ndarray
        The test set's classes, shape (N,).
    """
    rng = np.random.default_rng([seed, 0x74657374])
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for c in range(counts.shape[1]):
        members = rng.permutation(np.flatnonzero(labels == c))
        total = counts[:, c].sum()
        if total:
            for part, piece in zip(
                parts, np.split(members, _cuts(len(members), counts[:, c] / total)), strict=True
            ):
                part.append(piece)
    return [np.sort(np.concatenate(pieces)) for pieces in parts]
