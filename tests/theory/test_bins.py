"""Counts and merged bins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bins import joint_counts, log_dirichlet_ratio, merge_bins


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 0.2, 1.0]), min_size=1, max_size=30),
    n=st.integers(1, 5000),
)
def test_every_bin_expects_enough_unless_it_is_alone(weights, n):
    if sum(weights) == 0:
        return
    law = np.array(weights) / sum(weights)
    labels = merge_bins(law, n)
    assert np.array_equal(labels < 0, law == 0)
    bins = np.bincount(labels[labels >= 0], law[labels >= 0])
    assert bins.sum() == pytest.approx(1)
    assert np.all(bins > 0)
    assert bins.size == 1 or n * bins.min() >= 5 - 1e-9


def test_joint_counts_are_flat_indices_of_the_joint_law():
    drawn = np.array([[1, 2, 3], [1, 2, 3], [0, 0, 0]])
    assert joint_counts(drawn, 4) == {1 * 16 + 2 * 4 + 3: 2, 0: 1}
    for bad in ([[64, 0]], [[-1, 0]], [3, 4]):
        with pytest.raises(ValueError, match="tokens in"):
            joint_counts(bad, 64)


def test_dirichlet_ratio_has_no_cancellation_at_large_concentration():
    """At a -> infinity the mixture is the law itself: the log ratio tends to 0 like 1/a."""
    law = np.full(1000, 1e-3)
    counts = np.random.default_rng(0).multinomial(10_000, law)
    values = [float(log_dirichlet_ratio(counts, law, a)) for a in (1e9, 1e12, 1e15)]
    assert abs(values[0]) < 1e-2
    assert values[1] == pytest.approx(values[0] / 1e3, rel=0.05, abs=1e-9)
    assert abs(values[2]) < 1e-7
