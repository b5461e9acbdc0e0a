"""Recursive rejection without replacement: the one-number recursion, its limit, its estimate."""

import numpy as np
import pytest

from theory import acceptance_rate, estimate_without_replacement, exact, output_law
from theory.exact import law


def test_recursion_equals_enumeration_with_more_candidates():
    p, q = law(["1/10", "2/5", "1/4", "3/20", "1/10"]), law(["3/8", "1/8", "1/4", "1/8", "1/8"])
    floats = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)
    for k in range(1, 6):
        exactly = float(exact.acceptance_rate(p, q, k, rule="rrs_without_replacement"))
        found = acceptance_rate(*floats, k, rule="rrs_without_replacement")
        assert found == pytest.approx(exactly, abs=1e-13)


def test_two_candidates_work_at_a_real_vocabulary():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(32_000, 0.2) + 0.0, size=2)
    rate = acceptance_rate(p, q, 2, rule="rrs_without_replacement")
    value, error = estimate_without_replacement(p, q, 2, samples=20_000)
    assert abs(rate - value) < 5 * error
    iid = acceptance_rate(p, q, 2, rule="rrs")
    assert rate == pytest.approx(float(iid), abs=2e-3)  # tokens hardly repeat at this width


def test_estimate_has_the_standard_error_it_states():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(12), size=2)
    truth = float(acceptance_rate(p, q, 4, rule="rrs_without_replacement"))
    scores = []
    for seed in range(60):
        value, error = estimate_without_replacement(p, q, 4, samples=500, seed=seed)
        scores.append((value - truth) / error)
    assert abs(np.mean(scores)) < 0.5
    assert 0.75 < np.std(scores) < 1.3


def test_too_many_sequences_are_refused_with_the_way_out():
    p = np.full(2000, 1 / 2000)
    with pytest.raises(ValueError, match="estimate_without_replacement"):
        acceptance_rate(p, p, 4, rule="rrs_without_replacement")
    with pytest.raises(ValueError, match="smaller k"):
        output_law(p, p, 3, rule="rrs_without_replacement")
    with pytest.raises(ValueError, match="at least 2"):
        estimate_without_replacement(p, p, 2, samples=1)
    with pytest.raises(ValueError, match=r"shape \(V,\)"):
        estimate_without_replacement(np.ones((2, 1)), np.ones((2, 1)), 1)


def test_the_estimate_takes_the_smallest_float():
    value, error = estimate_without_replacement([0.2, 0.5, 0.3], [1, 5e-324, 15e-324], 2)
    truth = acceptance_rate(
        [0.2, 0.5, 0.3], [1, 5e-324, 15e-324], 2, rule="rrs_without_replacement"
    )
    assert value == pytest.approx(float(truth), abs=5 * error + 1e-12)


def test_a_draft_law_that_is_nearly_a_point_mass():
    """1 - q(refused) must not cancel: found by hypothesis with q = (1 - 1e-13, 1e-13)."""
    p, q = np.array([0.0, 0.5, 0.5]), np.array([1.0, 2e-13, 1e-13])
    q /= q.sum()
    # token 0 is refused for certain; then (2/3, 1/3) against (1/2, 1/2)
    rate = acceptance_rate(p, q, 2, rule="rrs_without_replacement")
    assert rate == pytest.approx(5 / 6, abs=1e-12)
    value, error = estimate_without_replacement(p, q, 3, samples=200)
    assert value == pytest.approx(1, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-9)
