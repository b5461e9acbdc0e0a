"""The best tree of drafts for a budget, from the chances of every rank on a trace.

Three methods. ``greedy`` is STAND's (arXiv 2506.04708): the nodes with the most accepted tokens,
one after another. ``exact`` maximises the sum of the same counts, over the trees inside a large
one. ``sequoia`` maximises it for counts that come from a model instead: a candidate of rank j is
accepted with a probability a_j that depends on nothing else (the positional acceptance of Sequoia,
arXiv 2402.12374, section 4), a node's count is the product of a on its way.

A tree costs its nodes, or the tokens of its forward (:mod:`proposers.replay.tree_limits`).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.batch import Doubles
from proposers.replay.tree_chances import RankChances
from proposers.replay.tree_greedy import greedy
from proposers.replay.tree_limits import Limits
from proposers.shape import Node, TreeShape

Method = Literal["exact", "greedy", "sequoia"]
METHODS: tuple[Method, ...] = get_args(Method)
LARGE = 625
"""Nodes of the large tree before chains are put behind them."""


def find_shape(chances: RankChances, limits: Limits, method: Method) -> TreeShape:
    """The tree that a method finds.

    Raises
    ------
    ValueError
        For an unknown method, and for exact or sequoia where a candidate's chance depends on how
        many siblings it has.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if method == "greedy":
        return greedy(chances, limits)
    if not chances.separable:
        raise ValueError(
            f"method {method} needs chances that do not depend on the number of candidates, as "
            "those drawn without_replacement have; for top_plus_one use greedy"
        )
    if method == "sequoia":
        vector = positional_acceptance(chances).astype(np.float32)
        model = np.tile(vector, (1, chances.depth, 1))
        chances = RankChances(model, model, np.ones(1))
    return best_subtree(*large_tree(chances), limits)


def positional_acceptance(chances: RankChances) -> Doubles:
    """a_j: how often a node that a full tree reaches accepts its candidate of rank j, (M,).

    Sums over places, by their weights, and depths of P(the depth is reached) w_j, over the sum of
    the former. Where the drafter has no law, nothing is accepted. For separable chances.
    """
    some = chances.weights > 0
    w = chances.last[some].astype(np.float64)
    reached = np.ones(w.shape[:2])
    np.cumprod(w.sum(axis=2)[:, :-1], axis=1, out=reached[:, 1:])
    reached *= chances.weights[some, None]
    whole = reached.sum()
    if whole == 0:
        return np.zeros(w.shape[2])
    return np.asarray(np.einsum("ti,tij->j", reached, w) / whole)


def large_tree(chances: RankChances, size: int = LARGE) -> tuple[list[Node], Doubles]:
    """A large tree and the counts of its nodes, in depth-first order.

    The ``size`` nodes with the most accepted tokens among those whose parent and elder sibling are
    in it, and a chain of rank 0 behind each to the full depth, for trees of few leaves.
    """
    found: dict[Node, float] = {}
    queue: list[tuple[float, Node]] = [(-float(chances.counts([(0,)])[0]), (0,))]
    while queue and len(found) < size:
        count, node = heapq.heappop(queue)
        found[node] = -count
        near = [(*node, 0)] if len(node) < chances.depth else []
        near += [(*node[:-1], node[-1] + 1)] if node[-1] + 1 < chances.branching else []
        for each, more in zip(near, chances.counts(near), strict=True):
            heapq.heappush(queue, (-float(more), each))
    behind = {
        node + (0,) * more for node in found for more in range(1, chances.depth - len(node) + 1)
    }
    missing = sorted(behind - set(found))
    found.update(zip(missing, chances.counts(missing).tolist(), strict=True))
    nodes = sorted(found)
    return nodes, np.array([found[node] for node in nodes])


def best_subtree(nodes: Sequence[Node], counts: Doubles, limits: Limits) -> TreeShape:
    """The shape within a large tree with the largest sum of counts that keeps the limits; exact.

    A node needs its parent, or its elder sibling if it has one; then leaving node v out leaves out
    what follows in depth-first order up to the end of its parent's subtree. So with f(v, b, l) the
    best sum from node v on, with a budget of b and l leaves left,

        f(v, b, l) = max(count(v) + f(v + 1, b - c(v), l), f(end of v's parent, b - c', l - l')),

    where l' = 1 if v is a first child, whose parent is then a leaf. In nodes c(v) = 1, c' = 0; in
    tokens c(v) = 0 and c' = l' (depth of the parent + 1).

    ``nodes`` must be a tree in depth-first order, closed as a shape is. O(N budget leaves).
    """
    ends, first, deep = _layout(nodes)
    most = limits.paths if limits.paths is not None and limits.paths < limits.budget else 0
    in_nodes = limits.cost == "nodes"
    take = _choices(counts, ends, first, deep, in_nodes, limits.budget, most)
    chosen: list[Node] = []
    v, budget, leaves = 0, limits.budget, most
    while v < len(nodes):
        if take[v, budget, leaves]:
            chosen.append(nodes[v])
            budget -= in_nodes
            if v + 1 == len(nodes) or len(nodes[v + 1]) <= len(nodes[v]):
                budget -= 0 if in_nodes else len(nodes[v]) + 1
                leaves -= most > 0
            v += 1
        else:
            if first[v] and len(nodes[v]) > 1:
                budget -= 0 if in_nodes else len(nodes[v])
                leaves -= most > 0
            v = int(ends[v])
    return TreeShape(tuple(chosen) or ((0,),))


def _layout(nodes: Sequence[Node]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[Any]]:
    """Of every node: where its parent's subtree ends, whether it is a first child, its depth."""
    deep = np.array([len(node) for node in nodes], np.int64)
    ends = np.full(len(nodes), len(nodes), np.int64)
    waiting: list[int] = []
    for v in range(len(nodes)):
        while waiting and deep[v] < deep[waiting[-1]]:
            ends[waiting.pop()] = v
        waiting.append(v)
    return ends, np.array([node[-1] == 0 for node in nodes]), deep


@njit(cache=True, nogil=True)
def _choices(
    counts: Any, ends: Any, first: Any, deep: Any, in_nodes: Any, budget: Any, most: Any
) -> Any:
    """Whether to take node v with b of the budget and l leaves left, (N, budget + 1, most + 1).

    ``most`` 0 stands for leaves without a bound. A way that would exceed a limit has value -1.
    """
    size = counts.shape[0]
    value = np.zeros((size + 1, budget + 1, most + 1))
    take = np.zeros((size, budget + 1, most + 1), np.bool_)
    one = 1 if most > 0 else 0
    for v in range(size - 1, -1, -1):
        childless = v + 1 == size or deep[v + 1] <= deep[v]
        above = first[v] and deep[v] > 1  # leaving v out makes its parent a leaf
        for b in range(budget + 1):
            for left in range(most + 1):
                spent = 1 if in_nodes else (deep[v] + 1 if childless else 0)
                leaf = one if childless else 0
                with_it = -1.0
                if b >= spent and left >= leaf:
                    rest = value[v + 1, b - spent, left - leaf]
                    with_it = counts[v] + rest if rest >= 0 else -1.0
                spent = deep[v] if above and not in_nodes else 0
                leaf = one if above else 0
                without = -1.0
                if b >= spent and left >= leaf:
                    without = value[ends[v], b - spent, left - leaf]
                take[v, b, left] = with_it > without
                value[v, b, left] = max(with_it, without)
    return take
