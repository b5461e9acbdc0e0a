"""What a drafter is told of a step: every row once, its text, and what it emitted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm_plugin.lessons import Stretch, laws_of, verified_rows
from vllm_plugin.path_adapter import PathAdapter
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.path_verifier import PathRequest


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def stretch(tokens: list[int], behind: list[int], *, index: int = 0, first: int = 0) -> Stretch:
    places = np.array(behind, np.int64)
    return Stretch(index, 5, ints(*tokens), first + places, places)


def test_a_chain_has_a_row_behind_each_draft_and_one_before_them() -> None:
    found = Stretch.chain(2, 7, 10, ints(4, 5))
    assert (found.index, found.text_length) == (2, 7)
    assert found.rows.tolist() == [10, 11, 12]
    assert found.behind.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("emitted", "at"),
    [
        ([8], [8, -1, -1, -1]),
        ([1], [1, -1, -1, -1]),
        ([1, 8], [1, 8, -1, -1]),
        ([1, 2], [1, 2, -1, -1]),
        ([1, 2, 3, 9], [1, 2, 3, 9]),
        ([1, 8, 3], [1, 8, -1, -1]),  # another path's; behind 8 this one has no row
        ([], [-1, -1, -1, -1]),
    ],
)
def test_rows_emitted_as_long_as_the_text_went_this_way(emitted: list[int], at: list[int]) -> None:
    found = Stretch.chain(0, 5, 0, ints(1, 2, 3))
    assert found.emitted_at(ints(*emitted)).tolist() == at
    part = stretch([1, 2, 3], [2, 3])
    assert part.emitted_at(ints(*emitted)).tolist() == at[2:]


@given(
    st.lists(st.integers(0, 2), max_size=4),
    st.lists(st.integers(0, 2), max_size=5),
    st.sets(st.integers(0, 4)),
)
def test_what_a_row_emitted_by_definition(
    tokens: list[int], emitted: list[int], chosen: set[int]
) -> None:
    behind = sorted(n for n in chosen if n <= len(tokens))
    found = stretch(tokens, behind).emitted_at(ints(*emitted)).tolist()
    assert found == [
        emitted[n] if len(emitted) > n and emitted[:n] == tokens[:n] else -1 for n in behind
    ]


def test_laws_are_those_of_the_rows_in_the_order_of_the_stretches() -> None:
    logits = torch.full((6, 30), -20.0)
    for row in range(6):
        logits[row, row + 10] = 3.0
    found = laws_of(logits, [stretch([1, 2], [1, 2], first=3), stretch([], [0], first=1)], 2)
    assert found is not None
    assert found[0][:, 0].tolist() == [14, 15, 11]
    assert laws_of(logits, [], 2) is None


def batch() -> Any:
    text = np.array([[1, 2, 3, 4, 5], [7, 8, 0, 0, 0], [6, 6, 0, 0, 0]], np.int32)
    return SimpleNamespace(
        token_ids_cpu=text,
        temperature_cpu=np.array([0.5, 0.9, 1.0], np.float32),
        req_ids=["a", "b", "c"],
    )


def contexts(rows: Any) -> list[list[int]]:
    return [rows.tokens[i:j].tolist() for i, j in zip(rows.begins, rows.ends, strict=True)]


def laws(count: int, void: tuple[int, ...] = ()) -> Any:
    ids = np.stack([np.arange(count), np.arange(count) + 50], axis=1).astype(np.int32)
    probabilities = np.tile(np.array([0.7, 0.3], np.float32), (count, 1))
    for row in void:
        probabilities[row] = np.nan
    return ids, probabilities


STRETCHES = [
    Stretch(0, 5, ints(11, 12), np.array([0, 1, 2]), np.array([0, 1, 2])),
    Stretch(0, 5, ints(11, 21, 22), np.array([5, 6]), np.array([2, 3])),
    Stretch(1, 2, ints(), np.array([7]), np.array([0])),
]


def test_each_row_stands_behind_the_end_of_its_text_and_its_own_drafts() -> None:
    emitted = [ints(11, 21, 40), ints(41)]
    rows = verified_rows(batch(), 3, STRETCHES, laws(6), emitted)
    assert contexts(rows) == [
        [3, 4, 5],
        [3, 4, 5, 11],
        [3, 4, 5, 11, 12],
        [3, 4, 5, 11, 21],
        [3, 4, 5, 11, 21, 22],
        [7, 8],
    ]
    assert rows.emitted.tolist() == [11, 21, -1, 40, -1, 41]
    np.testing.assert_allclose(rows.temperatures, [0.5] * 5 + [0.9], rtol=1e-6)
    assert rows.ids[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("order", [1, 2, 8])
def test_no_more_of_the_text_is_shown_than_asked_for(order: int) -> None:
    rows = verified_rows(batch(), order, STRETCHES[:1], laws(3), None)
    assert contexts(rows)[0] == [1, 2, 3, 4, 5][-order:]
    assert rows.emitted.size == rows.temperatures.size == 0


def test_a_row_that_is_no_law_teaches_nothing() -> None:
    emitted = [ints(11, 21, 40), ints(41)]
    rows = verified_rows(batch(), 2, STRETCHES, laws(6, void=(1, 5)), emitted)
    assert contexts(rows) == [[4, 5], [4, 5, 11, 12], [4, 5, 11, 21], [4, 5, 11, 21, 22]]
    assert rows.emitted.tolist() == [11, -1, 40, -1]
    assert len(rows.ids) == len(rows.temperatures) == 4


trees = st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), min_size=1, max_size=5).filter(
    any
)


@given(trees, st.integers(1, 5))
def test_of_several_paths_every_row_is_told_once_with_its_text(
    paths: list[tuple[int, ...]], most: int
) -> None:
    """Each prefix that was evaluated is told of, by the one row that judges it."""
    tokens = np.full((len(paths), max(map(len, paths))), -1, np.int32)
    for j, path in enumerate(paths):
        tokens[j, : len(path)] = path
    lengths = np.array([len(path) for path in paths])
    shape = (*tokens.shape, 1)
    pending = PendingPaths.of(
        5, tokens, lengths, np.zeros(shape, np.int32), np.ones(shape), most=most
    )
    for inputs in range(1, len(pending.flat(9)) + 2):
        rows = pending.rows(inputs)
        request = PathRequest(
            index=1, text_length=5, first_row=100, key=0, discarded=False, tokens=tokens,
            lengths=lengths, law_ids=pending.law_ids, laws=pending.laws,
            rows=np.where(rows >= 0, rows + 100, -1), pending=pending, inputs=inputs,
        )  # fmt: skip
        told: list[tuple[int, tuple[int, ...]]] = []
        adapter: Any = None
        for s in PathAdapter.stretches(adapter, request):
            assert (s.index, s.text_length) == (1, 5)
            told += [
                (int(row), tuple(s.tokens[:n].tolist()))
                for row, n in zip(s.rows, s.behind, strict=True)
            ]
        expected = {
            (100 + int(rows[j, t]), path[:t])
            for j, path in enumerate(paths)
            for t in range(len(path) + 1)
            if rows[j, t] >= 0
        }
        assert len(told) == len(set(told)) == len(expected)
        assert set(told) == expected


def test_a_request_without_paths_has_one_row() -> None:
    request = PathRequest(
        index=1, text_length=5, first_row=100, key=0, discarded=False,
        tokens=np.zeros((1, 0), np.int32), lengths=np.zeros(1, np.int64),
        law_ids=np.zeros((1, 0, 1), np.int32), laws=np.zeros((1, 0, 1)),
        rows=np.full((1, 1), 100),
    )  # fmt: skip
    adapter: Any = None
    (found,) = PathAdapter.stretches(adapter, request)
    assert (found.rows.tolist(), found.behind.tolist()) == ([100], [0])
    assert found.tokens.shape == (0,)


def test_each_row_is_of_its_request_s_group() -> None:
    groups = np.array([7 + i for i in range(len(STRETCHES))], np.uint64)
    rows = verified_rows(batch(), 2, STRETCHES, laws(6, void=(1, 5)), None, groups)
    whole = np.repeat(groups, [s.rows.shape[0] for s in STRETCHES])
    assert rows.groups.tolist() == np.delete(whole, [1, 5]).tolist()
    assert verified_rows(batch(), 2, STRETCHES, laws(6), None).groups.size == 0


def test_rows_without_drafts_are_told_of_as_those_beside_drafts() -> None:
    """The short way for plain steps gives what the long way does."""
    plain = [Stretch.chain(0, 5, 0, ints()), Stretch.chain(1, 1, 1, ints())]
    drafted = Stretch.chain(2, 2, 2, ints(9))
    emitted = [ints(40), ints(), ints(9, 4)]
    short = verified_rows(batch(), 3, plain, laws(2), emitted)
    long = verified_rows(batch(), 3, [*plain, drafted], laws(4), emitted)
    assert contexts(short) == contexts(long)[:2] == [[3, 4, 5], [7]]
    assert short.emitted.tolist() == long.emitted.tolist()[:2] == [40, -1]
    assert short.tokens.dtype == np.int32 and short.ends.dtype == np.int64
