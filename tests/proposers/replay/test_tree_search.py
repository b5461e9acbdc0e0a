"""Searches for shapes against every shape of a small tree."""

from __future__ import annotations

import numpy as np
import pytest
from small_shapes import BRANCHING, DEPTH, MOST, shapes

from proposers.replay.tree_chances import RankChances
from proposers.replay.tree_greedy import _Growing, greedy
from proposers.replay.tree_limits import Limits, forward_tokens
from proposers.replay.tree_report import best_root_branching
from proposers.replay.tree_search import (
    best_subtree,
    find_shape,
    large_tree,
    positional_acceptance,
)
from proposers.shape import Node, TreeShape

LIMITS = [
    *(Limits(budget) for budget in range(1, MOST + 1)),
    *(Limits(budget, paths=paths) for budget in (3, 5, 6) for paths in (1, 2, 3)),
    *(Limits(budget, "tokens") for budget in range(2, 9)),
    *(Limits(budget, "tokens", paths) for budget in (5, 7, 8) for paths in (1, 2)),
]


def within(limits: Limits) -> list[TreeShape]:
    return [shape for shape in shapes() if limits.allow(shape)]


def every_node() -> list[Node]:
    found: list[Node] = [()]
    for node in found:
        if len(node) < DEPTH:
            found += [(*node, rank) for rank in range(BRANCHING)]
    return sorted(found[1:])


def separable(seed: int, places: int = 40, falling: bool = False) -> RankChances:
    """Chances of ranks that add up to at most 1 at every node."""
    rng = np.random.default_rng(seed)
    w = rng.dirichlet(np.full(BRANCHING + 1, 0.5), (places, DEPTH))[:, :, :BRANCHING]
    if falling:
        w = -np.sort(-w, axis=2)
    w = w.astype(np.float32)
    return RankChances(w, w, np.arange(places) % 4 / 2)


def siblings_matter(seed: int, places: int = 60) -> RankChances:
    """As top_plus_one: y is the candidate of its place in q if that is fixed, or drawn."""
    rng = np.random.default_rng(seed)
    q = -np.sort(-rng.dirichlet(np.full(5, 0.4), (places, DEPTH)), axis=2)
    y, p = rng.integers(0, 4, (places, DEPTH)), rng.random((places, DEPTH))
    inner = y[:, :, None] == np.arange(BRANCHING)
    rest = 1 - np.cumsum(q, axis=2)[:, :, :BRANCHING] + q[:, :, :BRANCHING]
    own = np.take_along_axis(q, y[:, :, None], axis=2)
    last = np.where(
        y[:, :, None] >= np.arange(BRANCHING), np.minimum(1, own / (rest * p[:, :, None])), 0
    )
    return RankChances(inner.astype(np.float32), last.astype(np.float32), np.arange(places) % 3 / 2)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_programme_finds_the_best_of_all_shapes_whatever_the_counts(limits: Limits) -> None:
    """Counts that fall nowhere, so that a node may be worth taking for its children only."""
    rng = np.random.default_rng(limits.budget)
    nodes = every_node()
    for _ in range(5):
        counts = rng.random(len(nodes)) ** 3
        worth = dict(zip(nodes, counts, strict=True))
        found = best_subtree(nodes, counts, limits)
        assert limits.allow(found)
        best = max(sum(worth[n] for n in shape.nodes) for shape in within(limits))
        assert sum(worth[n] for n in found.nodes) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_exact_is_the_best_of_all_shapes(limits: Limits) -> None:
    chances = separable(3)
    found = find_shape(chances, limits, "exact")
    best = max(chances.accepted(shape) for shape in within(limits))
    assert chances.accepted(found) == pytest.approx(best, rel=1e-9)
    assert limits.allow(found)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_sequoia_is_the_best_of_all_shapes_under_its_own_model(limits: Limits) -> None:
    chances = separable(4)
    vector = positional_acceptance(chances)

    def modelled(shape: TreeShape) -> float:
        return sum(float(np.prod([vector[rank] for rank in node])) for node in shape.nodes)

    found = find_shape(chances, limits, "sequoia")
    assert limits.allow(found)
    assert modelled(found) == pytest.approx(max(map(modelled, within(limits))), rel=1e-5)


def test_the_positional_acceptance_is_that_of_the_nodes_that_are_reached() -> None:
    """By hand: one place never gets to its second depth, another one with 0.6."""
    w = np.zeros((3, 2, 2), np.float32)
    w[0, 0], w[0, 1] = [0.0, 0.0], [1.0, 0.0]
    w[1, 0], w[1, 1] = [0.5, 0.1], [0.2, 0.3]
    w[2] = 0.5  # no step begins there
    found = positional_acceptance(RankChances(w, w, np.array([1.0, 1.0, 0.0])))
    np.testing.assert_allclose(found, [(0.5 + 0.6 * 0.2) / 2.6, (0.1 + 0.6 * 0.3) / 2.6], rtol=1e-6)


