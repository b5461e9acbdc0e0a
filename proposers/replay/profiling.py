"""What a drafter would have offered at every position of a trace, had it stood in the engine there.

The order of calls is the engine adapter's (vllm_plugin/adapter_v1.py): ``start`` with the prompt,
then the row of every emitted token is observed before the draft that follows that token. So at a
step that starts before ``tokens[t]`` the drafter has seen the rows that emitted everything before
``tokens[t]``, and nothing later: what it knows depends on t alone, not on where earlier steps
began. Rows behind refused drafts are shown as they came in the recorded engine, if the trace holds
them (:mod:`theory.refused`): the engine's own drafts led there, not those of the drafter that is
replayed. Without them a drafter that learns from rows looks a little worse than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from proposers.batch import Doubles, Drafter, Longs
from proposers.replay.texts import Texts
from proposers.stand import StandDrafter
from proposers.table import ENTRIES
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
    found = Profile(np.full((len(trace), draft_length), -1.0), np.zeros(len(trace), np.int64))

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        """One draft for all, in vain for those that have just ended, and the laws along y."""
        requests = texts.requests(texts.alive, emitted, budget)
        drafts = drafter.draft(requests)
        check_width(drafts.tokens.shape[1], draft_length)
        lengths, going = drafts.lengths, texts.going
        if going.size < texts.alive.size:
            lengths = lengths[np.isin(texts.alive, going)]
            requests = texts.requests(going, emitted, budget)
        if going.size:
            rows = texts.begins[going] + emitted
            found.drafted[rows] = lengths
            continuation = texts.continuation(going, emitted, budget, draft_length)
            found.q[rows] = drafter.follow(requests, continuation).q

    walk(trace, make_drafter, step, draft_length, share=share, order=order, advance=advance)
    return found


def most_tokens(trace: Trace, share: Share) -> int:
    """The most tokens of prompts and answers that one drafter is shown."""
    prompts = np.diff(trace.prompt_begins)
    answers = np.diff(trace.answer_begins)
    if share == "none":
        return int((prompts[trace.answer_prompts] + answers).max(initial=0))
    each = prompts + np.bincount(trace.answer_prompts, answers, trace.prompts)
    return int(each.sum() if share == "all" else each.max(initial=0))


def check_width(made: int, draft_length: int) -> None:
    """Raise ValueError unless a drafter was made for this number of drafts."""
    if made != draft_length:
        raise ValueError(f"a drafter of {made} drafts was made for a profile of {draft_length}")


Step = Callable[[Drafter, Texts, int, int], None]
"""What is asked of the drafter in one engine step: (drafter, texts, emitted tokens, budget)."""


def walk(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    step: Step,
    draft_length: int,
    *,
    share: Share,
    order: Order,
    advance: Callable[[int], None],
) -> None:
    """Every answer from its prompt to its end, as in :func:`profile`, with ``step`` at each token.

    ``step`` is called where the engine would draft: with a budget of at least 1, and once more for
    answers that have just ended, since the engine learns of that one step later.
    """
    if share not in get_args(Share) or order not in get_args(Order):
        raise ValueError(
            f"share must be one of {', '.join(get_args(Share))} and order one of "
            f"{', '.join(get_args(Order))}; got {share!r} and {order!r}"
        )
    walk_groups(
        trace, _groups(trace, make_drafter, share, order), step, draft_length, advance=advance
    )


def walk_groups(
    trace: Trace,
    groups: Iterable[tuple[Drafter, list[int]]],
    step: Step,
    draft_length: int,
    *,
    advance: Callable[[int], None] = lambda tokens: None,
) -> None:
    """:func:`walk` for any groups: a drafter, and the answers that decode side by side."""
    laws = np.exp(trace.log_masses)
    handle = 0
    for drafter, group in groups:
        texts = Texts(trace, laws, group, handle, _entries(drafter))
        handle += len(group)
        for b in range(len(group)):
            drafter.start(int(texts.handles[b]), texts.prompts[b])
        for emitted in range(int(texts.sizes.max()) + 1):
            texts.turn(emitted)
            if emitted:
                budget = min(draft_length, trace.max_tokens - emitted - 1)
                if budget > 0:
                    step(drafter, texts, emitted, budget)
            for b in texts.ended:
                drafter.finish(int(texts.handles[b]))
            if texts.going.size:
                rows = texts.emit(texts.going, emitted)
                if drafter.wants_rows:
                    drafter.observe(rows)
        advance(int(texts.sizes.sum()))


def _entries(drafter: Drafter) -> int:
    """How many entries of each law the engine would collect for a drafter, or for its members."""
    if isinstance(drafter, StandDrafter):
        return drafter.table.entries
    return max(map(_entries, getattr(drafter, "members", ())), default=ENTRIES)


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
