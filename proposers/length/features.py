"""What the place of a drafted token shows of its chances, before the token is drawn.

Every feature is a function of the prefix x_<i and of the law q_i alone, never of x_i, so a policy
may decide by it whether x_i is verified (ALGORITHMS.md 5, trap 1). A drafter that knows them writes
them beside its laws, shape (B, K, F) float32 with nan where nothing was drafted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Doubles, Floats, Longs

NAMES = ("matched", "count", "top", "mean_top", "entropy", "kept", "depth", "temperature")
MATCHED, COUNT, TOP, MEAN_TOP, ENTROPY, KEPT, DEPTH, TEMPERATURE = range(len(NAMES))
"""Tokens of the matched context (0: no table); its visits after decay; the largest q; the largest
mass of the mean law that q was made from; the entropy of q in nats; the mass that the mean law
keeps of the target's; drafts before this one; the request's temperature."""


@njit(inline="always")
def write_features(
    out: Any, matched: Any, count: Any, mean: Any, law: Any, n: Any, depth: Any, temperature: Any
) -> Any:
    """The features of one place: ``mean`` a sorted law, ``law[:n]`` q itself."""
    kept, top = 0.0, 0.0
    entropy: Any = 0.0
    for e in range(mean.shape[0]):
        kept += mean[e]
    for e in range(n):
        mass = np.float32(law[e])  # the logarithm takes half the time in single precision
        if mass > 0:
            entropy -= mass * math.log(mass)
        if law[e] > top:
            top = law[e]
    out[MATCHED], out[COUNT], out[DEPTH], out[TEMPERATURE] = matched, count, depth, temperature
    out[TOP], out[MEAN_TOP], out[ENTROPY], out[KEPT] = top, mean[0], entropy, kept


def bare_features(lengths: Longs, steps: int, temperatures: Doubles) -> Floats:
    """Features of drafters without a table: point masses of which only the depth is known.

    Shapes: lengths (B,) int64, temperatures (B,) float64; result (B, steps, F).
    """
    found = np.full((lengths.shape[0], steps, len(NAMES)), np.nan, np.float32)
    depth = np.arange(steps)
    row, place = np.nonzero(depth < lengths[:, None])
    found[row, place] = 0.0
    for name in (TOP, MEAN_TOP, KEPT):
        found[row, place, name] = 1.0
    found[row, place, DEPTH] = place
    found[row, place, TEMPERATURE] = temperatures[row]
    return found
