"""Drafted trees verified by their rules emit the target's law, exactly, in rationals.

The generator is replaced by a grid of uniforms on which every draw has exactly its law: over all
requests of one call, the drafts are then an enumeration, and no chance is left.
"""

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from proposers import PathDrafts, StandPathDrafter, TreeShape
from tests.proposers.batches import requests
from tests.proposers.path_cases import Law, Path, Uniforms, bigram_table, step_law, tree_of
from theory.acceptance import Rule
from theory.candidates import tuple_law
from theory.exact_sequences import completed, target_law

Q = {
    0: {0: 0.5, 1: 0.25, 2: 0.25},
    1: {2: 0.5, 0: 0.25, 1: 0.25},
    2: {1: 1.0},
}
"""Exact in float32; behind 2 there is only one candidate."""
FIRST, SECOND, THIRD = 4, 6, 1
"""Cells for each draw without replacement, with every denominator it can have; iid needs FIRST."""
P = {0: (1, 4, 3), 1: (5, 1, 2), 2: (2, 3, 3)}


def target(prefix: Path) -> Law:
    """Depends on the last token and on the depth."""
    weights = P[prefix[-1] if prefix else 0]
    weights = weights[len(prefix) % 3 :] + weights[: len(prefix) % 3]
    return tuple(Fraction(w, 8) for w in weights)


class Grid:
    """A generator that enumerates: column v of the uniforms runs over the centres of its cells."""

    def __init__(self, cells: list[int]) -> None:
        axes = [(np.arange(n) + 0.5) / n for n in cells]
        self.uniforms = np.array(list(product(*axes)))

    def random(self, shape: tuple[int, ...]) -> Uniforms:
        assert shape == self.uniforms.shape
        return self.uniforms


def enumerated(
    drafting: str, shape: TreeShape, cells: list[int], min_survival: float = 0.0
) -> tuple[PathDrafts, int]:
    drafter = StandPathDrafter(
        bigram_table(Q),
        draft_length=shape.depth,
        candidates=shape.paths,
        drafting=drafting,
        shape=None if drafting == "iid" else shape,
        min_survival=min_survival,
    )
    grid: Any = Grid(cells)
    drafter._path_rng = grid
    batch = len(grid.uniforms)
    return drafter.draft_paths(requests([[0]] * batch, [shape.depth] * batch)), batch


def emission(made: PathDrafts, batch: int, rule: Rule) -> dict[Path, Fraction]:
    """Law of a step's tokens, over all requests."""
    emitted: dict[Path, Fraction] = {}
    seen: dict[bytes, dict[Path, Fraction]] = {}
    for b in range(batch):
        key = made.tokens[b].tobytes()
        if key not in seen:
            seen[key] = step_law(made, b, target, rule)
        for tokens, mass in seen[key].items():
            emitted[tokens] = emitted.get(tokens, Fraction(0)) + mass / batch
    return emitted


@pytest.mark.parametrize("drafting", ["iid", "without_replacement", "top_plus_one"])
@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_candidates_of_a_node_have_the_scheme_s_law(
    drafting: Any, context: int, k: int
) -> None:
    drafter = StandPathDrafter(bigram_table(Q), draft_length=1, candidates=k, drafting=drafting)
    grid: Any = Grid([FIRST] * k if drafting == "iid" else [FIRST, SECOND, THIRD][:k])
    drafter._path_rng = grid
    batch = len(grid.uniforms)
    made = drafter.draft_paths(requests([[context]] * batch, [1] * batch))
    found: dict[Path, Fraction] = {}
    for b in range(batch):
        drawn = tuple(made.tokens[b, :, 0].tolist())
        found[drawn] = found.get(drawn, Fraction(0)) + Fraction(1, batch)
    q = [Fraction(Q[context][x]) for x in range(3)]
    assert found == tuple_law(q, k, drafting)


TREES = {
    "chains": (TreeShape.root_branching(2, 2), [FIRST, SECOND, FIRST, FIRST]),
    "bush": (
        TreeShape(((0,), (0, 0), (0, 1), (1,), (1, 0), (1, 1))),
        [FIRST, SECOND, FIRST, SECOND, FIRST, SECOND],
    ),
    "lopsided": (
        TreeShape(((0,), (0, 0), (0, 0, 0), (1,), (2,))),
        [FIRST, SECOND, THIRD, FIRST, FIRST],
    ),
}
"""Shapes, and the cells of their nodes, breadth first."""


@pytest.mark.parametrize(
    ("drafting", "rule", "tree"),
    [
        ("iid", "kseq", "chains"),
        ("iid", "rrs", "chains"),
        ("without_replacement", "rrs_without_replacement", "chains"),
        ("without_replacement", "rrs_without_replacement", "lopsided"),
        ("without_replacement", "rrs_without_replacement", "bush"),
        ("without_replacement", "sparse_optimal", "chains"),
        ("top_plus_one", "top_plus_one", "chains"),
        ("top_plus_one", "top_plus_one", "lopsided"),
        ("top_plus_one", "top_plus_one", "bush"),
    ],
)
def test_one_step_emits_the_target_s_law(drafting: str, rule: Rule, tree: str) -> None:
    shape, cells = TREES[tree]
    if drafting == "iid":
        cells = [FIRST] * len(cells)
    emitted = emission(*enumerated(drafting, shape, cells), rule)
    length = shape.depth + 1
    assert max(map(len, emitted)) == length
    assert completed(emitted, target, length) == target_law(target, length)


@pytest.mark.parametrize(
    ("drafting", "rule", "cut"),
    [
        ("iid", "rrs", 0.13),
        ("without_replacement", "rrs_without_replacement", 0.13),
        ("top_plus_one", "top_plus_one", 0.05),
    ],
)
def test_a_step_of_trees_cut_by_min_survival_emits_the_target_s_law(
    drafting: str, rule: Rule, cut: float
) -> None:
    """Behind some tokens nothing is drafted; the candidates themselves stay, whatever they are."""
    shape, cells = TREES["chains"] if drafting == "iid" else TREES["bush"]
    if drafting == "iid":
        cells = [FIRST] * len(cells)
    made, batch = enumerated(drafting, shape, cells, cut)
    trees = [tree_of(made, b) for b in range(0, batch, 7)]
    second = {(x, (x,) in tree) for tree in trees for x in tree[()][1:]}
    assert {(1, False), (2, True)} <= second  # a second draft of 2 is followed, one of 1 is not
    assert all(len(tree[()]) == 2 for tree in trees if drafting != "iid")
    emitted = emission(made, batch, rule)
    assert completed(emitted, target, 3) == target_law(target, 3)


def test_the_check_sees_a_draft_that_is_dropped_for_its_value() -> None:
    """A second candidate of token 2 is thrown away: rejected by the same enumeration."""
    made, batch = enumerated("without_replacement", *TREES["chains"])
    for b in range(batch):
        if tree_of(made, b)[()][1] == 2:
            made.lengths[b, 1], made.tokens[b, 1] = 0, -1
            made.law_ids[b, 1], made.laws[b, 1] = -1, 0
    emitted = emission(made, batch, "rrs_without_replacement")
    assert completed(emitted, target, 3) != target_law(target, 3)
