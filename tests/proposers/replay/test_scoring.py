"""Expected steps against exact enumeration of the rules, to the last digit that a trace holds."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from small_traces import GivenDrafter, Law, trace

from proposers import PromptLookupDrafter
from proposers.replay import Profile, profile, score
from proposers.replay.scoring import RULES
from theory.exact_sequences import Tokens, block_emitted_law, emitted_law
from theory.traces import Sampling

V, LENGTH = 3, 5
PROMPT = (0, 2)


@cache
def weights(text: Tokens, seed: int) -> tuple[Fraction, ...]:
    """A law that depends on the whole text, in sixteenths, none of them 0."""
    rng = np.random.default_rng([seed, *text])
    parts = rng.multinomial(16 - V, rng.dirichlet(np.full(V, 0.6))) + 1
    return tuple(Fraction(int(part), 16) for part in parts)


def floats(seed: int):
    return lambda text: np.array([float(x) for x in weights(tuple(text), seed)])


def chances_of_starting(rule: str, length: int, max_tokens: int) -> dict[Tokens, Fraction]:
    """P(some step starts after exactly this text), by following every outcome of every step."""
    starts: dict[Tokens, Fraction] = {(y,): w for y, w in enumerate(weights(PROMPT, 0))}
    for text in sorted(itertools.chain(*(
        itertools.product(range(V), repeat=n) for n in range(1, LENGTH)
    )), key=len):  # fmt: skip
        chance = starts.get(text, Fraction(0))
        budget = min(length, max_tokens - len(text) - 1)

        def target(more: Tokens, text: Tokens = text) -> tuple[Fraction, ...]:
            return weights(PROMPT + text + more, 0)

        def draft(more: Tokens, text: Tokens = text) -> tuple[Fraction, ...]:
            return weights(PROMPT + text + more, 1)

        if rule == "block":
            law = block_emitted_law(target, draft, budget)
        else:
            law = emitted_law(target, draft, budget, 1, rule=rule)
        for emitted, mass in law.items():
            after = (text + emitted)[:LENGTH]
            starts[after] = starts.get(after, Fraction(0)) + chance * mass
    return starts


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("length", "max_tokens"), [(1, 9), (3, 9), (3, LENGTH)])
def test_expected_steps_are_those_of_the_enumerated_engine(rule, length, max_tokens) -> None:
    """Answer by answer, for all answers of five tokens: each is a prompt, to keep its own sum."""
    answers = list(itertools.product(range(V), repeat=LENGTH))
    recorded = trace(
        floats(0), list(enumerate(answers)), [PROMPT] * len(answers), max_tokens=max_tokens
    )
    found = profile(
        recorded, lambda: GivenDrafter(floats(1), draft_length=4), draft_length=4, share="all"
    )
    scored = score(found, recorded, rule=rule, draft_length=length)
    starts = chances_of_starting(rule, length, max_tokens)
    for y, steps in zip(answers, scored.steps, strict=True):
        expected, whole = Fraction(0), Fraction(1)
        for n in range(1, LENGTH):
            whole *= weights(PROMPT + y[: n - 1], 0)[y[n - 1]]
            expected += starts.get(y[:n], Fraction(0)) / whole
        assert steps == pytest.approx(float(expected), rel=2e-6)
    assert scored.tokens.tolist() == [LENGTH - 1] * len(answers)


def by_hand(q: list[list[float]], p: list[float], drafted: list[int], **how):
    """The score of one answer whose q and p are written down; 4 tokens, the first by prefill."""
    recorded = trace(lambda text: np.ones(2) / 2, [(0, [0, 1, 0, 1])], [[0]], max_tokens=9)
    recorded.processed.emitted[:] = p
    return score(Profile(np.array(q), np.array(drafted)), recorded, **how)


def test_a_little_case_by_hand() -> None:
    """A step at token 1 accepts with 1/2, then with 1/4; one at token 2 with 1; one at 3 has none.

    starts: pi(1) = 1; pi(2) = 1/2; pi(3) = P(exactly 1 at 1) + P(exactly 0 at 2) = 1/2 * 3/4 + 0.
    """
    q = [[-1, -1], [0.2, 0.2], [0.9, -1], [-1, -1]]
    p = [0.5, 0.4, 0.8, 0.3]
    scored = by_hand(
        q, p, [0, 2, 1, 0], rule="token", draft_length=2, step_times=np.array([1.0, 2.0, 3.0])
    )
    assert scored.steps.tolist() == pytest.approx([1 + 0.5 + 0.375])
    assert scored.block_efficiency == pytest.approx(3 / 1.875)
    assert scored.drafted.tolist() == pytest.approx([1 * 2 + 0.5 * 1])
    assert scored.offered.tolist() == [pytest.approx([1.5, 1.0])]
    assert scored.reached.tolist() == [pytest.approx([1.5, 0.5])]
    assert scored.kept.tolist() == [pytest.approx([0.5 + 0.5, 0.125])]
    assert scored.wasted.tolist() == pytest.approx([2.5 - 1.125])
    assert scored.acceptance.tolist() == pytest.approx([1 / 1.5, 0.125])
    assert scored.acceptance_when_reached.tolist() == pytest.approx([1 / 1.5, 0.25])
    assert scored.tokens_per_second == pytest.approx(3 / (1 * 3 + 0.5 * 2 + 0.375 * 1))
    assert by_hand(q, p, [0, 2, 1, 0], rule="match", draft_length=2).steps.tolist() == (
        pytest.approx([1 + 0.8 + (0.2 * 0.8 + 0.8 * 0.1)])
    )


def test_the_block_rule_lends_what_one_draft_has_too_much() -> None:
    """q/p is 2 at the first draft and 1/2 at the second: r is 1/2 between, so both are accepted."""
    q = [[-1, -1], [0.8, 0.2], [-1, -1], [-1, -1]]
    p = [0.5, 0.4, 0.4, 0.5]
    block = by_hand(q, p, [0, 2, 0, 0], rule="block", draft_length=2)
    assert block.steps.tolist() == pytest.approx([1])
    token = by_hand(q, p, [0, 2, 0, 0], rule="token", draft_length=2)
    assert token.steps.tolist() == pytest.approx([1 + 0.5])


def test_a_longer_profile_truncated_is_the_shorter_one() -> None:
    rng = np.random.default_rng(3)
    answers = [(0, rng.integers(0, V, 12).tolist()) for _ in range(3)]
    recorded = trace(floats(0), answers, [PROMPT], max_tokens=12)

    def at(length: int) -> Profile:
        return profile(
            recorded, lambda: GivenDrafter(floats(1), draft_length=length), draft_length=length
        )

    whole, short = at(6), at(2)
    np.testing.assert_array_equal(whole.q[:, :2], short.q)
    for rule in RULES:
        assert score(whole, recorded, rule=rule, draft_length=2).steps.tolist() == (
            score(short, recorded, rule=rule, draft_length=2).steps.tolist()
        )
    lengths = [score(whole, recorded, rule="block", draft_length=k).steps.sum() for k in (1, 2, 6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_point_masses_are_judged_alike_by_every_rule() -> None:
    """Block and token agree and match too, since q is 0 or 1; the steps are whole numbers."""
    rng = np.random.default_rng(5)
    answers = [(0, rng.integers(0, 2, 30).tolist()) for _ in range(4)]
    recorded = trace(lambda text: np.ones(2) / 2, answers, [[0, 1, 1, 0]], max_tokens=40)
    found = profile(recorded, lambda: PromptLookupDrafter(draft_length=5), draft_length=5)
    assert set(np.unique(found.q)) == {-1.0, 0.0, 1.0}
    steps = [score(found, recorded, rule=rule, draft_length=5).steps.tolist() for rule in RULES]
    assert steps[0] == steps[1] == steps[2] == np.round(steps[0]).tolist()
    assert 0 < steps[0][0] < 4 * 29


def test_at_temperature_zero_the_drafts_are_right_or_wrong() -> None:
    greedy = Sampling(temperature=0.0)

    def target(text) -> Law:
        law = np.full(4, 0.1)
        law[(text[-1] + 1) % 4] = 0.7
        return law

    recorded = trace(target, [(0, [0, 1, 2, 3, 0, 1, 2])], [[3]], max_tokens=7, sampling=greedy)

    def point(text) -> Law:  # right except after token 2
        return np.eye(4)[(text[-1] + 1) % 4 if text[-1] != 2 else 0]

    found = profile(recorded, lambda: GivenDrafter(point, draft_length=3), draft_length=3)
    for rule in RULES:
        # from token 1: drafts 1, 2 and the target's 3; from the next 0: 0, 1 and then 2, the last
        assert score(found, recorded, rule=rule, draft_length=3).steps.tolist() == [2.0]


def test_bad_questions_are_refused_with_what_is_allowed() -> None:
    found = Profile(np.full((4, 2), -1.0), np.zeros(4, np.int64))
    recorded = trace(lambda text: np.ones(2) / 2, [(0, [0, 1, 0, 1])], [[0]], max_tokens=9)
    with pytest.raises(ValueError, match="one of token, block, match; got 'best'"):
        score(found, recorded, rule="best", draft_length=2)
    with pytest.raises(ValueError, match=r"the profile holds 1\.\.2"):
        score(found, recorded, rule="token", draft_length=3)
    found = Profile(np.full((4, 2), -1.0), np.full(4, 2))
    with pytest.raises(ValueError, match="end at 1 drafted tokens, but up to 2"):
        score(found, recorded, rule="token", draft_length=2, step_times=np.ones(2))


def test_an_empty_answer_and_one_of_a_single_token_take_no_step() -> None:
    recorded = trace(lambda text: np.ones(2) / 2, [(0, []), (0, [1]), (1, [])], [[0], [1]],
                     max_tokens=9)  # fmt: skip
    found = profile(recorded, lambda: GivenDrafter(lambda t: np.ones(2) / 2, draft_length=2),
                    draft_length=2, order="lockstep")  # fmt: skip
    scored = score(found, recorded, rule="block", draft_length=2)
    assert scored.steps.tolist() == [0, 0]
    assert scored.tokens.tolist() == [0, 0]
    assert scored.answers.tolist() == [2, 1]
    assert np.isnan(scored.block_efficiency)
