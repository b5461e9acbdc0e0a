"""What the policies decide: the threshold's optimum, its reductions, and the baselines' rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proposers.length.baselines import BatchTable, Confidence, EntropyBound, MovingAverage
from proposers.length.features import ENTROPY, NAMES, TOP
from proposers.length.policy import (
    Candidates,
    Fixed,
    Outcome,
    Refusal,
    drafted_lengths,
    surviving,
)
from proposers.length.threshold import Threshold
from proposers.replay.lengths import GivenTimes
from theory.stopping import fixed_length, profile_problem, solve

CONVEX = GivenTimes([1, 4, 9, 20], [1.0, 1.1, 1.6, 4.0])


def candidates(
    acceptance: list[list[float]] | NDArray[np.float64], budget: int = 1000, cap: int = 99
) -> Candidates:
    a = np.array(acceptance, np.float64)
    return Candidates(np.arange(len(a)), a, np.full(len(a), cap, np.int64), None, budget)


def outcome(drafted: list[int], accepted: list[int], seconds: float = 1.0) -> Outcome:
    return Outcome(np.arange(len(drafted)), np.array(drafted), np.array(accepted), seconds)


def best_ratio(acceptance: NDArray[np.float64], times: GivenTimes) -> float:
    """max (B + sum s)/T(n) over all lengths, by brute force."""
    batch, steps = acceptance.shape
    survival = np.cumprod(acceptance, axis=1)
    return max(
        (batch + sum(survival[b, :n].sum() for b, n in enumerate(lengths)))
        / float(times.seconds(batch + sum(lengths)))
        for lengths in itertools.product(range(steps + 1), repeat=batch)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda batch: st.lists(
            st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3), min_size=batch, max_size=batch
        )
    )
)
def test_following_the_achieved_rate_is_dinkelbach_and_ends_at_the_optimum(
    acceptance: list[list[float]],
) -> None:
    a = np.array(acceptance)
    rate = a.shape[0] / float(CONVEX.seconds(a.shape[0]))
    for _ in range(30):
        lengths = Threshold(CONVEX, rate=rate).lengths(candidates(a))
        survival = np.cumprod(a, axis=1)
        tokens = a.shape[0] + sum(survival[b, :n].sum() for b, n in enumerate(lengths))
        found = tokens / float(CONVEX.seconds(a.shape[0] + lengths.sum()))
        assert found >= rate - 1e-12  # Dinkelbach's iteration never falls
        rate = found
    assert rate == pytest.approx(best_ratio(a, CONVEX), rel=1e-9)


def test_a_learned_rate_gets_there_too() -> None:
    a = np.array([[0.9, 0.7, 0.5, 0.2]])
    policy, rng = Threshold(CONVEX, memory=500), np.random.default_rng(1)
    for _ in range(3000):
        n = int(policy.lengths(candidates(a))[0])
        refused = np.append(rng.random(n) >= a[0, :n], True)
        policy.observe(outcome([n], [int(refused.argmax())], float(CONVEX.seconds(1 + n))))
    assert policy.speedup(1) == pytest.approx(best_ratio(a, CONVEX), rel=0.06)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.05, 0.999), min_size=1, max_size=8),
    st.floats(0.01, 1.0),
    st.floats(0.2, 5.0),
)
def test_with_constant_costs_it_is_specdecpp(
    profile: list[float], discard: float, verify: float
) -> None:
    """c1 for a discarded token, c2 for a forward: theory.stopping's optimum, and its h."""
    falling = sorted(profile, reverse=True)
    best = solve(profile_problem(falling, verify_cost=verify, discard_cost=discard))
    constant = GivenTimes([1, 2], [verify, verify])
    policy = Threshold(constant, rate=best.tokens_per_cost, discard_cost=discard)
    found = int(policy.lengths(candidates([falling]))[0])
    emitted = 1 + np.cumprod(falling)[:found].sum()
    lost = found - np.cumprod(falling)[:found].sum()
    assert (verify + discard * lost) / emitted == pytest.approx(best.cost_per_token, rel=1e-9)
    h = best.cost_per_token / (discard + best.cost_per_token)
    if abs(1 - np.cumprod(falling) - h).min() > 1e-9:
        assert found == int(Refusal(h).lengths(candidates([falling]))[0])


def test_fixed_is_theorys_fixed_length() -> None:
    assert Fixed(3).lengths(candidates([[0.5] * 5, [0.1] * 5])).tolist() == [3, 3]
    assert [fixed_length(3)(n, 0.5, 0) for n in range(5)] == [True] * 3 + [False] * 2


