"""One thing to test: laws p and q, and how many candidates (of a node) or drafts (of a chain)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from theory.laws import Floats, Ints, as_law, as_pair
from theory.testing.schemes import Scheme
from theory.testing.verifier import Kind

Tree = tuple[Floats, ...]
"""Laws after every prefix: entry d has shape (V^d, V), prefixes as numbers in base V."""
Model = Callable[[tuple[int, ...]], ArrayLike]
DENOMINATORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)


@dataclass(frozen=True)
class Case:
    """Laws over `size` tokens and n = candidates of a node, or drafts of a chain.

    p and q are trees: a node has depth 0 only; a chain of n drafts has p at depths 0..n and q at
    depths 0..n-1.
    """

    name: str
    kind: Kind
    n: int
    p: Tree = field(repr=False)
    q: Tree = field(repr=False)

    @classmethod
    def node(cls, p: ArrayLike, q: ArrayLike, k: int, name: str = "given") -> Case:
        """k candidates from q (V,), judged by p (V,); laws as `theory.laws.as_law` takes them."""
        target, draft = as_pair(p, q)
        if target.ndim != 1 or k < 1:
            raise ValueError(f"need laws of shape (V,) and k >= 1; got {target.shape} and {k}")
        return cls(name, "node", k, (target[None],), (draft[None],))

    @classmethod
    def chain(cls, p: Model, q: Model, length: int, size: int, name: str = "given") -> Case:
        """`length` drafts; p and q are functions from the tokens so far to a law (size,)."""

        def level(model: Model, depth: int) -> Floats:
            prefixes = product(range(size), repeat=depth)
            return as_law(np.array([np.asarray(model(prefix)) for prefix in prefixes]), name)

        target = tuple(level(p, depth) for depth in range(length + 1))
        return cls(name, "chain", length, target, tuple(level(q, d) for d in range(length)))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self.p[0].shape[1])

    @property
    def width(self) -> int:
        """Tokens that a verifier returns: 1, or n + 1."""
        return 1 if self.kind == "node" else self.n + 1

    @property
    def cells(self) -> int:
        """Outcomes: tokens of a node, sequences of n + 1 tokens of a chain."""
        return int(self.size**self.width)

    @property
    def expected(self) -> Floats:
        """The target's own law over the outcomes."""
        law = self.p[0].reshape(-1)
        for laws in self.p[1:]:
            law = (law[:, None] * laws).reshape(-1)
        return np.asarray(law)

    @property
    def complexity(self) -> tuple[float, ...]:
        """What shrinking makes smaller: tokens, candidates, different laws, denominators, zeros."""
        laws = [tuple(law) for tree in (self.p, self.q) for level in tree for law in level.tolist()]
        different = sorted(set(laws))
        fineness = sum(denominator(np.array(law)) for law in different)
        return (self.size, self.n, len(different), fineness, -sum(m == 0 for m in sum(laws, ())))

    def candidate_law(self, scheme: Scheme) -> tuple[Ints, Floats]:
        """Every tuple of candidates (R, n) that a scheme can offer, and its probability (R,)."""
        assert scheme.law is not None
        if self.kind == "node":
            law = scheme.law(self.q[0][0], self.n)
            rows = [tuple(drawn) + (-1,) * (self.n - len(drawn)) for drawn in law]
            return np.array(rows, dtype=np.int64), np.array(list(law.values()))
        chains: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        for depth in range(self.n):
            grown: list[tuple[tuple[int, ...], float]] = []
            for drawn, chance in chains:
                if -1 in drawn:
                    grown.append(((*drawn, -1), chance))
                    continue
                here = scheme.law(self.q[depth][prefix_number(drawn, self.size)], 1)
                grown += [((*drawn, x), chance * mass) for (x,), mass in here.items()]
            chains = grown
        return (
            np.array([drawn for drawn, _ in chains], dtype=np.int64),
            np.array([chance for _, chance in chains]),
        )

    def smaller(self) -> Iterator[Case]:
        """Cases that are simpler in one respect, the most ambitious first."""
        if self.n > 1:
            yield self._with_n(self.n - 1)
        block = self.size // 2
        while block >= max(1, self.size // 16):
            for start in range(0, self.size, block):
                smaller = self._without(range(start, start + block))
                if smaller is not None:
                    yield smaller
            block //= 2
        for tree in ("p", "q", "pq"):
            if self.kind == "chain" and self.n >= 1:
                yield self._homogeneous(tree)
        for parts in DENOMINATORS:
            for tree in ("pq", "q", "p"):
                yield self._rounded(tree, parts)

    def _with_n(self, n: int) -> Case:
        if self.kind == "node":
            return Case(self.name, self.kind, n, self.p, self.q)
        return Case(self.name, self.kind, n, self.p[: n + 1], self.q[:n])

    def _without(self, gone: range) -> Case | None:
        kept = [x for x in range(self.size) if x not in gone]
        if len(kept) < 2:
            return None
        trees: list[Tree] = []
        for tree in (self.p, self.q):
            levels = []
            for depth, level in enumerate(tree):
                rows = [prefix_number(h, self.size) for h in product(kept, repeat=depth)]
                laws = level[rows][:, kept]
                whole = laws.sum(axis=1, keepdims=True)
                if not np.all(whole > 0):
                    return None
                levels.append(laws / whole)
            trees.append(tuple(levels))
        return Case(self.name, self.kind, self.n, trees[0], trees[1])

    def _homogeneous(self, which: str) -> Case:
        """The law after the empty prefix, everywhere."""

        def flat(tree: Tree) -> Tree:
            return tuple(np.repeat(tree[0], level.shape[0], axis=0) for level in tree)

        return Case(
            self.name,
            self.kind,
            self.n,
            flat(self.p) if "p" in which else self.p,
            flat(self.q) if "q" in which else self.q,
        )

    def _rounded(self, which: str, parts: int) -> Case:
        def rounded(tree: Tree) -> Tree:
            return tuple(np.apply_along_axis(round_law, 1, level, parts) for level in tree)

        return Case(
            self.name,
            self.kind,
            self.n,
            rounded(self.p) if "p" in which else self.p,
            rounded(self.q) if "q" in which else self.q,
        )

    def __str__(self) -> str:
        what = "candidates" if self.kind == "node" else "drafts"
        lines = [f"{self.size} tokens, {self.n} {what} ({self.name})"]
        for name, tree in (("p", self.p), ("q", self.q)):
            if all(np.array_equal(level, np.broadcast_to(tree[0], level.shape)) for level in tree):
                lines.append(f"{name} = {show_law(tree[0][0])}")
                continue
            for depth, level in enumerate(tree):
                for row, law in zip(product(range(self.size), repeat=depth), level, strict=True):
                    after = " ".join(map(str, row))
                    lines.append(f"{name}(. | {after}) = {show_law(law)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "vocabulary": self.size,
            "candidates": self.n,
            "p": [level.tolist() for level in self.p],
            "q": [level.tolist() for level in self.q],
        }


def prefix_number(prefix: tuple[int, ...], size: int) -> int:
    """A prefix as a number in base `size`."""
    number = 0
    for x in prefix:
        number = number * size + x
    return number


def denominator(law: Floats) -> int:
    """The smallest d up to 60 with every probability a multiple of 1/d, or 1000."""
    for d in range(1, 61):
        if np.all(np.abs(law * d - np.round(law * d)) < 1e-9):
            return d
    return 1000


def round_law(law: Floats, parts: int) -> Floats:
    """The nearest law with probabilities in multiples of 1/parts, by largest remainders."""
    scaled = law * parts
    whole = np.floor(scaled + 1e-9)
    short = parts - int(whole.sum())
    if short > 0:
        whole[np.argsort(-(scaled - whole), kind="stable")[:short]] += 1
    return np.asarray(whole / whole.sum())


def show_law(law: Floats) -> str:
    """[1/2, 3/10, 1/5] where that is what it is, otherwise decimals."""
    d = denominator(law)
    if d == 1000:
        return "[" + ", ".join(f"{mass:.6g}" for mass in law) + "]"
    return "[" + ", ".join(str(Fraction(round(mass * d), d)) for mass in law) + "]"
