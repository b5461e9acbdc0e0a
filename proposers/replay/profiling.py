"""What a drafter would have offered at every position of a trace, had it stood in the engine there.

The order of calls is the engine adapter's (vllm_plugin/adapter_v1.py): ``start`` with the prompt,
then the row of every emitted token is observed before the draft that follows that token. So at a
step that starts before ``tokens[t]`` the drafter has seen the rows that emitted everything before
``tokens[t]``, and nothing later: what it knows depends on t alone, not on where earlier steps
began. What the engine would have shown it beside that, the rows behind refused drafts, is in no
trace; a drafter that learns from rows is therefore a little better in the engine than here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from proposers.batch import Doubles, Drafter, DraftRequests, Ints, Longs, VerifiedRows
from proposers.table import ENTRIES, MAX_ORDER
from theory.traces import Trace

Share = Literal["prompt", "all", "none"]
Order = Literal["lockstep", "sequential"]


@dataclass(frozen=True)
class Profile:
    """What one drafter offered at every emitted position of one trace.

    Row t is a step that starts before ``tokens[t]``: ``q[t, i]`` is the law of draft i, given that
    the drafts before it were ``tokens[t:t + i]``, at ``tokens[t + i]``; -1 where no draft would
    stand (:class:`proposers.batch.Followed`), behind the answer's end, and in the rows of first
    tokens, which a prefill emits. ``drafted[t]`` is the length of one draft that was really drawn
    there, at most K and the engine's budget.

    Shapes: q (N, K) float64; drafted (N,) int64.
    """

    q: Doubles
    drafted: Longs

    @property
    def draft_length(self) -> int:
        """The K that the drafter was asked for."""
        return int(self.q.shape[1])


def profile(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    draft_length: int,
    share: Share = "all",
    order: Order = "sequential",
    advance: Callable[[int], None] = lambda tokens: None,
) -> Profile:
    """Walk a drafter along a trace; ``advance`` is told the tokens done, for a progress bar.

    Parameters
    ----------
    make_drafter
        Builds a drafter that offers up to ``draft_length`` tokens.
    share
        "all": one drafter for the whole trace; "prompt": a fresh one for every prompt, shared by
        its answers; "none": a fresh one for every answer.
    order
        "sequential": one answer after the other, in the order of the trace; "lockstep": the answers
        to one prompt together, one token a tick, as requests that arrive together would decode.

    Raises
    ------
    ValueError
        For a draft length below 1 or not the drafter's, and an unknown ``share`` or ``order``.
    """
    if draft_length < 1:
        raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
    if share not in get_args(Share) or order not in get_args(Order):
        raise ValueError(
            f"share must be one of {', '.join(get_args(Share))} and order one of "
            f"{', '.join(get_args(Order))}; got {share!r} and {order!r}"
        )
    found = Profile(np.full((len(trace), draft_length), -1.0), np.zeros(len(trace), np.int64))
    laws = np.exp(trace.log_masses)
    handles = itertools.count()
    for drafter, group in _groups(trace, make_drafter, share, order):
        first = next(handles)
        for _ in group[1:]:
            next(handles)
        _walk(_Texts(trace, laws, group, first), drafter, found)
        advance(int(sum(trace.answer(a).stop - trace.answer(a).start for a in group)))
    return found


def _groups(
    trace: Trace, make_drafter: Callable[[], Drafter], share: Share, order: Order
) -> Iterator[tuple[Drafter, list[int]]]:
    """The answers that decode together, group after group, and the drafter that serves them."""
    by_prompt: dict[int, list[int]] = {}
    for answer, prompt in enumerate(trace.answer_prompts.tolist()):
        by_prompt.setdefault(prompt, []).append(answer)
    together = list(by_prompt.values())
    one_by_one = [[answer] for answer in range(trace.answers)]
    if share == "none":
        yield from ((make_drafter(), group) for group in one_by_one)
    elif share == "all":
        drafter = make_drafter()
        yield from ((drafter, group) for group in (together if order == "lockstep" else one_by_one))
    else:
        for answers in together:
            drafter = make_drafter()
            groups = [answers] if order == "lockstep" else [[answer] for answer in answers]
            yield from ((drafter, group) for group in groups)


def _walk(texts: _Texts, drafter: Drafter, found: Profile) -> None:
    """One group of answers from their prompts to their ends, one token a tick."""
    steps = found.draft_length
    for b, handle in enumerate(texts.handles):
        drafter.start(int(handle), texts.prompts[b])
    for emitted in range(int(texts.sizes.max()) + 1):
        going = np.flatnonzero(texts.sizes > emitted)
        if emitted:
            budget = min(steps, texts.trace.max_tokens - emitted - 1)
            alive = np.flatnonzero(texts.sizes >= emitted)
            if budget > 0:
                # The engine learns that an answer has ended only after it was drafted for again.
                requests = texts.requests(alive, emitted, budget)
                drafts = drafter.draft(requests)
                if drafts.tokens.shape[1] != steps:
                    raise ValueError(
                        f"a drafter of {drafts.tokens.shape[1]} drafts was made for a profile of "
                        f"{steps}"
                    )
                lengths = drafts.lengths
                if going.size < alive.size:
                    lengths = lengths[np.isin(alive, going)]
                    requests = texts.requests(going, emitted, budget)
                if going.size:
                    rows = texts.begins[going] + emitted
                    found.drafted[rows] = lengths
                    continuation = texts.continuation(going, emitted, budget, steps)
                    found.q[rows] = drafter.follow(requests, continuation).q
            for b in np.flatnonzero(texts.sizes == emitted):
                drafter.finish(int(texts.handles[b]))
        if going.size:
            seen = texts.emit(going, emitted)
            if drafter.wants_rows:
                drafter.observe(seen)


class _Texts:
    """The texts of a group of answers while they grow; they hold no token before it was emitted.

    A drafter that reads beyond a text's length finds nothing there, as in the engine.
    """

    def __init__(
        self, trace: Trace, laws: NDArray[np.float32], answers: list[int], first_handle: int
    ) -> None:
        self.trace = trace
        self.laws = laws[:, :ENTRIES]
        self.ids = trace.ids[:, :ENTRIES]
        self.prompts = [trace.prompt(int(trace.answer_prompts[a])) for a in answers]
        self.begins = trace.answer_begins[answers]
        self.sizes = trace.answer_begins[np.array(answers) + 1] - self.begins
        self.handles = np.arange(first_handle, first_handle + len(answers))
        self.starts = np.array([prompt.shape[0] for prompt in self.prompts], np.int64)
        longest = int((self.starts + self.sizes).max())
        self.tokens = np.full((len(answers), longest), -1, np.int32)
        for b, prompt in enumerate(self.prompts):
            self.tokens[b, : prompt.shape[0]] = prompt
        whole, sampling = len(answers), trace.sampling
        self._temperatures = np.full(whole, sampling.temperature)
        self._top_k = np.full(whole, sampling.top_k, np.int64)
        self._top_p = np.full(whole, sampling.top_p)
        self._noise_keys = np.zeros(whole, np.uint64)

    def requests(self, which: Longs, emitted: int, budget: int) -> DraftRequests:
        """Those that have emitted so many tokens ask for drafts."""
        count = which.shape[0]
        return DraftRequests(
            tokens=self.tokens,
            rows=which,
            lengths=self.starts[which] + emitted,
            budgets=np.full(count, budget, np.int64),
            temperatures=self._temperatures[:count],
            top_k=self._top_k[:count],
            top_p=self._top_p[:count],
            noise_keys=self._noise_keys[:count],
            handles=self.handles[which],
        )

    def continuation(self, which: Longs, emitted: int, budget: int, steps: int) -> Ints:
        """What they will emit next, (B, steps), -1 beyond the budget and the answer's end."""
        ahead = np.full((which.shape[0], steps), -1, np.int32)
        for row, b in enumerate(which):
            count = min(budget, int(self.sizes[b]) - emitted)
            begin = int(self.begins[b]) + emitted
            ahead[row, :count] = self.trace.tokens[begin : begin + count]
        return ahead

    def emit(self, which: Longs, emitted: int) -> VerifiedRows:
        """Append their next tokens; the rows that emitted them."""
        ends = self.starts[which] + emitted
        begins = np.maximum(ends - MAX_ORDER, 0)
        rows = self.begins[which] + emitted
        new = self.trace.tokens[rows]
        if which.shape[0] == 1:
            tails = self.tokens[which[0], begins[0] : ends[0]].copy()
            begins, ends = begins - begins, ends - begins
        else:
            pieces = [self.tokens[b, i:j] for b, i, j in zip(which, begins, ends, strict=True)]
            tails = np.concatenate(pieces)
            widths = ends - begins
            ends = np.cumsum(widths)
            begins = ends - widths
        self.tokens[which, self.starts[which] + emitted] = new
        known = self.ids[rows, 0] >= 0
        if not known.all():  # a row that is no law teaches nothing
            rows, begins, ends, new = rows[known], begins[known], ends[known], new[known]
        return VerifiedRows(tails, begins, ends, self.ids[rows], self.laws[rows], new)
