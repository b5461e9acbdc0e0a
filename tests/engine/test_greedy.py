"""Greedy decoding with drafts is plain greedy decoding, token for token, on a real model."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.engines import STAND, adapter_sizes, counters, engine

QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "Explain how a bicycle stays upright.",
    "List ten animals and one fact about each.",
    "Write a Python function that reverses a list, then one that sorts it.",
    "What is the capital of France, and what is it known for?",
    "Count from one to fifty in words.",
    "Repeat the following sentence five times: the quick brown fox jumps over the lazy dog.",
    "Translate 'good morning, my friend' into French, Spanish and Italian.",
)
TOKENS = 300
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.5}
FEWER = 100  # where the machinery is under test rather than long texts


def answers(llm: Any, tokens: int = TOKENS, **parameters: Any) -> list[list[int]]:
    from vllm import SamplingParams

    chats = [[{"role": "user", "content": q}] for q in QUESTIONS]
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **parameters)
    outputs = llm.chat(chats, sampling, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs]


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> dict[str, list[list[int]]]:
    with engine(smollm2, max_model_len=1024) as llm:
        return {
            "greedy": answers(llm),
            "penalised": answers(llm, FEWER, **PENALTIES),
        }


def test_stand_equals_plain_greedy(smollm2: Path, plain: dict[str, list[list[int]]]) -> None:
    with engine(smollm2, proposer=STAND, draft_length=8, max_model_len=1024) as llm:
        assert answers(llm) == plain["greedy"]
        seen = counters(llm)
        assert seen["num_accepted_tokens"] > 0.2 * len(QUESTIONS) * TOKENS
        # vLLM's counters: every emitted token beyond one a step was an accepted draft
        assert seen["num_accepted_tokens"] == sum(seen["num_accepted_tokens_per_pos"])
        assert answers(llm, FEWER, **PENALTIES) == plain["penalised"]
        sizes = adapter_sizes(llm)
        assert sizes["pending"] <= sizes["served"] <= len(QUESTIONS)


def test_preempted_and_chunked_requests_equal_plain_greedy(
    smollm2: Path, plain: dict[str, list[list[int]]]
) -> None:
    """A cache too small for all requests, prompts in pieces, drafts cut by the token budget."""
    with engine(
        smollm2,
        proposer=STAND,
        draft_length=8,
        max_model_len=1024,
        block_size=32,
        num_gpu_blocks_override=33,
        max_num_batched_tokens=32,
        enable_prefix_caching=False,
    ) as llm:
        assert answers(llm, FEWER) == [text[:FEWER] for text in plain["greedy"]]
        preempted = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
        assert sum(preempted) > 0
