"""What waits between drafting and verifying, and what a drafter is told of a step."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from proposers import VerifiedRows
from vllm_plugin.adapter_v1 import NO_DRAFTS, PendingDraft, V1Adapter, point_masses
from vllm_plugin.verifier import Request

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
    assert chain.tokens.tolist() == HELD.tolist()
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


class Listener:
    """A drafter that keeps what it is told."""

    wants_rows = True

    def __init__(self, wants_emitted: bool) -> None:
        self.wants_emitted = wants_emitted
        self.told: list[VerifiedRows] = []

    def start(self, handle: int, prompt: NDArray[np.int32]) -> None:
        pass

    def observe(self, rows: VerifiedRows) -> None:
        self.told.append(rows)


def step(drafter: Any) -> None:
    """A request with three drafts, an unfinished prompt, and a request without drafts."""
    adapter = V1Adapter(drafter, rule="token", order=3, entries=2, draft_length=3, max_model_len=99)
    text = np.array([[1, 2, 3, 4, 5], [6, 6, 6, 6, 6], [7, 8, 0, 0, 0]], np.int32)
    adapter._runner = SimpleNamespace(
        input_batch=SimpleNamespace(
            req_ids=["a", "b", "c"],
            token_ids_cpu=text,
            temperature_cpu=np.array([0.5, 0.9, 0.0], np.float32),
        )
    )
    adapter.started |= {"a", "b", "c"}
    none = tokens()
    requests = [
        Request(0, 5, 0, HELD, 0, False, NO_DRAFTS),
        Request(1, 5, 4, none, 0, True, NO_DRAFTS),
        Request(2, 2, 5, none, 0, False, NO_DRAFTS),
    ]
    laws = adapter._laws(torch.randn(6, 50), requests)
    sampled = torch.tensor([[11, 40, -1, -1], [33, -1, -1, -1], [41, -1, -1, -1]])
    adapter._learn(requests, laws, sampled)


def test_each_row_is_told_with_its_context_and_what_it_emitted() -> None:
    """The second draft was refused: row 1 emitted another token, rows 2 and 3 none."""
    drafter = Listener(wants_emitted=True)
    step(drafter)
    (rows,) = drafter.told
    contexts = [rows.tokens[i:j].tolist() for i, j in zip(rows.begins, rows.ends, strict=True)]
    assert contexts == [
        [3, 4, 5],
        [3, 4, 5, 11],
        [3, 4, 5, 11, 12],
        [3, 4, 5, 11, 12, 13],
        [7, 8],
    ]
    assert rows.emitted.tolist() == [11, 40, -1, -1, 41]
    assert rows.temperatures.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert rows.ids.shape == (5, 2)


def test_a_drafter_that_does_not_ask_is_not_told_what_was_emitted() -> None:
    drafter = Listener(wants_emitted=False)
    step(drafter)
    (rows,) = drafter.told
    assert rows.emitted.size == rows.temperatures.size == 0
    assert rows.ends.size == 5
