"""What each candidate of each node is worth at every place of a trace, and sums over trees of them.

A node is the tuple of ranks on the way to it from the root; its **reach** at a place is the product
of the chances on that way, the probability that a step which begins there accepts its draft. One
token is emitted at each place, so the reach of the nodes of one depth adds up to the chance that
the step accepts so many drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from proposers.batch import Doubles, Longs
from proposers.shape import Node, TreeShape


@dataclass(frozen=True)
class RankChances:
    """w of every rank, at every depth of a step that begins before ``tokens[t]``.

    ``inner[t, i, j]`` is the chance of the candidate of rank j at depth i where it has a later
    sibling, ``last[t, i, j]`` where it has none. ``weights[t]`` is what the place counts for: 0
    where no step can begin (the first token of an answer comes from its prefill). Chances behind a
    depth without any are 0.

    Shapes: inner, last (N, D, M) float32; weights (N,) float64. Where a later sibling changes
    nothing, inner and last are one array.
    """

    inner: NDArray[np.float32]
    last: NDArray[np.float32]
    weights: Doubles

    @property
    def separable(self) -> bool:
        """Whether a node's chance does not depend on its siblings."""
        return self.inner is self.last

    @property
    def depth(self) -> int:
        """D."""
        return int(self.inner.shape[1])

    @property
    def branching(self) -> int:
        """M, the most candidates of one node."""
        return int(self.inner.shape[2])

    @property
    def steps(self) -> float:
        """Sum of the weights: the places at which a step can begin, or the steps expected there."""
        return float(self.weights.sum())

    def counts(self, nodes: Sequence[Node]) -> Doubles:
        """Accepted tokens of each node, a weighted sum over places, none with a later sibling.

        Falls from parent to child. Raises ValueError for a node beyond the depth or the branching.
        """
        ways = np.full((len(nodes), self.depth), -1, np.int64)
        for row, node in enumerate(nodes):
            self._check(len(node), max(node) + 1)
            ways[row, : len(node)] = node
        return np.asarray(_counts(self.last, self.weights, ways))

    def kept(self, shape: TreeShape) -> Doubles:
        """P(a step that begins at t accepts more than i drafts of this shape), (N, depth of shape).

        Raises ValueError for a shape beyond the depth or the branching.
        """
        return self._reach(shape)[0]

    def node_sums(self, shape: TreeShape) -> Doubles:
        """Accepted tokens of each node of this shape, in its order, a weighted sum over places.

        Shape (nodes,). Raises ValueError for a shape beyond the depth or the branching.
        """
        return np.asarray(self._reach(shape)[1][shape.arrays.depth_first])

    def accepted(self, shape: TreeShape) -> float:
        """Mean number of drafts that a step accepts, over places by their weights; nan for none."""
        steps = self.steps
        return float(self.node_sums(shape).sum() / steps) if steps > 0 else float("nan")

    def _reach(self, shape: TreeShape) -> tuple[Doubles, Doubles]:
        self._check(shape.depth, shape.width)
        tree = shape.arrays
        kept = np.zeros((len(self.weights), shape.depth))
        sums = np.zeros(len(shape.nodes) + 1)
        _sum_reach(
            self.inner, self.last, tree.parents, tree.ranks, tree.depths, tree.child_counts,
            self.weights, kept, sums,
        )  # fmt: skip
        return kept, sums

    def _check(self, depth: int, branching: int) -> None:
        if depth > self.depth or branching > self.branching:
            raise ValueError(
                f"a tree of depth {depth} and {branching} children was given; these chances reach "
                f"to depth {self.depth} and {self.branching} children"
            )


def beginnings(answer_begins: Longs, kept: Doubles) -> Doubles:
    """pi(t): P(a step begins before ``tokens[t]``) when steps accept as ``kept`` says, (N,).

    pi is 1 at the second token of an answer, and pi(t + m + 1) += pi(t) P(exactly m are accepted).
    ``kept`` (N, K) as :meth:`RankChances.kept`; the sum is the expected number of steps.
    """
    return np.asarray(_beginnings(answer_begins, kept))


@njit(cache=True, nogil=True)
def _counts(chances: Any, weights: Any, ways: Any) -> Any:
    found = np.zeros(ways.shape[0])
    for v in range(ways.shape[0]):
        for t in range(chances.shape[0]):
            reach = weights[t]
            for i in range(ways.shape[1]):
                if ways[v, i] < 0 or reach == 0:
                    break
                reach *= chances[t, i, ways[v, i]]
            found[v] += reach
    return found


@njit(cache=True, nogil=True)
def _sum_reach(
    inner: Any,
    last: Any,
    parents: Any,
    ranks: Any,
    depths: Any,
    child_counts: Any,
    weights: Any,
    kept: Any,
    sums: Any,
) -> Any:
    """Sums of reach over the nodes of each depth, and of each node over places; parents first."""
    reach = np.empty(parents.shape[0])
    for t in range(inner.shape[0]):
        reach[0] = 1.0
        for v in range(1, parents.shape[0]):
            above, i, j = parents[v], depths[v] - 1, ranks[v]
            chance = last[t, i, j] if j == child_counts[above] - 1 else inner[t, i, j]
            reach[v] = reach[above] * chance
            kept[t, i] += reach[v]
            sums[v] += weights[t] * reach[v]


@njit(cache=True, nogil=True)
def _beginnings(begins: Any, kept: Any) -> Any:
    most = kept.shape[1]
    chance = np.zeros(kept.shape[0] + most + 1)
    for a in range(begins.shape[0] - 1):
        end = begins[a + 1]
        if begins[a] + 1 < end:
            chance[begins[a] + 1] = 1.0
        for t in range(begins[a] + 1, end):
            reached = 1.0
            for i in range(most):
                chance[t + i + 1] += chance[t] * (reached - kept[t, i])
                reached = kept[t, i]
            chance[t + most + 1] += chance[t] * reached
        chance[end : end + most + 1] = 0.0  # the answer is over
    return chance[: kept.shape[0]]
