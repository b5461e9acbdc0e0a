"""The optimum: equal to the linear programme, attained by its witness, above every rule."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_laws import float_pairs, support

from theory import optimal_acceptance, optimum, transport_plan
from theory.candidates import set_law

SCHEMES = ["iid", "without_replacement", "top_plus_one"]


def usable(q, k, drafts):
    return drafts == "iid" or k <= support(q)


def all_inside(q, k, drafts, members):
    """Q(H) by enumeration."""
    law = set_law(q.tolist(), k, drafts)
    return sum(mass for drawn, mass in law.items() if set(drawn) <= set(members))


@pytest.mark.parametrize("drafts", SCHEMES)
@settings(max_examples=120, deadline=None)
@given(pair=float_pairs(), k=st.integers(1, 3))
def test_value_is_the_linear_programme(drafts, pair, k):
    p, q = pair
    if usable(q, k, drafts):
        value = optimal_acceptance(p, q, k, drafts=drafts).value
        assert transport_plan(p, q, k, drafts=drafts).primal_value == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("drafts", SCHEMES)
@settings(max_examples=100, deadline=None)
@given(pair=float_pairs(max_size=5), k=st.integers(1, 3))
def test_no_set_beats_the_witness(drafts, pair, k):
    """The prefix claim: the minimum over all 2^V sets is the one that was found."""
    p, q = pair
    if not usable(q, k, drafts):
        return
    found = optimal_acceptance(p, q, k, drafts=drafts)
    members = np.flatnonzero(found.witness)
    attained = 1 + p[members].sum() - all_inside(q, k, drafts, members)
    assert attained == pytest.approx(found.value, abs=2e-9)
    subsets = chain.from_iterable(combinations(range(p.size), n) for n in range(p.size + 1))
    least = min(1 + p[list(s)].sum() - all_inside(q, k, drafts, s) for s in subsets)
    assert found.value == pytest.approx(least, abs=2e-9)


@settings(max_examples=200, deadline=None)
@given(pair=float_pairs(max_size=8), k=st.integers(1, 5))
def test_monotone_in_k_and_without_replacement_is_never_worse(pair, k):
    p, q = pair
    iid = optimal_acceptance(p, q, k).value
    assert optimal_acceptance(p, q, k + 1).value >= iid - 1e-12
    if k <= support(q):
        different = optimal_acceptance(p, q, k, drafts="without_replacement").value
        assert different >= iid - 1e-9
        if k + 1 <= support(q):
            more = optimal_acceptance(p, q, k + 1, drafts="without_replacement").value
            assert more >= different - 2e-9
            top = optimal_acceptance(p, q, k, drafts="top_plus_one").value
            assert optimal_acceptance(p, q, k + 1, drafts="top_plus_one").value >= top - 1e-12


@pytest.mark.parametrize("drafts", SCHEMES)
@given(pair=float_pairs())
def test_one_candidate_is_one_minus_tv(drafts, pair):
    p, q = pair
    assert optimal_acceptance(p, q, 1, drafts=drafts).value == pytest.approx(
        np.minimum(p, q).sum(), abs=1e-9
    )


@pytest.mark.parametrize("drafts", SCHEMES)
def test_leading_dimensions_are_single_calls(drafts):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(9), size=(3, 4)), rng.dirichlet(np.full(9, 0.3), size=(3, 1))
    found = optimal_acceptance(p, q, 3, drafts=drafts)
    assert found.value.shape == (3, 4)
    assert found.witness.shape == (3, 4, 9)
    for i, j in np.ndindex(3, 4):
        single = optimal_acceptance(p[i, j], q[i, 0], 3, drafts=drafts)
        assert found.value[i, j] == pytest.approx(single.value, abs=1e-15)
        assert np.array_equal(found.witness[i, j], single.witness)


@pytest.mark.parametrize("drafts", SCHEMES)
def test_extremes(drafts):
    same = optimal_acceptance([0.2, 0.3, 0.5], [0.2, 0.3, 0.5], 2, drafts=drafts)
    assert same.value == pytest.approx(1, abs=1e-9)
    apart = optimal_acceptance([0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0], 2, drafts=drafts)
    assert apart.value == pytest.approx(0, abs=1e-9)
    everything = optimal_acceptance([0.1, 0.9], [0.9, 0.1], 2, drafts="without_replacement")
    assert everything.value == pytest.approx(1, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(pair=float_pairs(max_size=12), k=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_binned_rows_are_the_sorted_rows(pair, k, seed):
    """The path for wide vocabularies, forced on narrow ones and run on wide ones."""
    rng = np.random.default_rng(seed)
    wide = rng.dirichlet(np.full(1200, rng.choice([0.01, 0.1, 1.0])), size=2)
    for p, q in (pair, wide):
        ranked, binned = (solve(p[None], q[None], k) for solve in (optimum._iid, _binned))
        assert binned[0][0] == pytest.approx(sorted_value(p, q, k), abs=1e-12)
        assert ranked[0][0] == pytest.approx(binned[0][0], abs=1e-12)
        members = binned[1][0]
        attained = 1 + p[members].sum() - q[members].sum() ** k
        assert attained == pytest.approx(binned[0][0], abs=1e-12)


def test_the_best_prefix_may_end_inside_a_bin():
    """Tokens 1 and 2 share a bin (16 bins of width 1/8 of p/q); taking token 1 alone is best."""
    p, q = np.array([0.05, 0.05, 0.056, 0.844]), np.array([0.48, 0.05, 0.05, 0.42])
    value, members = optimum._iid_row(p, q, 2)
    assert value == pytest.approx(1 + 0.1 - 0.53**2, abs=1e-12)
    assert members.tolist() == [True, True, False, False]


def _binned(p, q, k):
    value, witness = optimum._iid_row(p[0], q[0], k)
    return np.array([value]), witness[None]


def sorted_value(p, q, k):
    with np.errstate(over="ignore"):
        order = np.argsort(np.divide(p, q, out=np.full(p.size, np.inf), where=q > 0))
    gap = np.cumsum(p[order]) - np.cumsum(q[order]) ** k
    return 1 + min(0.0, gap.min())


def test_real_vocabulary_bounded_by_its_sandwich():
    """V = 152,064: 1 - TV <= iid <= without replacement <= 1, and the witness re-adds to it."""
    rng = np.random.default_rng(1)
    p, q = (rng.dirichlet(np.full(152_064, 0.1)) + 1e-12 for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    iid = optimal_acceptance(p, q, 4)
    different = optimal_acceptance(p, q, 4, drafts="without_replacement")
    assert np.minimum(p, q).sum() < iid.value <= different.value <= 1
    members = iid.witness
    assert 1 + p[members].sum() - q[members].sum() ** 4 == pytest.approx(iid.value, abs=1e-11)
