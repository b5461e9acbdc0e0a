"""The results of :mod:`vllm_plugin.emission` for one row in main memory, compiled."""

import math
from typing import Any

import numpy as np
from numba import njit

from vllm_plugin.emission import PLACEHOLDER

STRETCH = 64


@njit(inline="always")
def positive(x: Any) -> Any:
    """(x)+, and a NaN stays one."""
    return 0.0 if x < 0 else x


@njit(cache=True, nogil=True, error_model="numpy")
def read_support(row: Any, law_ids: Any, law: Any, held: Any, q: Any) -> None:
    """Fill ``held`` with p and ``q`` with the normalised q of every entry, 0 where it is unused."""
    whole = 0.0
    for e in range(law.shape[0]):
        if law[e] > 0:
            whole += law[e]
    for e in range(law.shape[0]):
        held[e], q[e] = 0.0, 0.0
        if law[e] > 0:
            q[e] = law[e] / whole
            if 0 <= law_ids[e] < row.shape[0]:
                held[e] = row[law_ids[e]]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz", "reassoc", "contract"})
def _sum(row: Any, begin: Any, end: Any) -> Any:
    total = np.float32(0)
    for x in range(begin, end):
        total += row[x]
    return np.float64(total)


@njit(cache=True, nogil=True, error_model="numpy")
def _read_stretch(row: Any, s: Any, law_ids: Any, q: Any, weights: Any, stretch: Any) -> Any:
    """Copy stretch s of the row, with the support's weights in place; returns its sum."""
    begin = s * STRETCH
    n = min(STRETCH, row.shape[0] - begin)
    for x in range(n):
        stretch[x] = row[begin + x]
    for e in range(q.shape[0]):
        if q[e] > 0 and begin <= law_ids[e] < begin + n:
            stretch[law_ids[e] - begin] = weights[e]
    total = 0.0
    for x in range(n):
        total += stretch[x]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _spare(law_ids: Any, held: Any, u: Any) -> Any:
    """A draw from p where it lives on the support; -1 if it has no mass there either."""
    whole, token, mass = 0.0, PLACEHOLDER, 0.0
    for e in range(held.shape[0]):
        whole += held[e]
    for e in range(held.shape[0]):
        if held[e] > 0:
            token = law_ids[e]
            mass += held[e]
            if mass > u * whole:
                break
    return token


@njit(cache=True, nogil=True, error_model="numpy")
def emit_row(
    row: Any, law_ids: Any, q: Any, held: Any, weights: Any, u: Any, sums: Any, stretch: Any
) -> Any:
    """As :func:`vllm_plugin.emission.emit`, for row (V,); all others (E,).

    ``sums`` (at least V / STRETCH) and ``stretch`` (STRETCH) float64 are working space.
    """
    count = (row.shape[0] + STRETCH - 1) // STRETCH
    for s in range(count):
        sums[s] = _sum(row, s * STRETCH, min((s + 1) * STRETCH, row.shape[0]))
    for e in range(q.shape[0]):
        if q[e] > 0 and weights[e] != held[e] and 0 <= law_ids[e] < row.shape[0]:
            s = law_ids[e] // STRETCH
            sums[s] = _read_stretch(row, s, law_ids, q, weights, stretch)
    total, last = 0.0, 0
    for s in range(count):
        if sums[s] > 0:
            last = s
        total += sums[s]
    if not math.isfinite(total):
        return PLACEHOLDER
    if total <= 0:
        return _spare(law_ids, held, u)
    target, before = u * total, 0.0
    token = PLACEHOLDER
    for s in range(last + 1):
        if sums[s] > 0 and (s == last or before + sums[s] > target):
            _read_stretch(row, s, law_ids, q, weights, stretch)
            for x in range(min(STRETCH, row.shape[0] - s * STRETCH)):
                if stretch[x] > 0:
                    token = s * STRETCH + x
                    before += stretch[x]
                    if before > target:
                        break
            break
        before += sums[s]
    return token
