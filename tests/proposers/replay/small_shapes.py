"""Every shape of a small tree: what a search is held against."""

from __future__ import annotations

from functools import cache

import numpy as np

from proposers.shape import Node, TreeShape

DEPTH, BRANCHING, MOST = 3, 3, 6


@cache
def shapes() -> tuple[TreeShape, ...]:
    """Every shape of at most six nodes and eight tokens, grown node by node."""
    found: set[frozenset[Node]] = {frozenset()}
    for _ in range(MOST):
        for nodes in list(found):
            for parent in [(), *nodes]:
                rank = sum(n[:-1] == parent for n in nodes)
                if len(parent) < DEPTH and rank < BRANCHING:
                    found.add(nodes | {(*parent, rank)})
    every = [TreeShape(tuple(nodes)) for nodes in found if nodes]
    # Catalan's numbers, but for what is too deep or too wide. No shape of eight tokens is missing:
    # seven nodes would be one path.
    sizes = np.bincount([len(shape.nodes) for shape in every])
    assert sizes[1:5].tolist() == [1, 2, 5, 14 - 2]
    return tuple(every)
