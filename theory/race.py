"""P(all k draws without replacement lie in H), for every prefix H at once.

Sampling without replacement is an exponential race: token i arrives at an Exp(q_i) time and the
first k arrivals are the draw. With c = 1 - q(H), Q(H) = P(at least k arrivals in H before the first
arrival outside) = integral of c e^(-ct) P(N_H(t) >= k) dt, N_H(t) Poisson binomial with success
probabilities 1 - e^(-q_i t).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from theory.laws import LIFT, Floats

ERROR_BOUND = 1e-9
"""Largest error of `prefix_probabilities`, checked against enumeration and a refined rule."""

_CERTAIN = 37.0  # 1 - e^-37 is 1 in float64
_POLYNOMIAL_LIMIT = 14  # above this k the elementary symmetric sums could overflow


@np.errstate(over="ignore")  # what is infinitely late has arrived, or has weight exp(-inf) = 0
def prefix_probabilities(q: Floats, k: int, *, step: float | None = None) -> Floats:
    """Q(H_m) = P(k draws without replacement from q all lie in the first m tokens), m = 1..V.

    Q(H) = prod_{i<=k} i/(c+i) + integral of c e^(-ct) [P(N_H(t) >= k) - (1-e^(-t))^k] dt; the first
    term is the same integral for infinitely many tiny tokens, and what is left decays at both ends,
    so the trapezoidal rule in ln t converges exponentially (20-60 nodes). q: shape (V,), all
    positive, at least k of them. O(V k nodes); error at most 1e-9 (`ERROR_BOUND`).
    """
    if step is None:
        step = 0.3 if k <= 4 else 0.2
    low = 1e-12 ** (1 / (k + 1))  # the bracket is below t^k: what is cut off on the left is < 1e-12
    lifted = q * LIFT  # and times divided by it: the draws depend on the ratios of q only
    last = np.log(_horizon(lifted, k))
    nodes = np.exp(np.arange(np.log(low / LIFT), last + step, step))
    outside = np.concatenate([np.cumsum(q[::-1])[-2::-1], [0.0]])
    inside = np.prod([i / (outside + i) for i in range(1, k + 1)], axis=0)
    tail = -np.expm1(-nodes * LIFT)
    reference = (tail**k)[:, None]
    weights = (step * nodes)[:, None]
    for block, short in _fewer_than(lifted, k, nodes):
        c = LIFT * outside[block]
        inside[block] += c * np.sum(
            weights * np.exp(-nodes[:, None] * c) * (1 - short - reference), axis=0
        )
    return np.asarray(np.clip(inside, 0.0, 1.0))


def _fewer_than(
    q: Floats, k: int, nodes: Floats, block: int = 2048
) -> Iterator[tuple[slice, Floats]]:
    """Yield (slice, P(N_H(t) < k)) for the prefixes H ending in the slice, shape (nodes, block)."""
    advance = _by_polynomials if k <= _POLYNOMIAL_LIMIT else _by_recursion
    state = np.zeros((k + 2, nodes.size))
    state[0] = 1.0
    for start in range(0, q.size, block):
        part = slice(start, min(start + block, q.size))
        yield part, advance(q[part], k, nodes, state)


def _by_polynomials(q: Floats, k: int, nodes: Floats, state: Floats) -> Floats:
    """e^(-q(H)t) sum_{j<k} e_j(odds), odds e^(q_i t) - 1; only positive terms, so no cancellation.

    Tokens with q_i t > 37 have arrived for certain: they are counted, and left out of the sums.
    `state` rows 0..k-1 carry e_j, row k carries q(rest) t, row k+1 the number of certain tokens.
    """
    z = nodes[:, None] * q
    certain = z > _CERTAIN
    some = bool(certain.any()) or bool(state[k + 1].any())
    if some:
        z[certain] = 0.0
        arrived = state[k + 1, :, None] + np.cumsum(certain, axis=1)
        state[k + 1] = arrived[:, -1]
    odds = np.expm1(z)
    np.cumsum(z, axis=1, out=z)
    z += state[k, :, None]
    state[k] = z[:, -1]
    before = np.ones_like(z)  # e_{j-1} of the prefix without the token itself
    total = (arrived < k).astype(np.float64) if some else np.ones_like(z)
    for j in range(1, k):
        power = np.cumsum(odds * before, axis=1)
        power += state[j, :, None]
        total += np.where(arrived < k - j, power, 0.0) if some else power
        before[:, 0] = state[j]
        before[:, 1:] = power[:, :-1]
        state[j] = power[:, -1]
    return np.asarray(np.exp(-z) * total)


def _by_recursion(q: Floats, k: int, nodes: Floats, state: Floats) -> Floats:
    """The same probabilities token by token, for any k; `state` rows 0..k-1 carry P(N = j)."""
    short = np.empty((nodes.size, q.size))
    for column, mass in enumerate(q):
        arrive = -np.expm1(-mass * nodes)
        moved = state[:k] * arrive
        state[:k] -= moved
        state[1:k] += moved[:-1]
        short[:, column] = state[:k].sum(axis=0)
    return short


def _horizon(q: Floats, k: int) -> float:
    """A time by which k tokens have arrived but for 1e-12; whatever is later cannot matter.

    The bracket in `prefix_probabilities` times e^(-ct) is at most P(fewer than k of all tokens).
    """
    heavy = np.partition(q, max(q.size - 64, 0))[-64:]
    horizon = 64.0 / LIFT
    while _short(heavy, k, horizon) > 1e-13 and _short(q, k, horizon) > 1e-13:
        horizon *= 2.0  # the heavy tokens alone give a cheap upper bound
    return horizon


def _short(q: Floats, k: int, time: float) -> float:
    """P(fewer than k of all tokens have arrived by `time`)."""
    last = 1.0
    for _, short in _fewer_than(q, k, np.array([time]), block=1 << 16):
        last = float(short[0, -1])
    return last
