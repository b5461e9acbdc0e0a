"""A tree of drafts grown node by node, by what each addition gains for its cost."""

from __future__ import annotations

import numpy as np

from proposers.batch import Doubles
from proposers.replay.tree_chances import RankChances
from proposers.replay.tree_limits import Limits
from proposers.shape import Node, TreeShape


def greedy(chances: RankChances, limits: Limits) -> TreeShape:
    """Add the next child of some node, with a chain of rank 0 behind it, while anything is gained.

    Each time the addition with the largest gain of accepted tokens per unit of cost. With counts
    that do not depend on siblings and a budget of nodes this is STAND's choice, the nodes with the
    most accepted tokens (arXiv 2506.04708), and optimal if counts fall with the rank too.
    Otherwise it is a heuristic: a later candidate changes what the one before it is worth
    (top_plus_one), a new path costs its prefix once more (tokens), or uses up one of the leaves.
    """
    tree = _Growing(chances)
    while True:
        best: tuple[float, Node, int] = (0.0, (), -1)
        for node in tree.reach:
            for more, gain in enumerate(tree.gains(node)):
                cost = tree.cost(node, more, limits)
                if cost is None:
                    break
                if gain / cost > best[0]:
                    best = (gain / cost, node, more)
        if best[2] < 0:
            return TreeShape(tuple(tree.reach)[1:] or ((0,),))
        tree.add(best[1], best[2])


class _Growing:
    """The tree so far, with the root (), and at every place weight times reach of each node."""

    def __init__(self, chances: RankChances) -> None:
        self.chances = chances
        self.separable = chances.separable
        some = chances.weights > 0
        self.inner = chances.inner[some].astype(np.float64)
        self.last = chances.last[some].astype(np.float64)
        self.reach: dict[Node, Doubles] = {(): chances.weights[some]}
        self.children: dict[Node, int] = {(): 0}
        self.tokens = self.paths = 0
        self._gains: dict[Node, Doubles] = {}

    def gains(self, node: Node) -> Doubles:
        """What the next child of a node gains with 0, 1, .. tokens of a chain behind it."""
        if node not in self._gains:
            rank, depth = self.children[node], len(node)
            if rank == self.chances.branching or depth == self.chances.depth:
                self._gains[node] = np.zeros(0)
            else:
                each = self._chain(node, rank)
                moved = 0.0
                if rank and not self.separable:
                    changed = self._with_sibling(node, rank - 1)
                    moved = sum(float((new - self.reach[at]).sum()) for at, new in changed.items())
                self._gains[node] = moved + np.cumsum([reach.sum() for reach in each])
        return self._gains[node]

    def cost(self, node: Node, more: int, limits: Limits) -> int | None:
        """Of the next child and so many tokens behind it; None beyond the limits."""
        lengthens = bool(node) and not self.children[node]
        paths = self.paths + (not lengthens)
        if limits.paths is not None and paths > limits.paths:
            return None
        if limits.cost == "nodes":
            cost, spent = more + 1, len(self.reach) - 1
        else:
            cost, spent = more + 1 + (0 if lengthens else len(node) + 1), self.tokens
        return cost if spent + cost <= limits.budget else None

    def add(self, node: Node, more: int) -> None:
        """Take the addition into the tree."""
        rank = self.children[node]
        lengthens = bool(node) and not rank
        self.paths += not lengthens
        self.tokens += more + 1 + (0 if lengthens else len(node) + 1)
        changed = self._with_sibling(node, rank - 1) if rank and not self.separable else {}
        self.reach |= changed
        self.children[node] += 1
        for depth, reach in enumerate(self._chain(node, rank)[: more + 1]):
            child = (*node, rank, *(0,) * depth)
            self.reach[child], self.children[child] = reach, int(depth < more)
        for stale in [*changed, *(node[:depth] for depth in range(len(node) + 1))]:
            self._gains.pop(stale, None)

    def _chain(self, node: Node, rank: int) -> list[Doubles]:
        """Reach of a last child and of a chain of single children behind it."""
        reach = [self.reach[node] * self.last[:, len(node), rank]]
        for depth in range(len(node) + 1, self.chances.depth):
            reach.append(reach[-1] * self.last[:, depth, 0])
        return reach

    def _with_sibling(self, node: Node, rank: int) -> dict[Node, Doubles]:
        """Reach of a child and what is behind it, once it is no longer the last one."""
        top = (*node, rank)
        found = {top: self.reach[node] * self.inner[:, len(node), rank]}
        for parent in (pending := [top]):
            for child in range(self.children[parent]):
                ends = child == self.children[parent] - 1
                chance = (self.last if ends else self.inner)[:, len(parent), child]
                found[*parent, child] = found[parent] * chance
                pending.append((*parent, child))
        return found
