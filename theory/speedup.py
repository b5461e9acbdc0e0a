"""Block efficiency and wall-clock ratio of speculation with a fixed draft length.

Definitions. Block efficiency tau: tokens emitted per target forward, the target's own token
included. Wall-clock ratio: time of plain decoding per token over time of speculation per token.
Memory-bound speed-up: that ratio when a forward costs the same whatever it verifies (T(n) = T(0),
the weights' traffic dominates) and each draft costs a fraction c of a forward: tau/(1 + c K)
(Leviathan, Kalman, Matias 2023, arXiv 2211.17192, Theorem 3.8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from theory.laws import Floats


def block_efficiency(acceptance: ArrayLike) -> float:
    """tau = 1 + sum_i prod_{j<=i} a_j, a_j = P(draft j accepted | all before it), shape (K,).

    For a constant a: (1 - a^(K+1))/(1 - a). K = 0 gives 1. Raises ValueError outside [0, 1].
    """
    return float(1 + np.cumprod(_profile(acceptance)).sum())


def wall_clock_ratio(
    acceptance: ArrayLike, step_times: ArrayLike, *, draft_cost: float = 0.0
) -> float:
    """tau T(0) / (T(K) + K d): how many times faster than plain decoding.

    acceptance: shape (K,); step_times: shape (K+1,), T(n) = time of a forward that verifies n
    drafts; draft_cost d in the same unit. Raises ValueError for other shapes or values.
    """
    profile = _profile(acceptance)
    times = np.asarray(step_times, dtype=np.float64)
    if times.shape != (profile.size + 1,) or not np.all(np.isfinite(times)) or times.min() <= 0:
        raise ValueError(f"step_times must be {profile.size + 1} positive numbers, T(0)..T(K)")
    if not 0 <= draft_cost < np.inf:
        raise ValueError(f"draft_cost must be finite and at least 0; got {draft_cost}")
    step = times[-1] + profile.size * draft_cost
    return float(block_efficiency(profile) * times[0] / step)


def memory_bound_speedup(acceptance: ArrayLike, *, draft_cost: float = 0.0) -> float:
    """tau / (1 + c K): the wall-clock ratio when T(n) = T(0) and a draft costs c forwards."""
    profile = _profile(acceptance)
    return wall_clock_ratio(profile, np.ones(profile.size + 1), draft_cost=draft_cost)


def _profile(acceptance: ArrayLike) -> Floats:
    profile = np.asarray(acceptance, dtype=np.float64)
    if profile.ndim != 1 or not np.all((profile >= 0) & (profile <= 1)):
        raise ValueError(f"acceptance must be a list of numbers in [0, 1]; got {acceptance!r}")
    return profile
