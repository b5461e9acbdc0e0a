"""The V1 model runner's adapter: request ids, target rows and drafts meet their drafter here.

One step of the runner is ``_sample`` (hooked: rows go to the drafter, drafts are verified) and then
``propose``. What was drafted waits by request id until the step that verifies it, however the batch
was reordered, the request preempted or the chain cut short in between. Several paths a request are
:mod:`vllm_plugin.path_adapter`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from proposers import Drafter, DraftRequests
from proposers.batch import Longs
from vllm_plugin import limits, without_drafts
from vllm_plugin.length_control import Batch, LengthControl
from vllm_plugin.lessons import Ints, Stretch, laws_of
from vllm_plugin.pending import NO_DRAFTS, Chain, PendingDraft, point_masses
from vllm_plugin.row_log import RowLog
from vllm_plugin.served import ServedRequests
from vllm_plugin.step_clock import NOTHING_HELD, StepClock
from vllm_plugin.teacher import Teacher
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
        control: LengthControl | None = None,
    ) -> None:
        self.drafter = drafter
        self.rule = rule
        self.entries = entries
        self.draft_length = draft_length
        self.max_model_len = max_model_len
        self.pending: dict[str, Any] = {}
        self.left_over: dict[str, Any] = {}
        self.served = ServedRequests(drafter.has_groups)
        self.teacher = Teacher(self.served, order, draft_length, row_log)
        self.control = LengthControl(None, draft_length) if control is None else control
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
        self.control.report.start()
        if self.control.wants_times:
            StepClock.install(runner)
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
        self._forget_finished()  # an id may be another request's already
        logits = logits.float()
        requests = self._requests(metadata)
        heard = [r for r in requests if self.teacher.hears(runner.input_batch, r)]
        stretches: list[Stretch] = []
        if self.drafter.wants_rows:
            stretches = [s for r in heard for s in self.stretches(r)]
        laws = laws_of(logits, stretches, self.entries)  # before logits are processed in place
        output = self.verify(requests, metadata, logits, stock)
        sampled = output.sampled_token_ids.cpu().numpy()
        emitted = [sampled[r.index][sampled[r.index] >= 0] for r in requests]
        self.settle(requests, emitted)
        self._tell(requests, emitted)
        batch = runner.input_batch
        self.teacher.teach(self.drafter, self.control, batch, heard, stretches, laws, emitted)
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

    def _tell(self, requests: list[Any], emitted: list[Ints]) -> None:
        """Show the control what became of the drafts."""
        going = [r for r in requests if not r.discarded]
        ids = self.runner.input_batch.req_ids
        self.control.verified(
            self.served.handles([ids[r.index] for r in going]),
            np.array([self.drafted(r) for r in going], np.int64),
            np.array([max(emitted[r.index].shape[0] - 1, 0) for r in going], np.int64),
        )

    def drafted(self, request: Any) -> int:
        """Tokens that were verified for a request besides its last one."""
        return int(request.scheduled.shape[0])

    def stretches(self, request: Any) -> list[Stretch]:
        """Every row of a request, with the drafts it stands behind."""
        return [
            Stretch.chain(request.index, request.text_length, request.first_row, request.scheduled)
        ]

    def propose(self, sampled: list[list[int]], lengths: Ints, tokens: Ints) -> list[list[int]]:
        """Drafts of requests that sampled in this step, as many as are worth verifying."""
        clock = getattr(self.runner, "specproof_step_clock", None)  # whoever installed it
        self.control.begin(NOTHING_HELD if clock is None else clock.holding)
        proposed = self._proposed(sampled, lengths, tokens)
        self.control.end()
        return proposed

    def _proposed(self, sampled: list[list[int]], lengths: Ints, tokens: Ints) -> list[list[int]]:
        batch = self.runner.input_batch
        req_ids = batch.req_ids
        proposed: list[list[int]] = [[] for _ in sampled]
        going, caps, others = [], [], 0
        waiting = (self.draft_length + 1) * len(self.pending)
        room = limits.room_in_step(self.runner, sampled, waiting)
        for i, new in enumerate(sampled):
            if not new:
                continue
            request_id, length = req_ids[i], int(lengths[i])
            cap = self._budget(request_id, length)
            rest = self.left_over.pop(request_id, None)
            if self._reason(i) is not None:
                cap = 0
            if cap > 0 and rest is not None and rest.text_length == length:
                # Drawn and seen already, so no policy may drop it.
                proposed[i] = self.keep(request_id, rest, int(tokens[i, length - 1]))
                others += len(proposed[i])
                cap = 0
            going.append(i)
            caps.append(cap)
        most = np.maximum(np.array(caps, np.int64), 0)
        if not most.any():
            return proposed
        handles = self.served.handles([req_ids[i] for i in going])
        step = Batch(handles, most, others, max(room - len(going) - others, 0))
        ahead = self.control.ahead(step)
        if ahead == 0:
            return proposed
        places = np.flatnonzero(most)
        rows = np.array(going, np.int64)[places]
        budgets = np.minimum(most[places], ahead)
        asked = self.served.draft_requests(
            batch, tokens, rows, lengths[rows].astype(np.int64), budgets
        )
        for i, pending in zip(rows.tolist(), self.draft(asked, step, places), strict=True):
            if pending is not None:
                last = int(tokens[i, int(lengths[i]) - 1])
                proposed[i] = self.keep(req_ids[i], pending, last)
        return proposed

    def draft(self, requests: DraftRequests, step: Batch, places: Longs) -> list[Any]:
        """What is verified of the drafts for each request, or None; ``places`` in the step."""
        drafts = self.drafter.draft(requests)
        apart = np.zeros(len(drafts), np.bool_)
        if self.rule == "block":
            apart[:] = [self._may_need_a_block(n) for n in requests.lengths.tolist()]
        lengths = self.control.cut(step, places, drafts, requests.temperatures, apart)
        return [
            PendingDraft(
                text_length,
                drafts.tokens[b, :n],
                drafts.law_ids[b, :n],
                drafts.law_probabilities[b, :n],
            )
            if n
            else None
            for b, (n, text_length) in enumerate(
                zip(lengths.tolist(), requests.lengths.tolist(), strict=True)
            )
        ]

    def keep(self, request_id: str, pending: Any, last: int) -> list[int]:
        """Let drafts wait; returns them as the engine is given them. ``last``: the last token."""
        self.pending[request_id] = pending
        flat: list[int] = pending.flat()
        return flat

    def _budget(self, request_id: str, length: int) -> int:
        """Drafts that can still be emitted within the model's and the request's own limits."""
        own = min(self.draft_length, self.served[request_id].limit)
        most = min(own, self.max_model_len - length - 1)
        return limits.budget_of(self.runner.requests[request_id], most)

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
            if request_id not in self.served:
                self._admit(i)
            # Without drafts, even vLLM's own fillers are left alone, whatever they are.
            drafts = _NO_TOKENS
            if n and self._reason(i) is None:
                drafts = _before_fillers(scheduled[first_draft : first_draft + n])
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
            key=self.served[self.runner.input_batch.req_ids[index]].noise_key,
            discarded=discarded,
            chain=chain,
            pending=pending,
            stepwise=chain is not NO_DRAFTS and self._may_need_a_block(text_length),
        )

    def _may_need_a_block(self, text_length: int) -> bool:
        batch = self.runner.input_batch
        return limits.may_need_a_block(batch, text_length, self.draft_length)

    def _admit(self, index: int) -> None:
        request_id = self.runner.input_batch.req_ids[index]
        self.served.admit(request_id, self.runner.requests[request_id])
        reason = self._reason(index)
        if reason is not None:
            without_drafts.count(reason)

    def _reason(self, index: int) -> str | None:
        """Why the request at this place of the batch goes without drafts; None if it does not."""
        assert self._without is not None
        request_id = self.runner.input_batch.req_ids[index]
        return self._without.reason(index, self.runner.requests[request_id].sampling_params)

    def _forget_finished(self) -> None:
        ended = self.served.ended(self.runner.requests)
        if ended:
            self.forget(ended)

    def forget(self, request_ids: list[str]) -> None:
        """Forget requests that have ended."""
        for request_id in request_ids:
            handle = self.served.forget(request_id).handle
            self.drafter.finish(handle)
            self.control.finish(handle)
            self.pending.pop(request_id, None)
            self.left_over.pop(request_id, None)
