"""A vLLM engine for a benchmark that looks inside it: started in this process's care, no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    VLLM_ALLOW_INSECURE_SERIALIZATION=1 in the environment before.
    """
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


def answers(
    llm: Any, question: str, *, samples: int, temperature: float, max_tokens: int
) -> list[list[int]]:
    """The tokens of some answers to one chat message, sampled side by side."""
    from vllm import SamplingParams

    sampling = SamplingParams(n=samples, temperature=temperature, max_tokens=max_tokens)
    chat: Any = [{"role": "user", "content": question}]
    outputs = llm.chat([chat], sampling, use_tqdm=False)[0].outputs
    return [list(output.token_ids) for output in outputs]
