"""Total variation bounds cover; the anytime-valid test may be looked at all the time."""

from itertools import product

import numpy as np
import pytest

from theory.sequential import SequentialFit, tv_upper_bound


def test_tv_upper_bound_covers_and_shrinks():
    rng = np.random.default_rng(7)
    law = rng.dirichlet(np.ones(16))
    other = 0.9 * law + 0.1 * np.eye(16)[0]
    truth = 0.5 * np.abs(law - other).sum()
    for n in (100, 10_000, 1_000_000):
        bounds = [tv_upper_bound(rng.multinomial(n, other), law, miss=0.05) for _ in range(200)]
        assert np.mean(np.array(bounds) < truth) <= 0.05
    assert bounds[-1] < truth + 0.004
    assert tv_upper_bound(rng.multinomial(10**6, law), law, n_bins=4) < 0.004


def test_sequential_false_alarm_under_peeking_and_detection():
    rng = np.random.default_rng(8)
    law = rng.dirichlet(np.ones(8))
    alarms = 0
    for _ in range(300):
        run = SequentialFit(law, false_alarm=0.05)
        for _ in range(40):
            run.update(rng.multinomial(25, law))
        alarms += run.rejected
    assert alarms / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    run = SequentialFit(law, false_alarm=1e-9)
    other = 0.9 * law + 0.1 * np.eye(8)[0]
    while not run.update(rng.multinomial(100, other)):
        assert run.n < 20_000


def test_sequential_e_value_has_mean_one_exactly():
    law = (0.2, 0.3, 0.5)
    mean = 0.0
    for outcome in product(range(3), repeat=5):
        run = SequentialFit(law)
        run.update(np.bincount(outcome, minlength=3))
        mean += np.exp(run.log_e_value) * np.prod([law[i] for i in outcome])
    assert mean == pytest.approx(1, abs=1e-10)


def test_sequential_can_merge_and_sees_impossible_outcomes():
    law = np.append(np.full(1000, 1e-3), 0.0)
    run = SequentialFit(law, planned_n=2000)
    assert not run.update({3: 2, 7: 1})
    assert run.n == 3
    assert run.update({1000: 1})
    assert run.update({3: 1})  # rejected for ever


@pytest.mark.parametrize(
    "call",
    [
        lambda: tv_upper_bound([0, 0], [0.5, 0.5]),
        lambda: tv_upper_bound([1, 0], [0.5, 0.5], miss=0.0),
        lambda: SequentialFit([0.5, 0.5], tests=0),
        lambda: SequentialFit([0.5, 0.5]).update([-1, 2]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"must|need"):
        call()
