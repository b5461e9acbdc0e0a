"""Every rule: acceptance in closed form, at most its optimum; emitted token distributed as p."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_laws import float_pairs, fraction_pairs, support

from theory import RULES, acceptance_rate, exact, kseq_rho, optimal_acceptance, output_law
from theory.acceptance import DISTINCT
from theory.report import SCHEME


def allowed(rule, q, k):
    return rule not in DISTINCT or k <= support(q)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(pair=float_pairs(), k=st.integers(1, 3))
def test_emitted_token_follows_p(rule, pair, k):
    p, q = pair
    if allowed(rule, q, k):
        assert np.abs(output_law(p, q, k, rule=rule) - p).max() < 1e-12


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(pair=float_pairs(max_size=9), k=st.integers(1, 4))
def test_no_rule_beats_its_optimum(rule, pair, k):
    p, q = pair
    if allowed(rule, q, k):
        best = optimal_acceptance(p, q, k, drafts=SCHEME[rule]).value
        rate = acceptance_rate(p, q, k, rule=rule)
        assert -1e-12 <= rate <= best + 1e-9
        if rule not in ("match", "coupled"):
            assert rate >= np.minimum(p, q).sum() - 1e-9 or rule == "top_plus_one"


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=200, deadline=None)
@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 3))
def test_acceptance_is_the_enumerated_one(rule, pair, k):
    p, q = pair
    if not allowed(rule, q, k):
        return
    exactly = float(exact.acceptance_rate(p, q, k, rule=rule))
    floats = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)
    # the exact K-SEQ uses a rational rho up to 2^-12 above rho*
    slack = 2**-11 if rule == "kseq" else 1e-9
    assert acceptance_rate(*floats, k, rule=rule) == pytest.approx(exactly, abs=slack)


@settings(max_examples=300, deadline=None)
@given(pair=float_pairs(max_size=12), k=st.integers(1, 8))
def test_kseq_guarantee_and_equation(pair, k):
    p, q = pair
    rho = float(kseq_rho(p, q, k))
    assert 1 <= rho <= k
    beta = np.minimum(q, p / rho).sum()
    assert 1 - (1 - beta) ** k == pytest.approx(rho * beta, abs=1e-13)
    rate = acceptance_rate(p, q, k, rule="kseq")
    assert rate == pytest.approx(1 - (1 - beta) ** k, abs=1e-12)
    best = optimal_acceptance(p, q, k).value
    assert rate >= (1 - (1 - 1 / k) ** k) * best - 1e-12
    assert rate >= (1 - np.exp(-1)) * best - 1e-12


@given(pair=float_pairs(max_size=8))
def test_one_candidate_makes_every_ratio_rule_the_token_rule(pair):
    p, q = pair
    token = acceptance_rate(p, q, 1, rule="token")
    assert token == pytest.approx(1 - np.maximum(p - q, 0).sum(), abs=1e-12)
    for rule in ("kseq", "rrs", "rrs_without_replacement", "top_plus_one", "sparse_optimal"):
        assert acceptance_rate(p, q, 1, rule=rule) == pytest.approx(token, abs=1e-9)


@settings(deadline=None)
@given(pair=float_pairs(), k=st.integers(1, 3))
def test_match_with_a_deterministic_candidate_is_p_of_the_set(pair, k):
    p, _ = pair
    point = np.eye(p.size)[0]
    assert acceptance_rate(p, point, k, rule="match") == pytest.approx(p[0], abs=1e-15)


@given(pair=float_pairs(max_size=8))
def test_coupled_is_between_its_bounds(pair):
    """Daliri et al. 2024: at least (1-TV)/(1+TV), at most 1 - TV."""
    p, q = pair
    overlap = np.minimum(p, q).sum()
    rate = acceptance_rate(p, q, 1, rule="coupled")
    assert overlap / (2 - overlap) - 1e-12 <= rate <= overlap + 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_leading_dimensions_are_single_calls(rule):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7), size=(2, 3)), rng.dirichlet(np.full(7, 0.5), size=3)
    rates, laws = acceptance_rate(p, q, 3, rule=rule), output_law(p, q, 3, rule=rule)
    assert rates.shape == (2, 3)
    assert laws.shape == (2, 3, 7)
    for i, j in np.ndindex(2, 3):
        single = acceptance_rate(p[i, j], q[j], 3, rule=rule)
        assert rates[i, j] == pytest.approx(float(single), abs=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_equal_laws_are_always_accepted(rule):
    p = np.array([0.0, 0.2, 0.3, 0.5])
    expected = 1.0 if rule != "match" else np.sum(p * (1 - (1 - p) ** 3))
    assert acceptance_rate(p, p, 3, rule=rule) == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tiny", [1e-310, 5e-324])
def test_masses_down_to_the_smallest_float(tiny):
    """Ratios of denormal masses decide what the last candidate is; 1/mass overflows."""
    laws = [
        ([0.5, 0.5], [1, tiny]),
        ([0.2, 0.5, 0.3], [1, tiny, 3 * tiny]),
        ([0.2, tiny, 0.8], [tiny, 0.5, 0.5]),
        ([tiny, 1, 0], [0, 1, tiny]),
    ]
    for p, q in laws:
        exactly = [tuple(Fraction(x) / sum(map(Fraction, law)) for x in law) for law in (p, q)]
        for k, rule in product((1, 2, 3), RULES):
            if not allowed(rule, q, k):
                continue
            truth = float(exact.acceptance_rate(*exactly, k, rule=rule))
            slack = 2**-11 if rule == "kseq" else 2e-9
            assert acceptance_rate(p, q, k, rule=rule) == pytest.approx(truth, abs=slack)
            assert np.abs(output_law(p, q, k, rule=rule) - p).max() < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_a_vocabulary_of_one_token(rule):
    assert acceptance_rate([1.0], [1.0], 1, rule=rule) == 1
    assert output_law([1.0], [1.0], 1, rule=rule).tolist() == [1.0]


@pytest.mark.parametrize("rule", RULES)
def test_float32_laws_are_the_renormalised_float64_ones(rule):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(50), size=2).astype(np.float32)
    assert p.astype(np.float64).sum() != 1
    wide = [law.astype(np.float64) / law.astype(np.float64).sum() for law in (p, q)]
    rate = acceptance_rate(*wide, 2, rule=rule)
    assert acceptance_rate(p, q, 2, rule=rule) == pytest.approx(float(rate), abs=1e-12)


def test_means_over_120_small_instances_are_ordered():
    """Without replacement above iid, K-SEQ and top-plus-one below their optima, rrs iid lowest."""
    rng = np.random.default_rng(0)
    mean = dict.fromkeys(("wor", "iid", "top", "kseq", "rrs", "rrs_wor"), 0.0)
    for _ in range(120):
        p = rng.dirichlet(np.ones(6))
        q = 0.5 * p + 0.5 * rng.dirichlet(np.ones(6))
        mean["wor"] += optimal_acceptance(p, q, 3, drafts="without_replacement").value / 120
        mean["iid"] += optimal_acceptance(p, q, 3).value / 120
        mean["top"] += acceptance_rate(p, q, 3, rule="top_plus_one") / 120
        mean["kseq"] += acceptance_rate(p, q, 3, rule="kseq") / 120
        mean["rrs"] += acceptance_rate(p, q, 3, rule="rrs") / 120
        mean["rrs_wor"] += acceptance_rate(p, q, 3, rule="rrs_without_replacement") / 120
    assert mean["wor"] > mean["top"] > mean["iid"] > mean["kseq"] > mean["rrs"]
    assert mean["wor"] > mean["rrs_wor"] > mean["rrs"]
