"""Whole emitted sequences in rationals: jointly the target's law, for every rule and the block."""

import random
from fractions import Fraction

import pytest

from theory import RULES
from theory.acceptance import DISTINCT
from theory.exact import law, residual
from theory.exact_sequences import (
    _drafted,
    block_emitted_law,
    completed,
    emitted_law,
    expected_tokens,
    target_law,
)
from theory.wrong_rules import WRONG_RULES, block_up_to_the_first_failure

F = Fraction


def random_model(size, seed, zeros=0.2):
    """A different law after every prefix, remembered."""
    rng, known = random.Random(seed), {}

    def model(prefix):
        if prefix not in known:
            weights = [0 if rng.random() < zeros else rng.randint(1, 7) for _ in range(size)]
            weights[rng.randrange(size)] += 1
            known[prefix] = tuple(F(w, sum(weights)) for w in weights)
        return known[prefix]

    return model


def nonzero(sequence_law):
    return {tokens: mass for tokens, mass in sequence_law.items() if mass}


def lossless(emitted, target, length):
    return nonzero(completed(emitted, target, length)) == nonzero(target_law(target, length))


SIZES = [(2, 1, 2), (2, 3, 2), (3, 2, 2), (3, 2, 3), (4, 1, 3), (5, 1, 3)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("size", "length", "k"), SIZES)
@pytest.mark.parametrize("candidates", ["tree", "paths"])
def test_every_rule_is_lossless_for_sequences(rule, size, length, k, candidates):
    if candidates == "paths" and rule in (*DISTINCT, "coupled"):
        return
    for seed in range(3):
        target = random_model(size, seed)
        draft = random_model(size, seed + 100, zeros=0.0 if rule in DISTINCT else 0.2)
        if rule in DISTINCT and k > size:
            return
        emitted = emitted_law(target, draft, length, k, rule=rule, candidates=candidates)
        assert sum(emitted.values()) == 1
        assert lossless(emitted, target, length + 1)


@pytest.mark.parametrize(("size", "length"), [(2, 1), (2, 3), (3, 2), (3, 3), (4, 2), (5, 2)])
def test_block_is_lossless_and_never_shorter_than_token(size, length):
    for seed in range(6):
        target, draft = random_model(size, seed), random_model(size, seed + 50)
        block = block_emitted_law(target, draft, length)
        assert sum(block.values()) == 1
        assert lossless(block, target, length + 1)
        token = emitted_law(target, draft, length, 1, rule="token")
        assert expected_tokens(block) >= expected_tokens(token)


def test_block_gains_strictly_somewhere():
    target = lambda prefix: law(["1/3", "2/3"])  # noqa: E731
    draft = lambda prefix: law(["2/3", "1/3"])  # noqa: E731
    token = expected_tokens(emitted_law(target, draft, 2, 1, rule="token"))
    # the example of arXiv 2403.10444, section 1: 10/9 against 11/9 accepted tokens
    assert token == 1 + F(10, 9)
    assert expected_tokens(block_emitted_law(target, draft, 2)) == 1 + F(11, 9)


@pytest.mark.parametrize("seed", range(5))
def test_block_is_the_token_rule_for_point_mass_drafts(seed):
    target, rng = random_model(3, seed), random.Random(seed)
    tokens = {}
    draft = lambda prefix: tuple(  # noqa: E731
        F(int(i == tokens.setdefault(prefix, rng.randrange(3)))) for i in range(3)
    )
    block = nonzero(block_emitted_law(target, draft, 3))
    assert block == nonzero(emitted_law(target, draft, 3, 1, rule="token"))


def test_block_with_equal_laws_keeps_everything():
    target = random_model(3, 1)
    block = block_emitted_law(target, target, 3)
    assert expected_tokens(block) == 4
    assert lossless(block, target, 4)


def test_block_that_stops_at_the_first_failure_is_wrong_or_shorter():
    """The largest passed i, not the first failure: stopping there bends the law."""
    wrong = 0
    for seed in range(6):
        target, draft = random_model(2, seed, zeros=0), random_model(2, seed + 50, zeros=0)
        emitted = block_up_to_the_first_failure(target, draft, _drafted(target, draft, 2))
        assert sum(emitted.values()) == 1
        wrong += not lossless(emitted, target, 3)
    assert wrong >= 4


@pytest.mark.parametrize("wrong", WRONG_RULES.values(), ids=WRONG_RULES.keys())
def test_every_wrong_rule_bends_the_sequence_law(wrong):
    skewed, masked = law(["1/10", "2/5", "1/2"]), law(["0", "2/5", "3/5"])
    p = masked if "grammar" in (wrong.__doc__ or "") else skewed
    draft = lambda prefix: law(["1/2", "3/10", "1/5"])  # noqa: E731
    emitted = emitted_law(lambda prefix: p, draft, 2, 2, rule=wrong)
    assert not lossless(emitted, lambda prefix: p, 3)


def test_more_candidates_emit_more_tokens():
    target, draft = random_model(3, 3, zeros=0), random_model(3, 4, zeros=0)
    for rule in ("rrs", "rrs_without_replacement", "sparse_optimal"):
        tau = [expected_tokens(emitted_law(target, draft, 2, k, rule=rule)) for k in (1, 2, 3)]
        assert tau == sorted(tau)


def test_trap_4_a_grammar_cut_is_a_refusal():
    """A draft that the grammar forbids counts as refused, residual (p-q)+; sampling p is biased."""
    p, q = law(["1/2", "1/2", "0"]), law(["1/4", "1/4", "1/2"])  # the grammar forbids token 2
    kept = {i: min(q[i], p[i]) for i in range(3)}
    cut = 1 - sum(kept.values())
    right = [kept[i] + cut * residual(p, q)[i] for i in range(3)]
    assert tuple(right) == p
    p, q = law(["3/4", "1/4", "0"]), law(["1/4", "1/4", "1/2"])
    refused = sum((max(b - a, F(0)) for a, b in zip(p, q, strict=True)), F(0))
    biased = [min(a, b) + refused * a for a, b in zip(p, q, strict=True)]
    assert tuple(biased) != p
    assert tuple(min(a, b) + refused * r for a, b, r in zip(p, q, residual(p, q), strict=True)) == p


def test_trap_5_penalties_count_the_drafted_tokens_before_a_row():
    """A penalty makes p depend on the drafts before it; rows that ignore them are wrong."""
    base = law(["1/2", "1/4", "1/4"])

    def penalised(prefix):
        weights = [mass / (1 + 2 * prefix.count(i)) for i, mass in enumerate(base)]
        return tuple(w / sum(weights) for w in weights)

    draft = lambda prefix: law(["1/3", "1/3", "1/3"])  # noqa: E731
    right = emitted_law(penalised, draft, 2, 1, rule="token")
    assert lossless(right, penalised, 3)
    ignoring = emitted_law(lambda prefix: penalised(()), draft, 2, 1, rule="token")
    assert not lossless(ignoring, penalised, 3)


def test_unknown_options_are_refused():
    model = random_model(2, 0)
    with pytest.raises(ValueError, match="candidates must be"):
        emitted_law(model, model, 1, 1, rule="token", candidates="beam")
    with pytest.raises(ValueError, match="independent paths"):
        emitted_law(model, model, 1, 1, rule="top_plus_one", candidates="paths")
