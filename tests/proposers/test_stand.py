"""STAND drafts: the published law is the table's, re-tempered and cut; the tokens follow it.

Every statistical test spends FALSE_ALARM / TESTS, exactly guaranteed (theory.equivalence).
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from proposers import ENTRIES, DraftRequests, Drafts, StandDrafter, StandTable, VerifiedRows
from proposers.acceptance import expected_acceptance
from proposers.mixture import LEAST
from proposers.noise import request_key
from theory.equivalence import joint_counts, plan_fit

Law = NDArray[np.float64]
FALSE_ALARM, TESTS = 1e-10, 4
V, K = 12, 4
N = 200_000


def taught(rng: np.random.Generator, order: int = 3, rows: int = 60) -> StandTable:
    """A table that knows every one-token context over V tokens and some longer ones."""
    table = StandTable(order=order, budget_bytes=2**20)
    count = rows + V
    tokens = rng.integers(0, V, 4 * count).astype(np.int32)
    ends = np.arange(4, 4 * count + 1, 4)
    tokens[4 * rows + 3 :: 4] = np.arange(V)
    ids = np.stack([rng.permutation(V)[:ENTRIES] for _ in range(count)]).astype(np.int32)
    law = -np.sort(-rng.dirichlet(np.full(V, 0.7), count), axis=1)[:, :ENTRIES]
    table.observe(VerifiedRows(tokens, ends - 4, ends, ids, law.astype(np.float32)))
    return table


def requests(
    texts: list[list[int]],
    *,
    budget: int | list[int] = K,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    keys: list[int] | None = None,
) -> DraftRequests:
    """Requests whose rows of the engine's token buffer are not in batch order."""
    batch = len(texts)
    rows = np.arange(batch)[::-1].copy()
    tokens = np.full((batch, max(map(len, texts)) + K), -1, np.int32)
    for b, text in enumerate(texts):
        tokens[rows[b], : len(text)] = text
    return DraftRequests(
        tokens=tokens,
        rows=rows,
        lengths=np.array([len(text) for text in texts], np.int64),
        budgets=np.broadcast_to(np.array(budget, np.int64), batch).copy(),
        temperatures=np.full(batch, temperature),
        top_k=np.full(batch, top_k, np.int64),
        top_p=np.full(batch, top_p),
        noise_keys=np.array(keys or [0] * batch, np.uint64),
        handles=np.arange(batch),
    )


def expected_law(
    table: StandTable,
    text: list[int],
    temperature: float,
    top_k: int,
    top_p: float,
    interpolation: float,
) -> dict[int, float] | None:
    """The law to draft from after ``text``, recomputed; None when it hangs on rounding."""
    mean, rest, order = np.zeros(V), 1.0, len(text)
    while order and rest >= LEAST:
        found = table.look_up(np.array(text[-order:], np.int32))
        assert found is not None
        ids, law, count, matched = found
        share = count / (count + interpolation) if matched > 1 else 1.0
        mean[ids] += rest * share * law
        rest, order = rest * (1 - share), matched - 1
    ids = np.argsort(-mean, kind="stable")[: np.count_nonzero(mean)]
    mean = mean[ids]
    if interpolation and np.abs(np.diff(mean)).min(initial=1) < 1e-6 * mean[0]:
        return None
    if temperature == 0:
        return {int(ids[0]): 1.0}
    n = min(top_k, ids.size) if top_k else ids.size
    q = mean[:n] ** (1 / temperature)
    q /= q.sum()
    mass = q.cumsum()
    if top_p < 1:
        if np.abs(mass - top_p).min() < 1e-5:
            return None
        q = q[: int(np.searchsorted(mass, top_p)) + 1]
    return dict(zip(ids[: q.size].tolist(), q / q.sum(), strict=True))


