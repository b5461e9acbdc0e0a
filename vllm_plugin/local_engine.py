"""A vLLM engine for a benchmark that looks inside it: started in this process's care, no server."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_numbers = itertools.count()


@contextmanager
def local_engine(
    folder: Path,
    *,
    speculative_config: Mapping[str, Any] | None,
    additional_config: Mapping[str, Any],
    **settings: Any,
) -> Iterator[Any]:
    """vLLM's ``LLM`` on a model folder, eager, with its statistics on; shut down on exit.

    ``settings`` are engine arguments by vLLM's names. ``LLM.collective_rpc`` of functions needs
    VLLM_ALLOW_INSECURE_SERIALIZATION=1 in the environment before. On a CPU the cache is of 2 GiB,
    unless VLLM_CPU_KVCACHE_SPACE says otherwise: vLLM would ask for nearly all memory.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM

    llm = LLM(
        str(folder),
        speculative_config=None if speculative_config is None else dict(speculative_config),
        additional_config=dict(additional_config),
        enforce_eager=True,
        disable_log_stats=False,
        **settings,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def runner_of(worker: Any) -> Any:
    """The model runner of what ``LLM.collective_rpc`` gives a function: a worker, maybe wrapped."""
    return getattr(worker, "worker", worker).model_runner


def answers(
    llm: Any, question: str, *, samples: int, temperature: float, max_tokens: int
) -> list[list[int]]:
    """The tokens of some answers to one chat message, sampled side by side."""
    from vllm import SamplingParams

    sampling = SamplingParams(n=samples, temperature=temperature, max_tokens=max_tokens)
    chat: Any = [{"role": "user", "content": question}]
    outputs = llm.chat([chat], sampling, use_tqdm=False)[0].outputs
    return [list(output.token_ids) for output in outputs]


def in_flight(
    llm: Any,
    questions: Sequence[str],
    *,
    together: int,
    temperature: float,
    max_tokens: int,
    extra_args: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> int:
    """Answer chat messages with ``together`` of them in flight; the number of tokens emitted.

    With ``seed`` the i-th answer has the seed ``seed + i``.
    """
    from vllm import SamplingParams

    tokenizer, engine = llm.get_tokenizer(), llm.llm_engine
    waiting = []
    for i, question in enumerate(questions):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        sampling = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            seed=None if seed is None else seed + i,
            extra_args=None if extra_args is None else dict(extra_args),
        )
        waiting.append((f"{next(_numbers)}", {"prompt_token_ids": list(prompt)}, sampling))
    waiting.reverse()
    going, tokens = 0, 0
    while waiting or going:
        while waiting and going < together:
            engine.add_request(*waiting.pop())
            going += 1
        for output in engine.step():
            if output.finished:
                going -= 1
                tokens += sum(len(one.token_ids) for one in output.outputs)
    return tokens
