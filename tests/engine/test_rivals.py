"""The rivals inside one engine, one after another: each drafts, and the text is plain greedy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine import tiny
from tests.engine.engines import counters, engine
from tests.engine.exact import ExactModel
from vllm_plugin import PROPOSERS

PROMPTS = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [9, 3, 4], [30, 31, 30, 31, 30], [12]]
TOKENS = 80
STARTED = "Chooser"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[Any]:
    with engine(
        model,
        proposer=f"vllm_plugin.{STARTED}",
        draft_length=4,
        max_model_len=128,
        skip_tokenizer_init=True,
    ) as started:
        yield started


def exchange(worker: Any, name: str) -> str:
    """Give the engine's adapter the drafter that another of our classes would have made."""
    import vllm_plugin

    held = getattr(worker, "worker", worker).model_runner.drafter
    kind = getattr(vllm_plugin, name)
    held.adapter.drafter = kind.make_drafter(held, held.options, held.adapter.draft_length, 0)
    return type(held.adapter.drafter).__name__


def generate(llm: Any, **settings: Any) -> list[list[int]]:
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False, **settings)
    prompts = [{"prompt_token_ids": p} for p in PROMPTS]
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, parameters, use_tqdm=False)]


def assert_greedy(model: ExactModel, prompt: list[int], answer: list[int]) -> None:
    """Every token is the most probable one after those before it (up to float32's last digits)."""
    with torch.inference_mode():
        logits = model.model(torch.tensor([prompt + answer])).logits[0].numpy()
    rows = logits[len(prompt) - 1 : -1]
    short = rows.max(axis=1) - rows[np.arange(len(answer)), answer]
    assert (short < 1e-3).all(), np.flatnonzero(short >= 1e-3)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("name", PROPOSERS)
def test_each_drafts_and_greedy_stays_greedy(llm: Any, model: Path, name: str) -> None:
    if name == "Suffix":
        pytest.importorskip("arctic_inference.suffix_decoding", reason="it is optional")
    if name != STARTED:
        llm.collective_rpc(exchange, args=(name,))
    before = counters(llm)
    answers = generate(llm, temperature=0)
    after = counters(llm)
    exact = ExactModel(model)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer) == TOKENS
        assert_greedy(exact, prompt, answer)
    assert after["num_draft_tokens"] > before["num_draft_tokens"]
    assert after["num_accepted_tokens"] > before["num_accepted_tokens"]
    sampled = generate(llm, temperature=1.0)
    assert [len(answer) for answer in sampled] == [TOKENS] * len(PROMPTS)