def published(drafts: Drafts, b: int, i: int) -> dict[int, float]:
    ids, law = drafts.law_ids[b, i], drafts.law_probabilities[b, i]
    assert (law[ids < 0] == 0).all()  # a rule that normalises q would count them
    return dict(zip(ids[ids >= 0].tolist(), law[ids >= 0].tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.01, 0.3, 0.7, 1.0, 1.7]),
    top_k=st.integers(0, V),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-6]),
    seeded=st.booleans(),
    interpolation=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_published_laws_are_the_tables_reshaped_for_the_request(
    seed: int, temperature: float, top_k: int, top_p: float, seeded: bool, interpolation: float
) -> None:
    rng = np.random.default_rng(seed)
    table = taught(rng)
    texts = [rng.integers(0, V, n).tolist() for n in (1, 2, 7)]
    keys = [request_key(s) if seeded else 0 for s in (1, 2, 3)]
    drafter = StandDrafter(table, draft_length=K, seed=seed, interpolation=interpolation)
    drafts = drafter.draft(
        requests(texts, temperature=temperature, top_k=top_k, top_p=top_p, keys=keys)
    )
    assert drafts.lengths.tolist() == [K] * 3  # every last token is known to the table
    for b, text in enumerate(texts):
        for i in range(K):
            q, token = published(drafts, b, i), int(drafts.tokens[b, i])
            assert sum(q.values()) == pytest.approx(1, abs=1e-12)
            assert min(q.values()) > 0
            assert token in q
            here = text + drafts.tokens[b, :i].tolist()
            expected = expected_law(table, here, temperature, top_k, top_p, interpolation)
            if expected is not None:
                shown = {x: mass for x, mass in expected.items() if mass > 1e-300}
                assert {x for x, mass in q.items() if mass > 1e-300} == set(shown)
                for x, mass in shown.items():
                    assert q[x] == pytest.approx(mass, rel=1e-4)
            if temperature == 0:
                assert q == {token: 1.0}


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 6, 0.9)])
def test_drafted_tokens_follow_the_published_laws(
    seeded: bool, temperature: float, top_k: int, top_p: float
) -> None:
    """The joint law of two positions; the test sees TV 0.02 with probability 0.99."""
    table = taught(np.random.default_rng(5), order=1)
    keys = [request_key(s) if seeded else 0 for s in range(N)]
    drafts = StandDrafter(table, draft_length=2, seed=1).draft(
        requests([[3]] * N, temperature=temperature, top_k=top_k, top_p=top_p, keys=keys)
    )
    law = np.zeros((V, V))
    for x, mass in published(drafts, 0, 0).items():
        b = int(np.flatnonzero(drafts.tokens[:, 0] == x)[0])
        for y, then in published(drafts, b, 1).items():
            law[x, y] = mass * then
    plan = plan_fit(law, N, false_alarm=FALSE_ALARM, tests=TESTS)
    assert plan.power(0.02, simulations=200) > 0.99
    assert not plan.evaluate(joint_counts(drafts.tokens, V)).rejected


class LastUniform:
    """A generator stuck at the largest number below 1."""

    def random(self, shape: tuple[int, int]) -> Law:
        return np.full(shape, 1 - 2.0**-53)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.02, 1.0])
@pytest.mark.parametrize("equals", [3, 6, 7, 9])
def test_no_token_is_drafted_that_q_gives_nothing(temperature: float, equals: int) -> None:
    """The masses of 6 equal entries sum to just below 1, and the 7th underflows at low T."""
    table = StandTable(order=1, budget_bytes=2**16)
    law = np.array([[0.9 / equals] * equals + [1e-6]], np.float32)
    ids = np.arange(equals + 1, dtype=np.int32)[None]
    ends = np.ones(1, np.int64)
    table.observe(VerifiedRows(np.zeros(1, np.int32), ends - 1, ends, ids, law))
    drafter = StandDrafter(table, draft_length=1)
    stuck: Any = LastUniform()
    drafter._rng = stuck
    drafts = drafter.draft(requests([[0]], temperature=temperature))
    assert published(drafts, 0, 0)[int(drafts.tokens[0, 0])] > 0


