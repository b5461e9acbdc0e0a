"""Stochastic beam search: samples of sequences without replacement, and lossless as drafts.

Every statistical test spends FALSE_ALARM / TESTS, exactly guaranteed (theory.equivalence).
"""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from proposers import PathDrafts, StandPathDrafter
from proposers.path_beam import conditioned
from tests.proposers.batches import requests
from tests.proposers.path_cases import Law, Path, bigram_table, paths_of, step_law, taught, tree_of
from theory.acceptance import Rule
from theory.candidates import set_law, tuple_law
from theory.equivalence import plan_fit
from theory.exact_sequences import completed, target_law

FALSE_ALARM, TESTS = 1e-10, 10
N = 100_000
Q = {
    0: {0: 0.5, 1: 0.375, 2: 0.125},
    1: {2: 0.75, 0: 0.125, 1: 0.125},
    2: {1: 0.5, 2: 0.5},
}


def beams(
    width: int,
    depth: int,
    *,
    laws: dict[int, dict[int, float]] = Q,
    max_paths: int | None = None,
    min_survival: float = 0.0,
) -> tuple[PathDrafts, dict[bytes, list[int]]]:
    """N beams behind token 0, and the requests that have equal ones."""
    drafter = StandPathDrafter(
        bigram_table(laws),
        draft_length=depth,
        candidates=width,
        drafting="beam",
        max_paths=max_paths,
        min_survival=min_survival,
        seed=7,
    )
    made = drafter.draft_paths(requests([[0]] * N, [depth] * N))
    equal: dict[bytes, list[int]] = {}
    for b in range(N):
        equal.setdefault(made.tokens[b].tobytes(), []).append(b)
    return made, equal


def test_the_root_s_candidates_are_draws_without_replacement_in_order() -> None:
    made, equal = beams(2, 1)
    law = np.zeros((3, 3))
    for drawn, mass in tuple_law([0.5, 0.375, 0.125], 2, "without_replacement").items():
        law[drawn] = mass
    counts = np.zeros((3, 3), np.int64)
    for same in equal.values():
        (x,), (y,) = paths_of(made, same[0])
        counts[x, y] += len(same)
    plan = plan_fit(law, N, false_alarm=FALSE_ALARM, tests=TESTS)
    assert plan.power(0.02, simulations=200) > 0.99
    assert not plan.evaluate(counts).rejected


@pytest.mark.parametrize("max_paths", [2, 3])
def test_the_last_beam_is_a_sample_of_sequences_without_replacement(max_paths: int) -> None:
    made, equal = beams(2, 2, max_paths=max_paths)
    sequences = list(product(range(3), repeat=2))
    q = [Q[0][x] * Q[x].get(y, 0.0) for x, y in sequences]
    pairs = set_law(q, 2, "without_replacement")
    counts = np.zeros(len(pairs), np.int64)
    place = {pair: i for i, pair in enumerate(pairs)}
    for same in equal.values():
        beam = [path for path in paths_of(made, same[0]) if len(path) == 2]
        pair = tuple(sorted(sequences.index((x, y)) for x, y in beam))
        counts[place[pair]] += len(same)
    law = np.array(list(pairs.values()))
    plan = plan_fit(law, N, false_alarm=FALSE_ALARM, tests=TESTS)
    assert plan.power(0.02, simulations=200) > 0.99
    assert not plan.evaluate(counts).rejected


def target(prefix: Path) -> Law:
    weights = {0: (1, 3, 3, 1), 1: (4, 1, 1, 2), 2: (2, 2, 3, 1), 3: (2, 2, 2, 2)}
    return tuple(Fraction(w, 8) for w in weights[prefix[-1] if prefix else 0])


def emission_is_the_target_s(
    made: PathDrafts,
    equal: dict[bytes, list[int]],
    depth: int,
    rule: Rule = "rrs_without_replacement",
) -> bool:
    """Whether the law of one step's tokens passes; TV 0.025 is seen with probability 0.99."""
    rng = np.random.default_rng(3)
    sequences = list(product(range(4), repeat=3))
    counts = np.zeros(len(sequences), np.int64)
    for same in equal.values():
        emitted = step_law(made, same[0], target, rule)
        law = completed(emitted, target, depth + 1)
        chances = np.zeros(len(sequences))
        for tokens, mass in law.items():
            chances[sequences.index(tokens[:3])] += float(mass)
        counts += rng.multinomial(len(same), chances / chances.sum())
    exact = target_law(target, 3)
    plan = plan_fit(
        [float(exact[tokens]) for tokens in sequences], N, false_alarm=FALSE_ALARM, tests=TESTS
    )
    assert plan.power(0.025, simulations=200) > 0.99
    return not plan.evaluate(counts).rejected


SOME = {
    0: {0: 0.5, 1: 0.25, 3: 0.25},
    1: {2: 0.75, 0: 0.125, 3: 0.125},
    2: {1: 0.5, 2: 0.5},
}
"""Nothing is known behind 3: a path ends there."""


