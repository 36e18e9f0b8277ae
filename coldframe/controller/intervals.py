"""Means, confidence intervals and times to a target of an experiment's runs.

The unit is the seed: one seed is one division of the data and one order of sampling, so repetitions of a
seed are averaged before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median, stdev

import numpy as np

CONFIDENCE = 0.95
_STEPS = 4096  # of the integral: the quantile is right to 1e-8 for every number of seeds


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes
    ----------
    low, high : float, optional
        The ends of the interval; None with a single value, which says nothing of its spread.
    count : int
        Number of values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.high is None else self.high - self.mean


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution, for a probability of at least 0.5.

    Its density is integrated by Simpson's rule after t = sqrt(degrees) tan(angle), which makes the range
    finite; the quantile is then found by bisection.

    Raises
    ------
    ValueError
        If there is no degree of freedom, or the probability is not in [0.5, 1).
    """
    if degrees < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"no quantile for probability {probability} and {degrees} degrees of freedom")
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        points = np.linspace(0.0, angle, _STEPS + 1)
        values = np.cos(points) ** (degrees - 1)
        inner = 4 * values[1:-1:2].sum() + 2 * values[2:-1:2].sum()
        area = scale * float(values[0] + inner + values[-1]) * angle / _STEPS / 3
        low, high = (angle, high) if 0.5 + area < probability else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Mean of independent values and the t interval of that mean; None without values."""
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    quantile = t_quantile((1 + confidence) / 2, len(values) - 1)
    half = quantile * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def by_seed(values: Sequence[tuple[int, float | None]]) -> dict[int, float]:
    """The mean of each seed's values, from (seed, value); a value that is not known is left out."""
    seeds: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None:
            seeds.setdefault(seed, []).append(value)
    return {seed: fmean(found) for seed, found in seeds.items()}


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Differences to the baseline, for each seed that both have, in the order of the seeds."""
    return [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]


@dataclass(frozen=True)
class ToTarget:
    """What it took to reach a target.

    Attributes
    ----------
    median : float, optional
        The median over all runs, of which those that did not reach the target count as longer than all
        others; None where they are half of the runs or more.
    reached, count : int
        Runs that reached the target, and all runs.
    """

    median: float | None
    reached: int
    count: int


def to_target(values: Sequence[float | None]) -> ToTarget | None:
    """Summarise what runs took to reach a target; None stands for a run that did not reach it."""
    if not values:
        return None
    middle = median(math.inf if value is None else value for value in values)
    reached = sum(value is not None for value in values)
    return ToTarget(middle if math.isfinite(middle) else None, reached, len(values))
