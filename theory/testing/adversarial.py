"""Laws that find mistakes: narrow, tied, equal, disjoint, reversed, pointed, cut and nearly zero.

Narrow vocabularies find what wide ones hide, so every check begins with the narrowest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from theory.laws import Floats
from theory.testing.cases import Case
from theory.testing.schemes import Scheme
from theory.testing.verifier import Kind

TINY = 1e-12
NARROW = (2, 3, 4)
WIDE = 64
"""Vocabulary above which only the pairs of `IN_WIDE` are tested: the others are for narrow ones."""
IN_WIDE = ("random", "reversed", "cut p", "narrow q", "nearly zero")
MAX_CELLS = 1 << 20
"""Largest number of outcomes (sequences of a chain) that a case may have."""


def pairs(size: int, seed: int) -> list[tuple[str, Floats, Floats]]:
    """(name, p, q) of shape (size,): every kind of trouble once, from small integer weights."""
    rng = np.random.default_rng([seed, size])

    def random(zeros: float = 0.0) -> Floats:
        weights = rng.integers(1, 8, size) * (rng.random(size) >= zeros)
        weights[rng.integers(size)] += 1
        return np.asarray(weights / weights.sum())

    def only(keep: NDArray[np.bool_], law: Floats) -> Floats:
        return np.asarray(np.where(keep, law, 0.0) / law[keep].sum())

    spread = np.asarray(np.arange(1, size + 1) / (size * (size + 1) / 2))
    uniform = np.full(size, 1 / size)
    low = np.arange(size) < max(1, size // 2)
    point = np.eye(size)
    tiny = np.where(np.arange(size) % 2 == 0, 1.0, TINY)
    tied = np.where(np.arange(size) < (size + 1) // 2, 2.0, 1.0)
    found = [
        ("random", random(), random()),
        ("random with zeros", random(0.35), random(0.35)),
        ("reversed", spread, spread[::-1].copy()),
        ("equal", spread, spread.copy()),
        ("disjoint", only(low, random()), only(~low, random())),
        ("point p", point[size - 1], random()),
        ("point q", random(), point[0]),
        ("ties", tied / tied.sum(), tied[::-1] / tied.sum()),
        ("uniform q", random(), uniform),
        ("uniform p", uniform, random()),
        ("nearly zero", random(), tiny / tiny.sum()),
        ("cut p", only(np.arange(size) > 0, random()), random()),
        ("narrow q", random(), only(np.arange(size) < size - 1, random())),
        ("skewed", random() ** 3, random()),
    ]
    return [
        (name, p / p.sum(), q / q.sum()) for name, p, q in found if size <= WIDE or name in IN_WIDE
    ]


def node_cases(size: int, n: int, scheme: Scheme, seed: int) -> list[Case]:
    """One case a pair; those whose q is too narrow for n different candidates are left out."""
    return [
        Case(name, "node", n, (p[None],), (q[None],))
        for name, p, q in pairs(size, seed)
        if not scheme.distinct or np.count_nonzero(q) >= n
    ]


def chain_cases(size: int, n: int, seed: int, mixed: int = 6) -> list[Case]:
    """The same pair after every prefix, and trees that meet another pair after each prefix."""
    if size ** (n + 1) > MAX_CELLS:
        raise ValueError(
            f"a chain of {n} drafts over {size} tokens has {size}^{n + 1} outcomes, above "
            f"{MAX_CELLS}: use a smaller vocabulary"
        )
    found = pairs(size, seed)
    rng = np.random.default_rng([seed, size, n])

    def everywhere(p: Floats, q: Floats) -> Callable[[int], tuple[Floats, Floats]]:
        return lambda depth: (_rows(p, size, depth), _rows(q, size, depth))

    cases = [_tree(name, size, n, everywhere(p, q)) for name, p, q in found]

    def mixture(depth: int) -> tuple[Floats, Floats]:
        chosen = rng.integers(len(found), size=size**depth)
        return np.stack([found[i][1] for i in chosen]), np.stack([found[i][2] for i in chosen])

    return cases + [_tree(f"mixed {i}", size, n, mixture) for i in range(mixed)]


def groups(
    kind: Kind, sizes: Sequence[int], counts: Sequence[int], scheme: Scheme, seed: int
) -> Iterator[tuple[Case, ...]]:
    """Cases of one size and n at a time, the smallest first."""
    for size in sizes:
        for n in counts:
            found = (
                node_cases(size, n, scheme, seed) if kind == "node" else chain_cases(size, n, seed)
            )
            if found:
                yield tuple(found)


def _rows(law: Floats, size: int, depth: int) -> Floats:
    return np.repeat(law[None], size**depth, axis=0)


def _tree(name: str, size: int, n: int, laws: Callable[[int], tuple[Floats, Floats]]) -> Case:
    levels = [laws(depth) for depth in range(n + 1)]
    p, q = tuple(level[0] for level in levels), tuple(level[1] for level in levels[:n])
    return Case(name, "chain", n, p, q)
