"""A runner's batch as vLLM writes it without speculation, and vLLM's own shaping of its logits."""

from types import SimpleNamespace
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitBiasLogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

V = 20
CONFIG: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=1000))


def batch(
    parameters: list[SamplingParams], prompts: list[list[int]], outputs: list[list[int]]
) -> tuple[Any, SamplingMetadata]:
    """A runner and the metadata of its batch, as vLLM's input batch writes it."""
    n = len(parameters)
    processors = [
        kind(CONFIG, torch.device("cpu"), False)
        for kind in (MinTokensLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor)
    ]
    added = [(i, parameters[i], prompts[i], outputs[i]) for i in range(n)]
    for processor in processors:
        processor.update_state(BatchUpdate(batch_size=n, removed=(), added=added, moved=()))
    padded = torch.full((n, max(map(len, prompts))), V)
    for i, prompt in enumerate(prompts):
        padded[i, : len(prompt)] = torch.tensor(prompt)
    mask = torch.zeros((n, V), dtype=torch.bool)
    for i, p in enumerate(parameters):
        if p.allowed_token_ids:
            mask[i] = True
            mask[i, p.allowed_token_ids] = False
    metadata = SamplingMetadata(
        temperature=torch.tensor([p.temperature for p in parameters]),
        all_greedy=False,
        all_random=all(p.temperature > 0 for p in parameters),
        top_p=torch.tensor([p.top_p for p in parameters]),
        top_k=torch.tensor([p.top_k or V for p in parameters]),
        generators={},
        max_num_logprobs=None,
        no_penalties=False,
        prompt_token_ids=padded,
        frequency_penalties=torch.tensor([p.frequency_penalty for p in parameters]),
        presence_penalties=torch.tensor([p.presence_penalty for p in parameters]),
        repetition_penalties=torch.tensor([p.repetition_penalty for p in parameters]),
        output_token_ids=outputs,
        allowed_token_ids_mask=mask,
        bad_words_token_ids={
            i: p._bad_words_token_ids for i, p in enumerate(parameters) if p._bad_words_token_ids
        },
        logitsprocs=LogitsProcessors(processors),
    )
    ids = [f"r{i}" for i in range(n)]
    runner = SimpleNamespace(
        device=torch.device("cpu"),
        input_batch=SimpleNamespace(req_ids=ids, req_output_token_ids=outputs),
        requests={
            name: SimpleNamespace(sampling_params=p)
            for name, p in zip(ids, parameters, strict=True)
        },
    )
    return runner, metadata


def shaped(logits: torch.Tensor, metadata: SamplingMetadata) -> torch.Tensor:
    """vLLM's stages up to the last cut, for a batch without speculation."""
    logits = Sampler().apply_logits_processors(logits, metadata, False)
    assert metadata.temperature is not None
    logits = Sampler.apply_temperature(logits, metadata.temperature, metadata.all_random)
    for processor in metadata.logitsprocs.argmax_invariant:
        logits = processor.apply(logits)
    return logits
