"""A shape improved by exchanging nodes for others, judged by the steps that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from proposers.batch import Longs
from proposers.replay.tree_chances import RankChances, beginnings
from proposers.replay.tree_limits import Limits
from proposers.shape import Node, TreeShape

FEW, MANY, ROUNDS = 8, 16, 64
"""Leaves that may go and nodes that may come in one round, by their counts; most rounds."""


def exchange(
    answer_begins: Longs, chances: RankChances, shape: TreeShape, limits: Limits
) -> TreeShape:
    """Make the exchange that saves most steps on the text, again and again until none does.

    A step's last accepted draft saves a whole step where text is hard to foresee, and an eighth of
    one where eight drafts are accepted together; counts see no difference, the number of steps
    does. The least accepted leaves are exchanged (with the chain before them, where the budget is
    in tokens) for the most accepted nodes that could be added, and as long a chain behind them as
    the limits allow. The result takes no more steps than ``shape`` did: a local optimum.
    """
    fewest = _steps(answer_begins, chances, shape)
    for _ in range(ROUNDS):
        weighed = replace(chances, weights=beginnings(answer_begins, chances.kept(shape)))
        candidates = set(_exchanges(weighed, shape, limits))
        found = min(
            ((_steps(answer_begins, chances, each), each.nodes, each) for each in candidates),
            default=None,
        )
        if found is None or not found[0] < fewest * (1 - 1e-9):
            break
        fewest, _, shape = found
    return shape


def _steps(answer_begins: Longs, chances: RankChances, shape: TreeShape) -> float:
    return float(beginnings(answer_begins, chances.kept(shape)).sum())


def _exchanges(chances: RankChances, shape: TreeShape, limits: Limits) -> Iterator[TreeShape]:
    held = set(shape.nodes)
    new = [
        (*node, shape.children(node))
        for node in ((), *shape.nodes)
        if len(node) < chances.depth and shape.children(node) < chances.branching
    ]
    counts = dict(zip(new, chances.counts(new), strict=True))
    own = dict(zip(shape.nodes, chances.node_sums(shape), strict=True))
    coming = sorted(new, key=lambda node: -counts[node])[:MANY]
    leaves = [node for node in shape.nodes if _may_go(shape, node)]
    for leaf in [None, *sorted(leaves, key=lambda node: own[node])[:FEW]]:
        for tail in _tails(shape, leaf, limits):
            left = held - tail
            for node in coming:
                elder = (*node[:-1], node[-1] - 1)
                if (node[:-1] in left or len(node) == 1) and (node[-1] == 0 or elder in left):
                    yield from _filled(left, node, chances.depth, limits)


def _may_go(shape: TreeShape, node: Node) -> bool:
    """Whether a node is a leaf and has no later sibling."""
    return not shape.children(node) and shape.children(node[:-1]) == node[-1] + 1


def _tails(shape: TreeShape, leaf: Node | None, limits: Limits) -> Iterator[set[Node]]:
    """What may go together: nothing, the leaf, or in tokens it and some of the chain before it."""
    tail: set[Node] = set()
    if leaf is None:
        yield tail
        return
    while leaf:
        tail = tail | {leaf}
        yield tail
        leaf = leaf[:-1]
        last = bool(leaf) and shape.children(leaf[:-1]) == leaf[-1] + 1
        if limits.cost == "nodes" or shape.children(leaf) > 1 or not last:
            return


def _filled(left: set[Node], node: Node, depth: int, limits: Limits) -> Iterator[TreeShape]:
    """A shape with the node and the longest chain of rank 0 behind it that the limits allow."""
    nodes, best = set(left), None
    while len(node) <= depth:
        nodes.add(node)
        grown = TreeShape(tuple(nodes))
        if not limits.allow(grown):
            break
        best, node = grown, (*node, 0)
    if best is not None:
        yield best
