"""What tests of drafted paths share: small tables, trees out of paths, the exact law of a step."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from proposers import ENTRIES, PathDrafts, StandTable, VerifiedRows
from tests.proposers.batches import verified
from theory.acceptance import Rule
from theory.judgement import judgement

Path = tuple[int, ...]
Law = tuple[Fraction, ...]
Uniforms = NDArray[np.float64]
DISTINCT = ("rrs_without_replacement", "top_plus_one", "sparse_optimal")


def taught(rng: np.random.Generator, vocabulary: int, order: int = 3, rows: int = 60) -> StandTable:
    """A table that knows every one-token context and some longer ones."""
    table = StandTable(order=order, budget_bytes=2**20)
    count, entries = rows + vocabulary, min(ENTRIES, vocabulary)
    tokens = rng.integers(0, vocabulary, 4 * count).astype(np.int32)
    ends = np.arange(4, 4 * count + 1, 4)
    tokens[4 * rows + 3 :: 4] = np.arange(vocabulary)
    ids = np.stack([rng.permutation(vocabulary)[:entries] for _ in range(count)]).astype(np.int32)
    law = -np.sort(-rng.dirichlet(np.full(vocabulary, 0.7), count), axis=1)[:, :entries]
    table.observe(VerifiedRows(tokens, ends - 4, ends, ids, law.astype(np.float32)))
    return table


def bigram_table(laws: dict[int, dict[int, float]]) -> StandTable:
    """A table of order 1 with these laws behind these tokens, one visit each."""
    table = StandTable(order=1, budget_bytes=2**16)
    table.observe(verified([[context] for context in laws], list(laws.values())))
    return table


def law_at(made: PathDrafts, b: int, j: int, i: int) -> dict[int, float]:
    """Published q of draft i of path j of request b."""
    ids, law = made.law_ids[b, j, i], made.laws[b, j, i]
    assert (law[ids < 0] == 0).all()  # a rule that normalises q would count them
    return dict(zip(ids[ids >= 0].tolist(), law[ids >= 0].tolist(), strict=True))


def paths_of(made: PathDrafts, b: int) -> list[Path]:
    """The paths of one request, after a check of how they are stored."""
    lengths = made.lengths[b]
    present = np.flatnonzero(lengths)
    assert present.tolist() == list(range(present.size))
    for j, length in enumerate(lengths):
        assert (made.tokens[b, j, :length] >= 0).all()
        assert (made.tokens[b, j, length:] == -1).all()
        assert (made.law_ids[b, j, length:] == -1).all()
        assert (made.laws[b, j, length:] == 0).all()
    return [tuple(made.tokens[b, j, : lengths[j]].tolist()) for j in present]


def tree_of(made: PathDrafts, b: int) -> dict[Path, list[int]]:
    """The candidates of every node that has some, in draw order; () is the root."""
    tree: dict[Path, list[int]] = {}
    for path in paths_of(made, b):
        for i, token in enumerate(path):
            children = tree.setdefault(path[:i], [])
            if token not in children:
                children.append(token)
    return tree


def step_law(
    made: PathDrafts, b: int, target: Callable[[Path], Law], rule: Rule
) -> dict[Path, Fraction]:
    """Law of the tokens that one step emits, given the drafts of a request: walk and judgement."""
    paths = paths_of(made, b)

    def walk(prefix: Path, alive: list[int]) -> dict[Path, Fraction]:
        p, depth = target(prefix), len(prefix)
        offering = [j for j in alive if len(paths[j]) > depth]
        candidates = [paths[j][depth] for j in offering]
        if rule in DISTINCT:
            candidates = list(dict.fromkeys(candidates))
        if not candidates:
            return {(y,): mass for y, mass in enumerate(p) if mass}
        held = law_at(made, b, offering[0], depth)
        assert all(law_at(made, b, j, depth) == held for j in offering)
        q = tuple(Fraction(held.get(y, 0.0)) for y in range(len(p)))
        chances, left = judgement(p, q, candidates, rule=rule)
        law: dict[Path, Fraction] = {}

        def emit(y: int, mass: Fraction, *, accepted: bool) -> None:
            after = {(): Fraction(1)}
            if accepted:
                after = walk((*prefix, y), [j for j in offering if paths[j][depth] == y])
            for rest, chance in after.items():
                law[y, *rest] = law.get((y, *rest), Fraction(0)) + mass * chance

        refused = Fraction(1)
        for y, chance in zip(candidates, chances, strict=True):
            if refused * chance:
                emit(y, refused * chance, accepted=True)
            refused *= 1 - chance
        for y, mass in enumerate(left):
            if refused * mass:
                landing = rule in ("match", "top_plus_one") and y in candidates
                emit(y, refused * mass, accepted=landing)
        return law

    return walk((), list(range(len(paths))))
