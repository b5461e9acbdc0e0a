"""Chances by rank against enumeration, and the trees they add up to against other replays."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from small_traces import GivenDrafter, trace

from proposers.replay import make_drafter, profile, profile_paths, score, score_paths
from proposers.replay.tree_chances import RankChances
from proposers.replay.tree_counts import rank_chances
from proposers.replay.tree_report import judge
from proposers.shape import TreeShape
from theory.judgement import judgement
from theory.traces import Sampling

V = 4
LAWS = [
    ([9, 5, 4, 2], [2, 3, 6, 9]),
    ([6, 6, 4, 4], [10, 5, 5, 0]),
    ([1, 1, 1, 17], [5, 5, 5, 5]),
    ([10, 6, 3, 1], [12, 4, 2, 2]),
]
"""Pairs p, q in twentieths; the second q lacks a token, the last one is sharper than p."""
DRAWS = 200_000
FALSE_ALARM = 1e-12


def candidates(q: Sequence[Fraction], c: int, scheme: str):
    """Every tuple of candidates with its chance."""
    support = [x for x, mass in enumerate(q) if mass]
    c = min(c, len(support))
    if scheme == "top_plus_one":
        ranked = sorted(support, key=lambda x: -q[x])
        rest = sum(q[x] for x in ranked[c - 1 :])
        for x in ranked[c - 1 :]:
            yield (*ranked[: c - 1], x), q[x] / rest
        return
    for some in permutations(support, c):
        chance, left = Fraction(1), Fraction(1)
        for x in some:
            chance *= q[x] / left
            left -= q[x]
        yield some, chance


def accepted(p: list[Fraction], q: list[Fraction], c: int, scheme: str) -> np.ndarray:
    """P(the candidate of rank j is y and accepted) / p(y), (c, V), in rationals until the end."""
    rule = "top_plus_one" if scheme == "top_plus_one" else "rrs_without_replacement"
    mass = [[Fraction(0)] * V for _ in range(c)]
    for some, chance in candidates(q, c, scheme):
        chances, law = judgement(p, q, some, rule=rule)
        alive = chance
        for j, x in enumerate(some):
            mass[j][x] += alive * chances[j]
            alive *= 1 - chances[j]
        if scheme == "top_plus_one":
            for j, x in enumerate(some):
                mass[j][x] += alive * law[x]
    return np.array([[float(m / p[y]) for y, m in enumerate(row)] for row in mass])


def at_one_node(p: np.ndarray, q: np.ndarray, scheme: str, draws: int, seed: int) -> RankChances:
    """A step before each token y: answers of two tokens, of which the second is y."""
    recorded = trace(lambda text: p, [(0, [0, y]) for y in range(V)], [[0]], max_tokens=9)
    return rank_chances(
        recorded, lambda: GivenDrafter(lambda text: q, draft_length=1), depth=1, branching=3,
        scheme=scheme, draws=draws, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("case", range(len(LAWS)))
def test_without_replacement_is_the_enumeration(case: int) -> None:
    """Each w is a mean of DRAWS independent numbers in [0, 1]: Hoeffding's bound, met 48 times."""
    p, q = ([Fraction(mass, 20) for mass in law] for law in LAWS[case])
    found = at_one_node(
        np.array(p, float), np.array(q, float), "without_replacement", DRAWS, seed=case
    ).last[1::2, 0]
    expected = accepted(p, q, 3, "without_replacement").T
    bound = np.sqrt(np.log(2 * 48 / FALSE_ALARM) / (2 * DRAWS))
    assert np.abs(found - expected).max() < bound
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=2e-6)  # no draw is needed
    if case == 0:  # the bound tells the ranks from their neighbours
        assert np.abs(np.diff(expected, axis=1)).max() > 5 * bound


@pytest.mark.parametrize("case", range(len(LAWS)))
def test_top_plus_one_is_the_enumeration_for_every_number_of_candidates(case: int) -> None:
    p, q = ([Fraction(mass, 20) for mass in law] for law in LAWS[case])
    found = at_one_node(np.array(p, float), np.array(q, float), "top_plus_one", 1, seed=0)
    for c in (1, 2, 3):
        expected = accepted(p, q, c, "top_plus_one").T
        np.testing.assert_allclose(found.last[1::2, 0, c - 1], expected[:, -1], rtol=2e-6)
        np.testing.assert_allclose(found.inner[1::2, 0, : c - 1], expected[:, :-1], rtol=2e-6)


def target(text: Sequence[int]) -> np.ndarray:
    return np.random.default_rng([7, *text]).dirichlet(np.ones(V))


def draft(text: Sequence[int]) -> np.ndarray:
    law = target(text) ** 1.5 + 0.05
    law[text[-1]] = 0.0
    return law / law.sum()


def drawn_trace(answers: int = 4, length: int = 25, sampling: Sampling | None = None):
    """max_tokens ends some steps' budgets, the end of the answer the others."""
    rng = np.random.default_rng(8)
    given = [(0, rng.integers(0, V, length).tolist()) for _ in range(answers)]
    return trace(target, given, [[0, 1]], max_tokens=length + 1, sampling=sampling)


