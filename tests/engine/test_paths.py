"""Several paths in one forward are plain greedy decoding, token for token, on a real model.

A table's drafts, and a script that knows the answer and hides it in any of up to 8 paths of up to 8
tokens; in a cache too small for all requests, with prompts in pieces and lists that are cut.
``benchmarks/paths_proof.py`` does the same for every number and length of paths and more tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import scripted_paths
from tests.engine.engines import STAND, counters, engine
from tests.engine.test_greedy import PENALTIES, QUESTIONS

TOKENS = 100
LIMIT = 512
AGAIN = [198, 3, 57, 4093]  # what the second turn asks, whatever it says
Texts = list[list[int]]


def generate(llm: Any, prompts: Texts, tokens: int = TOKENS, **parameters: Any) -> Texts:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **parameters)
    asked = [{"prompt_token_ids": p} for p in prompts]
    return [list(o.outputs[0].token_ids) for o in llm.generate(asked, sampling, use_tqdm=False)]


def metric(llm: Any, name: str) -> float:
    return sum(m.value for m in llm.get_metrics() if m.name == f"vllm:{name}")


def chats(model: Path) -> Texts:
    """The questions of ``test_greedy`` as prompts of tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [[{"role": "user", "content": q}] for q in QUESTIONS]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in asked
    ]


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> Texts:
    return chats(smollm2)


@pytest.fixture(scope="module")
def plain(smollm2: Path, prompts: Texts) -> dict[str, Texts]:
    with engine(smollm2, max_model_len=LIMIT) as llm:
        first = generate(llm, prompts)
        return {
            "greedy": first,
            "second": generate(llm, second_turn(prompts, first), TOKENS // 2),
            "penalised": generate(llm, prompts, TOKENS // 2, **PENALTIES),
        }


def second_turn(prompts: Texts, answers: Texts) -> Texts:
    """Four of the texts, gone on with: as many as stay in the small cache."""
    return [[*p, *a, *AGAIN] for p, a in zip(prompts, answers, strict=True)][4:]


@pytest.fixture(scope="module")
def llm(smollm2: Path, plain: Any) -> Iterator[Any]:
    with engine(
        smollm2,
        proposer=STAND,
        draft_length=8,
        options={"candidates": 8, "table_mib": 16},
        max_model_len=LIMIT,
        block_size=32,
        num_gpu_blocks_override=24,
        max_num_batched_tokens=64,
    ) as started:
        yield started


def follow(llm: Any, prompts: Texts, answers: Texts) -> None:
    known = [p + a for p, a in zip(prompts, answers, strict=True)]
    script = (known, [2, 4, 8], [4, 8], 49152)
    llm.collective_rpc(scripted_paths.follow_script, args=script)


def test_a_script_equals_plain_greedy(llm: Any, prompts: Texts, plain: dict[str, Texts]) -> None:
    follow(llm, prompts, plain["greedy"])
    assert generate(llm, prompts) == plain["greedy"]
    assert metric(llm, "num_preemptions") > 0
    seen = llm.collective_rpc(scripted_paths.seen)[0]
    assert min(seen[1], seen[2], seen["cut"]) > 0
    assert counters(llm)["num_accepted_tokens"] > 2 * counters(llm)["num_drafts"]


def test_a_second_turn_on_cached_blocks(llm: Any, prompts: Texts, plain: dict[str, Texts]) -> None:
    """Whatever the script's paths left in blocks that are shared from now on is read again."""
    asked = second_turn(prompts, plain["greedy"])
    follow(llm, asked, plain["second"])
    hits = metric(llm, "prefix_cache_hits")
    assert generate(llm, asked, TOKENS // 2) == plain["second"]
    assert metric(llm, "prefix_cache_hits") - hits > sum(map(len, asked)) / 3


def test_penalties(llm: Any, prompts: Texts, plain: dict[str, Texts]) -> None:
    follow(llm, prompts, plain["penalised"])
    assert generate(llm, prompts, TOKENS // 2, **PENALTIES) == plain["penalised"]


def test_a_table_equals_plain_greedy(llm: Any, prompts: Texts, plain: dict[str, Texts]) -> None:
    llm.collective_rpc(scripted_paths.end_script)
    before = counters(llm)["num_accepted_tokens"]
    assert generate(llm, prompts) == plain["greedy"]
    assert counters(llm)["num_accepted_tokens"] - before > len(QUESTIONS) * TOKENS / 10
