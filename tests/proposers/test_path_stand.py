"""Paths from the table: every node has the law of a chain there, and the children it should have.

Every statistical test spends FALSE_ALARM / TESTS, exactly guaranteed (theory.equivalence).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposers import (
    DraftRequests,
    PathDrafts,
    StandDrafter,
    StandPathDrafter,
    StandTable,
    TreeShape,
)
from proposers.acceptance import expected_acceptance
from proposers.noise import exponential, request_key, row_key
from proposers.path_batch import DRAFTING
from tests.proposers.batches import requests
from tests.proposers.path_cases import Path, bigram_table, law_at, paths_of, taught, tree_of
from theory.candidates import tuple_law
from theory.equivalence import plan_fit

FALSE_ALARM, TESTS = 1e-10, 8
V, K, L = 12, 3, 4
N = 100_000
BUSH = TreeShape(((0,), (0, 0), (0, 0, 0), (0, 0, 1), (0, 1), (1,), (1, 0)))


def asked(
    texts: list[list[int]],
    *,
    budget: int | list[int] = L,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    keys: list[int] | None = None,
) -> DraftRequests:
    batch = len(texts)
    budgets = budget if isinstance(budget, list) else [budget] * batch
    return replace(
        requests(texts, budgets, temperature=temperature),
        top_k=np.full(batch, top_k, np.int64),
        top_p=np.full(batch, top_p),
        noise_keys=np.array(keys or [0] * batch, np.uint64),
    )


def drafter_of(table: StandTable, drafting: str, **options: Any) -> StandPathDrafter:
    """With every node that a beam left behind, so that a node has the first of its candidates."""
    given = {"draft_length": L, "candidates": K, "drafting": drafting} | options
    if drafting == "beam":
        given.setdefault("max_paths", 100)
    return StandPathDrafter(table, **given)


def followed(table: StandTable, made: PathDrafts, b: int, wanted: DraftRequests) -> Any:
    """A StandDrafter's laws along every path of a request."""
    paths = paths_of(made, b)
    along = np.full((len(paths), L), -1, np.int32)
    for j, path in enumerate(paths):
        along[j, : len(path)] = path
    repeated = wanted.subset(np.full(len(paths), b))
    return StandDrafter(table, draft_length=L).follow(repeated, along)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    drafting=st.sampled_from([*DRAFTING, "bush"]),
    temperature=st.sampled_from([0.01, 0.3, 0.7, 1.0, 1.7]),
    top_k=st.integers(0, V),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-6]),
    seeded=st.booleans(),
)
def test_every_node_has_the_law_of_a_chain_there(
    seed: int, drafting: str, temperature: float, top_k: int, top_p: float, seeded: bool
) -> None:
    """Bit for bit; and as many different children as the shape asks for and the law has tokens."""
    rng = np.random.default_rng(seed)
    table = taught(rng, V)
    texts = [rng.integers(0, V, n).tolist() for n in (1, 2, 7)]
    keys = [request_key(s) if seeded else 0 for s in (1, 2, 3)]
    drafter = drafter_of(table, drafting, seed=seed) if drafting != "bush" else drafter_of(
        table, "without_replacement", candidates=BUSH.paths, shape=BUSH, seed=seed
    )  # fmt: skip
    wanted = asked(texts, temperature=temperature, top_k=top_k, top_p=top_p, keys=keys)
    made = drafter.draft_paths(wanted)
    for b in range(3):
        along = followed(table, made, b, wanted)
        paths, tree = paths_of(made, b), tree_of(made, b)
        for j, path in enumerate(paths):
            n = len(path)
            np.testing.assert_array_equal(made.law_ids[b, j, :n], along.law_ids[j, :n])
            np.testing.assert_array_equal(made.laws[b, j, :n], along.law_probabilities[j, :n])
            for i in range(n):
                q = law_at(made, b, j, i)
                assert q[path[i]] > 0
                assert sum(q.values()) == pytest.approx(1, abs=1e-12)
        if drafting == "iid" and not seeded:
            assert [len(path) for path in paths] == [L] * K
        elif drafting == "beam":
            assert sum(len(path) == L for path in paths) == min(K, len(paths))
        else:
            assert len(set(paths)) == len(paths)
            compare_shape(drafter.shape, made, b, tree)


