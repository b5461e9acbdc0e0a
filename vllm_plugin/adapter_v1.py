"""The V1 model runner's adapter: request ids, target rows and drafts meet their drafter here.

One step of the runner is ``_sample`` (hooked: rows go to the drafter, drafts are verified) and then
``propose``. What was drafted waits by request id until the step that verifies it, however the batch
was reordered, the request preempted or the chain cut short in between.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proposers import Drafter, DraftRequests, Drafts, VerifiedRows
from proposers.noise import request_key
from vllm_plugin import hooks, without_drafts
from vllm_plugin.row_log import RowLog
from vllm_plugin.top_entries import top_entries
from vllm_plugin.verifier import Chain, Request, Verifier
from vllm_plugin.without_drafts import WithoutDrafts

Laws = tuple[NDArray[np.int32], NDArray[np.float32]]  # ids and probabilities, (rows, entries)

_NO_IDS = np.zeros((0, 1), np.int32)
_NO_LAW = np.zeros((0, 1), np.float64)


@dataclass(frozen=True, slots=True)
class PendingDraft:
    """Drafts of one request that wait to be verified, and the length of the text they follow."""

    text_length: int
    tokens: NDArray[np.int32]  # (n,)
    law_ids: NDArray[np.int32]  # (n, E)
    law: NDArray[np.float64]  # (n, E)

    def chain(self, scheduled: NDArray[np.int32]) -> Chain | None:
        """The chain to verify when the engine scheduled these tokens; None if they are not ours.

        When the engine cut drafts off (a token budget, or a grammar that refused one), the first
        one cut is still judged: its row was evaluated as the row after the last scheduled draft.
        Sampling that row from p instead would be biased, since a grammar looks at the token
        (ALGORITHMS.md 5, trap 4). There is then no row for a bonus token.
        """
        n = scheduled.shape[0]
        if n > self.tokens.shape[0] or not np.array_equal(scheduled, self.tokens[:n]):
            return None
        m = min(n + 1, self.tokens.shape[0])
        return Chain(self.tokens[:m], self.law_ids[:m], self.law[:m], has_bonus=m == n)


def point_masses(tokens: NDArray[np.int32]) -> Chain:
    """The chain of drafts that nobody drew (vLLM's own fillers): q is a point mass on each."""
    return Chain(tokens, tokens[:, None], np.ones((tokens.shape[0], 1)), has_bonus=True)


def _before_fillers(scheduled: NDArray[np.int32]) -> NDArray[np.int32]:
    """The scheduled drafts up to vLLM's first placeholder (-1), which nobody drew."""
    fillers = np.flatnonzero(scheduled < 0)
    return scheduled[: fillers[0]] if fillers.size else scheduled


_NO_TOKENS = np.zeros(0, np.int32)
NO_DRAFTS = Chain(_NO_TOKENS, _NO_IDS, _NO_LAW, has_bonus=True)


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
        self.pending: dict[str, PendingDraft] = {}
        self.started: set[str] = set()
        self.noise_keys: dict[str, int] = {}
        self.handles: dict[str, int] = {}
        self._handles = itertools.count()
        self._runner: Any = None
        self._verifier: Verifier | None = None
        self._without: WithoutDrafts | None = None

    def sample(self, runner: Any, logits: Tensor, metadata: Any, stock: Any) -> Any:
        """One step's tokens: learn from its rows, then verify, or sample as vLLM does."""
        if self._runner is not runner:
            self._runner = runner
            self._verifier = Verifier(runner, self.rule)
            self._without = WithoutDrafts(runner)
        assert self._verifier is not None
        self._verifier.forget_stale_budgets()
        logits = logits.float()
        requests = self._requests(metadata)
        laws = self._laws(logits, requests)  # before the logits are processed in place
        # In vLLM's plain step one request's logprob_token_ids would take the place of the others'.
        own_logprobs = bool(runner.input_batch.sampling_metadata.logprob_token_ids)
        undrafted = metadata is None and all(r.chain is NO_DRAFTS for r in requests)
        if undrafted and not own_logprobs:
            with self._verifier.keyed(requests):
                output = stock(runner, logits, metadata)
        else:
            output = self._verifier.verify(requests, metadata, logits)
        self._learn(requests, laws, output.sampled_token_ids)
        return output

    def propose(
        self,
        sampled: list[list[int]],
        lengths: NDArray[np.int32],
        tokens: NDArray[np.int32],
    ) -> list[list[int]]:
        """Drafts of every request that sampled in this step and has room for them."""
        self._forget_finished()
        batch, requests = self._runner.input_batch, self._runner.requests
        rows, budgets = [], []
        for i, new in enumerate(sampled):
            if not new:
                continue
            budget = self._budget(requests[batch.req_ids[i]], int(lengths[i]))
            if budget > 0 and self._reason(i) is None:
                rows.append(i)
                budgets.append(budget)
        proposed: list[list[int]] = [[] for _ in sampled]
        if not rows:
            return proposed
        index = np.array(rows, np.int64)
        ids = [batch.req_ids[i] for i in rows]
        top_k = batch.top_k_cpu[index].astype(np.int64)
        drafts = self.drafter.draft(
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
        self._keep(ids, index, lengths, drafts, proposed)
        return proposed

    def _keep(
        self,
        ids: list[str],
        index: NDArray[np.int64],
        lengths: NDArray[np.int32],
        drafts: Drafts,
        proposed: list[list[int]],
    ) -> None:
        for b, request_id in enumerate(ids):
            n = int(drafts.lengths[b])
            if n == 0:
                continue
            row = int(index[b])
            proposed[row] = drafts.tokens[b, :n].tolist()
            self.pending[request_id] = PendingDraft(
                int(lengths[row]),
                drafts.tokens[b, :n],
                drafts.law_ids[b, :n],
                drafts.law_probabilities[b, :n],
            )

    def _budget(self, request: Any, length: int) -> int:
        """Drafts that can still be emitted within the model's and the request's own limit."""
        budget = min(self.draft_length, self.max_model_len - length - 1)
        parameters = request.sampling_params
        if parameters is not None and parameters.max_tokens is not None:
            budget = min(budget, parameters.max_tokens - len(request.output_token_ids) - 1)
        return budget

    def _requests(self, metadata: Any) -> list[Request]:
        """What each request of the batch has to be verified, in the order of its rows."""
        batch = self._runner.input_batch
        count = batch.num_reqs
        discarded = self._runner.discard_request_mask.np[:count]
        if metadata is None:
            drafted, scheduled = [0] * count, np.zeros(0, np.int32)
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
            request = Request(
                index=i,
                text_length=int(batch.num_tokens_no_spec[i]),
                first_row=first_row,
                # Without drafts, even vLLM's own fillers are left alone, whatever they are.
                scheduled=_NO_TOKENS if self._reason(i) else _before_fillers(drafts),
                key=self.noise_keys[request_id],
                discarded=bool(discarded[i]),
                chain=NO_DRAFTS,
            )
            if not request.discarded:
                request.chain = self._chain(request_id, request)
            requests.append(request)
            first_row += n + 1
            first_draft += n
        return requests

    def _chain(self, request_id: str, request: Request) -> Chain:
        tokens = request.scheduled
        pending = self.pending.pop(request_id, None)
        if pending is not None and pending.text_length == request.text_length:
            chain = pending.chain(tokens)
            if chain is not None:
                return chain
        return point_masses(tokens) if tokens.shape[0] else NO_DRAFTS

    def _admit(self, index: int) -> None:
        request_id = self._runner.input_batch.req_ids[index]
        parameters = self._runner.requests[request_id].sampling_params
        seed = None if parameters is None else parameters.seed
        self.noise_keys[request_id] = 0 if seed is None else request_key(seed)
        self.handles[request_id] = next(self._handles)
        reason = self._reason(index)
        if reason is not None:
            without_drafts.count(reason)

    def _reason(self, index: int) -> str | None:
        """Why the request at this place of the batch goes without drafts; None if it does not."""
        assert self._without is not None
        request_id = self._runner.input_batch.req_ids[index]
        return self._without.reason(index, self._runner.requests[request_id].sampling_params)

    def _laws(self, logits: Tensor, requests: list[Request]) -> Laws | None:
        """The heads of the target laws of the rows that the drafter may learn from, in order."""
        rows = [
            row
            for r in requests
            if not r.discarded
            for row in range(r.first_row, r.first_row + r.scheduled.shape[0] + 1)
        ]
        if not (rows and self.drafter.wants_rows):
            return None
        return top_entries(logits, np.array(rows, np.int64), self.entries)

    def _learn(self, requests: list[Request], laws: Laws | None, sampled: Tensor) -> None:
        """Give the drafter each new prompt, the target law of every row, and what it emitted."""
        batch = self._runner.input_batch
        sampling = [r for r in requests if not r.discarded]
        for r in sampling:
            request_id = batch.req_ids[r.index]
            if request_id not in self.started:
                self.started.add(request_id)
                if batch.req_prompt_embeds.get(r.index) is None:
                    prompt = batch.token_ids_cpu[r.index, : batch.num_prompt_tokens[r.index]]
                    self.drafter.start(self.handles[request_id], prompt)
                    if self.row_log is not None:
                        self.row_log.start(self.handles[request_id], prompt)
        if laws is not None:
            asked = self.drafter.wants_emitted or self.row_log is not None
            tokens = sampled.cpu().numpy() if asked else None
            self.drafter.observe(self._rows(sampling, *laws, tokens))
            if self.row_log is not None and tokens is not None:
                self._log_rows(self.row_log, sampling, *laws, tokens)

    def _log_rows(
        self,
        log: RowLog,
        sampling: list[Request],
        ids: NDArray[np.int32],
        probabilities: NDArray[np.float32],
        sampled: NDArray[np.int32],
    ) -> None:
        row = 0
        for r in sampling:
            end = row + r.scheduled.shape[0] + 1
            emitted = sampled[r.index][sampled[r.index] >= 0]
            log.step(
                self.handles[self._runner.input_batch.req_ids[r.index]], r.text_length,
                emitted, r.scheduled, ids[row:end], probabilities[row:end],
            )  # fmt: skip
            row = end

    def _rows(
        self,
        sampling: list[Request],
        ids: NDArray[np.int32],
        probabilities: NDArray[np.float32],
        sampled: NDArray[np.int32] | None,
    ) -> VerifiedRows:
        batch = self._runner.input_batch
        count = ids.shape[0]
        texts: list[NDArray[np.int32]] = []
        begins: list[int] = []
        ends: list[int] = []
        emitted = np.full(count if sampled is not None else 0, -1, np.int32)
        temperatures = np.zeros(emitted.shape[0])
        at, row = 0, 0
        for r in sampling:
            start = max(0, r.text_length - self.order)
            tail = batch.token_ids_cpu[r.index, start : r.text_length]
            n = r.scheduled.shape[0]
            texts += [tail, r.scheduled]
            first = at + tail.shape[0]
            begins += [at] * (n + 1)
            ends += range(first, first + n + 1)
            if sampled is not None:
                # Row i emitted the request's i-th token; behind a refused draft stands -1.
                here = sampled[r.index, : n + 1]
                emitted[row : row + here.shape[0]] = here
                temperatures[row : row + n + 1] = batch.temperature_cpu[r.index]
            at, row = first + n, row + n + 1
        # A row that is no law (NaN, or nothing left of it) teaches nothing.
        laws = np.isfinite(probabilities).all(axis=1) & (ids[:, 0] >= 0)
        return VerifiedRows(
            np.concatenate(texts).astype(np.int32, copy=False),
            np.array(begins, np.int64)[laws],
            np.array(ends, np.int64)[laws],
            ids[laws],
            probabilities[laws],
            emitted[laws] if sampled is not None else emitted,
            temperatures[laws] if sampled is not None else temperatures,
        )

    def _forget_finished(self) -> None:
        live = self._runner.requests
        if len(self.noise_keys) > len(live):
            for request_id in [r for r in self.noise_keys if r not in live]:
                del self.noise_keys[request_id]
                self.drafter.finish(self.handles.pop(request_id))
                self.started.discard(request_id)
                self.pending.pop(request_id, None)


def install() -> None:
    """Route the runner's sampling through its proposer's adapter, if it has one of ours."""
    hooks.install(hooks.SAMPLE, _hooked)


def _hooked(stock: Any) -> Any:
    @functools.wraps(stock)
    def _sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        adapter = getattr(getattr(self, "drafter", None), "adapter", None)
        if not isinstance(adapter, V1Adapter) or logits is None:
            return stock(self, logits, spec_decode_metadata)
        return adapter.sample(self, logits, spec_decode_metadata, stock)

    return _sample