def test_later_observations_leave_published_laws_alone() -> None:
    rng = np.random.default_rng(1)
    table = taught(rng)
    drafter = StandDrafter(table, draft_length=K)
    drafts = drafter.draft(requests([[1, 2, 3], [4]]))
    before = [drafts.law_ids.copy(), drafts.law_probabilities.copy(), drafts.tokens.copy()]
    ends = np.array([3, 1], np.int64)
    text = np.array([1, 2, 3], np.int32)
    ids = np.full((2, ENTRIES), -1, np.int32)
    ids[:, 0] = V - 1
    rows = VerifiedRows(text, ends * 0, ends, ids, (ids >= 0).astype(np.float32))
    drafter.observe(rows)
    drafter.draft(requests([[1, 2, 3], [4]]))
    after = [drafts.law_ids, drafts.law_probabilities, drafts.tokens]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_budgets_are_kept_and_what_is_not_drafted_is_empty() -> None:
    drafter = StandDrafter(taught(np.random.default_rng(2)), draft_length=K)
    budgets = [0, 1, K, K + 5]
    drafts = drafter.draft(requests([[1], [2], [3], [4]], budget=budgets))
    assert drafts.lengths.tolist() == [0, 1, K, K]
    for b, n in enumerate(drafts.lengths):
        assert (drafts.tokens[b, :n] >= 0).all()
        assert (drafts.tokens[b, n:] == -1).all()
        assert (drafts.law_ids[b, n:] == -1).all()
        assert (drafts.law_probabilities[b, n:] == 0).all()


def test_no_requests_no_drafts() -> None:
    drafter = StandDrafter(taught(np.random.default_rng(2)), draft_length=K)
    empty = replace(requests([[1]]), **{
        name: getattr(requests([[1]]), name)[:0]
        for name in ("rows", "lengths", "budgets", "temperatures", "top_k", "top_p", "noise_keys")
    })  # fmt: skip
    assert len(drafter.draft(empty)) == 0


def test_a_draft_ends_where_no_context_is_known() -> None:
    drafter = StandDrafter(StandTable(order=2, budget_bytes=2**16), draft_length=K)
    assert drafter.draft(requests([[1]])).lengths.tolist() == [0]
    drafter.start(0, np.array([1, 2, 3], np.int32))
    drafts = drafter.draft(requests([[1], [2], [3], [9]]))
    assert drafts.lengths.tolist() == [2, 1, 0, 0]  # nothing ever followed a 3
    assert drafts.tokens[0, :2].tolist() == [2, 3]


def test_prompts_stay_out_of_the_table_when_they_should() -> None:
    table = StandTable(budget_bytes=2**16)
    StandDrafter(table, draft_length=K, prompt_visits=False).start(0, np.array([1, 2], np.int32))
    assert table.live == 0


def test_the_longest_known_context_wins() -> None:
    drafter = StandDrafter(StandTable(order=3, budget_bytes=2**16), draft_length=1)
    drafter.start(0, np.array([1, 2, 3, 7, 2, 3, 8, 3, 9], np.int32))
    drafts = drafter.draft(requests([[1, 2, 3], [0, 2, 3]], temperature=0.0))
    assert drafts.tokens[0].tolist() == [7]
    assert set(published(drafts, 1, 0)) <= {7, 8}  # the order-2 law holds no 9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 9))
