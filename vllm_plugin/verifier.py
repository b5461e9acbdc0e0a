"""The verifier: from logits and chains of drafts to emitted tokens, the law being vLLM's own.

p is built by vLLM's code (penalties, bad words, grammar mask, temperature, top-k, top-p); the rules
of :mod:`vllm_plugin.rules` decide. Greedy requests and requests with a seed emit the target's own
choice at each row, so that neither drafts nor neighbours can change their text.
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
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_plugin import rules
from vllm_plugin.backends import backend
from vllm_plugin.keyed_sampler import KeyedTopKTopP, keyed_choice


@dataclass(frozen=True, slots=True)
class Chain:
    """Drafts to verify and their laws: tokens (n,), law_ids (n, E), law (n, E)."""

    tokens: NDArray[np.int32]
    law_ids: NDArray[np.int32]
    law: NDArray[np.float64]
    has_bonus: bool


@dataclass(slots=True)
class Request:
    """One request's part of a step: rows ``first_row .. first_row + len(scheduled)`` of the logits.

    ``scheduled`` are the drafts that the engine evaluated, up to its first placeholder.

    ``key`` is 0 without a seed. ``discarded`` marks an unfinished prompt, whose token vLLM drops.
    """

    index: int
    text_length: int
    first_row: int
    scheduled: NDArray[np.int32]
    key: int
    discarded: bool
    chain: Chain


class Verifier(RejectionSampler):
    """Takes the place of vLLM's rejection sampler in the steps of our proposers."""

    def __init__(self, runner: Any, rule: str) -> None:
        super().__init__(runner.sampler, runner.speculative_config, runner.device)
        self.runner = runner
        self.rule = backend(runner.device).chains[rule]
        if not isinstance(self.sampler.topk_topp_sampler, KeyedTopKTopP):
            self.sampler.topk_topp_sampler = KeyedTopKTopP(self.sampler.topk_topp_sampler)

    @contextmanager
    def keyed(self, requests: list[Request]) -> Iterator[None]:
        """In the block, vLLM's sampler draws rows of seeded requests from position-keyed noise."""
        keyed = self.sampler.topk_topp_sampler
        keyed.places = {r.index: (r.key, r.text_length) for r in requests if r.key}
        try:
            yield
        finally:
            keyed.places = {}

    def verify(self, requests: list[Request], metadata: Any, logits: Tensor) -> SamplerOutput:
        """Emitted tokens of every request, (B, longest scheduled + 1) int32 padded with -1."""
        sampling = self.runner.input_batch.sampling_metadata
        if metadata is None:
            metadata = _no_drafts(len(requests), logits.device)
        raw = logits
        keep_raw = sampling.max_num_logprobs is not None and not self.is_processed_logprobs_mode
        processed = self._process(raw.clone() if keep_raw else raw, metadata, sampling)
        emitted = self._emit(requests, processed, sampling, metadata.max_spec_len + 1)
        logprobs = None
        if sampling.max_num_logprobs is not None:
            rows = processed if self.is_processed_logprobs_mode else raw
            logprobs = self._get_logprobs_tensors(
                sampling.max_num_logprobs,
                metadata,
                logits,
                rows[metadata.target_logits_indices],
                rows[metadata.bonus_logits_indices],
                emitted,
            )
        return SamplerOutput(sampled_token_ids=emitted, logprobs_tensors=logprobs)

    def _process(self, logits: Tensor, metadata: Any, sampling: Any) -> Tensor:
        """Logits whose softmax is p, row by row; works in place."""
        if _has_processors(sampling):
            targets, bonus = metadata.target_logits_indices, metadata.bonus_logits_indices
            if targets.numel():
                logits[targets] = self.apply_logits_processors(logits[targets], sampling, metadata)
            logits[bonus] = self.sampler.apply_logits_processors(logits[bonus], sampling, True)
        if sampling.all_greedy:
            return logits
        counts = np.asarray(metadata.num_draft_tokens) + 1
        owner = torch.from_numpy(np.repeat(np.arange(counts.shape[0]), counts)).to(logits.device)
        temperature = sampling.temperature[owner]
        if not sampling.all_random:
            temperature = torch.where(temperature == 0, 1.0, temperature)
        logits.div_(temperature[:, None])
        top_k = None if sampling.top_k is None else sampling.top_k[owner]
        top_p = None if sampling.top_p is None else sampling.top_p[owner]
        return apply_top_k_top_p(logits, top_k, top_p)

    def _emit(
        self, requests: list[Request], processed: Tensor, sampling: Any, width: int
    ) -> Tensor:
        greedy = _greedy(sampling, len(requests))
        chosen = [r for r in requests if greedy[r.index] or r.key]
        drawn = [r for r in requests if not (greedy[r.index] or r.key)]
        emitted = torch.full((len(requests), width), rules.PLACEHOLDER, dtype=torch.int32)
        emitted = emitted.to(processed.device)
        p = None if sampling.all_greedy else processed.softmax(dim=-1)
        if chosen:
            choices = self._choices(chosen, greedy, processed, p)
            tokens = rules.verify_match(choices, _chains(chosen, processed.device))
            _place(emitted, chosen, tokens)
        if drawn:
            assert p is not None
            chains = _chains(drawn, p.device)
            steps = chains.tokens.shape[1]
            u = torch.rand((len(drawn), steps + 1), dtype=torch.float64, device=p.device)
            tokens = self.rule(p, chains, u[:, :steps], u[:, steps])
            _place(emitted, drawn, tokens)
        return emitted

    def _choices(
        self,
        requests: list[Request],
        greedy: NDArray[np.bool_],
        processed: Tensor,
        p: Tensor | None,
    ) -> Tensor:
        """The target's own token at each row of a chain, up to the first that is not the draft."""
        steps = max(1, *(r.chain.tokens.shape[0] for r in requests))
        choices = torch.zeros((len(requests), steps + 1), dtype=torch.int64)
        best = self.sampler.greedy_sample(processed).cpu() if greedy.any() else None
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
        return choices.to(processed.device)


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


def _greedy(sampling: Any, count: int) -> NDArray[np.bool_]:
    if sampling.all_greedy:
        return np.ones(count, np.bool_)
    if sampling.all_random:
        return np.zeros(count, np.bool_)
    return np.asarray((sampling.temperature[:count] == 0).cpu().numpy())


def _has_processors(sampling: Any) -> bool:
    holder = sampling.thinking_budget_state_holder
    return bool(
        not sampling.no_penalties
        or sampling.allowed_token_ids_mask is not None
        or sampling.bad_words_token_ids
        or any(not _idle(p) for p in sampling.logitsprocs.non_argmax_invariant)
        or (holder is not None and holder.has_tracked_requests())
    )


def _idle(processor: Any) -> bool:
    """vLLM keeps its minimum-length processor loaded; it acts only while a request needs it."""
    return isinstance(processor, MinTokensLogitsProcessor) and not processor.min_toks


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
