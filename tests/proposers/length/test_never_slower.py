"""Speculation that does not pay ends, at a bounded cost, and comes back when it pays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from proposers.length.never_slower import NeverSlower
from proposers.length.policy import Candidates, Fixed, LengthPolicy, Outcome, Refusal
from proposers.length.threshold import Threshold
from proposers.replay.lengths import GivenTimes

TIMES = GivenTimes([1, 2], [1.0, 1.1])


@dataclass
class Engine:
    """Requests whose drafts are accepted with one chance; what it takes and what it emits."""

    policy: LengthPolicy
    requests: int = 1
    overhead: float = 0.0
    believed: float | None = None
    noise: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    seconds: float = 0.0
    emitted: int = 0
    drafted: int = 0

    def run(self, steps: int, acceptance: float) -> Engine:
        handles = np.arange(self.requests)
        for _ in range(steps):
            lengths, spent = np.zeros(self.requests, np.int64), 0.0
            ahead = self.policy.ahead(handles, 4)
            if ahead:
                spent = self.overhead
                a = np.full((self.requests, ahead), self.believed or acceptance)
                caps = np.full(self.requests, ahead)
                lengths = self.policy.lengths(Candidates(handles, a, caps))
            hits = self.rng.random((self.requests, 5)) < acceptance
            hits[:, 4] = False
            accepted = np.minimum(hits.argmin(axis=1), lengths)
            seconds = float(TIMES.seconds(self.requests + int(lengths.sum()))) + spent
            if self.noise:
                seconds *= float(self.rng.lognormal(0.0, self.noise))
            made = Outcome(handles, lengths, accepted, seconds, spent)
            self.policy.observe(made)
            self.seconds += seconds
            self.emitted += made.emitted
            self.drafted += int(lengths.sum())
        return self

    @property
    def rate(self) -> float:
        """Against plain decoding."""
        return self.emitted / self.seconds / self.requests * float(TIMES.seconds(self.requests))


@pytest.mark.parametrize("requests", [1, 16])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_drafts_that_are_never_accepted_cost_little(requests: int, noise: float) -> None:
    policy = NeverSlower(Fixed(4), TIMES)
    made = Engine(policy, requests=requests, noise=noise)
    made.run(64, 0.0)  # long enough to be found out
    assert not policy.on and policy.reason == "slower"
    made.seconds, made.emitted, made.drafted = 0.0, 0, 0
    made.run(6000, 0.0)
    assert made.rate > 0.985 / (np.exp(noise**2 / 2))
    assert policy.spent <= 0.0105 * policy.seconds_off
    assert made.drafted > 0  # it went on trying


def test_a_wrong_belief_is_found_out() -> None:
    """The predictor says .9, the truth is .05: the threshold alone would be slower for ever."""
    wrong = Engine(Threshold(TIMES, rate=1.0), believed=0.9).run(3000, 0.05)
    guarded = Engine(NeverSlower(Threshold(TIMES, rate=1.0), TIMES), believed=0.9).run(3000, 0.05)
    assert wrong.rate < 0.9
    assert guarded.rate > 0.97


def test_what_wants_nothing_looks_seldom() -> None:
    """No token ever pays, and looking costs 5 % of a step."""
    policy = NeverSlower(Threshold(TIMES, rate=1.0), TIMES)
    made = Engine(policy, overhead=0.05).run(5000, 0.01)
    assert policy.reason == "zero" and made.drafted == 0
    assert made.rate > 0.985
    assert policy.spent <= 0.0105 * policy.seconds_off


def test_it_comes_back() -> None:
    for inner in (Fixed(2), Threshold(TIMES)):
        policy = NeverSlower(inner, TIMES)
        made = Engine(policy, overhead=0.002)
        made.run(400, 0.01)
        assert not policy.on
        made.run(3000, 0.8)
        assert policy.on
        made.seconds, made.emitted = 0.0, 0
        made.run(1000, 0.8)
        assert made.rate > 1.4


def test_what_pays_stays_on() -> None:
    policy = NeverSlower(Fixed(2), TIMES)
    made = Engine(policy, noise=0.2)
    made.run(5000, 0.35)
    assert policy.on and policy.seconds_off < 0.05 * made.seconds


def test_steps_with_prefills_teach_nothing() -> None:
    policy = NeverSlower(Fixed(2), TIMES)
    for _ in range(500):
        policy.observe(Outcome(np.arange(1), np.array([2]), np.array([0]), float("nan")))
    assert policy.on


@pytest.mark.parametrize(
    "change", [{"share": 0.0}, {"share": 1.0}, {"patience": 0}, {"trial": 0}, {"memory": 1}]
)
def test_bad_settings_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        NeverSlower(Fixed(1), TIMES, **change)  # type: ignore[arg-type]


def test_a_plain_step_comes_now_and_then() -> None:
    """T(B) is what all is judged by: the 2nd, 4th, ..., 128th and every further 128th shows it."""
    policy = NeverSlower(Fixed(4), TIMES)
    few, many = np.arange(1), np.arange(5)
    plain = []
    for step in range(1, 600):
        if policy.ahead(few, 4) == 0:
            plain.append(step)
        policy.observe(Outcome(few, np.array([4]), np.array([4]), 1.0))
    assert plain == [2, 4, 8, 16, 32, 64, 128, 256, 384, 512]
    assert [policy.ahead(many, 4) for _ in range(3)] == [4, 0, 4]  # others are counted apart


def test_trees_are_cut_by_the_policy_inside() -> None:
    assert NeverSlower(Refusal(0.7), TIMES).floor(3) == pytest.approx(0.3)
    policy = NeverSlower(Refusal(0.7), TIMES, patience=3)
    for _ in range(5):  # of which the second and the fourth are plain anyway
        assert policy.ahead(np.arange(1), 4) in (0, 4)
        policy.observe(Outcome(np.arange(1), np.array([0]), np.array([0]), 1.0))
    assert policy.reason == "zero"
