"""Cases of one shape stacked, so that rows of different cases share a batch; tokens as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from theory.laws import Floats, Ints
from theory.testing.cases import Case, Tree
from theory.testing.draws import inverse_cdf
from theory.testing.schemes import Scheme


@dataclass(frozen=True)
class Family:
    """Cases of one kind, size and n, stacked so that rows of different cases share a batch."""

    cases: tuple[Case, ...]
    p: Tree
    q: Tree

    @classmethod
    def of(cls, cases: tuple[Case, ...]) -> Family:
        """Trees of all cases, entry d of shape (C, V^d, V)."""
        p = tuple(np.stack(levels) for levels in zip(*(c.p for c in cases), strict=True))
        q = tuple(np.stack(levels) for levels in zip(*(c.q for c in cases), strict=True))
        return cls(cases, p, q)

    @property
    def first(self) -> Case:
        """Any case: all agree in kind, size and n."""
        return self.cases[0]

    def inputs(self, owner: Ints, candidates: Ints) -> tuple[Floats, Floats]:
        """p and q as a sampler takes them, for rows of case `owner` (B,) with their candidates."""
        if self.first.kind == "node":
            return self.p[0][owner, 0], self.q[0][owner, 0]
        prefix = np.zeros_like(owner)
        p, q = [self.p[0][owner, prefix]], []
        for depth in range(self.first.n):
            q.append(self.q[depth][owner, prefix])
            prefix = prefix * self.first.size + np.maximum(candidates[:, depth], 0)
            p.append(self.p[depth + 1][owner, prefix])
        return np.stack(p, axis=1), np.stack(q, axis=1)

    def draw(self, scheme: Scheme, owner: Ints, noise: Floats) -> Ints:
        """Candidates (B, n) from draft noise (B, n)."""
        if self.first.kind == "node":
            return scheme.draw(self.q[0][owner, 0], noise)
        drawn = np.empty(noise.shape, dtype=np.int64)
        prefix, alive = np.zeros_like(owner), np.ones(owner.size, dtype=bool)
        for depth in range(self.first.n):
            x = scheme.draw(self.q[depth][owner, prefix], noise[:, depth : depth + 1])[:, 0]
            alive &= x >= 0
            drawn[:, depth] = np.where(alive, x, -1)
            prefix = prefix * self.first.size + np.maximum(drawn[:, depth], 0)
        return drawn

    def encode(self, tokens: NDArray[np.generic], rows: int) -> Ints:
        """One number a row for what was emitted, -1 for what is no outcome at all.

        Raises ValueError for another shape or type than a sampler must return.
        """
        first = self.first
        emitted = np.asarray(tokens)
        wanted = (rows,) if first.kind == "node" else (rows, first.width)
        if emitted.shape != wanted or emitted.dtype.kind not in "iu":
            raise ValueError(
                f"a sampler of kind {first.kind!r} must return integers of shape {wanted} here; "
                f"got {emitted.dtype} of shape {emitted.shape}"
            )
        emitted = emitted.astype(np.int64).reshape(rows, first.width)
        count = (emitted >= 0).sum(axis=1)
        ends = np.arange(first.width) < count[:, None]
        fine = np.all((emitted >= 0) == ends, axis=1) & (count > 0)
        fine &= np.all(emitted < first.size, axis=1) & np.all(emitted >= -1, axis=1)
        code = np.zeros(rows, dtype=np.int64)
        for place in range(first.width):
            code = code * (first.size + 1) + emitted[:, place] + 1
        return np.where(fine, code, -1)

    def decode(self, codes: Ints) -> Ints:
        """The tokens (B, width) of codes that are outcomes."""
        first = self.first
        digits = [
            codes // (first.size + 1) ** (first.width - 1 - place) % (first.size + 1) - 1
            for place in range(first.width)
        ]
        return np.stack(digits, axis=1)

    def completed(self, case: int, codes: Ints, masses: Floats) -> tuple[Floats, float]:
        """Law over the outcomes when p continues what was emitted, and the mass of no outcome.

        `theory.exact_sequences.completed` in floats, batched over the different codes.
        """
        first = self.first
        tokens, fine = self.decode(codes[codes >= 0]), masses[codes >= 0]
        invalid = float(masses[codes < 0].sum())
        law = np.zeros(first.cells)
        lengths = (tokens >= 0).sum(axis=1)
        for length in range(1, first.width + 1):
            here = tokens[lengths == length, :length]
            start = np.zeros(first.size**length)
            number = here @ first.size ** np.arange(length - 1, -1, -1)
            np.add.at(start, number, fine[lengths == length])
            for depth in range(length, first.width):
                start = (start[:, None] * self.p[depth][case]).reshape(-1)
            law += start
        return law, invalid

    def continued(self, owner: Ints, codes: Ints, noise: Floats) -> Ints:
        """The cell of each row when p continues what was emitted with `noise` (B, width)."""
        tokens = self.decode(np.maximum(codes, 0))
        cell = np.zeros_like(owner)
        for depth in range(self.first.width):
            y = tokens[:, depth].copy()
            left = np.flatnonzero(y < 0)
            if left.size:
                law = self.p[depth][owner[left], cell[left]]
                y[left] = inverse_cdf(law, noise[left, depth])
            cell = cell * self.first.size + y
        return np.where(codes >= 0, cell, -1)
