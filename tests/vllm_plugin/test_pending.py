"""One chain of drafts that waits: what is judged when the engine cut it, what is carried over."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vllm_plugin.pending import NO_DRAFTS, PendingDraft, point_masses

HELD = np.array([11, 12, 13], np.int32)


@pytest.fixture
def pending() -> PendingDraft:
    ids = np.stack([HELD, HELD + 100], axis=1)
    law = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    return PendingDraft(text_length=5, tokens=HELD, law_ids=ids, law=law)


def tokens(*given: int) -> NDArray[np.int32]:
    return np.array(given, np.int32)


def test_a_whole_draft_is_verified_whole_and_has_a_bonus_row(pending: PendingDraft) -> None:
    chain = pending.chain(HELD.copy())
    assert chain is not None
    assert chain.tokens.tolist() == pending.flat() == HELD.tolist()
    assert chain.law_ids.tolist() == pending.law_ids.tolist()
    assert chain.law.tolist() == pending.law.tolist()
    assert chain.has_bonus


@pytest.mark.parametrize("scheduled", [0, 1, 2])
def test_of_a_truncated_draft_the_first_one_cut_is_judged_too(
    pending: PendingDraft, scheduled: int
) -> None:
    """Its row was evaluated: as the bonus row it would be biased (ALGORITHMS.md 5, trap 4)."""
    chain = pending.chain(HELD[:scheduled])
    assert chain is not None
    assert chain.tokens.tolist() == HELD[: scheduled + 1].tolist()
    assert chain.law_ids.tolist() == pending.law_ids[: scheduled + 1].tolist()
    assert chain.law.tolist() == pending.law[: scheduled + 1].tolist()
    assert not chain.has_bonus


@pytest.mark.parametrize(
    "scheduled", [tokens(12), tokens(11, 13), tokens(11, 12, 14), tokens(0, 0, 0), tokens(-1)]
)
def test_foreign_tokens_are_not_ours(pending: PendingDraft, scheduled: NDArray[np.int32]) -> None:
    assert pending.chain(scheduled) is None


def test_more_tokens_than_were_held_are_not_ours(pending: PendingDraft) -> None:
    assert pending.chain(tokens(11, 12, 13, 14)) is None


def test_what_was_not_judged_is_left_over_with_its_laws(pending: PendingDraft) -> None:
    for m in (1, 2):
        rest = pending.left_over(HELD[:m])
        assert rest is not None
        assert rest.text_length == 5 + m
        assert rest.tokens.tolist() == HELD[m:].tolist()
        assert rest.law_ids.tolist() == pending.law_ids[m:].tolist()
        assert rest.law.tolist() == pending.law[m:].tolist()


@pytest.mark.parametrize("emitted", [tokens(), tokens(12), tokens(11, 13), tokens(11, 12, 13)])
def test_nothing_is_left_over_behind_another_token_or_the_last_draft(
    pending: PendingDraft, emitted: NDArray[np.int32]
) -> None:
    assert pending.left_over(emitted) is None


def test_drafts_that_nobody_drew_are_point_masses() -> None:
    chain = point_masses(tokens(4, 0, 9))
    assert chain.tokens.tolist() == [4, 0, 9]
    assert chain.law_ids.tolist() == [[4], [0], [9]]
    assert chain.law.tolist() == [[1.0], [1.0], [1.0]]
    assert chain.has_bonus


def test_no_drafts_is_an_empty_chain_with_a_bonus_row() -> None:
    assert NO_DRAFTS.tokens.shape == (0,)
    assert NO_DRAFTS.law_ids.shape == NO_DRAFTS.law.shape == (0, 1)
    assert NO_DRAFTS.has_bonus
