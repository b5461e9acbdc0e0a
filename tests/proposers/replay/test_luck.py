"""Mean and variance of an engine's steps, against the forward programme and against many runs."""

import numpy as np
import pytest

from proposers.replay import Profile, score
from proposers.replay.luck import step_moments
from tests.theory.test_trace_file import small
from theory.traces import Trace


def some_profile(trace: Trace, length: int, seed: int = 0) -> Profile:
    """Random q's along the answers, with chains that end early here and there."""
    rng = np.random.default_rng(seed)
    q = rng.random((len(trace), length))
    q[rng.random(q.shape) < 0.15] = -1
    q[np.cumsum(q < 0, axis=1) > 0] = -1
    for answer in range(trace.answers):
        rows = trace.answer(answer)
        q[rows.start] = -1
        for row in range(rows.start, rows.stop):
            q[row, rows.stop - row :] = -1
    return Profile(q, (q >= 0).sum(axis=1))


def run(profile: Profile, p: np.ndarray, rows: slice, rng: np.random.Generator) -> int:
    """The steps of one run of the token rule on an answer."""
    t, steps = rows.start + 1, 0
    while t < rows.stop:
        steps += 1
        for i in range(profile.draft_length):
            q = profile.q[t, i]
            if q < 0 or rng.random() >= q / p[t + i]:
                break
        else:
            i = profile.draft_length
        t += i + 1
    return steps


@pytest.mark.parametrize("rule", ["token", "block", "match"])
def test_the_mean_is_that_of_the_forward_programme(rule: str) -> None:
    trace = small(answers=7)
    profile = some_profile(trace, 3)
    means, variances = step_moments(profile, trace, rule=rule, draft_length=3)
    found = score(profile, trace, rule=rule, draft_length=3)
    assert means.sum() == pytest.approx(found.steps.sum())
    assert means[0] == variances[0] == 0  # one token: the prefill's
    assert variances[-1] > 0 and np.all(variances >= 0)


def test_the_variance_is_that_of_many_runs() -> None:
    trace = small(answers=6)
    profile, p = some_profile(trace, 3), trace.processed.emitted
    means, variances = step_moments(profile, trace, rule="token", draft_length=3)
    rng = np.random.default_rng(0)
    runs = np.array([run(profile, p, trace.answer(5), rng) for _ in range(20_000)])
    assert runs.mean() == pytest.approx(means[5], abs=4 * np.sqrt(variances[5] / 20_000))
    assert runs.var() == pytest.approx(variances[5], rel=0.05)


def test_a_drafter_that_is_never_wrong_leaves_nothing_to_luck() -> None:
    trace = small(answers=5)
    profile = some_profile(trace, 2)
    sure = Profile(np.where(profile.q >= 0, 1.0, -1.0), profile.drafted)
    _, variances = step_moments(sure, trace, rule="block", draft_length=2)
    assert variances.max() < 1e-12


def test_an_unknown_rule_is_refused() -> None:
    trace = small()
    with pytest.raises(ValueError, match="rule must be one of"):
        step_moments(some_profile(trace, 2), trace, rule="guess", draft_length=2)
