"""Counted chances against trees that StandPathDrafter really draws, judged one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tuned_traces import noisy, recorded

from proposers.path_stand import StandPathDrafter
from proposers.replay.tree_counts import rank_chances
from proposers.shape import TreeShape
from proposers.table import StandTable

SHAPE = TreeShape(((0,), (0, 0), (0, 1), (1,), (1, 0), (2,)))
SIGMAS = 6.0
TREES = 5


def rejections(p: np.ndarray, q: np.ndarray, candidates: list[int]) -> list[float]:
    """P(each candidate is accepted), rrs_without_replacement; p, q over all tokens."""
    found, alive, target, left = [], 1.0, p.copy(), q.copy()
    for x in candidates:
        left = left / left.sum()
        chance = min(1.0, target[x] / left[x])
        found.append(alive * chance)
        alive *= 1 - chance
        target = np.maximum(target - left, 0.0)
        if alive <= 1e-12:
            break
        target /= target.sum()
        left[x] = 0.0
    return found + [0.0] * (len(candidates) - len(found))


def top_and_one(p: np.ndarray, q: np.ndarray, candidates: list[int]) -> list[float]:
    """The last one by a token step against q without the others, those by the residual."""
    rest = q.copy()
    rest[candidates[:-1]] = 0.0
    rest /= rest.sum()
    last = min(1.0, p[candidates[-1]] / rest[candidates[-1]])
    residual = np.maximum(p - rest, 0.0)
    residual /= max(residual.sum(), 1e-300)
    chances = [float((1 - last) * residual[x]) for x in candidates]
    chances[-1] += last
    return chances


class Drawing(StandPathDrafter):
    """Draws a tree wherever it is followed, and keeps what y's way through it is worth."""

    def __init__(self, judge: Any, **settings: Any) -> None:
        super().__init__(StandTable(budget_bytes=1 << 20, order=2), **settings)
        self.judge, self.worth = judge, []

    def follow(self, requests: Any, continuation: Any) -> Any:
        text = requests.tokens[requests.rows[0], : requests.lengths[0]].tolist()
        ahead = [y for y in continuation[0].tolist() if y >= 0]
        laws = [noisy(text + ahead[:i]) for i in range(len(ahead))]
        trees = [self.draft_paths(requests) for _ in range(TREES)]
        self.worth.append(np.mean([self._along(tree, laws, ahead) for tree in trees], axis=0))
        return super().follow(requests, continuation)

    def _along(self, drawn: Any, laws: list[np.ndarray], ahead: list[int]) -> np.ndarray:
        """prod P(y is accepted | candidates)/p(y): its mean is P(so many are accepted | y)."""
        worth, so_far = np.zeros(SHAPE.depth), 1.0
        paths = list(range(drawn.tokens.shape[1]))
        for i, y in enumerate(ahead):
            paths = [j for j in paths if drawn.lengths[0, j] > i]
            candidates = list(dict.fromkeys(drawn.tokens[0, paths, i].tolist()))
            if y not in candidates:
                break
            p, q = laws[i], np.zeros(6)
            ids, law = drawn.law_ids[0, paths[0], i], drawn.laws[0, paths[0], i]
            q[ids[law > 0]] = law[law > 0]
            so_far *= self.judge(p, q, candidates)[candidates.index(y)] / p[y]
            worth[i] = so_far
            paths = [j for j in paths if drawn.tokens[0, j, i] == y]
        return worth


@pytest.mark.parametrize(
    ("scheme", "judge"), [("without_replacement", rejections), ("top_plus_one", top_and_one)]
)
def test_drawn_trees_accept_as_often_as_counted(scheme: str, judge: Any) -> None:
    """The mean over places of what drawn trees are worth: within six standard errors."""
    trace = recorded(noisy, samples=8)
    made = Drawing(
        judge, draft_length=SHAPE.depth, shape=SHAPE, candidates=SHAPE.paths, drafting=scheme
    )
    chances = rank_chances(
        trace, lambda: made, depth=SHAPE.depth, branching=SHAPE.width, scheme=scheme
    )
    expected = chances.kept(SHAPE)[chances.weights > 0]
    drawn = np.array(made.worth)
    assert drawn.shape == expected.shape == (96 * 39, 2)
    gap = drawn - expected
    error = gap.std(axis=0, ddof=1) / np.sqrt(len(gap))
    assert np.all(np.abs(gap.mean(axis=0)) < SIGMAS * error)
    assert np.all(error < 0.03 * expected.mean(axis=0))
    swapped = chances.inner[:, :, [1, 0, 2]]  # the negative control: ranks in another's place
    wrong = replace(chances, inner=swapped, last=swapped).kept(SHAPE)[chances.weights > 0]
    assert np.any(np.abs((drawn - wrong).mean(axis=0)) > 2 * SIGMAS * error)
