"""The verifier: from logits and chains of drafts to emitted tokens, the law being vLLM's own.

p is built by vLLM's code, which takes every row for a request (:mod:`vllm_plugin.row_requests`);
the rules of :mod:`vllm_plugin.rules` decide. Greedy requests and requests with a seed emit the
target's own choice at each row, so that neither drafts nor neighbours can change their text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_plugin import rules
from vllm_plugin.backends import backend
from vllm_plugin.keyed_sampler import KeyedTopKTopP, keyed_choice
from vllm_plugin.pending import Chain, PendingDraft
from vllm_plugin.row_laws import row_laws
from vllm_plugin.row_requests import Row, rows_as_requests


@dataclass(slots=True)
class Request:
    """One request's part of a step: rows ``first_row .. first_row + len(scheduled)`` of the logits.

    ``scheduled`` are the drafts that the engine evaluated, up to its first placeholder.

    ``stepwise`` asks for a rule that judges each draft without a look at those behind it.

    ``key`` is 0 without a seed. ``discarded`` marks an unfinished prompt, whose token vLLM drops.
    """

    index: int
    text_length: int
    first_row: int
    scheduled: NDArray[np.int32]
    key: int
    discarded: bool
    chain: Chain
    pending: PendingDraft | None = None  # what the chain was made of
    stepwise: bool = False


class Verifier(RejectionSampler):
    """Takes the place of vLLM's rejection sampler in the steps of our proposers."""

    def __init__(self, runner: Any, rule: str) -> None:
        super().__init__(runner.sampler, runner.speculative_config, runner.device)
        self.runner = runner
        chains = backend(runner.device).chains
        self.rule = chains[rule]
        self.stepwise = chains["token"] if rule == "block" else self.rule
        if not isinstance(self.sampler.topk_topp_sampler, KeyedTopKTopP):
            self.sampler.topk_topp_sampler = KeyedTopKTopP(self.sampler.topk_topp_sampler)
        holder = runner.input_batch.thinking_budget_state_holder
        if holder is not None:
            holder.in_spec_mode = False  # it is only ever shown one row a request

    @contextmanager
    def keyed(self, requests: list[Request]) -> Iterator[None]:
        """In the block, vLLM's sampler draws rows of seeded requests from position-keyed noise."""
        keyed = self.sampler.topk_topp_sampler
        keyed.places = {r.index: (r.key, r.text_length) for r in requests if r.key}
        try:
            yield
        finally:
            keyed.places = {}

    def forget_stale_budgets(self) -> None:
        """Drop thinking budgets of requests that asked for none.

        vLLM 0.32 leaves a finished request's budget to the one that moves into its place of the
        batch (``ThinkingBudgetStateHolder.sync_batch`` does not clear where a move ends).
        """
        batch = self.runner.input_batch
        holder = batch.thinking_budget_state_holder
        if holder is None or not holder.has_tracked_requests():
            return
        asking = {
            i
            for i, request_id in enumerate(batch.req_ids)
            if self.runner.requests[request_id].sampling_params.thinking_token_budget is not None
        }
        for index in [i for i in holder._state if i not in asking]:
            del holder._state[index]

    def verify(self, requests: list[Request], metadata: Any, logits: Tensor) -> SamplerOutput:
        """Emitted tokens of every request, (B, longest scheduled + 1) int32 padded with -1."""
        sampling = self.runner.input_batch.sampling_metadata
        if metadata is None:
            metadata = _no_drafts(len(requests), logits.device)
        wants_logprobs = sampling.max_num_logprobs is not None or sampling.logprob_token_ids
        keep_raw = wants_logprobs and not self.is_processed_logprobs_mode
        raw = logits.clone() if keep_raw else logits
        counts = [n + 1 for n in metadata.num_draft_tokens]
        best, processed = self._process(requests, logits, counts, sampling)
        emitted = self._emit(requests, best, processed, sampling, metadata.max_spec_len + 1)
        logprobs = None
        if wants_logprobs:
            rows = processed if self.is_processed_logprobs_mode else raw
            logprobs = self._logprobs(requests, rows, emitted, sampling)
        return SamplerOutput(sampled_token_ids=emitted, logprobs_tensors=logprobs)

    def _process(
        self, requests: list[Request], logits: Tensor, counts: list[int], sampling: Any
    ) -> tuple[Tensor | None, Tensor]:
        """Each row's argmax (None if nobody is greedy) and logits whose softmax is p; in place."""
        rows = [
            Row(i, drafts, j)
            for i, drafts in enumerate([r.scheduled.tolist() for r in requests])
            for j in range(counts[i])
        ]
        heads = torch.tensor([r.first_row for r in requests], device=logits.device)
        of_rows = rows_as_requests(self.runner, rows, heads, sampling)
        logits = self.sampler.apply_logits_processors(logits, of_rows, False)
        best = None if of_rows.all_random else self.sampler.greedy_sample(logits)
        return best, self.tempered(logits, of_rows)

    def tempered(self, logits: Tensor, of_rows: Any) -> Tensor:
        """Logits whose softmax is p, from those that the logits processors left; in place.

        The stages of ``vllm.v1.sample.sampler.Sampler.sample`` behind its logits processors, in its
        order. Of greedy rows nothing is asked.
        """
        if of_rows.all_greedy:
            return logits
        logits = self.sampler.apply_temperature(logits, of_rows.temperature, of_rows.all_random)
        for processor in of_rows.logitsprocs.argmax_invariant:
            logits = processor.apply(logits)
        return apply_top_k_top_p(logits, of_rows.top_k, of_rows.top_p)

    def _logprobs(
        self, requests: list[Request], rows: Tensor, emitted: Tensor, sampling: Any
    ) -> LogprobsTensors:
        """Log-probabilities of every emitted token and of what its request asked for beside it.

        Row ``i * emitted.shape[1] + j`` of the result belongs to ``emitted[i, j]``; those of tokens
        that were not emitted are dropped by vLLM. Column 0 is the emitted token, the others the
        most probable ones, or the request's own ``logprob_token_ids``.
        """
        width = emitted.shape[1]
        places = torch.tensor([r.first_row for r in requests], device=rows.device)[:, None]
        places = places + torch.arange(width, device=rows.device)
        values = rows[places.clamp(max=rows.shape[0] - 1).flatten()]
        return self.gathered_logprobs(values, emitted, sampling)

    def gathered_logprobs(self, values: Tensor, emitted: Tensor, sampling: Any) -> LogprobsTensors:
        """The result of :meth:`_logprobs` from the row of every emitted token, in its order."""
        width = emitted.shape[1]
        if not self.is_logits_logprobs_mode:
            values = self.sampler.compute_logprobs(values)
        asked: dict[int, list[int]] = sampling.logprob_token_ids or {}
        most = max(sampling.max_num_logprobs or 0, *(len(ids) for ids in asked.values()), 0)
        tokens = emitted.flatten().clamp(min=0).long()
        tensors = self.sampler.gather_logprobs(values, most, tokens)
        for i, ids in asked.items():
            own = slice(i * width, (i + 1) * width)
            columns = torch.tensor(ids, device=values.device)
            tensors.logprob_token_ids[own, 1 : len(ids) + 1] = columns.int()
            tensors.logprobs[own, 1 : len(ids) + 1] = values[own, columns]
        return tensors

    def _emit(
        self,
        requests: list[Request],
        best: Tensor | None,
        processed: Tensor,
        sampling: Any,
        width: int,
    ) -> Tensor:
        greedy = greedy_requests(sampling, len(requests))
        chosen = [r for r in requests if greedy[r.index] or r.key]
        drawn = [r for r in requests if not (greedy[r.index] or r.key)]
        emitted = torch.full((len(requests), width), rules.PLACEHOLDER, dtype=torch.int32)
        emitted = emitted.to(processed.device)
        p = None if sampling.all_greedy else row_laws(processed)
        if chosen:
            choices = self._choices(chosen, greedy, best, p)
            tokens = rules.verify_match(choices, _chains(chosen, processed.device))
            _place(emitted, chosen, tokens)
        if drawn:
            assert p is not None
            for rule, stepwise in ((self.rule, False), (self.stepwise, True)):
                these = [r for r in drawn if r.stepwise == stepwise]
                if not these:
                    continue
                chains = _chains(these, p.device)
                steps = chains.tokens.shape[1]
                u = torch.rand((len(these), steps + 1), dtype=torch.float64, device=p.device)
                _place(emitted, these, rule(p, chains, u[:, :steps], u[:, steps]))
        return emitted

    def _choices(
        self,
        requests: list[Request],
        greedy: NDArray[np.bool_],
        best: Tensor | None,
        p: Tensor | None,
    ) -> Tensor:
        """The target's own token at each row of a chain, up to the first that is not the draft."""
        steps = max(1, *(r.chain.tokens.shape[0] for r in requests))
        choices = torch.zeros((len(requests), steps + 1), dtype=torch.int64)
        best = None if best is None else best.cpu()
        for b, r in enumerate(requests):
            rows = r.scheduled.shape[0] + 1
            if greedy[r.index]:
                assert best is not None
                choices[b, :rows] = best[r.first_row : r.first_row + rows][: steps + 1]
                continue
            assert p is not None
            for i in range(rows):
                y = keyed_choice(p[r.first_row + i], r.key, r.text_length + i)
                choices[b, i] = y
                if i >= r.chain.tokens.shape[0] or y != r.chain.tokens[i]:
                    break
        return choices.to(self.runner.device)


