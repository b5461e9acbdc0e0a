"""Prompt lookup against a naive search: the longest suffix, then its latest or earliest place."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proposers import PromptLookupDrafter
from tests.proposers.batches import requests


def naive(text: list[int], longest: int, shortest: int, occurrence: str) -> list[int]:
    """What followed an earlier occurrence of the longest suffix that has one."""
    for n in range(min(longest, len(text) - 1), shortest - 1, -1):
        places = range(len(text) - n)
        for begin in places if occurrence == "earliest" else reversed(places):
            if text[begin : begin + n] == text[len(text) - n :]:
                return text[begin + n :]
    return []


@settings(deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 3), max_size=25), min_size=1, max_size=4),
    longest=st.integers(1, 6),
    shortest=st.integers(1, 6),
    draft_length=st.integers(1, 8),
    budget=st.integers(0, 9),
    occurrence=st.sampled_from(["latest", "earliest"]),
)
@example([[1, 1, 1, 1]], 4, 1, 8, 9, "latest")  # occurrences that overlap the suffix
@example([[1, 2, 5, 1, 3, 5, 2, 5]], 4, 1, 8, 9, "latest")  # a longer match beats a later one
@example([[1, 2, 1, 3, 1]], 4, 1, 8, 9, "earliest")
def test_drafts_equal_the_naive_search(
    texts: list[list[int]],
    longest: int,
    shortest: int,
    draft_length: int,
    budget: int,
    occurrence: Any,
) -> None:
    shortest = min(shortest, longest)
    drafter = PromptLookupDrafter(
        draft_length=draft_length, longest=longest, shortest=shortest, occurrence=occurrence
    )
    drafts = drafter.draft(requests(texts, [budget] * len(texts)))
    for b, text in enumerate(texts):
        expected = naive(text, longest, shortest, occurrence)[: min(draft_length, budget)]
        n = int(drafts.lengths[b])
        assert drafts.tokens[b, :n].tolist() == expected
        assert (drafts.tokens[b, n:] == -1).all()
        assert drafts.law_ids[b, :n, 0].tolist() == expected  # q is a point mass on each
        assert drafts.law_probabilities[b, :, 0].tolist() == [1.0] * n + [0.0] * (draft_length - n)


def test_drafts_are_copies() -> None:
    drafter = PromptLookupDrafter(draft_length=4)
    asked = requests([[7, 8, 9, 7]], [4])
    drafts = drafter.draft(asked)
    asked.tokens[:] = 0
    assert drafts.tokens[0, :3].tolist() == [8, 9, 7]


def test_nothing_is_learned() -> None:
    drafter = PromptLookupDrafter(draft_length=4)
    assert not drafter.wants_rows
    drafter.start(0, np.array([1, 2, 3], np.int32))
    assert drafter.draft(requests([[1]], [4])).lengths.tolist() == [0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"longest": 2, "shortest": 3}, r"matches of 3\.\.2 tokens"),
        ({"longest": 2, "shortest": 0}, r"matches of 0\.\.2 tokens"),
        ({"draft_length": 0}, "draft_length is 0"),
        ({"occurrence": "last"}, "occurrence is 'last'"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PromptLookupDrafter(**{"draft_length": 4, **options})


def test_follow_is_one_as_long_as_the_copy_agrees_then_zero_then_nothing() -> None:
    drafter = PromptLookupDrafter(draft_length=4, longest=2)
    asked = requests([[1, 2, 3, 4, 5, 1, 2], [7, 8, 9], [1, 2, 1]], [4, 4, 4])
    continuation = np.array([[3, 4, 6, 7], [7, 8, 9, 1], [2, -1, -1, -1]], np.int32)
    followed = drafter.follow(asked, continuation)
    assert followed.q.tolist() == [[1, 1, 0, -1], [-1] * 4, [1, -1, -1, -1]]
    assert followed.law_ids[0, :3, 0].tolist() == [3, 4, 5]
