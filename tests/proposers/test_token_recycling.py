"""Token Recycling against a dictionary: the latest law's candidates, whatever stood before."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposers import TokenRecyclingDrafter
from tests.proposers.batches import requests, verified

V, CAPACITY = 9, 8  # token 8 has no row


def chain(table: dict[int, int], token: int, steps: int) -> list[int]:
    drafted: list[int] = []
    while len(drafted) < steps and token in table:
        token = table[token]
        drafted.append(token)
    return drafted


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, V - 1), max_size=12),
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, V - 1), min_size=1, max_size=4),
            st.permutations(range(V)).map(lambda order: order[:5]),
        ),
        max_size=12,
    ),
    texts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=5), min_size=1, max_size=3),
    candidates=st.integers(1, 7),
    budget=st.integers(0, 9),
    prompt_visits=st.booleans(),
)
def test_drafts_follow_the_first_candidates(
    prompt: list[int],
    rows: list[tuple[list[int], list[int]]],
    texts: list[list[int]],
    candidates: int,
    budget: int,
    prompt_visits: bool,
) -> None:
    drafter = TokenRecyclingDrafter(
        draft_length=6, candidates=candidates, capacity=CAPACITY, prompt_visits=prompt_visits
    )
    drafter.start(0, np.array(prompt, np.int32))
    table: dict[int, list[int]] = {}
    if prompt_visits:
        for token, then in itertools.pairwise(prompt):
            table[token] = [then]
    for context, order in rows:
        law = {token: 0.3 / (e + 1) for e, token in enumerate(order)}
        drafter.observe(verified([context], [law]))
        table[context[-1]] = order[:candidates]
    table.pop(V - 1, None)
    for token, held in table.items():
        row = drafter.table[token]
        assert row[row >= 0].tolist() == held
    drafts = drafter.draft(requests(texts, [budget] * len(texts)))
    first = {token: held[0] for token, held in table.items()}
    for b, text in enumerate(texts):
        expected = chain(first, text[-1], min(budget, 6))
        n = int(drafts.lengths[b])
        assert drafts.tokens[b, :n].tolist() == expected
        assert (drafts.tokens[b, n:] == -1).all()
        assert drafts.law_ids[b, :n, 0].tolist() == expected
        assert drafts.law_probabilities[b, :, 0].tolist() == [1.0] * n + [0.0] * (6 - n)


def test_a_prompt_does_not_overwrite_a_law() -> None:
    drafter = TokenRecyclingDrafter(draft_length=2)
    drafter.observe(verified([[4]], [{7: 0.6, 5: 0.2}]))
    drafter.start(0, np.array([4, 1, 2], np.int32))
    drafts = drafter.draft(requests([[4], [1]], [2, 2]))
    assert drafts.tokens[:, 0].tolist() == [7, 2]


def test_rows_of_one_step_count_in_their_order() -> None:
    drafter = TokenRecyclingDrafter(draft_length=1)
    drafter.observe(verified([[4], [3, 4]], [{7: 0.6}, {6: 0.5, 7: 0.4}]))
    assert drafter.draft(requests([[4]], [1])).tokens[0, 0] == 6
    assert drafter.table[4].tolist() == [6, 7] + [-1] * 6


def test_follow_is_the_chain_along_a_continuation() -> None:
    drafter = TokenRecyclingDrafter(draft_length=3)
    drafter.observe(verified([[1], [2]], [{2: 0.9}, {1: 0.8}]))
    followed = drafter.follow(requests([[1], [5]], [3, 3]), np.array([[2, 1, 3], [1, 1, 1]]))
    assert followed.q.tolist() == [[1, 1, 0], [-1, -1, -1]]


@pytest.mark.parametrize("name", ["draft_length", "candidates", "capacity"])
def test_bad_parameters_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        TokenRecyclingDrafter(**{"draft_length": 4, name: 0})
