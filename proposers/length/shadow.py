"""Labels from what was emitted, also where nothing was drafted: a learner that cannot starve.

A policy that stops early sees few verdicts, and none behind its stop, so one that learns from
verdicts alone may stop for ever. But whatever was verified, every emitted token y ~ p was drawn at
a place where the drafter's law q can be looked up (``Drafter.follow`` along the emitted text, in
the state before it has learned from it), and under the token rule

    E_{y ~ p} min(1, q(y)/p(y)) = sum_y min(p(y), q(y)) = 1 - TV(p, q) = P(a draft is accepted),

so min(1, q(y)/p(y)) is a fair label of the acceptance there, drafted or not.
"""

from __future__ import annotations

import numpy as np

from proposers.batch import Doubles


def shadow_labels(q: Doubles, p: Doubles) -> Doubles:
    """``min(1, q/p)``, nan where no draft would stand.

    ``q`` is that of :class:`proposers.batch.Followed` (-1: no draft, undefined behind a 0), ``p``
    the target's probability of the tokens that were followed, both of shape (B, K); a p of 0, which
    nothing emitted has, is no label either.
    """
    if q.shape != p.shape:
        raise ValueError(f"q and p must have one shape; got {q.shape} and {p.shape}")
    dead = np.zeros(q.shape, bool)
    dead[:, 1:] = np.logical_or.accumulate(q <= 0, axis=1)[:, :-1]
    known = (q >= 0) & (p > 0) & ~dead
    return np.where(known, np.minimum(1.0, q / np.where(known, p, 1.0)), np.nan)
