"""The V1 model runner's adapter: request ids, target rows and drafts meet their drafter here.

One step of the runner is ``_sample`` (hooked: rows go to the drafter, drafts are verified) and then
``propose``. What was drafted waits by request id until the step that verifies it, however the batch
was reordered, the request preempted or the chain cut short in between. Several paths a request are
:mod:`vllm_plugin.path_adapter`'s.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import Tensor

from proposers import Drafter, DraftRequests
from proposers.noise import request_key
from vllm_plugin import without_drafts
from vllm_plugin.lessons import Ints, Laws, Stretch, laws_of, verified_rows
from vllm_plugin.pending import NO_DRAFTS, Chain, PendingDraft, point_masses
from vllm_plugin.row_log import RowLog
from vllm_plugin.verifier import Request, Verifier
from vllm_plugin.without_drafts import WithoutDrafts

_NO_TOKENS = np.zeros(0, np.int32)


def _before_fillers(scheduled: Ints) -> Ints:
    """The scheduled drafts up to vLLM's first placeholder (-1), which nobody drew."""
    fillers = np.flatnonzero(scheduled < 0)
    return scheduled[: fillers[0]] if fillers.size else scheduled


class V1Adapter:
    """Serves one runner; its dictionaries by request id hold live requests only."""

    def __init__(
        self,
        drafter: Drafter,
        *,
        rule: str,
        order: int,
        entries: int,
        draft_length: int,
        max_model_len: int,
        row_log: RowLog | None = None,
    ) -> None:
        self.drafter = drafter
        self.rule = rule
        self.order = order
        self.entries = entries
        self.row_log = row_log
        self.draft_length = draft_length
        self.max_model_len = max_model_len
        self.pending: dict[str, Any] = {}
        self.left_over: dict[str, Any] = {}
        self.started: set[str] = set()
        self.noise_keys: dict[str, int] = {}
        self.handles: dict[str, int] = {}
        self._handles = itertools.count()
        self.runner: Any = None
        self.verifier: Any = None
        self._without: WithoutDrafts | None = None

    def serve(self, runner: Any) -> None:
        """Get to know the runner, before its first step is sampled."""
        if self.runner is runner:
            return
        self.runner = runner
        self.verifier = self.make_verifier(runner)
        self._without = WithoutDrafts(runner)
        # Near max_model_len vLLM would throw away the drafts of the whole batch and verify zeros in
        # their place; ours never pass that length (`_budget`).
        runner.effective_drafter_max_model_len = runner.max_model_len + runner.num_spec_tokens + 1

    def make_verifier(self, runner: Any) -> Verifier:
        """What decides on this adapter's drafts."""
        return Verifier(runner, self.rule)

    def sample(self, runner: Any, logits: Tensor, metadata: Any, stock: Any) -> Any:
        """One step's tokens: learn from its rows, then verify, or sample as vLLM does."""
        self.serve(runner)
        self.verifier.forget_stale_budgets()
        logits = logits.float()
        requests = self._requests(metadata)
        stretches = [s for r in requests if not r.discarded for s in self.stretches(r)]
        wanted = stretches if self.drafter.wants_rows else []
        laws = laws_of(logits, wanted, self.entries)  # before the logits are processed in place
        output = self.verify(requests, metadata, logits, stock)
        sampled = output.sampled_token_ids.cpu().numpy()
        emitted = [sampled[r.index][sampled[r.index] >= 0] for r in requests]
        self.settle(requests, emitted)
        self._learn(requests, stretches, laws, emitted)
        return output

    def verify(self, requests: list[Any], metadata: Any, logits: Tensor, stock: Any) -> Any:
        """vLLM's sampler output for this step."""
        # In vLLM's plain step one request's logprob_token_ids would take the place of the others'.
        own_logprobs = bool(self.runner.input_batch.sampling_metadata.logprob_token_ids)
        undrafted = metadata is None and all(r.chain is NO_DRAFTS for r in requests)
        if undrafted and not own_logprobs:
            with self.verifier.keyed(requests):
                return stock(self.runner, logits, metadata)
        return self.verifier.verify(requests, metadata, logits)

    def settle(self, requests: list[Any], emitted: list[Ints]) -> None:
        """Keep what was not judged of the drafts that the engine cut off."""
        for r in requests:
            if r.pending is not None:
                rest = r.pending.left_over(emitted[r.index])
                if rest is not None and not r.chain.has_bonus:
                    self.left_over[self.runner.input_batch.req_ids[r.index]] = rest

    def stretches(self, request: Any) -> list[Stretch]:
        """Every row of a request, with the drafts it stands behind."""
        return [
            Stretch.chain(request.index, request.text_length, request.first_row, request.scheduled)
        ]

    def propose(self, sampled: list[list[int]], lengths: Ints, tokens: Ints) -> list[list[int]]:
        """Drafts of every request that sampled in this step and has room for them."""
        self._forget_finished()
        batch, requests = self.runner.input_batch, self.runner.requests
        proposed: list[list[int]] = [[] for _ in sampled]
        rows, budgets = [], []
        for i, new in enumerate(sampled):
            if not new:
                continue
            request_id, length = batch.req_ids[i], int(lengths[i])
            budget = self._budget(requests[request_id], length)
            rest = self.left_over.pop(request_id, None)
            if budget <= 0 or self._reason(i) is not None:
                continue
            if rest is not None and rest.text_length == length:
                proposed[i] = self.keep(request_id, rest, int(tokens[i, length - 1]))
            else:
                rows.append(i)
                budgets.append(budget)
        if not rows:
            return proposed
        index = np.array(rows, np.int64)
        ids = [batch.req_ids[i] for i in rows]
        top_k = batch.top_k_cpu[index].astype(np.int64)
        drafts = self.draft(
            DraftRequests(
                tokens=tokens,
                rows=index,
                lengths=lengths[index].astype(np.int64),
                budgets=np.array(budgets, np.int64),
                temperatures=batch.temperature_cpu[index].astype(np.float64),
                top_k=np.where(top_k < batch.vocab_size, top_k, 0),
                top_p=batch.top_p_cpu[index].astype(np.float64),
                noise_keys=np.array([self.noise_keys[r] for r in ids], np.uint64),
                handles=np.array([self.handles[r] for r in ids], np.int64),
            )
        )
        for i, request_id, pending in zip(rows, ids, drafts, strict=True):
            if pending is not None:
                proposed[i] = self.keep(request_id, pending, int(tokens[i, int(lengths[i]) - 1]))
        return proposed

    def draft(self, requests: DraftRequests) -> list[Any]:
        """What was drafted for each request, or None."""
        drafts = self.drafter.draft(requests)
        return [
            PendingDraft(
                int(requests.lengths[b]),
                drafts.tokens[b, :n],
                drafts.law_ids[b, :n],
                drafts.law_probabilities[b, :n],
            )
            if n
            else None
            for b, n in enumerate(drafts.lengths)
        ]

    def keep(self, request_id: str, pending: Any, last: int) -> list[int]:
        """Let drafts wait; returns them as the engine is given them. ``last``: the last token."""
        self.pending[request_id] = pending
        flat: list[int] = pending.flat()
        return flat

    def _budget(self, request: Any, length: int) -> int:
        """Drafts that can still be emitted within the model's and the request's own limit."""
        budget = min(self.draft_length, self.max_model_len - length - 1)
        parameters = request.sampling_params
        if parameters is not None and parameters.max_tokens is not None:
            budget = min(budget, parameters.max_tokens - len(request.output_token_ids) - 1)
        return budget

    def _requests(self, metadata: Any) -> list[Any]:
        """What each request of the batch has to be verified, in the order of its rows."""
        batch = self.runner.input_batch
        count = batch.num_reqs
        discarded = self.runner.discard_request_mask.np[:count]
        if metadata is None:
            drafted, scheduled = [0] * count, _NO_TOKENS
        else:
            drafted = metadata.num_draft_tokens
            scheduled = metadata.draft_token_ids.cpu().numpy()
        requests, first_row, first_draft = [], 0, 0
        for i in range(count):
            n = drafted[i]
            request_id = batch.req_ids[i]
            if request_id not in self.noise_keys:
                self._admit(i)
            drafts = scheduled[first_draft : first_draft + n]
            # Without drafts, even vLLM's own fillers are left alone, whatever they are.
            drafts = _NO_TOKENS if self._reason(i) else _before_fillers(drafts)
            text_length = int(batch.num_tokens_no_spec[i])
            pending = None
            if not discarded[i]:
                pending = self.pending.pop(request_id, None)
                if pending is not None and pending.text_length != text_length:
                    pending = None
            requests.append(
                self.request(i, text_length, first_row, drafts, bool(discarded[i]), pending)
            )
            first_row += n + 1
            first_draft += n
        return requests

    def request(
        self,
        index: int,
        text_length: int,
        first_row: int,
        scheduled: Ints,
        discarded: bool,
        pending: Any,
    ) -> Any:
        """One request's part of the step, from its scheduled drafts and those that wait."""
        chain: Chain | None = None
        if pending is not None:
            chain = pending.chain(scheduled)
        if chain is None:
            pending = None
            chain = NO_DRAFTS
            if scheduled.shape[0] and not discarded:
                chain = point_masses(scheduled)
        return Request(
            index=index,
            text_length=text_length,
            first_row=first_row,
            scheduled=scheduled,
            key=self.noise_keys[self.runner.input_batch.req_ids[index]],
            discarded=discarded,
            chain=chain,
            pending=pending,
            stepwise=self._can_ask_for_a_block(text_length),
        )

    def _can_ask_for_a_block(self, text_length: int) -> bool:
        """Whether some list of drafts would need a cache block that a shorter one does not.

        For want of that block vLLM preempts the request and drops its list: a cut that looks at
        the drafts it cuts, by their number. What is left of the list is judged and carried over
        (:mod:`vllm_plugin.pending`), which is right for a rule that judges drafts one by one, but
        not for one that weighs a draft by those behind it, as block does. So whether such a rule
        may judge must depend on the place alone.
        """
        tables = self.runner.input_batch.block_table.block_tables
        longest = text_length + self.draft_length
        return any(-(-text_length // t.block_size) < -(-longest // t.block_size) for t in tables)

    def _admit(self, index: int) -> None:
        request_id = self.runner.input_batch.req_ids[index]
        parameters = self.runner.requests[request_id].sampling_params
        seed = None if parameters is None else parameters.seed
        self.noise_keys[request_id] = 0 if seed is None else request_key(seed)
        self.handles[request_id] = next(self._handles)
        reason = self._reason(index)
        if reason is not None:
            without_drafts.count(reason)

    def _reason(self, index: int) -> str | None:
        """Why the request at this place of the batch goes without drafts; None if it does not."""
        assert self._without is not None
        request_id = self.runner.input_batch.req_ids[index]
        return self._without.reason(index, self.runner.requests[request_id].sampling_params)

    def _learn(
        self,
        requests: list[Any],
        stretches: list[Stretch],
        laws: Laws | None,
        emitted: list[Ints],
    ) -> None:
        """Give the drafter each new prompt, the target law of every row, and what it emitted."""
        batch = self.runner.input_batch
        for r in requests:
            request_id = batch.req_ids[r.index]
            if not r.discarded and request_id not in self.started:
                self.started.add(request_id)
                if batch.req_prompt_embeds.get(r.index) is None:
                    prompt = batch.token_ids_cpu[r.index, : batch.num_prompt_tokens[r.index]]
                    self.drafter.start(self.handles[request_id], prompt)
                    if self.row_log is not None:
                        self.row_log.start(self.handles[request_id], prompt)
        if laws is None:
            return
        shown = emitted if self.drafter.wants_emitted or self.row_log is not None else None
        self.drafter.observe(verified_rows(batch, self.order, stretches, laws, shown))
        if self.row_log is not None:
            handles = [self.handles[batch.req_ids[s.index]] for s in stretches]
            self.row_log.step(handles, stretches, laws, emitted)

    def _forget_finished(self) -> None:
        live = self.runner.requests
        if len(self.noise_keys) > len(live):
            self.forget([r for r in self.noise_keys if r not in live])

    def forget(self, request_ids: list[str]) -> None:
        """Forget requests that have ended."""
        for request_id in request_ids:
            del self.noise_keys[request_id]
            self.drafter.finish(self.handles.pop(request_id))
            self.started.discard(request_id)
            self.pending.pop(request_id, None)
            self.left_over.pop(request_id, None)
