r"""Labels for positions that nothing was drafted for: how likely a draft there was to be accepted.

A verified row yields a token y ~ p whatever was drafted. In expectation over y

    E_y min(1, q(y)/p(y)) = sum_y min(p(y), q(y)) = 1 - TV(p, q) = P(a draft is accepted),

so min(1, q(y)/p(y)) is a fair label of the acceptance there, drafted or not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Doubles, Floats, Ints, Longs


def shadow_labels(q: Doubles, p: Doubles) -> Doubles:
    """``min(1, q/p)``, nan where no draft would stand.

    ``q`` is that of :class:`proposers.batch.Followed` (-1: no draft, undefined behind a 0), ``p``
    the target's probability of the tokens that were followed, both of shape (B, K); a p of 0, which
    nothing emitted has, is no label either, nor is one that is not known, nan.
    """
    if q.shape != p.shape:
        raise ValueError(f"q and p must have one shape; got {q.shape} and {p.shape}")
    dead = np.zeros(q.shape, bool)
    dead[:, 1:] = np.logical_or.accumulate(q <= 0, axis=1)[:, :-1]
    known = (q >= 0) & (p > 0) & ~dead
    return np.where(known, np.minimum(1.0, q / np.where(known, p, 1.0)), np.nan)


@njit(inline="always")
def head_probability(token: Any, ids: Any, law: Any, temperature: Any) -> Any:
    """About p of a token, from the most probable entries of its row's law at temperature 1.

    Exact at temperature 1 for a token among the entries; one that is not is given the least of
    them. At other temperatures the mass behind the entries is taken for tokens like the last one.
    Top-k, top-p and penalties are not looked at: a label may be rough. 1 at temperature 0; nan
    for a law without entries. Shapes: ids, law (E,), most probable first.
    """
    if temperature == 0:
        return 1.0
    power = 1.0 / temperature
    whole, total, own, last, rest = 0.0, 0.0, -1.0, 0.0, 0.0
    for e in range(law.shape[0]):
        if ids[e] < 0 or not law[e] > 0:
            break
        last = law[e] if power == 1.0 else math.exp(math.log(law[e]) * power)
        if ids[e] == token:
            own = last
        whole += law[e]
        total += last
        rest = max(1.0 - whole, 0.0) * (last / law[e])
    if not total > 0:
        return math.nan
    return (own if own >= 0 else last) / (total + rest)


def head_probabilities(
    tokens: Ints, rows: Longs, ids: Ints, laws: Floats, temperatures: Doubles
) -> Doubles:
    """:func:`head_probability` of each token up to the first -1, nan from there on.

    Shapes: tokens, rows (B, K), rows into ids, laws (N, E); temperatures (B,); result (B, K).
    """
    out = np.full(tokens.shape, np.nan)
    _head_probabilities(tokens, rows, ids, laws, temperatures, out)
    return out


@njit(cache=True, nogil=True)
def _head_probabilities(
    tokens: Any, rows: Any, ids: Any, laws: Any, temperatures: Any, out: Any
) -> Any:
    for b in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            if tokens[b, i] < 0:
                break
            row = rows[b, i]
            out[b, i] = head_probability(tokens[b, i], ids[row], laws[row], temperatures[b])
