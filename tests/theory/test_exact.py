"""One node in rationals: every rule emits p exactly, every wrong rule does not."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_laws import fraction_pairs, support

from theory import RULES, exact, optimal_acceptance
from theory.acceptance import DISTINCT
from theory.candidates import tuple_law
from theory.exact import emitted_token, law, node_law
from theory.exact_flow import optimal_coupling
from theory.wrong_rules import WRONG_RULES, dropped_rare_draws, rrs_without_renormalising

F = Fraction
SKEWED = law(["1/10", "2/5", "1/2"]), law(["1/2", "3/10", "1/5"])
MASKED = law(["0", "2/5", "3/5"]), SKEWED[1]
"""A grammar forbids the token that q likes best."""
GRAMMAR = ("grammar_refusal_from_p", "renormalised_over_valid_tokens")


def tv(a, b):
    return sum((max(x - y, F(0)) for x, y in zip(a, b, strict=True)), F(0))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(pair=fraction_pairs(max_size=5), k=st.integers(1, 3))
def test_emitted_token_follows_p_exactly(rule, pair, k):
    p, q = pair
    if rule in DISTINCT and k > support(q):
        return
    joint = node_law(p, q, k, rule=rule)
    assert sum(joint.values()) == 1
    assert min(joint.values()) >= 0
    assert emitted_token(joint, len(p)) == p
    assert exact.output_law(p, q, k, rule=rule) == p


@pytest.mark.parametrize("rule", RULES)
def test_accepted_means_that_the_token_is_a_candidate(rule):
    for (drawn, token, accepted), mass in node_law(*SKEWED, 2, rule=rule).items():
        assert not accepted or token in drawn or not mass


@pytest.mark.parametrize("wrong", WRONG_RULES.values(), ids=WRONG_RULES.keys())
def test_every_wrong_rule_is_told_from_p(wrong):
    p, q = MASKED if wrong.__name__ in GRAMMAR else SKEWED
    emitted = emitted_token(wrong(p, q, 2), len(p))
    assert sum(emitted) == 1
    assert tv(emitted, p) >= F(1, 50)


@pytest.mark.parametrize("name", GRAMMAR)
def test_mistakes_about_the_grammar_need_a_grammar(name):
    p, q = SKEWED
    assert emitted_token(WRONG_RULES[name](p, q, 1), len(p)) == p


@pytest.mark.parametrize("wrong", WRONG_RULES.values(), ids=WRONG_RULES.keys())
def test_wrong_rules_emit_proper_laws_even_where_p_is_q(wrong):
    p = law(["1/4", "1/4", "1/4", "1/4"])
    assert sum(emitted_token(wrong(p, p, 2), 4)) == 1


def test_trap_1_dropping_rare_draws():
    p, q = law(["1/10", "3/10", "3/5"]), law(["1/5", "3/10", "1/2"])
    assert tv(emitted_token(dropped_rare_draws(p, q, 1), 3), p) == F(1, 5)
    p = law(["1/2", "1/4", "1/4"])
    assert tv(emitted_token(dropped_rare_draws(p, p, 1), 3), p) == F(1, 4)


def test_forgetting_to_renormalise_costs_0_045():
    p = law(["3/23", "4/23", "9/23", "2/23", "5/23"])
    q = law(["9/28", "1/14", "1/28", "1/4", "9/28"])
    cost = tv(emitted_token(rrs_without_renormalising(p, q, 3), 5), p)
    assert float(cost) == pytest.approx(0.045, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    pair=fraction_pairs(max_size=5),
    k=st.integers(1, 3),
    drafts=st.sampled_from(["iid", "without_replacement", "top_plus_one"]),
)
def test_rational_flow_is_the_float_optimum(pair, k, drafts):
    p, q = pair
    if drafts != "iid" and k > support(q):
        return
    coupling, chances = optimal_coupling(p, q, k, drafts)
    for i, mass in enumerate(p):
        assert sum((s for (j, _), s in coupling.items() if j == i), F(0)) <= mass
    for members, chance in chances.items():
        assert sum((s for (_, t), s in coupling.items() if t == members), F(0)) <= chance
    floats = np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)
    best = optimal_acceptance(*floats, k, drafts=drafts).value
    assert float(sum(coupling.values())) == pytest.approx(float(best), abs=2e-9)


@settings(max_examples=60, deadline=None)
@given(pair=fraction_pairs(max_size=5))
def test_coupled_margins_are_both_laws(pair):
    """Shared exponentials: the draft alone follows q, the emitted token p, exactly."""
    p, q = pair
    joint = node_law(p, q, 1, rule="coupled")
    for i in range(len(p)):
        assert sum((m for ((x,), _, _), m in joint.items() if x == i), F(0)) == q[i]
        assert sum((m for (_, y, _), m in joint.items() if y == i), F(0)) == p[i]


def test_coupled_law_against_simulation():
    p, q = SKEWED
    noise = np.random.default_rng(0).exponential(size=(200_000, 3))
    x = np.argmin(noise / np.array(q, dtype=float), axis=1)
    y = np.argmin(noise / np.array(p, dtype=float), axis=1)
    for ((i,), j, _), mass in node_law(p, q, 1, rule="coupled").items():
        assert np.mean((x == i) & (y == j)) == pytest.approx(float(mass), abs=0.006)


@settings(max_examples=30, deadline=None)
@given(pair=fraction_pairs(max_size=4), k=st.integers(1, 3))
def test_one_evaluated_chain_cannot_beat_one_minus_tv(pair, k):
    """The emitted token equals the first of k candidates with probability 1 - TV at most."""
    p, q = pair
    for rule in ("kseq", "rrs", "match", "rrs_without_replacement"):
        if rule in DISTINCT and k > support(q):
            continue
        joint = node_law(p, q, k, rule=rule)
        assert sum((m for (c, y, _), m in joint.items() if c[0] == y), F(0)) <= 1 - tv(p, q)
    # the best coupling of p with whole tuples, where only the first token counts, reaches it
    drawn = tuple_law(q, k, "iid")
    best = F(0)
    for i, mass in enumerate(p):
        best += min(mass, sum((chance for c, chance in drawn.items() if c[0] == i), F(0)))
    assert best == 1 - tv(p, q)


def test_bad_exact_laws_are_refused():
    with pytest.raises(ValueError, match="exactly 1"):
        law([F(1, 3), F(1, 3)])
    with pytest.raises(ValueError, match="rule"):
        node_law(*SKEWED, 2, rule="block")
    with pytest.raises(ValueError, match="tokens"):
        node_law(SKEWED[0], law(["1/2", "1/2"]), 2, rule="token")
    with pytest.raises(ValueError, match="different candidates"):
        node_law(*SKEWED, 4, rule="top_plus_one")
