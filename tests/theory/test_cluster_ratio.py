"""Intervals of ratios over clusters: by hand, and that they cover what they claim to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from theory.cluster_ratio import Interval, difference_interval, ratio_interval


def test_two_clusters_by_hand():
    """Ratio 2; each cluster is one off: half = t sqrt(2/1 * 2) / 5."""
    found = ratio_interval([3, 7], [2, 3])
    half = student.ppf(0.975, 1) * 2 / 5
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_equal_denominators_give_the_ordinary_t_interval_of_a_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, 12)
    found = ratio_interval(x, np.ones(12), level=0.9)
    half = student.ppf(0.95, 11) * x.std(ddof=1) / np.sqrt(12)
    assert (found.low, found.high) == (
        pytest.approx(x.mean() - half),
        pytest.approx(x.mean() + half),
    )


def clusters(rng, n):
    """Tokens and steps of prompts that differ in length and in how well they are drafted."""
    steps = rng.integers(20, 60, n) * 1.0
    easy = rng.normal(0, 0.3, n)
    return steps * (1.6 + easy) + rng.normal(0, 2, n), steps, easy


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Within 99.9999 % limits of the binomial, a little below 95 % allowed for 30 clusters."""
    rng, n, runs = np.random.default_rng(1), 30, 3000
    hits = paired = 0
    widths = np.zeros(2)
    for _ in range(runs):
        x, s, easy = clusters(rng, n)
        found = ratio_interval(x, s)
        hits += found.low <= 1.6 <= found.high
        better = s * (1.7 + easy) + rng.normal(0, 2, n)
        gap = difference_interval((x, s), (better, s))
        paired += gap.low <= 0.1 <= gap.high
        widths += found.high - found.low, gap.high - gap.low
    assert widths[1] < 0.5 * widths[0]  # what the prompts share drops out
    for count in (hits, paired):
        assert binom.ppf(5e-7, runs, 0.935) <= count <= binom.ppf(1 - 5e-7, runs, 0.955)


def test_clusters_without_anything_do_not_count():
    assert ratio_interval([3, 7, 0, 0], [2, 3, 0, 0]) == ratio_interval([3, 7], [2, 3])


def test_nothing_to_judge_by_is_said():
    assert ratio_interval([3.0], [2.0]) == Interval(1.5, None, None)
    nothing = ratio_interval([0.0, 0.0], [0.0, 0.0])
    assert np.isnan(nothing.value)
    assert nothing.as_dict() == {"value": None, "low": None, "high": None}
    with pytest.raises(ValueError, match="one sum for each cluster"):
        ratio_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="must be the same"):
        difference_interval(([1.0], [1.0]), ([1.0, 2.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="level"):
        ratio_interval([1.0, 2.0], [1.0, 1.0], level=1.0)
