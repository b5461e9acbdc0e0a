"""Laws of candidate tuples and sets."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_laws import fraction_pairs, support

from theory.candidates import set_law, top_ranked, tuple_law


@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 3))
def test_laws_sum_to_one_exactly(pair, k):
    _, q = pair
    for drafts in ("iid", "without_replacement", "top_plus_one"):
        if drafts != "iid" and k > support(q):
            with pytest.raises(ValueError, match="different candidates"):
                tuple_law(q, k, drafts)
            continue
        for drawn in (tuple_law(q, k, drafts), set_law(q, k, drafts)):
            assert sum(drawn.values()) == 1
        if drafts != "iid":
            assert all(len(set(drawn)) == k for drawn in tuple_law(q, k, drafts))


@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 4))
def test_sets_of_iid_draws_are_the_tuples_added_up(pair, k):
    _, q = pair
    added = {}
    for drawn, chance in tuple_law(q, k, "iid").items():
        key = tuple(sorted(set(drawn)))
        added[key] = added.get(key, 0) + chance
    assert set_law(q, k, "iid") == added


@given(pair=fraction_pairs(max_size=5))
def test_gumbel_top_k_order_is_the_draw_order(pair):
    """P(first candidate = i) = q_i without replacement."""
    _, q = pair
    if support(q) < 2:
        return
    law = tuple_law(q, 2, "without_replacement")
    for i, mass in enumerate(q):
        assert sum(c for drawn, c in law.items() if drawn[0] == i) == mass


def test_top_ranked_breaks_ties_by_index():
    assert top_ranked([Fraction(1, 4), Fraction(1, 2), Fraction(1, 4)], 2) == (1, 0)


@given(pair=fraction_pairs(max_size=6))
def test_spechub_draws_the_sets_of_top_plus_one(pair):
    """SpecHub (arXiv 2411.05289): x ~ q, and with it the hub; if x is the hub, one other."""
    _, q = pair
    if support(q) < 2:
        return
    (hub,) = top_ranked(q, 1)
    sets = {}
    for x, mass in enumerate(q):
        others = [x] if x != hub else [i for i in range(len(q)) if i != hub]
        for i in others:
            chance = mass if x != hub else mass * q[i] / (1 - q[hub])
            if chance:
                key = tuple(sorted((hub, i)))
                sets[key] = sets.get(key, 0) + chance
    assert sets == set_law(q, 2, "top_plus_one")
