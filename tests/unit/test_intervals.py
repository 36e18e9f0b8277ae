"""Intervals cover what they promise, pairs beat no pairs, and a target that was not reached is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coldframe.controller import intervals

# Abramowitz and Stegun, Handbook of Mathematical Functions, table 26.10.
TABLE = {
    (0.975, 1): 12.706,
    (0.975, 2): 4.303,
    (0.975, 4): 2.776,
    (0.975, 10): 2.228,
    (0.975, 30): 2.042,
    (0.95, 2): 2.920,
    (0.995, 5): 4.032,
    (0.75, 3): 0.765,
}
DRAWS = 2000


@pytest.mark.parametrize(("where", "value"), TABLE.items())
def test_quantiles_are_those_of_the_tables(where: tuple[float, int], value: float) -> None:
    assert intervals.t_quantile(*where) == pytest.approx(value, abs=5.1e-4)


def test_with_many_degrees_of_freedom_the_quantile_is_that_of_the_normal_distribution() -> None:
    assert intervals.t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=5e-5)


@pytest.mark.parametrize("wrong", [(0.975, 0), (1.0, 3), (0.4, 3)])
def test_a_quantile_that_does_not_exist_is_an_error(wrong: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        intervals.t_quantile(*wrong)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_covers_the_mean_in_95_of_100_draws(seeds: int) -> None:
    dice = np.random.default_rng(seeds)
    covered = 0
    for sample in dice.normal(0.93, 0.02, size=(DRAWS, seeds)):
        found = intervals.interval(sample.tolist())
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 0.93 <= found.high
    assert covered / DRAWS == pytest.approx(0.95, abs=0.02)


def test_pairs_by_seed_find_a_difference_that_the_seeds_hide() -> None:
    """Each seed has a share of its own in both points' results, as one division of the data has."""
    dice = np.random.default_rng(4)
    found = {"paired": 0, "unpaired": 0}
    for _ in range(200):
        common = dice.normal(0, 0.05, size=5)
        baseline = dict(enumerate(0.90 + common + dice.normal(0, 0.004, size=5)))
        values = dict(enumerate(0.92 + common + dice.normal(0, 0.004, size=5)))
        pairs = intervals.interval(intervals.paired(values, baseline))
        assert pairs is not None and pairs.low is not None
        found["paired"] += pairs.low > 0
        one, other = (intervals.interval(list(part.values())) for part in (values, baseline))
        assert one is not None and other is not None and one.low is not None and other.high is not None
        found["unpaired"] += one.low > other.high
    assert found["paired"] > 180 and found["unpaired"] < 20


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert intervals.interval([]) is None
    assert intervals.interval([0.5]) == intervals.Interval(0.5, None, None, 1)
    assert intervals.Interval(0.5, None, None, 1).half is None


def test_repetitions_of_a_seed_are_averaged_and_what_is_not_known_is_left_out() -> None:
    assert intervals.by_seed([(0, 1.0), (0, 3.0), (1, None), (2, 5.0)]) == {0: 2.0, 2: 5.0}
    assert intervals.paired({0: 2.0, 2: 5.0, 3: 1.0}, {2: 4.0, 0: 1.5}) == [0.5, 1.0]


def test_runs_that_did_not_reach_the_target_count_as_longer_than_all_others() -> None:
    assert intervals.to_target([]) is None
    assert intervals.to_target([30.0, None, 10.0]) == intervals.ToTarget(30.0, 2, 3)
    assert intervals.to_target([30.0, None, None]) == intervals.ToTarget(None, 1, 3)
    assert intervals.to_target([30.0, None]) == intervals.ToTarget(None, 1, 2)
    assert not math.isinf(intervals.to_target([1.0, 2.0]).median or math.inf)