def compare_shape(shape: TreeShape, made: PathDrafts, b: int, tree: dict[Path, list[int]]) -> None:
    """The drafted tree is the shape, but for nodes whose law has too few tokens."""
    places = {node: (j, len(node)) for j, path in enumerate(paths_of(made, b)) for node in (
        path[:i] for i in range(len(path)))}  # fmt: skip
    queue: list[tuple[Path, Path]] = [((), ())]
    while queue:
        node, ranks = queue.pop()
        wants = shape.children(ranks)
        children = tree.get(node, [])
        if wants:
            assert len(children) == min(wants, len(law_at(made, b, *places[node])))
        else:
            assert not children
        queue += [((*node, x), (*ranks, r)) for r, x in enumerate(children)]


@pytest.mark.parametrize("drafting", DRAFTING)
def test_one_path_is_a_chain(drafting: str) -> None:
    """With a noise key the very one; without, its law, and tokens by it (TV 0.02 is seen)."""
    table = taught(np.random.default_rng(5), V, order=1)
    drafter = drafter_of(table, drafting, candidates=1)
    texts = [[b % V] for b in range(50)]
    wanted = asked(texts, keys=[request_key(s) for s in range(50)], top_p=0.9)
    chain = StandDrafter(table, draft_length=L).draft(wanted)
    made = drafter.draft_paths(wanted)
    np.testing.assert_array_equal(made.tokens[:, 0], chain.tokens)
    np.testing.assert_array_equal(made.lengths[:, 0], chain.lengths)
    np.testing.assert_array_equal(made.laws[:, 0], chain.law_probabilities)
    np.testing.assert_array_equal(made.law_ids[:, 0], chain.law_ids)
    drawn = drafter.draft_paths(asked([[3]] * N, budget=2))
    law = np.zeros((V, V))
    for x, mass in law_at(drawn, 0, 0, 0).items():
        b = int(np.flatnonzero(drawn.tokens[:, 0, 0] == x)[0])
        for y, then in law_at(drawn, b, 0, 1).items():
            law[x, y] = mass * then
    counts = np.zeros((V, V), np.int64)
    np.add.at(counts, (drawn.tokens[:, 0, 0], drawn.tokens[:, 0, 1]), 1)
    plan = plan_fit(law, N, false_alarm=FALSE_ALARM, tests=TESTS)
    assert plan.power(0.03, simulations=200) > 0.99
    assert not plan.evaluate(counts).rejected


@pytest.mark.parametrize("drafting", ["iid", "without_replacement", "top_plus_one"])
def test_candidates_and_the_chains_behind_them_are_independent_draws(drafting: Any) -> None:
    """The joint law of two candidates and the drafts behind both; TV 0.03 is seen."""
    laws = {0: {0: 0.5, 1: 0.3, 2: 0.2}, 1: {2: 0.8, 0: 0.2}, 2: {1: 0.6, 2: 0.3, 0: 0.1}}
    made = drafter_of(bigram_table(laws), drafting, candidates=2, draft_length=2).draft_paths(
        asked([[0]] * N, budget=2)
    )
    law = np.zeros((3,) * 4)
    for (x, y), mass in tuple_law([0.5, 0.3, 0.2], 2, drafting).items():
        for u, first in laws[x].items():
            for v, second in laws[y].items():
                law[x, u, y, v] = mass * first * second
    counts = np.zeros((3,) * 4, np.int64)
    np.add.at(counts, tuple(made.tokens.reshape(N, 4).T), 1)
    plan = plan_fit(law, N, false_alarm=FALSE_ALARM, tests=TESTS)
    assert plan.power(0.03, simulations=200) > 0.99
    assert not plan.evaluate(counts).rejected


