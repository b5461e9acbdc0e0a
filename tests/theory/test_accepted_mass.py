"""Which token is accepted: against enumeration, and against the acceptance that it adds up to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_laws import float_pairs, fraction_pairs, support
from scipy.optimize import linprog

from theory import acceptance_rate, exact, optimal_acceptance
from theory.accepted_mass import LEGAL, accepted_mass, accepted_survivors, check_drafts, inclusion
from theory.candidates import incidence, set_law, tuple_law

RULES = tuple(LEGAL)
KSEQ_SLACK = 2**-11  # the exact K-SEQ uses a rational rho up to 2^-12 above rho*


def allowed(rule, q, k):
    return LEGAL[rule][0] == "iid" or k <= support(q)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=120)
@given(pair=float_pairs(max_size=8), k=st.integers(1, 4))
def test_the_masses_add_up_to_the_acceptance_and_stay_below_p(rule, pair, k):
    p, q = pair
    if allowed(rule, q, k):
        mass = accepted_mass(p, q, k, rule=rule)
        assert mass.sum() == pytest.approx(float(acceptance_rate(p, q, k, rule=rule)), abs=1e-8)
        assert mass.min() >= 0
        assert (mass <= p + 1e-9).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sparse_optimal"])
@settings(max_examples=150)
@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 3))
def test_the_masses_are_the_enumerated_ones(rule, pair, k):
    p, q = pair
    if not allowed(rule, q, k):
        return
    expected = np.zeros(len(p))
    for (_, y, accepted), chance in exact.node_law(p, q, k, rule=rule).items():
        expected[y] += float(chance) if accepted else 0.0
    floats = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)
    slack = KSEQ_SLACK if rule == "kseq" else 1e-9
    assert np.abs(accepted_mass(*floats, k, rule=rule) - expected).max() <= slack


@pytest.mark.parametrize("rule", ["kseq", "rrs", "match"])
@settings(max_examples=120)
@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 3))
def test_survivors_are_counted_as_enumeration_counts_them(rule, pair, k):
    p, q = pair
    expected = np.zeros((len(p), k))
    for (drawn, y, accepted), chance in exact.node_law(p, q, k, rule=rule).items():
        if accepted:
            expected[y, drawn.count(y) - 1] += float(chance)
    size = len(p)
    floats = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)
    rows = [np.broadcast_to(law, (size, size)) for law in floats]
    found = accepted_survivors(*rows, k, np.arange(size), rule=rule)
    slack = KSEQ_SLACK if rule == "kseq" else 1e-12
    assert np.abs(found - expected).max() <= slack
    whole = accepted_mass(*floats, k, rule=rule)
    assert np.abs(found.sum(axis=1) - whole).max() <= 1e-12


@settings(max_examples=60)
@given(pair=float_pairs(max_size=7), k=st.integers(1, 4))
def test_the_optimal_masses_can_be_served_and_favour_the_probable_candidates(pair, k):
    """A target that is m itself, the rest out of reach, can be met in full: m is a coupling's."""
    p, q = pair
    if k > support(q):
        return
    mass = accepted_mass(p, q, k, rule="sparse_optimal")
    rest = max(1 - mass.sum(), 0)
    alone = np.append(mass, rest), np.append(q, 0.0)
    met = optimal_acceptance(*(law / law.sum() for law in alone), k, drafts="without_replacement")
    assert float(met.value) == pytest.approx(mass.sum(), abs=1e-7)
    first = int(np.argmax(q))
    there = inclusion(q, k, drafts="without_replacement")[first]
    assert mass[first] == pytest.approx(min(p[first], there), abs=1e-8)


