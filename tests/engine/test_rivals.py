"""The rivals inside one engine, one after another: each drafts, and the text is plain greedy.

The engine is started as a user's, with the default policy of draft lengths; how much that drafts
depends on the machine, so it gives way to a fixed length where drafts are counted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine import tiny
from tests.engine.engines import counters, engine
from tests.engine.exact import ExactModel
from tests.engine.scripted_paths import adapter_of
from vllm_plugin import PROPOSERS
from vllm_plugin.local_engine import runner_of

pytestmark = [pytest.mark.slow, pytest.mark.engine]
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
        options={"length": "threshold"},
        max_model_len=128,
        skip_tokenizer_init=True,
    ) as started:
        yield started


def decided(worker: Any) -> dict[str, Any]:
    """What the policy of draft lengths is, and what it was shown so far."""
    control = adapter_of(worker).control
    policy = control.policy
    return {
        "policy": [type(policy).__name__, type(policy.inner).__name__],
        "times": control.step_times.steps,
        "seconds": float(control.step_times.seconds(len(PROMPTS))),
        "learned": control.predictor.learned,
        "speedup": policy.inner.speedup(len(PROMPTS)),
    }


def exchange(worker: Any, name: str) -> str:
    """Give the engine's adapter the drafter that another of our classes would have made.

    All that it drafts is verified from now on.
    """
    import vllm_plugin
    from proposers.length.policy import Fixed

    held = runner_of(worker).drafter
    held.adapter.control.policy = Fixed(held.adapter.draft_length)
    kind = getattr(vllm_plugin, name)
    held.adapter.drafter = kind.make_drafter(held, held.options, held.adapter.draft_length, 0)
    return type(held.adapter.drafter).__name__


def count_asking(worker: Any) -> None:
    """Count how often the engine core asks this worker for drafts."""
    held = getattr(worker, "worker", worker)
    stock, held.asked = held.take_draft_token_ids, 0

    def take_draft_token_ids() -> Any:
        held.asked += 1
        return stock()

    held.take_draft_token_ids = take_draft_token_ids


def asked(worker: Any) -> int:
    return int(getattr(worker, "worker", worker).asked)


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


def test_the_default_policy_decides_and_greedy_stays_greedy(llm: Any, model: Path) -> None:
    exact = ExactModel(model)
    for prompt, answer in zip(PROMPTS, generate(llm, temperature=0), strict=True):
        assert len(answer) == TOKENS
        assert_greedy(exact, prompt, answer)
    found = llm.collective_rpc(decided)[0]
    assert found["policy"] == ["NeverSlower", "Threshold"]
    # A step emits at most five tokens, and those with a prompt in them teach no times.
    assert found["times"] >= TOKENS / 5 - len(PROMPTS)
    assert 0 < found["seconds"] < 60
    assert found["learned"] > 0
    assert found["speedup"] >= 1


@pytest.mark.parametrize("name", PROPOSERS)
def test_each_drafts_and_greedy_stays_greedy(llm: Any, model: Path, name: str) -> None:
    if name == "Suffix":
        pytest.importorskip("arctic_inference.suffix_decoding", reason="it is optional")
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


def test_drafts_come_with_the_steps_and_are_never_asked_for(llm: Any) -> None:
    llm.collective_rpc(count_asking)
    before = counters(llm)
    generate(llm, temperature=0.7)
    assert counters(llm)["num_draft_tokens"] > before["num_draft_tokens"]
    assert llm.collective_rpc(asked) == [0]