@pytest.mark.parametrize("drafting", DRAFTING)
def test_at_temperature_0_the_most_probable_tokens_are_candidates(drafting: str) -> None:
    rng = np.random.default_rng(3)
    table = taught(rng, V)
    drafter = drafter_of(table, drafting)
    texts = [rng.integers(0, V, 5).tolist() for _ in range(20)]
    wanted = asked(texts, temperature=0.0, top_k=1, top_p=0.1)
    made = drafter.draft_paths(wanted)
    again = drafter.draft_paths(replace(wanted, noise_keys=wanted.noise_keys + np.uint64(5)))
    np.testing.assert_array_equal(made.tokens, again.tokens)
    warm = replace(wanted, temperatures=np.ones(20), top_k=wanted.top_k * 0, top_p=np.ones(20))
    for b in range(20):
        tree, along = tree_of(made, b), followed(table, made, b, warm)
        for j, path in enumerate(paths_of(made, b)):
            for i, token in enumerate(path):
                assert law_at(made, b, j, i) == {token: 1.0}
                siblings = tree[path[:i]]
                assert siblings == along.law_ids[j, i, : len(siblings)].tolist()
        if drafting != "beam":
            assert [len(tree[()])] == [K]
            assert {len(children) for node, children in tree.items() if node} == {1}


@pytest.mark.parametrize("drafting", DRAFTING)
def test_seeded_candidates_are_the_first_arrivals_of_the_keyed_race(drafting: str) -> None:
    """Whatever else is in the batch, whatever the drafter's seed."""
    rng = np.random.default_rng(4)
    table = taught(rng, V)
    texts = [rng.integers(0, V, n).tolist() for n in (5, 2, 9)]
    keys = [request_key(s) for s in (1, 2, 3)]
    made = drafter_of(table, drafting, seed=1).draft_paths(asked(texts, keys=keys))
    for b, text in enumerate(texts):
        alone = drafter_of(table, drafting, seed=2).draft_paths(asked([text], keys=[keys[b]]))
        np.testing.assert_array_equal(alone.tokens[0], made.tokens[b])
        tree = tree_of(made, b)
        for j, path in enumerate(paths_of(made, b)):
            for i in range(len(path)):
                row = np.uint64(row_key(np.uint64(keys[b]), len(text) + i))
                q = law_at(made, b, j, i)
                arrivals = sorted(q, key=lambda x, row=row, q=q: exponential(row, x) / q[x])
                siblings = tree[path[:i]]
                assert siblings == arrivals[: len(siblings)]
                if drafting != "beam":
                    assert len(siblings) == (1 if i else K)


@pytest.mark.parametrize("drafting", DRAFTING)
def test_the_seed_decides_the_drafts_and_no_noise_comes_twice(drafting: str) -> None:
    table = taught(np.random.default_rng(5), V)
    wanted = asked([[1, 2, 3], [4]])
    first, same, other = (drafter_of(table, drafting, seed=s) for s in (1, 1, 2))
    made = [drafter.draft_paths(wanted).tokens for drafter in (first, same, other, first)]
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()
    assert (made[0] != made[3]).any()
    chain, fresh = StandDrafter(table, draft_length=L, seed=1), first.draft(wanted)
    np.testing.assert_array_equal(chain.draft(wanted).tokens, fresh.tokens)


@pytest.mark.parametrize("drafting", DRAFTING)
def test_budgets_bound_the_depth(drafting: str) -> None:
    table = taught(np.random.default_rng(6), V)
    made = drafter_of(table, drafting).draft_paths(
        asked([[1], [2], [3], [4], [5]], budget=[0, 1, L, L + 5, -2])
    )
    depths = made.lengths.max(axis=1)
    assert depths.tolist() == [0, 1, L, L, 0]
    paths = [len(paths_of(made, b)) for b in range(5)]
    assert paths[:2] == [0, K]
    assert paths[4] == 0
    assert min(paths[2:4]) >= K


