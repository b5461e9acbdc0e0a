"""A length policy leaves the law alone: properties, exact enumeration, and mutants that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proposers.length.baselines import BatchTable, Confidence, EntropyBound, MovingAverage
from proposers.length.never_slower import NeverSlower
from proposers.length.policy import Candidates, Fixed, LengthPolicy, Refusal
from proposers.length.threshold import Threshold
from proposers.replay.lengths import GivenTimes
from tests.proposers.length.exact_steps import (
    Chooser,
    chooser,
    distance,
    joint_law,
    random_request,
    target_law,
)

V, K = 2, 2
LINEAR = GivenTimes([1, 2], [1.0, 1.2])
STEPPED = GivenTimes([1, 2, 3, 4, 5, 6], [1.0, 1.0, 1.5, 1.55, 1.9, 1.9])

POLICIES: dict[str, Callable[[], LengthPolicy]] = {
    "fixed": lambda: Fixed(1),
    "refusal": lambda: Refusal(0.5),
    "table": lambda: BatchTable([(1, 2), (4, 1)]),
    "confidence": lambda: Confidence(0.6),
    "entropy": lambda: EntropyBound(0.5, 0.4),
    "moving": lambda: MovingAverage(1, 2),
    "threshold": lambda: Threshold(LINEAR, rate=2.5),
    "threshold stepped": lambda: Threshold(STEPPED, rate=1.6),
    "threshold alone": lambda: Threshold(STEPPED, rate=1.6, lookahead=0),
    "never slower": lambda: NeverSlower(Threshold(STEPPED, rate=1.6), STEPPED),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("budget", [1000, 3])
def test_every_policy_leaves_the_joint_law(name: str, budget: int) -> None:
    rng = np.random.default_rng(5)
    lengths = set()
    for _ in range(12):
        requests = [random_request(rng, V, K) for _ in range(2)]
        choose = chooser(POLICIES[name](), budget)

        def watched(
            seen: NDArray[np.float64],
            xs: tuple[tuple[int, ...], ...],
            choose: Chooser = choose,
        ) -> NDArray[np.int64]:
            found = choose(seen, xs)
            lengths.update(found.tolist())
            return found

        made = joint_law(requests, V, K, watched)
        assert distance(made, target_law(requests, V, K + 1)) < 1e-12
    # Not because it always does the same: those that look do cut differently.
    assert len(lengths) > 1 or name in ("fixed", "table", "moving")


def by_drawn_token(seen: NDArray[np.float64], requests: list, xs: tuple) -> NDArray[np.int64]:
    """MUTANT: a token is verified only if q of it, as it was drawn, is large."""
    lengths = []
    for r, x in zip(requests, xs, strict=True):
        n = 0
        while n < K and r.q[x[:n]][x[n]] >= 0.5:
            n += 1
        lengths.append(n)
    return np.array(lengths)


def best_of_all(seen: NDArray[np.float64], times: GivenTimes) -> NDArray[np.int64]:
    """MUTANT: the number that maximises (B + sum s)/T(n), all survivals seen at once."""
    survival = np.cumprod(seen, axis=1)
    order = np.argsort(-survival.ravel(), kind="stable")
    gains = np.concatenate([[0.0], np.cumsum(survival.ravel()[order])])
    plain = seen.shape[0]
    n = int(np.argmax((plain + gains) / times.seconds(plain + np.arange(gains.size))))
    return np.bincount(order[:n] // K, minlength=plain)


def by_the_others(seen: NDArray[np.float64]) -> NDArray[np.int64]:
    """MUTANT: each request is cut by what the other's last place shows."""
    return np.array([K if seen[1 - b, K - 1] > 0.5 else 0 for b in range(2)])


def test_a_policy_that_sees_the_drawn_token_is_refuted() -> None:
    rng = np.random.default_rng(6)
    requests = [random_request(rng, V, K)]
    made = joint_law(requests, V, K, lambda seen, xs: by_drawn_token(seen, requests, xs))
    assert distance(made, target_law(requests, V, K + 1)) > 0.01


def test_a_policy_that_looks_ahead_is_refuted() -> None:
    """The features behind x_i tell of x_i: maximising over all of them at once is not allowed."""
    rng = np.random.default_rng(7)
    worst, plateau = 0.0, GivenTimes([1, 2, 3], [1.0, 1.5, 1.52])
    for _ in range(30):
        requests = [random_request(rng, V, K)]
        made = joint_law(requests, V, K, lambda seen, xs: best_of_all(seen, plateau))
        worst = max(worst, distance(made, target_law(requests, V, K + 1)))
    assert worst > 0.01


def test_requests_cut_by_each_other_are_right_alone_and_wrong_together() -> None:
    rng = np.random.default_rng(8)
    requests = [random_request(rng, V, K) for _ in range(2)]
    made = joint_law(requests, V, K, lambda seen, xs: by_the_others(seen))
    true = target_law(requests, V, K + 1)
    assert distance(made, true) > 1e-3
    for b in range(2):
        alone: dict[tuple[int, ...], float] = {}
        want: dict[tuple[int, ...], float] = {}
        for law, into in ((made, alone), (true, want)):
            for texts, mass in law.items():
                into[texts[b]] = into.get(texts[b], 0.0) + mass
        assert max(abs(alone[text] - want[text]) for text in want) < 1e-12


chances = st.floats(0.0, 1.0, width=32)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(POLICIES)))
def test_what_follows_a_token_never_decides_whether_it_is_verified(
    data: st.DataObject, name: str
) -> None:
    """Change the value of x_i: everything behind changes, the decision about x_i does not.

    And the stop is a stopping time: change what lies behind the first unverified token of every
    request at once, and nobody's length changes.
    """
    batch, steps = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    budget = data.draw(st.integers(0, 12))
    matrix = st.lists(chances, min_size=batch * steps, max_size=batch * steps)
    seen = np.array(data.draw(matrix)).reshape(batch, steps)
    other = np.array(data.draw(matrix)).reshape(batch, steps)
    drafted = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    for b, n in enumerate(drafted):  # where a chain ends is known from its prefix, too
        seen[b, n:] = np.nan

    def lengths(acceptance: NDArray[np.float64]) -> NDArray[np.int64]:
        features = np.repeat(acceptance[:, :, None], 8, axis=2).astype(np.float32)
        caps = np.full(batch, steps, np.int64)
        step = Candidates(np.arange(batch), acceptance, caps, features, budget)
        found = POLICIES[name]().lengths(step)
        assert found.sum() <= budget
        assert (found >= 0).all() and (found <= (~np.isnan(acceptance)).sum(axis=1)).all()
        return found

    before = lengths(seen)
    r = data.draw(st.integers(0, batch - 1))
    if drafted[r]:
        i = data.draw(st.integers(0, drafted[r] - 1))
        changed = seen.copy()
        changed[r, i + 1 :] = other[r, i + 1 :]
        assert (before[r] > i) == (lengths(changed)[r] > i)
    unseen = seen.copy()
    for b in range(batch):
        if before[b] < drafted[b]:
            unseen[b, before[b] + 1 :] = other[b, before[b] + 1 :]
    np.testing.assert_array_equal(lengths(unseen), before)
