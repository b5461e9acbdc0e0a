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
from typing import Any, NamedTuple

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

# vLLM's own processors look at one request's parameters and text only, so a row can stand for one.
ROW_WISE: dict[type[LogitsProcessor], str] = {
    MinTokensLogitsProcessor: "min_tokens",
    LogitBiasLogitsProcessor: "logit_bias",
    MinPLogitsProcessor: "min_p",
}


class Row(NamedTuple):
    """One row of the logits: whose it is, by place in the batch, and the drafts it stands behind.

    ``drafts[:behind]`` count as emitted there.
    """

    owner: int
    drafts: Sequence[int]
    behind: int


def rows_as_requests(
    runner: Any, rows: Sequence[Row], heads: Tensor | None, sampling: SamplingMetadata
) -> SamplingMetadata:
    """The metadata of a batch of as many requests as there are rows of logits, in their order.

    A row has its owner's parameters, and as text the owner's and the drafts before it. ``heads``
    are the places of the first rows of all requests, in the batch's order; None if they are not
    among the rows. Rows that are nobody's (vLLM's placeholders) may have any drafts.
    """
    batch = runner.input_batch
    device = runner.device
    owners = [row.owner for row in rows]
    owner = torch.tensor(owners, device=device)
    texts = _Texts(batch, rows)
    budget = sampling.thinking_budget_state_holder
    holder = None
    if budget is not None and heads is not None and budget.has_tracked_requests():
        holder = HeadRowsBudget(budget, heads, sampling.output_token_ids)
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
        output_token_ids=[texts.of(r) for r in range(len(rows))] if past else [],
        allowed_token_ids_mask=_of_rows(sampling.allowed_token_ids_mask, owner),
        bad_words_token_ids={
            r: sampling.bad_words_token_ids[i]
            for r, i in enumerate(owners)
            if i in sampling.bad_words_token_ids
        },
        logitsprocs=_processors(runner, sampling.logitsprocs, texts, heads),
        spec_token_ids=None,
        thinking_budget_state_holder=holder,
    )


def _of_rows(of_requests: Any, owner: Tensor, used: bool = True) -> Any:
    return of_requests[owner] if used and of_requests is not None else of_requests


class _Texts:
    """What each row of the step follows: the request's output and the drafts before the row."""

    def __init__(self, batch: Any, rows: Sequence[Row]) -> None:
        self.batch = batch
        self.rows = rows

    def of(self, r: int) -> list[int]:
        row = self.rows[r]
        return [*self.batch.req_output_token_ids[row.owner], *row.drafts[: row.behind]]


def _processors(
    runner: Any, of_requests: LogitsProcessors, texts: _Texts, heads: Tensor | None
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
    runner: Any, processor: LogitsProcessor, texts: _Texts, heads: Tensor | None
) -> LogitsProcessor | HeadRows | None:
    name = ROW_WISE.get(type(processor))
    if name is None:
        return None if heads is None else HeadRows(processor, heads)
    asking = {}
    for i, request_id in enumerate(texts.batch.req_ids):
        parameters = runner.requests[request_id].sampling_params
        if parameters is not None and getattr(parameters, name):
            asking[i] = parameters
    added = [
        (r, asking[row.owner], None, texts.of(r))
        for r, row in enumerate(texts.rows)
        if row.owner in asking
    ]
    if not added:
        return None
    count = len(texts.rows)
    # The minimum-probability processor takes the size of its buffer from the configuration.
    size = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=count))
    config: Any = size
    made = type(processor)(config, runner.device, False)
    made.update_state(BatchUpdate(batch_size=count, removed=(), added=added, moved=()))
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
