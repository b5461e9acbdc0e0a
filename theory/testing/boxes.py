"""Exact integration of a sampler over its uniforms: the boxes on which its output is constant.

Every sampler that compares each uniform with numbers that depend on the inputs and on earlier
outcomes is constant on boxes: cut the first uniform where anything changes, then the second inside
each piece, and so on. Cuts are found by bisection to `WIDTH`, whole batches at once. Whether the
sampler is of this form is not believed but tested, at random points (`Boxes.agreement`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from theory.laws import Floats, Ints

Evaluate = Callable[[Ints, Floats], Ints]
"""(rows (M,), points (M, axes) in [0, 1)) -> what is emitted, as one number each (M,)."""
WIDTH = 1e-10
TOP = 1 - 1e-7
BATCH = 1 << 17
MAX_PIECES = 64
"""Pieces of one axis inside one box above which the output is not called constant on boxes."""


class NotBoxes(Exception):
    """The output changes too often along one axis to be constant on boxes."""


@dataclass(frozen=True)
class Boxes:
    """Leaf l holds `mass[l]` of the unit cube of row `rows[l]`, and emits `codes[l]` there.

    middles (leaves, axes): where `codes` were looked at.
    levels: for each axis, the sorted keys parent + lower end, by which `leaf` descends.
    """

    rows: Ints
    codes: Ints
    mass: Floats
    middles: Floats
    levels: tuple[Floats, ...]

    def leaf(self, rows: Ints, points: Floats) -> Ints:
        """The leaf of each of points (M, axes)."""
        node = rows
        for axis, keys in enumerate(self.levels):
            node = np.searchsorted(keys, node + points[:, axis], side="right") - 1
        return node

    def agreement(self, evaluate: Evaluate, rows: Ints, rng: np.random.Generator) -> Floats:
        """Points of the given rows, drawn uniformly, where the boxes are wrong: (wrong, 2, axes).

        With each comes the middle of its box, where something else is emitted: either may lie in
        the slice that was missed. If none of n points is wrong, the mass where the boxes are wrong
        is below ln(1/d)/n but for probability d.
        """
        wrong = []
        for start in range(0, rows.size, BATCH):
            part = rows[start : start + BATCH]
            points = rng.random((part.size, len(self.levels)))
            leaf = self.leaf(part, points)
            bad = evaluate(part, points) != self.codes[leaf]
            wrong.append(np.stack([points[bad], self.middles[leaf[bad]]], axis=1))
        return np.concatenate(wrong)


def integrate(
    evaluate: Evaluate,
    rows: int,
    axes: int,
    rng: np.random.Generator,
    *,
    grid: int = 16,
    extra: Floats | None = None,
) -> Boxes:
    """The boxes of `rows` rows over `axes` uniforms.

    grid: first cuts of each axis. extra (m, 2, axes): pairs of points that must be looked at too
    (where an earlier answer was wrong: `Boxes.agreement`). Raises NotBoxes.
    """
    extra = np.zeros((0, axes)) if extra is None else extra.reshape(-1, axes)
    owner = np.arange(rows, dtype=np.int64)
    fixed = np.zeros((rows, 0))
    mass = np.ones(rows)
    levels: list[Floats] = []
    for axis in range(axes):
        probes = np.concatenate([_probes(axes - axis - 1, rng), extra[:, axis + 1 :]])
        starts = np.concatenate([np.arange(grid) / grid, [TOP], extra[:, axis]])
        look = _Look(evaluate, owner, fixed, probes, rng)
        node, cut = _cuts(look, np.unique(starts), owner.size)
        parent, low, high = _pieces(node, cut, owner.size)
        levels.append(parent + low)
        owner, mass = owner[parent], mass[parent] * (high - low)
        fixed = np.concatenate([fixed[parent], 0.5 * (low + high)[:, None]], axis=1)
    codes = np.concatenate(
        [evaluate(owner[i : i + BATCH], fixed[i : i + BATCH]) for i in range(0, owner.size, BATCH)]
    )
    return Boxes(owner, codes, mass, fixed, tuple(levels))


class _Look:
    """What can be seen of the output at one value of an axis: its codes at the probes, hashed."""

    def __init__(
        self,
        evaluate: Evaluate,
        owner: Ints,
        fixed: Floats,
        probes: Floats,
        rng: np.random.Generator,
    ) -> None:
        self.evaluate, self.owner, self.fixed, self.probes = evaluate, owner, fixed, probes
        self.weights = rng.integers(0, 2**63, probes.shape[0], dtype=np.uint64) * np.uint64(2) + 1

    def __call__(self, node: Ints, value: Floats) -> Ints:
        """Hash at `value` (M,) inside the box `node` (M,)."""
        count = self.probes.shape[0]
        step = max(1, BATCH // count)
        parts = []
        for start in range(0, node.size, step):
            at, x = node[start : start + step], value[start : start + step]
            points = np.concatenate(
                [
                    np.repeat(np.concatenate([self.fixed[at], x[:, None]], axis=1), count, axis=0),
                    np.tile(self.probes, (at.size, 1)),
                ],
                axis=1,
            )
            codes = self.evaluate(np.repeat(self.owner[at], count), points)
            hashed = (codes.astype(np.uint64).reshape(at.size, count) * self.weights).sum(axis=1)
            parts.append(hashed.astype(np.int64))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _probes(axes: int, rng: np.random.Generator) -> Floats:
    """Values of the later axes: coins at both ends, the last axis in strata, and random points."""
    if axes == 0:
        return np.zeros((1, 0))
    ends = list(product((0.0, TOP), repeat=min(axes - 1, 3)))
    strata = (np.arange(5) + 0.5) / 5
    corners = np.array([[*coins, u] for coins in ends for u in strata])
    if corners.shape[1] < axes:
        filled = rng.random((corners.shape[0], axes - corners.shape[1]))
        corners = np.concatenate([filled, corners], axis=1)
    return np.concatenate([corners, rng.random((6, axes))])


def _cuts(look: _Look, starts: Floats, nodes: int) -> tuple[Ints, Floats]:
    """Where the output changes along the axis: the box and the place of every cut."""
    seen = look(np.repeat(np.arange(nodes), starts.size), np.tile(starts, nodes))
    seen = seen.reshape(nodes, starts.size)
    node, place = np.nonzero(seen[:, 1:] != seen[:, :-1])
    low, high = starts[place], starts[place + 1]
    before, after = seen[node, place], seen[node, place + 1]
    done_node: list[Ints] = []
    done_cut: list[Floats] = []
    while node.size:
        if node.size > MAX_PIECES * nodes + 1024:
            raise NotBoxes
        middle = 0.5 * (low + high)
        value = look(node, middle)
        left, right = value == before, value == after
        third = ~left & ~right
        more = (node[third], middle[third], high[third], value[third], after[third])
        low = np.where(left, middle, low)
        high = np.where(left, high, middle)
        after = np.where(left, after, value)
        node, low, high, before, after = (
            np.concatenate([a, b])
            for a, b in zip((node, low, high, before, after), more, strict=True)
        )
        ready = high - low < WIDTH
        done_node.append(node[ready])
        done_cut.append(high[ready])
        node, low, high, before, after = (a[~ready] for a in (node, low, high, before, after))
    if not done_node:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    return np.concatenate(done_node), np.concatenate(done_cut)


def _pieces(node: Ints, cut: Floats, nodes: int) -> tuple[Ints, Floats, Floats]:
    """Box, lower and upper end of every piece, sorted; cuts closer than 2 `WIDTH` are one."""
    order = np.lexsort((cut, node))
    node, cut = node[order], cut[order]
    if node.size:
        twin = (node[1:] == node[:-1]) & (cut[1:] - cut[:-1] < 2 * WIDTH)
        keep = np.concatenate([[True], ~twin])
        node, cut = node[keep], cut[keep]
    parent = np.concatenate([np.arange(nodes), node])
    low = np.concatenate([np.zeros(nodes), cut])
    order = np.lexsort((low, parent))
    parent, low = parent[order], low[order]
    last = np.append(parent[1:] != parent[:-1], True)
    high = np.where(last, 1.0, np.append(low[1:], 1.0))
    return parent, low, high