def test_seeded_drafts_depend_on_key_text_and_position_alone(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    table = taught(rng)
    text = rng.integers(0, V, length).tolist()
    others = [rng.integers(0, V, n).tolist() for n in (5, 2, 12)]
    key, draws = request_key(seed), []
    for place, noise in enumerate((0, 17, 4)):
        texts, keys = list(others), [0, request_key(1), 0]
        texts.insert(place, text)
        keys.insert(place, key)
        drafter = StandDrafter(table, draft_length=K, seed=noise)
        draws.append(drafter.draft(requests(texts, keys=keys)).tokens[place].tolist())
    (alone,) = StandDrafter(table, draft_length=K).draft(requests([text], keys=[key])).tokens
    assert draws == [alone.tolist()] * 3
    longer = requests([[*text, int(alone[0])]], keys=[key])
    again = StandDrafter(table, draft_length=K).draft(longer).tokens[0]
    assert again[: K - 1].tolist() == alone[1:].tolist()  # keyed by place in the text, not by step


def test_seeds_and_positions_have_noise_of_their_own() -> None:
    table = taught(np.random.default_rng(0), order=1)
    drafter = StandDrafter(table, draft_length=1)
    keys = [request_key(s) for s in range(64)]
    by_seed = drafter.draft(requests([[3]] * 64, keys=keys)).tokens
    by_place = drafter.draft(requests([[3] * n for n in range(1, 65)], keys=keys[:1] * 64)).tokens
    by_stream = drafter.draft(requests([[3]] * 64)).tokens
    assert all(len(np.unique(tokens)) > 3 for tokens in (by_seed, by_place, by_stream))


def test_the_drafters_own_stream_starts_from_its_seed_and_moves_on() -> None:
    def draft_twice(seed: int) -> list[list[int]]:
        drafter = StandDrafter(taught(np.random.default_rng(0)), draft_length=K, seed=seed)
        return [drafter.draft(requests([[1]] * 20)).tokens.ravel().tolist() for _ in range(2)]

    first, second = draft_twice(0)
    assert first != second
    assert draft_twice(0) == [first, second]
    assert draft_twice(1)[0] != first


@pytest.mark.parametrize("length", [0, -3])
def test_a_draft_length_below_one_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"draft_length is {length}"):
        StandDrafter(StandTable(budget_bytes=2**16), draft_length=length)


def test_a_low_temperature_law_approaches_the_argmax() -> None:
    table = taught(np.random.default_rng(9))
    drafter = StandDrafter(table, draft_length=K)
    greedy = drafter.draft(requests([[5, 1, 2]], temperature=0.0))
    cold = drafter.draft(requests([[5, 1, 2]], temperature=0.001))
    assert greedy.tokens.tolist() == cold.tokens.tolist()
    assert math.isclose(cold.law_probabilities[0, 0, 0], 1, rel_tol=1e-6)


def stops_by_prefix(drafts: Drafts) -> bool:
    """Whether the same drafted prefix always goes on, or always ends: one text, many draws."""
    goes_on: dict[tuple[int, ...], bool] = {}
    for tokens, length in zip(drafts.tokens.tolist(), drafts.lengths.tolist(), strict=True):
        for n in range(min(length + 1, K)):
            if goes_on.setdefault(tuple(tokens[:n]), n < length) != (n < length):
                return False
    return True


def test_a_chain_ends_by_its_prefix_never_by_the_token_it_would_drop() -> None:
    """Trap 1. With the same noise, a chain that ends early is a prefix of the whole one."""
    table = taught(np.random.default_rng(5))
    many = requests([[1, 2, 3]] * 4000)
    whole = StandDrafter(table, draft_length=K, seed=3).draft(many)
    assert set(whole.lengths.tolist()) == {K}
    cut = StandDrafter(table, draft_length=K, seed=3, min_survival=0.06).draft(many)
    assert len(set(cut.lengths.tolist())) > 1
    for b, n in enumerate(cut.lengths.tolist()):
        np.testing.assert_array_equal(cut.tokens[b, :n], whole.tokens[b, :n])
    assert stops_by_prefix(cut)
    # Negative control: ending before a token that q thought improbable.
    drawn = (whole.law_ids == whole.tokens[:, :, None]) * whole.law_probabilities
    rare = drawn.sum(-1) < 0.1
    lengths = np.where(rare.any(1), rare.argmax(1), K)
    assert not stops_by_prefix(replace(whole, lengths=lengths))


