"""A piecewise-linear curve that never falls, learned from noisy points one at a time.

The values x at the knots are the least squares

    sum w (t - sum_i x_i hat_i(n))^2  +  bends  +  a pull to the prior slope

made to rise by isotonic regression. Between two knots every point adds to five sums, so memory does
not grow; a new point counts against those of its own interval, so what nobody visits is kept for
long. The weights w = min(1, (c s / |t / T(n) - 1|)^2), with s the median relative error in the
interval so far, let a point move the curve less the farther it lies beyond c s. When the machine
itself becomes slower or faster, the median of the last points' t / T(n) says so, and all that was
learned is scaled by it. The bends cost as much as one point and carry a line on to knots that
nobody saw; the pull makes a curve of little data.
"""

import math
from typing import Any

import numpy as np
from numba import njit

RECENT = 16
"""Points whose median tells of a change of scale."""
PRIOR_SLOPE = 0.05
"""What one more costs before anything is known, as a part of T(1)."""
FIRST_SPREAD = 0.25
_FORGET_ALL = 1.0 - 1.0 / 4096  # so that what was seen long ago elsewhere gives way, too
_BEND, _PULL, _HOLD = 1.0, 0.1, 0.001  # weights, in points
_TRUSTED, _SPREAD_STEP = 1.5, 0.1
_LEAST_SPREAD, _MOST_SPREAD = 1e-4, 10.0
_KNOWN = 8.0  # points that an interval needs before it can tell of a change
_NO_CHANGE = 0.05  # relative; less is left to forgetting
_FLOOR = 0.01  # of the level: no value is below


@njit(inline="always")
def value(knots: Any, curve: Any, n: Any) -> Any:
    """T(n) and its interval: linear between two knots, as the last two beyond the last."""
    i = min(np.searchsorted(knots, n, side="right"), knots.shape[0] - 1) - 1
    u = (n - knots[i]) / (knots[i + 1] - knots[i])
    return curve[i] + u * (curve[i + 1] - curve[i]), i, u


@njit(cache=True, nogil=True)
def add(knots: Any, curve: Any, sums: Any, spreads: Any, memory: Any, n: Any, t: Any) -> None:
    """Add a point to the sums and the spread of its interval; the curve stays as it is.

    Shapes: knots, curve (M,), sums (M - 1, SUMS), spreads (M - 1,), all float64; n >= 1, t > 0.
    """
    expected, i, u = value(knots, curve, n)
    error = abs(t / expected - 1.0)
    spread = spreads[i]
    w = min(1.0, (_TRUSTED * spread / max(error, 1e-12)) ** 2)
    sums *= _FORGET_ALL
    if sums[i, 0] > 0:
        sums[i] *= min(1.0, (memory - 1.0) / sums[i, 0])
    sums[i, 0] += w
    sums[i, 1] += w * u
    sums[i, 2] += w * u * u
    sums[i, 3] += w * t
    sums[i, 4] += w * u * t
    step = _SPREAD_STEP if error > spread else -_SPREAD_STEP
    spreads[i] = min(max(spread * math.exp(step), _LEAST_SPREAD), _MOST_SPREAD)


@njit(cache=True, nogil=True)
def rescale(knots: Any, curve: Any, sums: Any, spreads: Any, recent: Any, n: Any, t: Any) -> None:
    """Note a point's t / T(n); when the median of the last ones is not 1, scale all by it.

    ``recent``, shape (RECENT + 1,): how many are noted, then these. Points of intervals that are
    hardly known are not: there, T is still a guess.
    """
    expected, i, _ = value(knots, curve, n)
    if sums[i, 0] < _KNOWN:
        return
    recent[0] += 1
    recent[1 + int(recent[0] - 1) % RECENT] = t / expected
    if recent[0] < RECENT:
        return
    scale = np.median(recent[1:])
    if abs(scale - 1.0) > _NO_CHANGE + spreads[i]:
        curve *= scale
        sums[:, 3:] *= scale
        recent[0] = 0


@njit(cache=True, nogil=True)
def fit(knots: Any, sums: Any, level: Any, curve: Any) -> None:
    """Write the fitted values at the knots to ``curve``; ``level`` is T(1) for the priors."""
    m = knots.shape[0]
    a, b, c, y = np.zeros(m), np.zeros(m), np.zeros(m), np.zeros(m)  # diagonals of A, right side
    a[0], y[0] = _HOLD, _HOLD * level
    for i in range(m - 1):
        w, wu, wuu, wt, wut = sums[i]
        rise = PRIOR_SLOPE * level * (knots[i + 1] - knots[i])
        a[i] += w - 2 * wu + wuu + _PULL
        b[i] += wu - wuu - _PULL
        a[i + 1] += wuu + _PULL
        y[i] += wt - wut - _PULL * rise
        y[i + 1] += wut + _PULL * rise
    seen = a.copy()
    for i in range(1, m - 1):  # x_{i-1} - (1 + r) x_i + r x_{i+1} is 0 on a straight line
        r = (knots[i] - knots[i - 1]) / (knots[i + 1] - knots[i])
        a[i - 1] += _BEND
        a[i] += _BEND * (1 + r) * (1 + r)
        a[i + 1] += _BEND * r * r
        b[i - 1] -= _BEND * (1 + r)
        b[i] -= _BEND * r * (1 + r)
        c[i - 1] += _BEND * r
    _solve_bands(a, b, c, y)
    _rising(y, seen)
    for i in range(m):
        curve[i] = max(y[i], _FLOOR * level)


@njit(inline="always")
def _solve_bands(a: Any, b: Any, c: Any, y: Any) -> None:
    """Solve A x = y in place by A = L D L'; a, b, c are A's diagonal and those beside it."""
    m = a.shape[0]
    for i in range(m):  # b, c become the columns of L, a becomes D
        if i >= 1:
            a[i] -= b[i - 1] * b[i - 1] * a[i - 1]
        if i >= 2:
            a[i] -= c[i - 2] * c[i - 2] * a[i - 2]
        if i >= 1 and i < m - 1:
            b[i] -= c[i - 1] * a[i - 1] * b[i - 1]
        b[i] /= a[i]
        c[i] /= a[i]
        if i >= 1:
            y[i] -= b[i - 1] * y[i - 1]
        if i >= 2:
            y[i] -= c[i - 2] * y[i - 2]
    for i in range(m - 1, -1, -1):
        y[i] /= a[i]
        if i < m - 1:
            y[i] -= b[i] * y[i + 1]
        if i < m - 2:
            y[i] -= c[i] * y[i + 2]


@njit(inline="always")
def _rising(y: Any, weights: Any) -> None:
    """Isotonic regression in place: pool adjacent violators (Ayer et al., 1955)."""
    m = y.shape[0]
    value, weight, size = np.empty(m), np.empty(m), np.empty(m, np.int64)
    blocks = 0
    for i in range(m):
        value[blocks], weight[blocks], size[blocks] = y[i], weights[i], 1
        while blocks > 0 and value[blocks - 1] > value[blocks]:
            both = weight[blocks - 1] + weight[blocks]
            mean = weight[blocks - 1] * value[blocks - 1] + weight[blocks] * value[blocks]
            blocks -= 1
            value[blocks], weight[blocks] = mean / both, both
            size[blocks] += size[blocks + 1]
        blocks += 1
    at = 0
    for k in range(blocks):
        y[at : at + size[k]] = value[k]
        at += size[k]
