"""A length policy on a recorded trace, step by step, as the engine would ask it.

The chains, and how far each is accepted, are drawn once for every position
(:mod:`proposers.replay.courses`), so policies differ by what they cut alone. As many answers decode
side by side as the courses were drawn for; when one ends the next begins, and when none is left old
ones fill the places until the last has ended, uncounted, so every step is of the same number of
requests. They share its seconds equally.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from proposers.batch import Doubles, Longs
from proposers.length.policy import Candidates, LengthPolicy, Outcome, StepTimes
from proposers.length.predictor import AcceptancePredictor
from proposers.replay.courses import Courses
from theory.traces import Trace


class GivenTimes:
    """T(n) by straight lines through given points, and on along the last of them."""

    def __init__(self, tokens: ArrayLike, seconds: ArrayLike) -> None:
        self.tokens = np.asarray(tokens, np.float64)
        self.times = np.asarray(seconds, np.float64)
        if (
            self.tokens.ndim != 1 or self.tokens.shape != self.times.shape or self.tokens.size < 2
            or (np.diff(self.tokens) <= 0).any() or (np.diff(self.times) < 0).any()
            or self.times[0] <= 0
        ):  # fmt: skip
            raise ValueError(
                "tokens must rise and seconds be positive and not fall, two or more of both; got "
                f"{self.tokens} and {self.times}"
            )
        self._slope = (self.times[-1] - self.times[-2]) / (self.tokens[-1] - self.tokens[-2])

    def seconds(self, tokens: ArrayLike) -> Doubles:
        """T(n) of a number or an array of numbers."""
        n = np.asarray(tokens, np.float64)
        beyond = np.maximum(n - self.tokens[-1], 0.0) * self._slope
        return np.asarray(np.interp(n, self.tokens, self.times) + beyond)


@dataclass(frozen=True)
class LengthScore:
    """Sums over each prompt's answers, of one drawn course; ``steps`` counts requests in steps.

    Shapes: all (A,): tokens, steps, drafted, accepted int64, seconds float64; A prompts.
    """

    tokens: Longs
    steps: Longs
    drafted: Longs
    accepted: Longs
    seconds: Doubles

    @property
    def block_efficiency(self) -> float:
        """Tokens for a step of a request."""
        return float(self.tokens.sum() / self.steps.sum())

    @property
    def tokens_per_second(self) -> float:
        """Of all requests together."""
        return float(self.tokens.sum() / self.seconds.sum())

    @property
    def drafted_per_token(self) -> float:
        """Verified drafts for an emitted token."""
        return float(self.drafted.sum() / self.tokens.sum())

    @property
    def wasted_per_token(self) -> float:
        """Verified drafts that did not become text, for an emitted token."""
        return float((self.drafted - self.accepted).sum() / self.tokens.sum())


def simulate_lengths(
    trace: Trace,
    courses: Courses,
    policy: LengthPolicy,
    step_times: StepTimes,
    *,
    predictor: AcceptancePredictor | None = None,
    overhead: float = 0.0,
) -> LengthScore:
    """Decode the trace with a policy; ``step_times`` is the truth, whatever the policy believes.

    ``predictor`` learns while it is used, a fresh one unless given; ``overhead`` are the seconds
    that drafting and deciding add to a step that drafts.
    """
    predictor = AcceptancePredictor() if predictor is None else predictor
    most = courses.draft_length
    times = np.asarray(step_times.seconds(np.arange(most * trace.answers + trace.answers + 1)))
    sums = np.zeros((trace.prompts, 5))
    queue = [answer for group in courses.groups for answer in group]
    together = len(courses.groups[0])
    first = trace.answer_begins + 1  # a prefill emits the first token
    ends = trace.answer_begins[1:]
    queue = [answer for answer in queue if first[answer] < ends[answer]]
    waiting = itertools.chain(enumerate(queue), enumerate(itertools.cycle(queue), len(queue)))
    slots = list(itertools.islice(waiting, together)) if queue else []
    handles = np.array([handle for handle, _ in slots], np.int64)
    answers = np.array([answer for _, answer in slots], np.int64)
    at = first[answers]
    while (handles < len(queue)).any():
        lengths = np.zeros(at.size, np.int64)
        ahead = policy.ahead(handles, most)
        spent = overhead if ahead else 0.0
        if ahead:
            features = courses.drawn[at, :ahead]
            caps = np.full(at.size, ahead)
            acceptance = predictor.predict_drafts(features)
            lengths = policy.lengths(Candidates(handles, acceptance, caps, features))
        left = ends[answers] - at
        accepted = np.minimum(courses.agreed[at], lengths)
        emitted = np.minimum(accepted + 1, left)
        accepted = np.minimum(accepted, emitted)  # the last token may be a draft
        seconds = float(times[at.size + int(lengths.sum())]) + spent
        policy.observe(Outcome(handles, lengths, accepted, seconds, spent))
        known = np.arange(most) < emitted[:, None]
        predictor.learn(courses.shown[at][known], courses.labels[at][known])
        counted = handles < len(queue)
        prompts = trace.answer_prompts[answers]
        parts = (emitted, np.ones_like(at), lengths, accepted, np.full(at.size, seconds / at.size))
        for column, part in enumerate(parts):
            np.add.at(sums[:, column], prompts[counted], part[counted])
        at = at + emitted
        for slot in np.flatnonzero(emitted == left).tolist():
            policy.finish(int(handles[slot]))
            handles[slot], answers[slot] = next(waiting)
            at[slot] = first[answers[slot]]
    counts = sums[:, :4].round().astype(np.int64)
    tokens, steps, drafted, kept = counts.T
    return LengthScore(tokens, steps, drafted, kept, sums[:, 4])