@pytest.mark.parametrize("limits", LIMITS[:MOST], ids=str)
def test_greedy_keeps_the_nodes_with_the_most_accepted_tokens(limits: Limits) -> None:
    """STAND's choice, which is optimal where counts fall with the rank."""
    chances = separable(5, falling=True)
    found = greedy(chances, limits)
    nodes = every_node()
    counts = chances.counts(nodes)
    most = sorted(np.array(nodes, object)[np.argsort(-counts)[: limits.budget]])
    assert list(found.nodes) == [tuple(node) for node in most]
    assert chances.accepted(found) == pytest.approx(
        max(chances.accepted(shape) for shape in within(limits)), rel=1e-9
    )


@pytest.mark.parametrize("make", [separable, siblings_matter])
def test_greedy_is_near_the_best_and_never_beyond_it(make) -> None:
    """A heuristic for what depends on siblings and for tokens: 97 % of the gain, on the average."""
    shares = []
    for limits in LIMITS:
        chances = make(7 + limits.budget)
        found = greedy(chances, limits)
        assert limits.allow(found)
        best = max(chances.accepted(shape) for shape in within(limits))
        shares.append(chances.accepted(found) / best)
    assert max(shares) <= 1 + 1e-9
    assert np.mean(shares) > 0.97
    assert min(shares) > 0.8


def test_what_greedy_keeps_account_of_is_what_the_shape_is_worth() -> None:
    """Reach, costs and gains after each addition, with a sibling that changes when one is added."""
    chances, rng = siblings_matter(1), np.random.default_rng(2)
    limits = Limits(1000, "tokens")
    tree = _Growing(chances)
    worth = 0.0
    for _ in range(12):
        node = list(tree.reach)[rng.integers(len(tree.reach))]
        gains = tree.gains(node)
        if not gains.size:
            continue
        more = int(rng.integers(gains.size))
        cost = tree.cost(node, more, limits)
        before = tree.tokens
        tree.add(node, more)
        worth += gains[more]
        shape = TreeShape(tuple(tree.reach)[1:])
        assert tree.tokens == forward_tokens(shape) == before + cost
        assert tree.paths == shape.paths
        assert worth / chances.steps == pytest.approx(chances.accepted(shape), rel=1e-6)
        for each in tree.reach:  # kept gains are those that a new computation finds
            kept = tree.gains(each).copy()
            tree._gains.pop(each)
            np.testing.assert_allclose(tree.gains(each), kept, atol=1e-9)
    assert len(tree.reach) > 12


def test_the_large_tree_holds_what_counts_and_chains_behind_it() -> None:
    chances = separable(6)
    nodes, counts = large_tree(chances, size=7)
    np.testing.assert_allclose(counts, chances.counts(nodes))
    shape = TreeShape(tuple(nodes))
    assert list(shape.nodes) == nodes
    assert all(len(node) == DEPTH for node in nodes if not shape.children(node))
    everything, _ = large_tree(chances)
    assert everything == every_node()


def test_nothing_accepted_is_one_draft() -> None:
    none = np.zeros((5, DEPTH, BRANCHING), np.float32)
    chances = RankChances(none, none, np.ones(5))
    for method in ("exact", "greedy", "sequoia"):
        assert find_shape(chances, Limits(4), method).nodes == ((0,),)


def test_the_best_root_branching_keeps_the_limits() -> None:
    chances = separable(8)
    for limits in (Limits(6), Limits(8, "tokens", 2)):
        found = best_root_branching(chances, limits)
        candidates = [
            shape
            for k in (1, 2, 3)
            for length in (1, 2, 3)
            if limits.allow(shape := TreeShape.root_branching(k, length))
        ]
        assert found in candidates
        assert chances.accepted(found) == max(chances.accepted(s) for s in candidates)


def test_wrong_arguments_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a budget of 0 nodes has no place for a draft; it must"):
        Limits(0)
    with pytest.raises(ValueError, match="a budget of 1 tokens has no place"):
        Limits(1, "tokens")
    with pytest.raises(ValueError, match="paths is 0; it must be 1 or more"):
        Limits(4, paths=0)
    with pytest.raises(ValueError, match="cost must be one of nodes, tokens; got 'time'"):
        Limits(4, "time")
    with pytest.raises(ValueError, match="method must be one of exact, greedy, sequoia"):
        find_shape(separable(0), Limits(4), "best")
    for method in ("exact", "sequoia"):
        with pytest.raises(ValueError, match="for top_plus_one use greedy"):
            find_shape(siblings_matter(0), Limits(4), method)