def _chains(requests: list[Request], device: torch.device) -> rules.Chains:
    """Padded tensors of some requests' chains."""
    batch = len(requests)
    steps = max(1, *(r.chain.tokens.shape[0] for r in requests))
    entries = max(r.chain.law.shape[1] for r in requests)
    tokens = np.zeros((batch, steps), np.int64)
    law_ids = np.zeros((batch, steps, entries), np.int64)
    law = np.zeros((batch, steps, entries))
    for b, r in enumerate(requests):
        n, e = r.chain.law.shape
        tokens[b, :n] = r.chain.tokens
        law_ids[b, :n, :e] = np.maximum(r.chain.law_ids, 0)
        law[b, :n, :e] = r.chain.law
    arrays = (
        np.array([r.first_row for r in requests]),
        np.array([r.chain.tokens.shape[0] for r in requests]),
        np.array([r.chain.has_bonus for r in requests]),
        tokens,
        law_ids,
        law,
    )
    return rules.Chains(*(torch.from_numpy(a).to(device) for a in arrays))


def _place(emitted: Tensor, requests: list[Request], tokens: Tensor) -> None:
    """Write rows of tokens to their requests; a chain never emits more than its scheduled rows."""
    index = torch.tensor([r.index for r in requests], device=emitted.device)
    width = min(emitted.shape[1], tokens.shape[1])
    emitted[index, :width] = tokens[:, :width]


def greedy_requests(sampling: Any, count: int) -> NDArray[np.bool_]:
    """Which of the batch's requests have temperature 0, (count,)."""
    if sampling.all_greedy:
        return np.ones(count, np.bool_)
    if sampling.all_random:
        return np.zeros(count, np.bool_)
    return np.asarray((sampling.temperature[:count] == 0).cpu().numpy())


def _no_drafts(count: int, device: torch.device) -> SpecDecodeMetadata:
    """Metadata of a step without scheduled drafts: one row a request, all of them bonus rows."""
    rows = torch.arange(count, dtype=torch.int32, device=device)
    none = torch.zeros(0, dtype=torch.int32, device=device)
    return SpecDecodeMetadata(
        draft_token_ids=none,
        num_draft_tokens=[0] * count,
        cu_num_draft_tokens=torch.zeros_like(rows),
        cu_num_sampled_tokens=rows + 1,
        target_logits_indices=none,
        bonus_logits_indices=rows,
        logits_indices=rows,
    )