def test_tokens_of_all_requests_compete() -> None:
    policy = Threshold(GivenTimes([1, 2], [1.0, 1.1]), rate=5.0)  # price: 0.5 of a token
    step = candidates([[0.9, 0.8, 0.5], [0.4, 0.9, 0.9], [0.6, 0.6, 0.6]])
    assert policy.lengths(step).tolist() == [2, 0, 1]
    assert policy.lengths(candidates([[0.9, 0.8], [0.95, 0.7]], budget=2)).tolist() == [1, 1]
    assert policy.lengths(candidates([[0.9, 0.9, 0.9]], cap=2)).tolist() == [2]
    assert policy.lengths(candidates([[0.9, 0.9, 0.9]], cap=0)).tolist() == [0]
    assert policy.lengths(candidates([[0.9, np.nan, np.nan]])).tolist() == [1]
    assert policy.lengths(candidates(np.zeros((0, 3)))).tolist() == []


def test_prefills_in_the_step_move_it_along_the_curve() -> None:
    times = GivenTimes([1, 8, 9, 10], [1.0, 1.0, 2.0, 3.0])  # flat, then steep
    a = np.full((1, 3), 0.9)
    policy = Threshold(times, rate=1.0)
    assert policy.lengths(candidates(a)).tolist() == [3]
    full = Candidates(np.arange(1), a, np.full(1, 9, np.int64), None, others=7)
    assert policy.lengths(full).tolist() == [0]


def test_tokens_that_pay_only_together_are_taken() -> None:
    """A step of T and a plateau behind it."""
    times = GivenTimes([1, 2, 3, 4, 5, 6], [1.0, 1.5, 1.5, 1.5, 1.5, 1.5])
    step = candidates([[0.8] * 5])
    assert Threshold(times, rate=2.0, lookahead=0).lengths(step).tolist() == [0]
    assert Threshold(times, rate=2.0).lengths(step).tolist() == [5]
    hopeless = candidates([[0.3] * 5])
    assert Threshold(times, rate=2.0).lengths(hopeless).tolist() == [0]


def test_the_rate_of_a_batch_size_is_its_own_and_the_nearest_stands_in() -> None:
    policy = Threshold(GivenTimes([1, 2], [1.0, 1.1]), memory=30)
    assert policy.speedup(1) == 1.0
    for _ in range(200):
        policy.observe(outcome([2], [2], 1.2))
    assert policy.speedup(1) == pytest.approx(3 / 1.2, rel=0.01)
    assert policy.speedup(32) == pytest.approx(policy.speedup(1))
    policy.observe(outcome([0] * 32, [0] * 32, float("nan")))  # a step with prefills
    assert policy.speedup(32) == pytest.approx(policy.speedup(1))
    for _ in range(200):
        policy.observe(outcome([0] * 32, [0] * 32, 4.1))
    assert policy.speedup(32) == pytest.approx(1.0, abs=0.01)
    assert policy.speedup(1) > 2


def test_refusal_counts_the_token_itself() -> None:
    step = candidates([[0.9, 0.5, 0.9], [0.2, 0.9, 0.9]])
    assert Refusal(0.7).lengths(step).tolist() == [3, 0]
    assert Refusal(0.56).lengths(step).tolist() == [2, 0]


def test_a_budget_takes_the_deepest_first() -> None:
    step = candidates(np.full((3, 4), 0.5), budget=7)
    assert Fixed(4).lengths(step).tolist() == [3, 2, 2]
    assert drafted_lengths(candidates([[0.5, np.nan]], cap=-1)).tolist() == [0]


def shown(name: int, values: list[list[float]]) -> Candidates:
    v = np.array(values)
    features = np.zeros((*v.shape, len(NAMES)), np.float32)
    features[:, :, name] = v
    return Candidates(np.arange(len(v)), np.full(v.shape, 0.5), np.full(len(v), 9), features)


def test_the_batch_table() -> None:
    policy = BatchTable([(1, 8), (4, 2)])
    assert [policy.length(n) for n in (1, 2, 4, 5)] == [8, 2, 2, 0]
    assert policy.ahead(np.arange(2), 16) == 2
    assert policy.lengths(candidates(np.full((3, 4), 0.5))).tolist() == [2, 2, 2]


