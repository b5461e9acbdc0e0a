"""Draws without replacement inside a prefix: quadrature against exact enumeration."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import race
from theory.race import ERROR_BOUND, prefix_probabilities


def enumerated(q, k):
    """P(all k draws lie in the first m tokens) in Fractions, m = 1..V."""
    law = [Fraction(mass) for mass in q]
    whole = sum(law)
    law = [mass / whole for mass in law]
    result = []
    for m in range(1, len(law) + 1):
        total = Fraction(0)
        for drawn in permutations(range(m), k):
            chance, left = Fraction(1), Fraction(1)
            for i in drawn:
                chance *= law[i] / left
                left -= law[i]
            total += chance
        result.append(float(total))
    return np.array(result)


@settings(max_examples=80, deadline=None)
@given(
    q=st.lists(st.sampled_from([1e-13, 1e-6, 1e-3, 0.1, 1.0, 30.0]), min_size=1, max_size=6),
    k=st.integers(1, 5),
)
def test_error_bound_against_enumeration(q, k):
    if k > len(q):
        return
    law = np.array(q) / sum(q)
    assert np.abs(prefix_probabilities(law, k) - enumerated(law, k)).max() < ERROR_BOUND


@pytest.mark.parametrize("k", [1, 2, 4, 8, 14])
@pytest.mark.parametrize("concentration", [1e-3, 1.0])
def test_error_bound_against_a_refined_rule_on_wide_laws(k, concentration):
    rng = np.random.default_rng(k)
    q = np.maximum(rng.dirichlet(np.full(3000, concentration)), 1e-14)
    q /= q.sum()
    fine = prefix_probabilities(q, k, step=0.08)
    assert np.abs(prefix_probabilities(q, k) - fine).max() < ERROR_BOUND
    assert fine[-1] == pytest.approx(1, abs=ERROR_BOUND)


def test_polynomials_and_recursion_agree(monkeypatch):
    rng = np.random.default_rng(0)
    q = np.maximum(rng.dirichlet(np.full(2500, 0.02)), 1e-12)
    q /= q.sum()
    fast = prefix_probabilities(q, 5)
    monkeypatch.setattr(race, "_POLYNOMIAL_LIMIT", 0)
    assert np.abs(prefix_probabilities(q, 5) - fast).max() < 1e-13


def test_many_candidates():
    q = np.full(40, 1 / 40)
    # uniform law: C(m, 20) / C(40, 20)
    expected = [np.prod([(m - i) / (40 - i) for i in range(20)]) for m in range(1, 41)]
    assert np.abs(prefix_probabilities(q, 20) - np.maximum(expected, 0)).max() < ERROR_BOUND