@pytest.mark.parametrize("drafts", ["iid", "without_replacement", "top_plus_one"])
@settings(max_examples=60)
@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 3))
def test_inclusion_is_the_enumerated_chance_and_what_match_accepts(drafts, pair, k):
    p, q = pair
    if drafts != "iid" and k > support(q):
        return
    expected = np.zeros(len(q))
    for drawn, chance in tuple_law(q, k, drafts).items():
        expected[list(set(drawn))] += float(chance)
    floats = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)
    assert np.abs(inclusion(floats[1], k, drafts=drafts) - expected).max() <= 1e-9
    each = [inclusion(floats[1], k, drafts=drafts, tokens=np.array(y)) for y in range(len(q))]
    assert np.abs(np.array(each) - expected).max() <= 1e-9
    mass = accepted_mass(*floats, k, rule="match", drafts=drafts)
    assert np.abs(mass - floats[0] * expected).max() <= 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_answered_one_by_one_and_single_tokens_are_picked(rule):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), (4, 3)), rng.dirichlet(np.ones(6), (4, 3))
    whole = accepted_mass(p, q, 3, rule=rule)
    each = [[accepted_mass(p[i, j], q[i, j], 3, rule=rule) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(whole, each, atol=1e-14)
    tokens = rng.integers(0, 6, (4, 3))
    picked = accepted_mass(p, q, 3, rule=rule, tokens=tokens)
    np.testing.assert_allclose(
        picked, np.take_along_axis(whole, tokens[..., None], axis=-1)[..., 0], atol=1e-14
    )


def test_tokens_that_cannot_be_drafted_may_be_taken_together():
    """What a replay relies on: off q's support only the mass of p matters."""
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(9)), np.append(rng.dirichlet(np.ones(5)), np.zeros(4))
    lumped = np.append(p[:5], p[5:].sum()), np.append(q[:5], 0.0)
    for rule in RULES:
        whole = accepted_mass(p, q, 3, rule=rule)
        assert np.abs(whole[:5] - accepted_mass(*lumped, 3, rule=rule)[:5]).max() <= 1e-12
        assert whole[5:].max() == 0
    for rule in ("kseq", "rrs", "match"):
        at = np.array(2)
        np.testing.assert_allclose(
            accepted_survivors(p, q, 3, at, rule=rule),
            accepted_survivors(*lumped, 3, at, rule=rule),
            atol=1e-12,
        )


@pytest.mark.parametrize(
    ("rule", "drafts", "sentence"),
    [
        ("kseq", "without_replacement", "'kseq' is right for iid drafts.*rrs_without_replacement"),
        ("top_plus_one", "iid", "right for top_plus_one drafts, not for 'iid'"),
        ("coupled", None, "rule must be one of token, match, kseq"),
        ("rrs", "all", "right for iid drafts, not for 'all'$"),
    ],
)
def test_rules_are_refused_for_drafts_they_are_not_right_for(rule, drafts, sentence):
    with pytest.raises(ValueError, match=sentence):
        accepted_mass([0.5, 0.5], [0.5, 0.5], 2, rule=rule, drafts=drafts)


def test_the_way_of_drafting_follows_from_the_rule():
    assert check_drafts("rrs") == "iid"
    assert check_drafts("sparse_optimal") == "without_replacement"
    assert check_drafts("match", "top_plus_one") == "top_plus_one"
    with pytest.raises(ValueError, match="3 distinct candidates"):
        accepted_mass([0.5, 0.5], [0.5, 0.5], 3, rule="top_plus_one")
    with pytest.raises(ValueError, match="one of kseq, rrs, match"):
        accepted_survivors([0.5, 0.5], [0.5, 0.5], 2, np.array(0), rule="token")


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 3))
def test_no_coupling_serves_the_probable_candidates_better(seed, k):
    """By linear programming: with weights that fall in the order of q, m has the largest sum."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    sets = set_law(q.tolist(), k, "without_replacement")
    token, owner = incidence(list(sets))
    weights = 1 + np.linspace(0.5, 0, 5)[np.argsort(np.argsort(-q))]
    best = linprog(
        -weights[token],
        A_ub=np.vstack([token == np.arange(5)[:, None], owner == np.arange(len(sets))[:, None]]),
        b_ub=np.concatenate([p, list(sets.values())]),
    )
    mass = accepted_mass(p, q, k, rule="sparse_optimal")
    assert weights @ mass == pytest.approx(-best.fun, abs=1e-7)