def test_a_chain_ends_where_its_expected_survival_falls_below_the_bound() -> None:
    table = taught(np.random.default_rng(6))
    text = [4, 5, 6]
    for bound in (0.0, 0.02, 0.1, 0.3, 0.9):
        # Without a mixture the law that is drafted from is the one that look_up finds.
        drafter = StandDrafter(table, draft_length=K, min_survival=bound, interpolation=0)
        drafts = drafter.draft(requests([text], temperature=0.0))
        whole = StandDrafter(table, draft_length=K, interpolation=0)
        tokens, survival, expected = list(text), 1.0, 0
        for token in whole.draft(requests([text], temperature=0.0)).tokens[0]:
            found = table.look_up(np.array(tokens, np.int32))
            assert found is not None
            _, law, count, matched = found
            survival *= expected_acceptance(matched, table.order, count, float(law[0]), 0.0)
            if survival < bound:
                break
            expected += 1
            tokens.append(int(token))
        assert drafts.lengths.tolist() == [expected]


@given(st.integers(1, 8), st.integers(0, 7), st.floats(0, 50), st.floats(0, 1.1), st.floats(0, 2))
def test_expected_acceptance_is_a_probability_and_grows_with_certainty(
    matched: int, more: int, count: float, top: float, temperature: float
) -> None:
    order = min(matched + more, 8)
    value = expected_acceptance(matched, order, count, top, temperature)
    assert 0 < value < 1
    assert expected_acceptance(matched, order, count, 1.0, temperature) >= value
    assert expected_acceptance(matched, order, count, top, temperature + 0.5) >= value
    sure = expected_acceptance(matched, order, count, 1.0, temperature)
    assert expected_acceptance(order, order, count, 1.0, temperature) >= sure


def test_a_match_as_long_as_the_table_allows_counts_as_one_of_twice_its_length() -> None:
    """It was cut there: a table of order 3 must not take all its best matches for poor ones."""
    for cut, whole in [((1, 1), (2, 6)), ((2, 2), (4, 6)), ((3, 3), (6, 7)), ((8, 8), (6, 7))]:
        for count in (1.0, 2.0):
            here = expected_acceptance(*cut, count, 0.8, 0.7)
            assert here == expected_acceptance(*whole, count, 0.8, 0.7)
    assert expected_acceptance(3, 3, 2.0, 0.8, 0.7) > expected_acceptance(3, 4, 2.0, 0.8, 0.7)


@pytest.mark.parametrize("bound", [-0.1, 1.0, float("nan")])
def test_a_survival_bound_out_of_range(bound: float) -> None:
    with pytest.raises(ValueError, match="min_survival"):
        StandDrafter(StandTable(budget_bytes=2**20), draft_length=1, min_survival=bound)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_follow_gives_the_laws_that_a_draft_of_the_same_tokens_was_drawn_from(
    temperature: float,
) -> None:
    """Along its own draft, ``follow`` sees that draft's laws, and ends where it ended."""
    rng = np.random.default_rng(5)
    table = StandTable(order=3, budget_bytes=2**20)
    table.observe_text(rng.integers(0, 6, 60).astype(np.int32))
    drafter = StandDrafter(table, draft_length=K, min_survival=0.1)
    asked = requests([rng.integers(0, 6, 8).tolist() for _ in range(40)], temperature=temperature)
    drafts = drafter.draft(asked)
    followed = drafter.follow(asked, drafts.tokens)
    held = np.arange(K) < drafts.lengths[:, None]
    assert len(set(drafts.lengths.tolist())) > 1
    np.testing.assert_array_equal(followed.law_ids[held], drafts.law_ids[held])
    np.testing.assert_array_equal(followed.law_probabilities[held], drafts.law_probabilities[held])
    own = drafts.law_ids == drafts.tokens[:, :, None]
    q = np.where(own, drafts.law_probabilities, 0).sum(axis=2)
    np.testing.assert_array_equal(followed.q, np.where(held, q, -1.0))