def test_confidence_stops_behind_the_first_unsure_token() -> None:
    step = shown(TOP, [[0.9, 0.3, 0.9], [0.9, 0.9, 0.9]])
    assert Confidence(0.4).lengths(step).tolist() == [2, 3]
    adaptive = Confidence(0.0, start=2)
    assert adaptive.ahead(np.arange(2), 8) == 2
    adaptive.observe(outcome([2, 2], [2, 0]))
    assert adaptive.lengths(shown(TOP, [[0.9] * 5] * 2)).tolist() == [4, 1]
    adaptive.observe(outcome([4, 1], [3, 0]))
    assert adaptive.lengths(shown(TOP, [[0.9] * 5] * 2)).tolist() == [3, 1]
    adaptive.finish(0)
    assert adaptive.lengths(shown(TOP, [[0.9] * 5] * 2)).tolist() == [2, 1]
    with pytest.raises(ValueError, match="features"):
        Confidence().lengths(candidates([[0.5]]))


def test_the_entropy_bound() -> None:
    policy = EntropyBound(gamma=1.0, least=0.5)
    assert policy.lengths(shown(ENTROPY, [[0.0, 0.2, 0.26, 0.0]])).tolist() == [2]
    moving = EntropyBound(1.0, 0.5, target=0.5, step=0.1)
    for _ in range(50):
        moving.observe(outcome([4], [4]))
    low = moving.least
    for _ in range(200):
        moving.observe(outcome([4], [0]))
    assert low < 0.5 < moving.least <= 1.0


def test_the_moving_average() -> None:
    policy = MovingAverage(1, 8, slack=2, weight=0.5)
    handles = np.arange(1)
    assert policy.ahead(handles, 16) == 8
    for _ in range(12):
        policy.observe(outcome([8], [0]))
    assert policy.ahead(handles, 16) == 1
    grown = []
    for _ in range(20):
        k = policy.ahead(handles, 16)
        grown.append(k)
        policy.observe(outcome([k], [k]))
    assert grown[-1] == 8
    policy.observe(outcome([0], [0]))
    assert policy.ahead(handles, 16) == 8
    policy.finish(0)
    assert not policy._means


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fixed(-1), "length is -1"),
        (lambda: Refusal(0), "refusal is 0"),
        (lambda: Threshold(CONVEX, rate=0), "rate is 0"),
        (lambda: Threshold(CONVEX, discard_cost=-1), "discard_cost is -1"),
        (lambda: Threshold(CONVEX, memory=0.5), "memory"),
        (lambda: BatchTable([]), "table must hold"),
        (lambda: BatchTable([(4, 1), (1, 2)]), "table must hold"),
        (lambda: Confidence(1.5), "threshold is 1.5"),
        (lambda: Confidence(0.5, 0), "start is 0"),
        (lambda: EntropyBound(0), "gamma"),
        (lambda: EntropyBound(target=1), "target is 1"),
        (lambda: MovingAverage(3, 2), "shortest <= longest"),
        (lambda: GivenTimes([1, 1], [1, 2]), "tokens must rise"),
    ],
)
def test_bad_values_are_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(("more", "rate"), [(0.1, 2.0), (0.25, 1.5), (0.01, 3.0)])
def test_a_tree_s_floor_is_the_price_of_a_token(more: float, rate: float) -> None:
    """Where T is a straight line: lambda (T(n+1) - T(n)), whatever was verified before."""
    line = GivenTimes([1, 2], [1.0, 1.0 + more])
    policy = Threshold(line, rate=rate)
    assert policy.floor(1) == pytest.approx(rate * more)
    policy.observe(Outcome(np.arange(1), np.array([40]), np.array([3]), 2.0))
    assert policy.floor(1) == pytest.approx(rate * more)


def test_a_tree_s_floor_follows_the_tokens_that_were_verified() -> None:
    """A step that is full prices its next token as the curve does there."""
    bent = GivenTimes([1, 17, 18], [1.0, 1.0, 2.0])
    policy = Threshold(bent, rate=1.0, lookahead=0, memory=1.0)
    assert policy.floor(1) == 0.0
    for _ in range(20):
        policy.observe(Outcome(np.arange(1), np.array([30]), np.array([3]), 2.0))
    assert policy.floor(1) == pytest.approx(1.0, rel=1e-3)


@given(st.integers(0, 2**32 - 1))
def test_chains_that_survive_end_at_the_first_token_that_does_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    acceptance = rng.random((5, 4)) ** 0.3
    acceptance[rng.random((5, 4)) < 0.1] = np.nan
    floor, most = float(rng.random()), rng.integers(0, 7, 5)
    fits = np.logical_and.accumulate(np.cumprod(acceptance, axis=1) >= floor, axis=1)
    assert (surviving(acceptance, floor, most) == np.minimum(fits.sum(axis=1), most)).all()
