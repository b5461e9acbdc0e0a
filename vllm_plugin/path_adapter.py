"""The V1 adapter where several paths are drafted for each request, over `path_rows`."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from proposers import DraftRequests
from proposers.batch import Longs
from proposers.path_batch import PathDrafter
from vllm_plugin import metrics
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.length_control import Batch
from vllm_plugin.lessons import Ints, Stretch
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.path_rows import PathRows
from vllm_plugin.path_settings import PathSettings
from vllm_plugin.path_verifier import PathRequest, PathVerifier

_ONE_PATH = (
    "requests with structured output are verified along one path: vLLM checks their list of drafts "
    "against the grammar as one text"
)
_NO_PATHS = PendingPaths(
    0,
    np.zeros((1, 0), np.int32),
    np.zeros(1, np.int64),
    np.zeros((1, 0, 1), np.int32),
    np.zeros((1, 0, 1)),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
)


class PathAdapter(V1Adapter):
    """Drafts, lays out and verifies several paths a request."""

    drafter: PathDrafter

    def __init__(self, drafter: PathDrafter, settings: PathSettings, **common: Any) -> None:
        super().__init__(drafter, rule=settings.rule, draft_length=settings.depth, **common)
        self.settings = settings
        self.rows: PathRows | None = None
        self.one_path: set[str] = set()

    def serve(self, runner: Any) -> None:
        """Get to know the runner, and its scratch blocks."""
        if self.runner is not runner:
            self.rows = PathRows(runner, self.settings.hidden_blocks_of(runner))
        super().serve(runner)

    def make_verifier(self, runner: Any) -> PathVerifier:
        """What decides on paths."""
        return PathVerifier(runner, self.rule)

    def prepare(self, runner: Any, scheduler_output: Any, scheduled: Any) -> None:
        """Lay out the paths of a step whose inputs the runner has just set."""
        self.serve(runner)
        assert self.rows is not None
        self.rows.prepare(scheduler_output, scheduled, self.pending)

    def verify(self, requests: list[Any], metadata: Any, logits: Tensor, stock: Any) -> Any:
        """vLLM's sampler output for this step."""
        own_logprobs = bool(self.runner.input_batch.sampling_metadata.logprob_token_ids)
        drafted = any(r.lengths.any() for r in requests)
        if metadata is None and not drafted and not own_logprobs:
            with self.verifier.keyed(requests):
                return stock(self.runner, logits, metadata)
        return self.verifier.verify_paths(requests, logits)

    def settle(self, requests: list[Any], emitted: list[Ints]) -> None:
        """Commit the winners' keys and values, and keep drafts that were not judged."""
        assert self.rows is not None
        ids = self.runner.input_batch.req_ids
        self.rows.commit({ids[r.index]: emitted[r.index] for r in requests if not r.discarded})
        for r in requests:
            # Nothing is kept behind a refusal, even if the token drawn instead is a draft (kseq):
            # it would be kept only where its row is missing, which can depend on what follows it.
            if r.pending is not None and r.accepted:
                rest = r.pending.left_over(emitted[r.index], r.inputs)
                if rest is not None:
                    self.left_over[ids[r.index]] = rest

    def stretches(self, request: Any) -> list[Stretch]:
        """Every row of a request once, with the drafts it stands behind."""
        found = []
        paths = request.pending or _NO_PATHS
        for number, path in enumerate(paths.sent):
            own = request.first_row + int(paths.separators[number]) + 1
            behind = np.arange(int(paths.lengths[path]) + 1)
            behind = behind[request.rows[path, behind] == own + behind]
            if behind.shape[0]:
                tokens = paths.tokens[path, : paths.lengths[path]]
                found.append(
                    Stretch(request.index, request.text_length, tokens, own + behind, behind)
                )
        if not paths.sent.shape[0]:
            none = np.zeros(0, np.int32)
            found.append(Stretch.chain(request.index, request.text_length, request.first_row, none))
        return found

    def drafted(self, request: Any) -> int:
        """Tokens that were verified for a request besides its last one, all paths'."""
        return int(request.inputs) - 1

    def draft(self, requests: DraftRequests, step: Batch, places: Longs) -> list[Any]:
        """What was drafted for each request, or None."""
        drafts = self.drafter.draft_paths(requests, self.control.floor(step))
        found: list[PendingPaths | None] = []
        for b in range(len(drafts)):
            if not drafts.lengths[b].any():
                found.append(None)
                continue
            found.append(
                PendingPaths.of(
                    int(requests.lengths[b]), drafts.tokens[b], drafts.lengths[b],
                    drafts.law_ids[b], drafts.laws[b], most=drafts.lengths.shape[1],
                )
            )  # fmt: skip
        return found

    def keep(self, request_id: str, pending: PendingPaths, last: int) -> list[int]:
        """Let paths wait, as many of them sent as have a place to be evaluated in."""
        assert self.rows is not None
        most = 1 if self._has_grammar(request_id) else self.rows.most_paths(request_id, pending)
        if most < pending.sent.shape[0]:
            pending = pending.limited(most)
        self.pending[request_id] = pending
        return pending.flat(last)

    def _has_grammar(self, request_id: str) -> bool:
        """Whether vLLM checks the request's list of drafts against a grammar, as one text."""
        parameters = self.runner.requests[request_id].sampling_params
        if parameters is None or parameters.structured_outputs is None:
            return False
        if request_id not in self.one_path:
            self.one_path.add(request_id)
            metrics.count("requests_with_one_path", "structured_output", _ONE_PATH)
        return True

    def request(
        self,
        index: int,
        text_length: int,
        first_row: int,
        scheduled: Ints,
        discarded: bool,
        pending: Any,
    ) -> PathRequest:
        """One request's part of the step."""
        assert self.rows is not None
        request_id = self.runner.input_batch.req_ids[index]
        laid = self.rows.laid.get(request_id)
        inputs = laid.inputs if laid is not None and laid.paths is pending else 1
        paths = pending if pending is not None else _NO_PATHS
        rows = np.zeros((1, 1), np.int64) if pending is None else pending.rows(inputs)
        return PathRequest(
            index=index,
            text_length=text_length,
            first_row=first_row,
            key=self.served[request_id].noise_key,
            discarded=discarded,
            tokens=paths.tokens,
            lengths=paths.lengths,
            law_ids=paths.law_ids,
            laws=paths.laws,
            rows=np.where(rows >= 0, rows + first_row, -1),
            pending=pending,
            inputs=inputs,
        )

    def forget(self, request_ids: list[str]) -> None:
        """Forget requests that have ended, and take back their lanes."""
        super().forget(request_ids)
        assert self.rows is not None
        self.rows.forget(request_ids)
        self.one_path.difference_update(request_ids)
