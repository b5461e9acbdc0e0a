"""Noise that is a pure function of (key, position, token): what makes a seed reproducible.

``E(key, position, token)`` is exponential with mean 1 and independent over its arguments. The
exponential race ``argmin_x E_x / p(x)`` has law p (Gumbel-max in other words), and since the noise
is keyed by the place in the text rather than drawn from a stream, its winner does not depend on
what was drafted, batched or preempted before. Drafts raced with the same noise meet the target's
winner with probability ``sum_x 1 / sum_y max(p_y/p_x, q_y/q_x)`` (Daliri, Musco, Suresh, arXiv
2408.07978).
"""

import math
from typing import Any

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S12 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12)
_TO_UNIT = 2.0**-52


@njit(inline="always")
def mix64(x: Any) -> Any:
    """SplitMix64's finaliser: a bijection in which every input bit reaches all others."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(inline="always")
def row_key(key: Any, position: Any) -> Any:
    """The key of one place in one request's text."""
    return mix64(key ^ mix64(np.uint64(position) + _GOLDEN))


@njit(inline="always")
def uniform(row: Any, token: Any) -> Any:
    """The uniform of (row, token), in the open interval (0, 1): 52 bits, centred in their cell.

    With 53 bits the centre of the last cell would round to 1.
    """
    bits = mix64(row + np.uint64(token) * _GOLDEN) >> _S12
    return (np.float64(bits) + 0.5) * _TO_UNIT


@njit(inline="always")
def exponential(row: Any, token: Any) -> Any:
    """The exponential of (row, token): ``-log(1 - uniform)``, always positive."""
    return -math.log1p(-uniform(row, token))


@njit(cache=True, boundscheck=False)
def race(p: Any, row: Any) -> Any:
    """The winner ``argmin_x E_x / p_x`` of one row, exactly, mostly without logarithms.

    ``-log(1-u) >= u``, so a token can only win if ``u < best * p``; the most probable token sets a
    first bound that few others pass.

    p (V,) floating, unnormalised laws allowed; row uint64. Raises nothing; -1 when p has no mass.
    """
    top = 0
    for x in range(1, p.shape[0]):
        if p[x] > p[top]:
            top = x
    if not p[top] > 0:
        return -1
    winner, best = top, exponential(row, top) / p[top]
    for x in range(p.shape[0]):
        if p[x] > 0:
            u = uniform(row, x)
            if u < best * p[x]:
                score = -math.log1p(-u) / p[x]
                if score < best:
                    winner, best = x, score
    return winner


def request_key(seed: int) -> int:
    """The key of a request's noise from the seed its client gave; never 0, which means unseeded."""
    return int(mix64(np.uint64((seed + int(_GOLDEN)) & (2**64 - 1)))) or 1