@pytest.mark.parametrize(
    ("width", "depth", "max_paths", "min_survival"),
    [(2, 2, 2, 0.0), (2, 2, 3, 0.0), (3, 2, 3, 0.0), (3, 2, 4, 0.12), (2, 3, 2, 0.04)],
)
def test_a_step_of_beams_emits_the_target_s_law(
    width: int, depth: int, max_paths: int, min_survival: float
) -> None:
    made, equal = beams(width, depth, laws=SOME, max_paths=max_paths, min_survival=min_survival)
    assert {1, depth} <= set(np.unique(made.lengths))
    assert emission_is_the_target_s(made, equal, depth)


def test_a_beam_is_not_for_rules_that_look_at_all_candidates_at_once() -> None:
    """How many there are depends on which the first are, so their set has another law than q's."""
    made, equal = beams(3, 2, laws=SOME, max_paths=3)
    assert not emission_is_the_target_s(made, equal, 2, "sparse_optimal")


def test_the_check_sees_leaves_that_are_dropped_for_their_value() -> None:
    """Of the three leaves the two of greatest depth stay: short because of the token 3."""
    made, equal = beams(2, 2, laws=SOME, max_paths=3)
    for same in equal.values():
        b = same[0]
        long = np.flatnonzero(made.lengths[b] == 2)
        gone = made.lengths[b].size - long.size
        for field, empty in ((made.tokens, -1), (made.law_ids, -1), (made.laws, 0)):
            field[b] = np.concatenate([field[b][long], np.full_like(field[b][:gone], empty)])
        made.lengths[b] = np.where(np.arange(made.lengths[b].size) < long.size, 2, 0)
    assert not emission_is_the_target_s(made, equal, 2)


@pytest.mark.parametrize("most", [None, 6, 100])
def test_beams_keep_their_width_and_number_of_paths(most: int | None) -> None:
    rng = np.random.default_rng(1)
    width, depth, count = 4, 5, 300
    drafter = StandPathDrafter(
        taught(rng, 12), draft_length=depth, candidates=width, drafting="beam", max_paths=most
    )
    texts = [rng.integers(0, 12, 3).tolist() for _ in range(count)]
    made = drafter.draft_paths(requests(texts, [depth] * count))
    assert drafter.paths == made.tokens.shape[1] == min(most or width, width + 4 * (width - 1))
    for b in range(count):
        tree, paths = tree_of(made, b), paths_of(made, b)
        assert len(set(paths)) == len(paths) >= width
        nodes = [sum(map(len, tree_at(tree, d))) for d in range(depth)]
        assert nodes[-1] == width  # every law has at least four tokens
        assert max(nodes) <= width
        if most is None:
            assert {len(path) for path in paths} == {depth}
        if most == 100:  # nothing is dropped
            assert nodes == [width] * depth


def tree_at(tree: dict[Path, list[int]], depth: int) -> list[list[int]]:
    return [children for node, children in tree.items() if len(node) == depth]


def test_a_node_without_a_law_leaves_its_place_to_others() -> None:
    table = bigram_table({0: {1: 0.5, 2: 0.5}, 1: {0: 0.5, 1: 0.25, 3: 0.25}})
    drafter = StandPathDrafter(table, draft_length=2, candidates=2, drafting="beam", max_paths=3)
    made = drafter.draft_paths(requests([[0]] * 50, [2] * 50))
    for b in range(50):
        tree = tree_of(made, b)
        assert sorted(tree[()]) == [1, 2]
        assert len(tree[1,]) == 2
        assert (2,) not in tree


def test_cold_beams_are_the_most_probable_sequences() -> None:
    for most, expected in ((3, []), (4, [(2,)])):
        drafter = StandPathDrafter(
            bigram_table(Q), draft_length=2, candidates=3, drafting="beam", max_paths=most
        )
        made = drafter.draft_paths(requests([[0]], [2], temperature=0.0))
        # .25 .1875 .0625 | .28125 .046875 .046875 | .0625 .0625
        assert paths_of(made, 0) == [(0, 0), (0, 1), (1, 2), *expected]


@pytest.mark.parametrize("parent", [0.0, -1e-9, 50.0, -700.0, -5000.0])
@pytest.mark.parametrize("gap", [0.0, -1e-300, -1e-16, -1e-6, -0.5, -0.7, -3.0, -800.0, -1e5])
def test_conditioned_scores_are_finite_and_below_the_parent_s(parent: float, gap: float) -> None:
    for best in (-6000.0, -1.0, 0.0, 40.0):
        score = best + gap
        found = conditioned(score, best, parent)
        assert math.isfinite(found)
        assert found <= parent
        if abs(parent) < 100 and abs(best) < 100 and score > -100:
            inside = math.exp(-parent) - math.exp(-best) + math.exp(-score)
            if score < best and math.exp(-score) - math.exp(-best) > 1e-6 * inside:
                assert found == pytest.approx(-math.log(inside), rel=1e-8, abs=1e-8)
    assert conditioned(best, best, parent) == parent


def test_an_extreme_generator_gives_whole_beams() -> None:
    rng = np.random.default_rng(2)
    for value in (0.0, 1 - 2.0**-53):
        drafter = StandPathDrafter(taught(rng, 12), draft_length=3, candidates=4, drafting="beam")
        stuck: Any = type("Stuck", (), {"random": lambda _, shape, u=value: np.full(shape, u)})()
        drafter._path_rng = stuck
        made = drafter.draft_paths(requests([[1]], [3], temperature=0.01))
        for path in paths_of(made, 0):
            assert path