@pytest.mark.parametrize("drafting", DRAFTING)
def test_no_requests_and_an_empty_table_give_no_paths(drafting: str) -> None:
    made = drafter_of(StandTable(budget_bytes=2**16), drafting).draft_paths(asked([[1], [2, 3]]))
    assert not made.lengths.any()
    assert paths_of(made, 0) == paths_of(made, 1) == []
    table = taught(np.random.default_rng(2), V)
    nobody = asked([[1]]).subset(np.zeros(0, np.int64))
    assert len(drafter_of(table, drafting).draft_paths(nobody)) == 0


def test_a_narrow_law_gives_no_fewer_chains() -> None:
    table = bigram_table({1: {2: 1.0}, 2: {5: 0.75, 1: 0.25}})
    made = drafter_of(table, "iid", draft_length=2).draft_paths(asked([[1], [2]], budget=2))
    assert [path[0] for path in paths_of(made, 0)] == [2] * K
    assert [len(path) for path in paths_of(made, 0)] == [2] * K
    assert [len(path) for path in paths_of(made, 1)] == [
        2 if path[0] == 1 else 1 for path in paths_of(made, 1)
    ]


@pytest.mark.parametrize("drafting", ["without_replacement", "top_plus_one", "beam"])
def test_a_narrow_law_gives_fewer_children(drafting: str) -> None:
    """Behind 1 comes one token, behind 2 two, behind 5 none."""
    table = bigram_table({1: {2: 1.0}, 2: {5: 0.75, 1: 0.25}})
    made = drafter_of(table, drafting, draft_length=2).draft_paths(asked([[1], [2], [5]], budget=2))
    assert tree_of(made, 0)[()] == [2]
    assert sorted(tree_of(made, 1)[()]) == [1, 5]
    assert (5,) not in tree_of(made, 1)
    assert paths_of(made, 2) == []


@pytest.mark.parametrize("drafting", DRAFTING)
def test_the_support_is_cut_before_the_draws(drafting: str) -> None:
    rng = np.random.default_rng(7)
    table = taught(rng, V)
    texts = [rng.integers(0, V, 5).tolist() for _ in range(20)]
    wanted = asked(texts, temperature=0.7)
    made = drafter_of(table, drafting, max_support=2).draft_paths(wanted)
    assert made.laws.shape[-1] == 2
    for b in range(20):
        along = followed(table, made, b, wanted)
        for j, path in enumerate(paths_of(made, b)):
            for i, token in enumerate(path):
                assert token in made.law_ids[b, j, i]
                two = along.law_probabilities[j, i, :2]
                np.testing.assert_array_equal(made.law_ids[b, j, i], along.law_ids[j, i, :2])
                np.testing.assert_allclose(made.laws[b, j, i], two / two.sum(), rtol=1e-12)


