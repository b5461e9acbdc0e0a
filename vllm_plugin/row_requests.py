"""Every row of a step as a request of its own, so that p is shaped by vLLM's own sampler.

A row that judges a draft differs from a plain step in one thing: the drafts before it count as
emitted. So the batch's sampling metadata is written out row by row, with the text of each row, and
given to the code that vLLM runs without speculation. Nothing is reimplemented, and no parameter can
be applied in another order or be forgotten: vLLM's own speculative path forgets ``logit_bias`` and
``min_p``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitBiasLogitsProcessor,
    LogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata

if TYPE_CHECKING:
    from vllm_plugin.verifier import Request

# vLLM's own processors look at one request's parameters and text only, so a row can stand for one.
ROW_WISE: dict[type[LogitsProcessor], str] = {
    MinTokensLogitsProcessor: "min_tokens",
    LogitBiasLogitsProcessor: "logit_bias",
    MinPLogitsProcessor: "min_p",
}


def rows_as_requests(
    runner: Any, requests: Sequence[Request], counts: Sequence[int], sampling: SamplingMetadata
) -> SamplingMetadata:
    """The metadata of a batch of ``N = sum(counts)`` requests, one for each row of the logits.

    ``counts[i]`` rows belong to request i, the first of them at ``requests[i].first_row``. Row j of
    a request has the request's parameters, and as text its own and its first j drafts. Rows beyond
    a request's drafts (vLLM's placeholders) are nobody's: they get the text of the last draft.
    """
    batch = runner.input_batch
    device = runner.device
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
    heads = torch.tensor([r.first_row for r in requests], device=device)
    texts = _Texts(batch, requests, counts)
    holder = sampling.thinking_budget_state_holder
    if holder is not None and holder.has_tracked_requests():
        holder = HeadRowsBudget(holder, heads, sampling.output_token_ids)
    penalties = not sampling.no_penalties
    past = penalties or bool(sampling.bad_words_token_ids)
    return dataclasses.replace(
        sampling,
        temperature=_of_rows(sampling.temperature, owner),
        top_p=_of_rows(sampling.top_p, owner),
        top_k=_of_rows(sampling.top_k, owner),
        generators={},
        prompt_token_ids=_of_rows(sampling.prompt_token_ids, owner),
        frequency_penalties=_of_rows(sampling.frequency_penalties, owner, penalties),
        presence_penalties=_of_rows(sampling.presence_penalties, owner, penalties),
        repetition_penalties=_of_rows(sampling.repetition_penalties, owner, penalties),
        output_token_ids=[texts.of(i, j) for i, j in texts.rows()] if past else [],
        allowed_token_ids_mask=_of_rows(sampling.allowed_token_ids_mask, owner),
        bad_words_token_ids={
            requests[i].first_row + j: words
            for i, words in sampling.bad_words_token_ids.items()
            for j in range(counts[i])
        },
        logitsprocs=_processors(runner, sampling.logitsprocs, texts, heads),
        spec_token_ids=None,
        thinking_budget_state_holder=holder,
    )


def _of_rows(of_requests: Any, owner: Tensor, used: bool = True) -> Any:
    return of_requests[owner] if used and of_requests is not None else of_requests


class _Texts:
    """What each row of the step follows: the request's output and the drafts before the row."""

    def __init__(self, batch: Any, requests: Sequence[Request], counts: Sequence[int]) -> None:
        self.batch = batch
        self.requests = requests
        self.counts = counts

    def rows(self) -> list[tuple[int, int]]:
        return [(i, j) for i, n in enumerate(self.counts) for j in range(n)]

    def of(self, i: int, j: int) -> list[int]:
        return [*self.batch.req_output_token_ids[i], *self.requests[i].scheduled[:j].tolist()]


def _processors(
    runner: Any, of_requests: LogitsProcessors, texts: _Texts, heads: Tensor
) -> LogitsProcessors:
    """Processors for the rows: vLLM's own on every row, any other on each request's first."""
    of_rows = LogitsProcessors()
    for kind in ("argmax_invariant", "non_argmax_invariant"):
        for processor in getattr(of_requests, kind):
            made = _processor(runner, processor, texts, heads)
            if made is not None:
                getattr(of_rows, kind).append(made)
    return of_rows


def _processor(
    runner: Any, processor: LogitsProcessor, texts: _Texts, heads: Tensor
) -> LogitsProcessor | HeadRows | None:
    name = ROW_WISE.get(type(processor))
    if name is None:
        return HeadRows(processor, heads)
    added = []
    for i, request_id in enumerate(texts.batch.req_ids):
        parameters = runner.requests[request_id].sampling_params
        if parameters is not None and getattr(parameters, name):
            row = texts.requests[i].first_row
            added += [(row + j, parameters, None, texts.of(i, j)) for j in range(texts.counts[i])]
    if not added:
        return None
    rows = sum(texts.counts)
    # The minimum-probability processor takes the size of its buffer from the configuration.
    size = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=rows))
    config: Any = size
    made = type(processor)(config, runner.device, False)
    made.update_state(BatchUpdate(batch_size=rows, removed=(), added=added, moved=()))
    return made


class HeadRows:
    """A processor that only knows plain steps: it sees the first row of every request, in order.

    Requests that it changes are served without drafts, so that row is their only one.
    """

    def __init__(self, processor: LogitsProcessor, heads: Tensor) -> None:
        self.processor = processor
        self.heads = heads

    def apply(self, logits: Tensor) -> Tensor:
        """As the processor in a step without drafts; works in place."""
        logits[self.heads] = self.processor.apply(logits[self.heads])
        return logits


class HeadRowsBudget:
    """vLLM's thinking budget, applied to the first row of every request as without speculation."""

    def __init__(self, holder: Any, heads: Tensor, outputs: list[list[int]]) -> None:
        self.holder = holder
        self.heads = heads
        self.outputs = outputs

    def has_tracked_requests(self) -> bool:
        """As the holder's own."""
        return bool(self.holder.has_tracked_requests())

    def update_state(self, output_token_ids: Any, spec_token_ids: Any, repeat_indices: Any) -> None:
        """Count the emitted tokens of the requests, whatever rows they have in this step."""
        self.holder.update_state(self.outputs, None, None)

    def apply_to_logits(
        self, logits: Tensor, predict_bonus_token: bool, spec_token_ids: Any
    ) -> Tensor:
        """Force the end of thinking where the budget is spent; works in place."""
        logits[self.heads] = self.holder.apply_to_logits(logits[self.heads], False, None)
        return logits