@pytest.mark.parametrize(
    ("scheme", "draws", "close"),
    [("top_plus_one", 1, 1e-6), ("without_replacement", 20_000, 2e-3)],
)
def test_root_branching_is_the_replay_with_several_candidates(scheme, draws, close) -> None:
    recorded = drawn_trace()

    def make() -> GivenDrafter:
        return GivenDrafter(draft, draft_length=3)

    found = rank_chances(recorded, make, depth=3, branching=3, scheme=scheme, draws=draws)
    assert found.steps == 4 * 24
    rule = "top_plus_one" if scheme == "top_plus_one" else "rrs_without_replacement"
    for k in (1, 2, 3):
        paths = profile_paths(recorded, make, draft_length=3, candidates=k, drafts=scheme)
        expected = score_paths(paths, recorded, rule=rule, draft_length=3)
        verdict = judge(recorded, found, [("", TreeShape.root_branching(k, 3))])[0]
        np.testing.assert_allclose(verdict.score.steps, expected.steps, rtol=close)
    chain = score(profile(recorded, make, draft_length=3), recorded, rule="token", draft_length=3)
    verdict = judge(recorded, found, [("", TreeShape.root_branching(1, 3))])[0]
    np.testing.assert_allclose(verdict.score.steps, chain.steps, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["without_replacement", "top_plus_one"])
def test_counts_fall_from_parent_to_child_and_no_more_than_one_child_is_accepted(scheme) -> None:
    recorded = drawn_trace()
    found = rank_chances(
        recorded, lambda: GivenDrafter(draft, draft_length=3), depth=3, branching=3,
        scheme=scheme, draws=3,
    )  # fmt: skip
    nodes = [(a, b, c)[:d] for a in range(3) for b in range(3) for c in range(3) for d in (1, 2, 3)]
    counts = dict(zip(nodes, found.counts(nodes), strict=True))
    assert all(counts[n] <= counts[n[:-1]] + 1e-6 for n in nodes if len(n) > 1)
    assert min(counts[0, 0, 1], counts[0, 1], counts[1,]) > 0
    full = TreeShape(tuple(set(nodes)))
    kept = found.kept(full)
    assert np.all(np.diff(kept, axis=1) <= 1e-6)
    assert kept.max() <= 1 + 1e-6
    if found.separable:
        assert kept.sum() == pytest.approx(sum(counts.values()), rel=1e-5)
        assert kept.sum(axis=0) == pytest.approx(
            [sum(v for n, v in counts.items() if len(n) == d) for d in (1, 2, 3)], rel=1e-5
        )


def test_at_temperature_0_the_candidates_are_the_most_probable_tokens() -> None:
    """A draft at temperature 0 is a point mass, of which no rank but the first could be told."""
    cold = Sampling(temperature=0.0)
    recorded = drawn_trace(sampling=cold)
    for scheme in ("without_replacement", "top_plus_one"):
        found = rank_chances(
            recorded, lambda: GivenDrafter(draft, draft_length=1), depth=1, branching=3,
            scheme=scheme,
        )  # fmt: skip
        assert found.separable
        for t in np.flatnonzero(found.weights):
            start = recorded.answer_begins[recorded.answer_begins <= t].max()
            law = draft([0, 1, *recorded.tokens[start:t].tolist()])
            place = int(np.sum(law > law[recorded.tokens[t]]))
            expected = np.arange(3) == place if law[recorded.tokens[t]] > 0 else np.zeros(3)
            np.testing.assert_array_equal(found.last[t, 0], expected)


def test_stand_learns_while_it_is_walked() -> None:
    """Warm contexts are worth more than cold ones, and the walk repeats itself."""
    recorded = drawn_trace(answers=12, length=60)

    def walked() -> RankChances:
        make = make_drafter("stand", {"min_survival": 0.0, "order": 2}, draft_length=4)
        return rank_chances(recorded, make, depth=4, branching=4, scheme="without_replacement")

    first, second = walked(), walked()
    np.testing.assert_array_equal(first.last, second.last)
    kept = first.kept(TreeShape.root_branching(4, 4)).sum(axis=1).reshape(12, 60)
    assert kept[8:].mean() > 1.5 * kept[0, 1:15].mean() > 0


def test_wrong_arguments_are_refused_in_words() -> None:
    recorded = drawn_trace(answers=1, length=5)

    def make() -> GivenDrafter:
        return GivenDrafter(draft, draft_length=2)

    with pytest.raises(ValueError, match="scheme must be one of without_replacement, top_plus_one"):
        rank_chances(recorded, make, depth=2, branching=2, scheme="iid")
    with pytest.raises(ValueError, match="depth 2, branching 0 and 8 draws; each must be 1 or"):
        rank_chances(recorded, make, depth=2, branching=0, scheme="top_plus_one")
    found = rank_chances(recorded, make, depth=2, branching=2, scheme="top_plus_one")
    with pytest.raises(ValueError, match="a tree of depth 3 and 1 children was given"):
        found.kept(TreeShape.root_branching(1, 3))
    with pytest.raises(ValueError, match="reach to depth 2 and 2 children"):
        found.counts([(2,)])