@pytest.mark.parametrize("drafting", DRAFTING)
@pytest.mark.parametrize("min_survival", [0.05, 0.12, 0.3])
def test_min_survival_ends_paths_but_takes_no_sibling(drafting: str, min_survival: float) -> None:
    """A node has all its children or none, by the chance that the verifier takes one of them."""
    rng = np.random.default_rng(8)
    table = taught(rng, V, order=1)
    drafter = drafter_of(table, drafting, min_survival=min_survival)
    texts = [[int(x)] for x in rng.integers(0, V, 100)]
    made = drafter.draft_paths(asked(texts))
    ended = 0
    for b, text in enumerate(texts):
        tree = tree_of(made, b)
        queue: list[tuple[Path, float]] = [((), 1.0)]
        while queue:
            node, reach = queue.pop()
            found = table.look_up(np.array([*text, *node][-1:], np.int32))
            assert found is not None
            ids, mean, visits, _ = found
            q = dict(zip(ids.tolist(), mean / mean.sum(), strict=True))
            chance = reach * expected_acceptance(1, 1, visits, mean[0], 1.0)
            children = tree.get(node, [])
            if abs(chance - min_survival) < 1e-6:
                continue
            if drafting != "beam" or not node:
                allowed = len(node) < L and chance >= min_survival
                assert bool(children) == allowed
                ended += not allowed
                if allowed and drafting != "iid":
                    assert len(children) == (1 if node else K)
            elif children:
                assert chance >= min_survival
            best = max((q[x] for x in children), default=0)
            for j, x in enumerate(children):
                if drafting == "beam":
                    best = max(q[y] for y in children[: j + 1])
                share = chance / reach * (1 if drafting == "iid" else q[x] / best)
                queue.append(((*node, x), reach * share))
                reach *= 1 if drafting == "iid" else 1 - share
                chance = chance * (1 if drafting == "iid" else 1 - share)
    assert ended or drafting == "beam"


class Stuck:
    """A generator that knows one number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, shape: tuple[int, ...]) -> Any:
        return np.full(shape, self.value)


@pytest.mark.parametrize("drafting", DRAFTING)
@pytest.mark.parametrize("value", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.02, 1.0])
def test_no_token_is_drafted_that_q_gives_nothing(
    drafting: str, value: float, temperature: float
) -> None:
    """The masses of 6 equal entries sum to just below 1, and the 7th underflows at low T."""
    table = bigram_table({0: dict.fromkeys(range(6), 0.15) | {6: 1e-6}})
    drafter = drafter_of(table, drafting, candidates=8, draft_length=1)
    stuck: Any = Stuck(value)
    drafter._path_rng = stuck
    made = drafter.draft_paths(asked([[0]], temperature=temperature))
    tokens = [token for (token,) in paths_of(made, 0)]
    q = law_at(made, 0, 0, 0)
    assert all(q[token] > 0 for token in tokens)
    if drafting != "iid":
        assert sorted(tokens) == sorted(q)


def test_later_observations_leave_published_laws_alone() -> None:
    table = taught(np.random.default_rng(1), V)
    drafter = drafter_of(table, "without_replacement")
    made = drafter.draft_paths(asked([[1, 2, 3]]))
    before = [field.copy() for field in (made.tokens, made.lengths, made.law_ids, made.laws)]
    drafter.start(1, np.arange(V, dtype=np.int32))
    drafter.draft_paths(asked([[1, 2, 3]]))
    for old, new in zip(before, (made.tokens, made.lengths, made.law_ids, made.laws), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"candidates": 0}, "candidates is 0; it must lie in 1..16"),
        ({"candidates": 17}, "candidates is 17"),
        ({"draft_length": 0}, "draft_length is 0"),
        ({"drafting": "greedy"}, "drafting is 'greedy'; it must be one of iid, without_repl"),
        ({"max_support": 0}, "max_support is 0"),
        ({"min_survival": 1.0}, "min_survival is 1.0"),
        ({"shape": BUSH, "drafting": "iid"}, "a shape goes with drafting without_replacement or"),
        ({"shape": BUSH, "drafting": "beam"}, "a shape goes with"),
        ({"shape": BUSH, "candidates": 3}, "has 4 paths and candidates is 3; they must be"),
        ({"shape": BUSH, "candidates": 4, "draft_length": 2}, "3 tokens deep, draft_length is 2"),
        ({"max_paths": 4}, "max_paths goes with drafting 'beam' only"),
        ({"max_paths": 2, "drafting": "beam"}, "max_paths is 2; it must be at least the 3"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    table = StandTable(budget_bytes=2**16)
    given = {"draft_length": L, "candidates": K} | options
    with pytest.raises(ValueError, match=said) as refused:
        StandPathDrafter(table, **given)
    assert "\n" not in str(refused.value)
