"""Courses and the replay of policies: against the exact forward programme, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from proposers import PromptLookupDrafter, StandDrafter, StandTable
from proposers.length.features import DEPTH
from proposers.length.policy import Candidates, Fixed, Outcome
from proposers.length.threshold import Threshold
from proposers.replay import profile, score
from proposers.replay.courses import _refused, draw_courses, greedy_places
from proposers.replay.lengths import GivenTimes, simulate_lengths
from proposers.replay.luck import step_moments
from tests.proposers.replay.small_traces import trace as small_trace
from theory.traces import Sampling, Trace

V, K, MOST = 5, 4, 24
TIMES = GivenTimes([1, 5, 40], [0.013, 0.016, 0.035])


def law(text) -> np.ndarray:
    rng = np.random.default_rng([7, *list(text)[-2:]])
    return rng.dirichlet(np.full(V, 0.5)) * 0.98 + 0.02 / V


def recorded(answers: int = 8, prompts: int = 4, temperature: float = 1.0) -> Trace:
    rng = np.random.default_rng(3)
    given = []
    for a in range(answers):
        text = [a % prompts, 1]
        size = int(rng.integers(8, MOST))
        for _ in range(size):
            text.append(int(rng.choice(V, p=law(text))))
        given.append((a % prompts, text[2:]))
    return small_trace(
        law, given, [[p, 1] for p in range(prompts)], max_tokens=MOST,
        sampling=Sampling(temperature),
    )  # fmt: skip


def stand() -> StandDrafter:
    return StandDrafter(StandTable(order=2, budget_bytes=2**20, decay=0.5), draft_length=K)


def test_steps_are_those_of_the_exact_programme() -> None:
    trace = recorded()
    found = profile(trace, stand, draft_length=K)
    exact = score(found, trace, rule="token", draft_length=K)
    _, variances = step_moments(found, trace, rule="token", draft_length=K)
    seeds = 60
    steps = []
    for seed in range(seeds):
        courses = draw_courses(trace, stand, draft_length=K, seed=seed)
        made = simulate_lengths(trace, courses, Fixed(K), TIMES)
        assert (made.tokens == exact.tokens).all()
        assert (made.accepted <= made.drafted).all()
        steps.append(made.steps.sum())
    sigma = np.sqrt(variances.sum() / seeds)
    assert 0.1 < sigma < 2
    assert abs(np.mean(steps) - exact.steps.sum()) < 5 * sigma


def test_a_refused_token_completes_the_draft_law() -> None:
    """Over y ~ p, the accepted y and the refused tokens together are drawn from q."""
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(4), 2)
    ids, head = np.array([2, 0, 3, 1], np.int32), np.array([1, 3, 0, 2], np.int32)
    grid = (np.arange(4000) + 0.5) / 4000
    x = np.zeros(4)
    for y in range(4):
        kept = min(1.0, q[y] / p[y])
        x[y] += p[y] * kept
        if kept < 1:
            drawn = [_refused(ids, q[ids], head, p[head], float(u), y) for u in grid]
            x += p[y] * (1 - kept) * np.bincount(drawn, minlength=4) / grid.size
    np.testing.assert_allclose(x, q, atol=2e-3)


def test_a_chain_follows_the_text_while_it_is_accepted() -> None:
    trace = recorded()
    made = draw_courses(trace, stand, draft_length=K, together=4)
    begun = np.concatenate([np.arange(a + 1, b) for a, b in zip(
        trace.answer_begins, trace.answer_begins[1:], strict=False)])  # fmt: skip
    assert (made.agreed <= made.drafted).all() and made.agreed[begun].mean() > 0.2
    for t in begun:
        n, d = int(made.agreed[t]), int(made.drafted[t])
        seen = min(n + 1, d)  # the refused token's own place shows what the text's did
        shown = made.shown[t, :seen]
        there = ~np.isnan(shown[:, 0])
        np.testing.assert_array_equal(made.drawn[t, :seen][there], shown[there])
        np.testing.assert_array_equal(made.drawn[t, :d, DEPTH], np.arange(d))
        assert np.isnan(made.drawn[t, d:]).all()


class Watcher(Fixed):
    """Remembers what it was told."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.told: list[Outcome] = []
        self.finished: list[int] = []

    def observe(self, outcome: Outcome) -> None:
        self.told.append(outcome)

    def finish(self, handle: int) -> None:
        self.finished.append(handle)


@pytest.mark.parametrize("together", [1, 3, 8])
def test_every_step_has_all_its_requests_and_every_token_is_counted_once(together: int) -> None:
    trace = recorded()
    courses = draw_courses(trace, stand, draft_length=K, together=together)
    policy = Watcher(2)
    made = simulate_lengths(trace, courses, policy, TIMES, overhead=0.001)
    assert made.tokens.sum() == len(trace) - trace.answers
    assert {outcome.handles.size for outcome in policy.told} == {together}
    assert set(range(trace.answers)) <= set(policy.finished)
    for outcome in policy.told:
        n = together + int(outcome.drafted.sum())
        assert outcome.seconds == pytest.approx(float(TIMES.seconds(n)) + 0.001)
    plain = simulate_lengths(trace, courses, Fixed(0), TIMES, overhead=0.001)
    assert plain.tokens_per_second == pytest.approx(together / float(TIMES.seconds(together)))
    assert plain.block_efficiency == 1.0 and plain.drafted_per_token == 0.0


def test_a_threshold_that_knows_the_price_beats_what_it_could_also_do() -> None:
    """Verification for nothing: all of it. Dear verification: none of it."""
    trace = recorded(answers=12)
    courses = draw_courses(trace, stand, draft_length=K)
    free, dear = GivenTimes([1, 2], [1.0, 1.0]), GivenTimes([1, 2], [1.0, 3.0])
    all_of_it = simulate_lengths(trace, courses, Fixed(K), free)
    made = simulate_lengths(trace, courses, Threshold(free), free)
    assert made.tokens_per_second == pytest.approx(all_of_it.tokens_per_second)
    none = simulate_lengths(trace, courses, Threshold(dear), dear)
    assert none.tokens_per_second == pytest.approx(1.0)


def test_greedy_places_ask_whether_the_argmaxes_agree() -> None:
    trace = recorded()
    made = greedy_places(trace, stand, draft_length=K)
    known = ~np.isnan(made.labels)
    assert known.any() and set(made.labels[known].tolist()) == {0.0, 1.0}
    assert (made.shown[known][:, 7] == 0).all()


def test_given_times_are_straight_lines() -> None:
    times = GivenTimes([1, 3], [1.0, 2.0])
    np.testing.assert_allclose(times.seconds([1, 2, 3, 5]), [1.0, 1.5, 2.0, 3.0])


def test_drafters_without_features_are_refused() -> None:
    trace = recorded()
    with pytest.raises(ValueError, match="shows no features"):
        draw_courses(trace, lambda: PromptLookupDrafter(draft_length=K), draft_length=K)
    with pytest.raises(ValueError, match="together is 0"):
        draw_courses(trace, stand, draft_length=K, together=0)


def test_no_requests_no_lengths() -> None:
    nothing = Candidates(np.zeros(0, np.int64), np.zeros((0, K)), np.zeros(0, np.int64))
    assert Fixed(2).lengths(nothing).shape == (0,)
