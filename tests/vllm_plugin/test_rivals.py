"""The rivals draft what vLLM's own proposers do, token for token."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens
from vllm.v1.spec_decode.suffix_decoding import SuffixDecodingProposer

from proposers import PromptLookupDrafter, SuffixDrafter
from tests.proposers.batches import requests

MAX_MODEL_LEN = 40


@settings(deadline=None, max_examples=300)
@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=MAX_MODEL_LEN),
    longest=st.integers(1, 6),
    shortest=st.integers(1, 6),
    k=st.integers(1, 8),
)
def test_prompt_lookup_from_the_earliest_place_is_vllms_ngram(
    text: list[int], longest: int, shortest: int, k: int
) -> None:
    shortest = min(shortest, longest)
    drafter = PromptLookupDrafter(
        draft_length=k, longest=longest, shortest=shortest, occurrence="earliest"
    )
    drafts = drafter.draft(requests([text], [MAX_MODEL_LEN - len(text)]))
    expected = _find_longest_matched_ngram_and_propose_tokens(
        np.array(text, np.int32), shortest, longest, MAX_MODEL_LEN, k
    )
    assert drafts.tokens[0, : drafts.lengths[0]].tolist() == expected.tolist()


def vllms_suffix(settings: dict[str, Any], k: int) -> SuffixDecodingProposer:
    named = {f"suffix_decoding_{name}": value for name, value in settings.items()}
    config: Any = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=k, **named),
        model_config=SimpleNamespace(max_model_len=MAX_MODEL_LEN),
    )
    return SuffixDecodingProposer(config)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_suffix_decoding_is_vllms(factor: float) -> None:
    """Three requests at a time in one batch, eight in all, over a small vocabulary."""
    pytest.importorskip("arctic_inference.suffix_decoding")
    k, rng = 5, np.random.default_rng(1)
    settings = {
        "max_tree_depth": 8,
        "max_spec_factor": factor,
        "min_token_prob": 0.1,
        "max_cached_requests": 3,
    }
    stock, drafter = vllms_suffix(settings, k), SuffixDrafter(draft_length=k, **settings)
    live: dict[int, list[int]] = {}
    prompts: dict[int, int] = {}
    drafted = 0
    for _ in range(120):
        for handle in [h for h, text in live.items() if len(text) >= MAX_MODEL_LEN - k]:
            drafter.finish(handle)  # vLLM notices when it is no longer in the batch
            del live[handle]
        while len(live) < 3:
            handle = len(prompts)
            live[handle] = rng.integers(0, 3, rng.integers(1, 9)).tolist()
            prompts[handle] = len(live[handle])
            drafter.start(handle, np.array(live[handle], np.int32))
        handles = list(live)
        sampled = [rng.integers(0, 3, rng.integers(1, 4)).tolist() for _ in handles]
        for handle, new in zip(handles, sampled, strict=True):
            live[handle] = live[handle] + new
        tokens = np.zeros((3, MAX_MODEL_LEN), np.int32)
        for row, handle in enumerate(handles):
            tokens[row, : len(live[handle])] = live[handle]
        batch: Any = SimpleNamespace(
            req_ids=[str(h) for h in handles],
            req_id_to_index={str(h): row for row, h in enumerate(handles)},
            num_tokens_no_spec=np.array([len(live[h]) for h in handles]),
            num_prompt_tokens=np.array([prompts[h] for h in handles]),
            token_ids_cpu=tokens,
        )
        expected = stock.propose(k, batch, sampled)
        budgets = [MAX_MODEL_LEN - len(live[h]) - 1 for h in handles]
        drafts = drafter.draft(requests([live[h] for h in handles], budgets, handles=handles))
        ours = [drafts.tokens[b, : drafts.lengths[b]].tolist() for b in range(3)]
        assert ours == expected
        drafted += sum(map(len, expected))
    assert drafted > 100
