"""Requests of every kind: answered as stock vLLM answers, reproducible by seed, nothing leaks."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from tests.engine import tiny
from tests.engine.engines import STAND, adapter_sizes, counters, engine
from vllm_plugin.local_engine import runner_of
from vllm_plugin.step_clock import StepClock

LIMIT = 128
PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[Any]:
    with engine(
        model, proposer=STAND, draft_length=4, max_model_len=LIMIT, skip_tokenizer_init=True
    ) as started:
        yield started


@pytest.fixture(scope="module")
def stock(model: Path) -> Iterator[Any]:
    with engine(model, max_model_len=LIMIT, skip_tokenizer_init=True) as started:
        yield started


def generate(llm: Any, prompts: list[list[int]], parameters: Any) -> list[Any]:
    return llm.generate([{"prompt_token_ids": p} for p in prompts], parameters, use_tqdm=False)


def parameters(**settings: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**({"ignore_eos": True, "detokenize": False} | settings))


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(o.token_ids) for out in outputs for o in out.outputs]


def others(n: int) -> list[list[int]]:
    return [[(7 * i + j) % 60 + 3 for j in range(5 + i)] for i in range(n)]


def test_a_step_clock_sees_every_step_and_every_draft(llm: Any) -> None:
    """Its tokens are the requests' last ones and what vLLM counts as drafted; its time fits in.

    Before any test with the stock engine: a second engine of a process takes the first one's
    counters away (vLLM 0.32).
    """
    asked = parameters(temperature=0.0, max_tokens=50)
    prompts = [PROMPT, *others(2)]
    generate(llm, prompts, asked)  # so that there are drafts from the first step on
    llm.collective_rpc(_start_clock)
    before, began = counters(llm), time.perf_counter()
    texts = tokens(generate(llm, prompts, asked))
    seconds, after = time.perf_counter() - began, counters(llm)
    (steps,) = llm.collective_rpc(_stop_clock)
    drafted = after["num_draft_tokens"] - before["num_draft_tokens"]
    accepted = after["num_accepted_tokens"] - before["num_accepted_tokens"]
    prompt, emitted = sum(map(len, prompts)), sum(map(len, texts))
    last_ones = emitted - accepted - len(texts)  # a prompt's step emits without a last token
    assert sum(n for n, _, _, _ in steps) == prompt + last_ones + drafted
    assert sum(requests for _, requests, _, _ in steps) == emitted - accepted
    decoding = [step for step in steps if step[2]]
    assert 1 <= len(steps) - len(decoding) <= len(prompts)  # a step for each prompt at most
    assert sum(n - requests for n, requests, _, _ in decoding) > 50
    assert all(0 < one < seconds for _, _, _, one in steps)
    assert 0.01 * seconds < sum(one for _, _, _, one in steps) < seconds
    generate(llm, prompts, asked)
    assert llm.collective_rpc(_clock_is_gone) == [True]


def test_a_request_s_own_limit_and_group(llm: Any) -> None:
    """Another group's text gives no drafts; the default group's neither gives to it nor takes."""
    prompt = [50, 49, 48, 47, 46, 45, 44]

    def answered(**extra: Any) -> tuple[tuple[float, float], list[list[int]]]:
        before = counters(llm)
        asked = parameters(temperature=0.0, max_tokens=24, extra_args=extra)
        texts = tokens(generate(llm, [prompt], asked))
        after = counters(llm)
        drafted, accepted = (
            after[name] - before[name] for name in ("num_draft_tokens", "num_accepted_tokens")
        )
        return (drafted, accepted), texts

    first, plain = answered(specproof_group="a")
    again, same = answered(specproof_group="a")
    assert again[1] > first[1]
    assert answered(specproof_group="b") == (first, plain)  # b starts from nothing, as a did
    assert plain == same
    assert answered(specproof_group="a", specproof_max_draft=0) == ((0, 0), plain)
    (few, _), text = answered(specproof_group="a", specproof_max_draft=1)
    assert 0 < few < 24
    assert text == plain
    with pytest.raises(VLLMValidationError, match="specproof_max_draft is 'x'"):
        answered(specproof_max_draft="x")


@pytest.mark.parametrize("kind", [{}, {"top_p": 0.8}, {"top_k": 5}, {"presence_penalty": 0.7}])
def test_a_seed_fixes_the_text_whoever_shares_the_batch(llm: Any, kind: dict[str, Any]) -> None:
    """Alone, in a full batch, and again after the table has learned: the same tokens."""
    seeded = parameters(temperature=1.0, max_tokens=60, seed=11, **kind)
    alone = tokens(generate(llm, [PROMPT], seeded))[0]
    free = parameters(temperature=1.0, max_tokens=40)
    mixed = generate(llm, [*others(4), PROMPT, *others(3)], [free] * 4 + [seeded] + [free] * 3)
    assert tokens(mixed)[4] == alone
    assert tokens(generate(llm, [PROMPT], seeded))[0] == alone
    other = parameters(temperature=1.0, max_tokens=60, seed=12, **kind)
    assert tokens(generate(llm, [PROMPT], other))[0] != alone


def test_seeds_draw_the_target_choice_with_and_without_drafts(llm: Any) -> None:
    """A seeded text does not depend on drafts: no room for drafts at all gives the same tokens."""
    whole = tokens(generate(llm, [PROMPT], parameters(temperature=1.0, max_tokens=8, seed=5)))[0]
    step_by_step: list[int] = []
    for _ in range(8):  # max_tokens 1 leaves no room for a draft
        one = parameters(temperature=1.0, max_tokens=1, seed=5)
        step_by_step += tokens(generate(llm, [PROMPT + step_by_step], one))[0]
    assert step_by_step == whole


def test_logprobs_equal_stock(llm: Any, stock: Any) -> None:
    asked = parameters(temperature=0, max_tokens=30, logprobs=3, prompt_logprobs=2)
    ours, plain = (generate(x, [PROMPT], asked)[0] for x in (llm, stock))
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    for a, b in zip(ours.outputs[0].logprobs, plain.outputs[0].logprobs, strict=True):
        assert list(a) == list(b)
        assert [x.logprob for x in a.values()] == pytest.approx(
            [x.logprob for x in b.values()], abs=1e-3
        )
    for a, b in zip(ours.prompt_logprobs[1:], plain.prompt_logprobs[1:], strict=True):
        assert [x.logprob for x in a.values()] == pytest.approx(
            [x.logprob for x in b.values()], abs=1e-3
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.8, "presence_penalty": 0.4},
        {"min_tokens": 20},
        {"allowed_token_ids": list(range(3, 20))},
        {"stop_token_ids": [46]},
    ],
    ids=lambda s: next(iter(s)),
)
def test_greedy_parameters_equal_stock(llm: Any, stock: Any, settings: dict[str, Any]) -> None:
    asked = parameters(temperature=0, max_tokens=40, **settings)
    prompts = [PROMPT, *others(3)]
    assert tokens(generate(llm, prompts, asked)) == tokens(generate(stock, prompts, asked))


@pytest.mark.parametrize("n", [1, 64])
def test_many_samples_of_one_prompt(llm: Any, n: int) -> None:
    out = generate(llm, [PROMPT], parameters(temperature=1.0, max_tokens=12, n=n))
    assert [len(t) for t in tokens(out)] == [12] * n


def test_one_token(llm: Any) -> None:
    assert len(tokens(generate(llm, [PROMPT], parameters(temperature=1.0, max_tokens=1)))[0]) == 1


@pytest.mark.parametrize("length", [0, LIMIT - 1, LIMIT, LIMIT + 1])
def test_prompts_at_the_limits_are_answered_as_stock_answers(
    llm: Any, stock: Any, length: int
) -> None:
    prompt = [3 + i % 50 for i in range(length)]
    asked = parameters(temperature=0, max_tokens=5)
    results = []
    for x in (llm, stock):
        try:
            results.append(tokens(generate(x, [prompt], asked)))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    assert results[0] == results[1]


def test_text_up_to_the_models_length(llm: Any, stock: Any) -> None:
    """Drafts never pass max_model_len, where vLLM would put drafts of its own."""
    asked = parameters(temperature=0, max_tokens=LIMIT)
    ours, plain = (tokens(generate(x, [PROMPT, *others(3)], asked)) for x in (llm, stock))
    assert ours == plain
    assert [len(PROMPT) + len(ours[0])] == [LIMIT]


def test_nothing_is_left_of_cancelled_and_finished_requests(llm: Any) -> None:
    core = llm.llm_engine
    for i in range(6):
        core.add_request(
            f"cancel-{i}", {"prompt_token_ids": PROMPT}, parameters(temperature=1.0, max_tokens=90)
        )
    for _ in range(8):
        core.step()
    assert adapter_sizes(llm)["pending"] > 0
    core.abort_request([f"cancel-{i}" for i in range(6)])
    while core.has_unfinished_requests():
        core.step()
    generate(llm, [PROMPT], parameters(temperature=1.0, max_tokens=3))
    sizes = adapter_sizes(llm)
    assert sizes["served"] <= 1
    assert sizes["pending"] <= 1


def _start_clock(worker: Any) -> None:
    runner = runner_of(worker)
    runner.seen_steps = []
    StepClock.install(runner, lambda *step: runner.seen_steps.append(step))


def _stop_clock(worker: Any) -> list[Any]:
    runner = runner_of(worker)
    del runner.specproof_step_clock
    steps, runner.seen_steps = runner.seen_steps, []
    return steps


def _clock_is_gone(worker: Any) -> bool:
    return runner_of(worker).seen_steps == []
