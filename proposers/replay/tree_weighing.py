"""Which places of a trace a tree is shaped for: all alike, or those where its steps would begin.

All places alike overrate a shape that is good where text is copied: a decoder that has eight drafts
accepted there makes one step, not nine. What a shape should be best at is the places at which steps
with that shape begin, pi(t), the forward programme of :mod:`proposers.replay.scoring`. Since pi
depends on the shape, the search is repeated with the weights of what it found; then nodes are
exchanged by the steps themselves (:mod:`proposers.replay.tree_exchange`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from proposers.batch import Longs
from proposers.replay.tree_chances import RankChances, beginnings
from proposers.replay.tree_exchange import exchange
from proposers.replay.tree_limits import Limits
from proposers.replay.tree_search import Method, find_shape
from proposers.shape import TreeShape

Weighing = Literal["steps", "places"]
WEIGHINGS: tuple[Weighing, ...] = get_args(Weighing)
ROUNDS = 6


def fit_shape(
    answer_begins: Longs,
    chances: RankChances,
    limits: Limits,
    *,
    method: Method,
    weighing: Weighing = "steps",
) -> tuple[TreeShape, RankChances]:
    """The best shape that was found, and the chances with the weights it was found by.

    "places": all alike, one search, as the papers have it. "steps": searches with the weights of
    the last shape, until one comes again, at most :data:`ROUNDS`; the one that takes the fewest
    steps for the text is kept, and improved by exchanges.

    Raises ValueError as :func:`proposers.replay.tree_search.find_shape`, and for another weighing.
    """
    if weighing not in WEIGHINGS:
        raise ValueError(f"weighing must be one of {', '.join(WEIGHINGS)}; got {weighing!r}")
    shape = find_shape(chances, limits, method)
    if weighing == "places":
        return shape, chances
    fewest, best, tried = np.inf, shape, {shape}
    for _ in range(ROUNDS):
        weighed = replace(chances, weights=beginnings(answer_begins, chances.kept(shape)))
        if weighed.steps < fewest:
            fewest, best = weighed.steps, shape
        shape = find_shape(weighed, limits, method)
        if shape in tried:
            break
        tried.add(shape)
    best = exchange(answer_begins, chances, best, limits)
    return best, replace(chances, weights=beginnings(answer_begins, chances.kept(best)))
