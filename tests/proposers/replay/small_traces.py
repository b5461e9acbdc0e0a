"""Traces of small exact targets, and drafters whose law is given: what a replay is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from proposers import DraftRequests, Drafts, Followed, VerifiedRows
from theory.traces import Sampling, Trace

Law = NDArray[np.float64]
Model = Callable[[Sequence[int]], Law]


def trace(
    target: Model,
    answers: Sequence[tuple[int, Sequence[int]]],
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
) -> Trace:
    """The trace of answers (prompt, tokens); the heads hold the target's whole laws."""
    rows, tokens = [], []
    for prompt, answer in answers:
        text = list(prompts[prompt])
        for token in answer:
            rows.append(target(text))
            tokens.append(token)
            text.append(token)
    laws = np.array(rows)
    order = np.argsort(-laws, axis=1, kind="stable")
    with np.errstate(divide="ignore"):
        logs = np.log(laws)
    sizes = [len(answer) for _, answer in answers]
    return Trace(
        vocabulary=laws.shape[1],
        sampling=sampling or Sampling(),
        max_tokens=max_tokens,
        prompt_tokens=np.concatenate([np.array(p, np.int32) for p in prompts]),
        prompt_begins=np.cumsum([0, *map(len, prompts)]).astype(np.int64),
        categories=np.array(["small"] * len(prompts)),
        questions=np.array([str(i) for i in range(len(prompts))]),
        answer_prompts=np.array([prompt for prompt, _ in answers], np.int64),
        answer_begins=np.cumsum([0, *sizes]).astype(np.int64),
        tokens=np.array(tokens, np.int32),
        ids=order.astype(np.int32),
        log_masses=np.take_along_axis(logs, order, axis=1).astype(np.float32),
        emitted_log_masses=logs[np.arange(len(tokens)), tokens].astype(np.float32),
    )


class GivenDrafter:
    """Draws from a given law of the text, and stops before texts that `stops` names."""

    wants_rows = False
    has_groups = True

    def __init__(
        self,
        law: Model,
        *,
        draft_length: int,
        seed: int = 0,
        stops: Callable[[Sequence[int]], bool] = lambda text: False,
    ) -> None:
        self.law, self.draft_length, self.stops = law, draft_length, stops
        self._rng = np.random.default_rng(seed)

    def start(self, handle: int, prompt: NDArray[np.int32], group: int = 0) -> None: ...

    def observe(self, rows: VerifiedRows) -> None: ...

    def finish(self, handle: int) -> None: ...

    def draft(self, requests: DraftRequests) -> Drafts:
        return self._chains(requests, None)[0]

    def follow(self, requests: DraftRequests, continuation: NDArray[np.int32]) -> Followed:
        drafts, q = self._chains(requests, continuation)
        return Followed(q, drafts.law_ids, drafts.law_probabilities)

    def _chains(
        self, requests: DraftRequests, given: NDArray[np.int32] | None
    ) -> tuple[Drafts, Law]:
        batch, steps = len(requests), self.draft_length
        size = self.law([0]).shape[0]
        tokens = np.full((batch, steps), -1, np.int32)
        lengths = np.zeros(batch, np.int64)
        ids = np.full((batch, steps, size), -1, np.int32)
        laws = np.zeros((batch, steps, size))
        q = np.full((batch, steps), -1.0)
        for b in range(batch):
            text = requests.tokens[requests.rows[b], : requests.lengths[b]].tolist()
            for i in range(min(steps, int(requests.budgets[b]))):
                if self.stops(text) or (given is not None and given[b, i] < 0):
                    break
                law = self.law(text)
                ids[b, i, law > 0] = np.flatnonzero(law > 0)
                laws[b, i] = law
                token = int(self._rng.choice(size, p=law)) if given is None else int(given[b, i])
                q[b, i] = law[token]
                tokens[b, i] = token
                text.append(token)
                lengths[b] = i + 1
        return Drafts(tokens, lengths, ids, laws), q
