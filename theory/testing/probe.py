"""A sampler under test: counted calls, its purity, and one family of cases made into rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from theory.laws import Floats, Ints
from theory.testing.family import Family
from theory.testing.schemes import Scheme
from theory.testing.verifier import Sampler

ENTRIES = 1 << 22
"""Largest number of probabilities in the p of one call."""


@dataclass
class Probe:
    """Calls a sampler on rows of a family, and counts."""

    sampler: Sampler
    scheme: Scheme
    calls: int = 0
    rows: int = 0

    def emit(self, family: Family, owner: Ints, candidates: Ints, uniforms: Floats) -> Ints:
        """Codes (`Family.encode`) of what is emitted for rows of cases `owner`."""
        p, q = family.inputs(owner, candidates)
        return self._call(family, p, q, candidates.copy(), uniforms.copy())

    def _call(
        self, family: Family, p: Floats, q: Floats, candidates: Ints, uniforms: Floats
    ) -> Ints:
        self.calls += 1
        self.rows += candidates.shape[0]
        return family.encode(self.sampler(p, q, candidates, uniforms), candidates.shape[0])

    def is_pure(self, family: Family, rng: np.random.Generator) -> bool:
        """Whether equal rows give equal tokens, twice, in any order and in any batch."""
        few = 64
        owner = np.tile(np.arange(few) % len(family.cases), 8)
        noise = np.tile(rng.random((few, family.first.n)), (8, 1))
        uniforms = np.tile(rng.random((few, family.first.n + 1)), (8, 1))
        candidates = family.draw(self.scheme, owner, noise)
        order = rng.permutation(owner.size)
        part = order[: few + 1]
        whole = self.emit(family, owner, candidates, uniforms)
        again = self.emit(family, owner[order], candidates[order], uniforms[order])
        alone = self.emit(family, owner[part], candidates[part], uniforms[part])
        return (
            np.array_equal(whole[order], again)
            and np.array_equal(whole[part], alone)
            and np.array_equal(whole.reshape(8, few), np.broadcast_to(whole[:few], (8, few)))
        )

    def sample(
        self, family: Family, case: int, count: int, rng: np.random.Generator
    ) -> tuple[Ints, float]:
        """Cells of `count` independent outcomes of one case (-1: none), and what is reached."""
        first = family.first
        step = max(1, ENTRIES // (first.size * first.width))
        cells, reached = [], 0.0
        for start in range(0, count, step):
            owner = np.full(min(step, count - start), case, dtype=np.int64)
            noise = rng.random((owner.size, first.n))
            candidates = family.draw(self.scheme, owner, noise)
            uniforms = rng.random((owner.size, first.n + 1))
            if self.scheme.share is not None:
                uniforms = self.scheme.share(noise, uniforms)
            codes = self.emit(family, owner, candidates, uniforms)
            cells.append(family.continued(owner, codes, rng.random((owner.size, first.width))))
            reached += float(_reached(family, codes, candidates).sum())
        return np.concatenate(cells), reached / count


@dataclass
class Rows:
    """A family as rows of the unit cube: all candidates enumerated, or the draft noise as axes.

    owner (R,): the case of each row; chance (R,): probability of the row's candidates in its case.
    """

    probe: Probe
    family: Family
    owner: Ints = field(init=False)
    chance: Floats = field(init=False)
    candidates: Ints | None = field(init=False, default=None)
    _p: Floats = field(init=False)
    _q: Floats = field(init=False)

    def __post_init__(self) -> None:
        cases = self.family.cases
        if self.probe.scheme.law is None:
            self.owner, self.chance = np.arange(len(cases)), np.ones(len(cases))
            return
        laws = [case.candidate_law(self.probe.scheme) for case in cases]
        self.owner = np.repeat(np.arange(len(cases)), [chance.size for _, chance in laws])
        self.chance = np.concatenate([chance for _, chance in laws])
        self.candidates = np.concatenate([drawn for drawn, _ in laws])
        self._p, self._q = self.family.inputs(self.owner, self.candidates)

    @property
    def axes(self) -> int:
        """Uniforms of a row."""
        n = self.family.first.n
        return n + 1 if self.candidates is not None else 2 * n + 1

    def evaluate(self, rows: Ints, points: Floats) -> Ints:
        """`theory.testing.boxes.Evaluate` of this family."""
        if self.candidates is not None:
            return self.probe._call(
                self.family, self._p[rows], self._q[rows], self.candidates[rows], points.copy()
            )
        n = self.family.first.n
        owner, noise, uniforms = self.owner[rows], points[:, :n], points[:, n:]
        candidates = self.family.draw(self.probe.scheme, owner, noise)
        if self.probe.scheme.share is not None:
            uniforms = self.probe.scheme.share(noise, uniforms)
        return self.probe.emit(self.family, owner, candidates, uniforms)

    def reached(self, rows: Ints, codes: Ints) -> Floats | None:
        """What is reached when rows emit codes, where their candidates are known."""
        if self.candidates is None:
            return None
        return _reached(self.family, codes, self.candidates[rows])


def _reached(family: Family, codes: Ints, candidates: Ints) -> Floats:
    """1 where a node's token is a candidate; the number of tokens of a chain; 0 if invalid."""
    tokens = family.decode(np.maximum(codes, 0))
    if family.first.kind == "chain":
        count = (tokens >= 0).sum(axis=1)
    else:
        count = (tokens == candidates).any(axis=1) & (tokens[:, 0] >= 0)
    return np.where(codes >= 0, count, 0).astype(np.float64)
