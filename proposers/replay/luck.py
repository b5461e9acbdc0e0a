"""How far one engine run may lie from a replay's expectation, by the luck of drafts and verdicts.

Given the emitted text the steps of an answer are a Markov chain on its tokens
(:mod:`proposers.replay.scoring`): backwards from the end, the number of steps S_t from a step that
starts before y_t has E S_t = 1 + sum_m P(m) E S_{t+m+1} and
E S_t^2 = 1 + sum_m P(m) (2 E S_{t+m+1} + E S_{t+m+1}^2), with P(m) the chance that exactly m drafts
are accepted; answers are independent, because what the drafter knows depends on t alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Doubles
from proposers.replay.profiling import Profile
from proposers.replay.scoring import RULES, chances
from theory.traces import Trace


def step_moments(
    profile: Profile, trace: Trace, *, rule: str, draft_length: int
) -> tuple[Doubles, Doubles]:
    """Mean and variance of each answer's decode steps, shapes (B,) float64.

    Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    kept = chances(profile.q[:, :draft_length], trace.processed.emitted, RULES.index(rule))
    means, variances = np.zeros(trace.answers), np.zeros(trace.answers)
    _moments(trace.answer_begins, kept, means, variances)
    return means, variances


@njit(cache=True, nogil=True)
def _moments(begins: Any, kept: Any, means: Any, variances: Any) -> Any:
    most = kept.shape[1]
    for a in range(begins.shape[0] - 1):
        size = begins[a + 1] - begins[a]
        first = np.zeros(size + most + 2)
        second = np.zeros(size + most + 2)
        for here in range(size - 1, 0, -1):
            reached, count = 1.0, 0
            mean, square = 0.0, 0.0
            for i in range(most):
                held = kept[begins[a] + here, i]
                if held < 0:
                    break
                mean += (reached - held) * first[here + i + 1]
                square += (reached - held) * second[here + i + 1]
                reached, count = held, i + 1
            mean += reached * first[here + count + 1]
            square += reached * second[here + count + 1]
            first[here] = 1 + mean
            second[here] = 1 + 2 * mean + square
        means[a] = first[1]
        variances[a] = max(second[1] - first[1] ** 2, 0.0)
