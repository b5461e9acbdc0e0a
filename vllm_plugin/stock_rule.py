"""vLLM's own rejection sampler, called alone: what our rules are compared with in benchmarks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_plugin.rules import Chains


def dense_law(chains: Chains, vocabulary: int) -> Tensor:
    """The dense q that stock verification needs: (drafts of all chains, V) float32."""
    inside = torch.arange(chains.tokens.shape[1]) < chains.lengths[:, None]
    law = torch.zeros((int(inside.sum()), vocabulary), dtype=torch.float32)
    return law.scatter_add_(1, chains.law_ids[inside], chains.law[inside].float())


def stock_verify(target_logits: Tensor, chains: Chains, draft_law: Tensor, bonus: Tensor) -> Tensor:
    """Tokens that vLLM's ``rejection_sample`` emits, on the kernels of this machine's platform.

    target_logits (D, V) float32, the processed logits of the rows that judge the D drafts of all
    chains, without the rows of the bonus tokens; draft_law (D, V) as :func:`dense_law`; bonus
    (B, 1) int32, the bonus tokens, which vLLM draws elsewhere. Returns (B, K + 1) int32, padded
    with -1.
    """
    from vllm.v1.sample.rejection_sampler import rejection_sample

    load_kernels()
    batch, steps = chains.tokens.shape
    inside = torch.arange(steps) < chains.lengths[:, None]
    return rejection_sample(
        chains.tokens[inside].int(),
        chains.lengths.tolist(),
        steps,
        chains.lengths.cumsum(0).int(),
        draft_law,
        target_logits,
        bonus,
        _all_random(batch),
    )


@cache
def load_kernels() -> None:
    """Put vLLM's kernels for this platform in place, as its workers do.

    On a CPU vLLM 0.32 walks over all modules for it, which fails once llvmlite is loaded: call this
    before anything that imports numba.
    """
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if current_platform.is_cpu():
        current_platform.register_triton_kernel_overrides()


@cache
def _all_random(batch: int) -> Any:
    """vLLM's sampling metadata of ``batch`` requests at temperature 1 without seeds."""
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    none = torch.zeros(0)
    return SamplingMetadata(
        temperature=torch.from_numpy(np.ones(batch, np.float32)),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[[] for _ in range(batch)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
