"""One drawn course of drafts and verdicts at every position of a trace, for length policies.

Given the emitted text y, a draft x_i ~ q_i that was reached is accepted, and is then y_i, with
probability ``h_i = min(1, q_i(y_i)/p_i(y_i))``; refused, it is a token of ``(q_i - p_i)+``
normalised, and what was drafted behind it followed from that token. That is the law of (x, verdict)
given y under the token rule, so a chain drawn this way is one that the engine could have drafted
there. It depends on the position alone: every policy cuts the same chains, and a comparison of
policies is paired draft by draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from proposers.batch import Doubles, Drafter, Floats, Ints, Longs
from proposers.length.features import DEPTH, NAMES
from proposers.length.shadow import shadow_labels
from proposers.replay.profiling import check_width, walk_groups
from proposers.replay.texts import Texts
from theory.traces import Trace


@dataclass(frozen=True)
class Courses:
    """Row t is a step that starts before ``tokens[t]``; rows of first tokens hold nothing.

    ``shown`` and ``labels`` are what the places along the emitted text showed and how likely a
    draft there was to be accepted (:func:`proposers.length.shadow.shadow_labels`), nan where none
    stands; ``drawn`` are the features along one drawn chain of ``drafted[t]`` tokens, of which the
    first ``agreed[t]`` are accepted. ``groups`` are the answers that decode side by side.

    Shapes: shown, drawn (N, K, F) float32; labels (N, K) float64; drafted, agreed (N,) int64.
    """

    shown: Floats
    labels: Doubles
    drawn: Floats
    drafted: Longs
    agreed: Longs
    groups: tuple[tuple[int, ...], ...]

    @property
    def draft_length(self) -> int:
        """The longest chain, K."""
        return int(self.labels.shape[1])


def draw_courses(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    draft_length: int,
    together: int = 1,
    seed: int = 0,
) -> Courses:
    """Walk one drafter along the trace, ``together`` answers side by side, one token a tick.

    The answers to a prompt stand together. Raises ValueError for a number below 1, and for a
    drafter of another draft length or without features.
    """
    found = empty_courses(trace, draft_length, together)
    n, rng = len(trace), np.random.default_rng(np.random.SeedSequence([seed, 0xC0]))
    uniforms, residual_uniforms = rng.random(n + draft_length), rng.random(n)
    p, masses = trace.processed.emitted, trace.processed.masses
    ahead = np.append(p, np.ones(draft_length))

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        going = texts.going
        if not going.size:
            return
        rows = texts.begins[going] + emitted
        continuation = texts.continuation(going, emitted, budget, draft_length)
        seen = drafter.follow(texts.requests(going, emitted, budget), continuation)
        check_width(seen.q.shape[1], draft_length)
        if seen.features is None:
            raise ValueError(f"{type(drafter).__name__} shows no features to decide by")
        places = rows[:, None] + np.arange(draft_length)
        labels = shadow_labels(seen.q, ahead[places])
        found.shown[rows], found.labels[rows] = seen.features, labels
        refused = ~(uniforms[places] < labels)  # also where no chain along y has a draft
        agreed = np.where(refused.any(axis=1), refused.argmax(axis=1), draft_length)
        # The chain goes on from the refused token, or from the end of the emitted text.
        tokens = texts.tokens[going].copy()
        tokens = np.pad(tokens, ((0, 0), (0, draft_length + 1)), constant_values=-1)
        lengths = texts.starts[going] + emitted
        used = agreed.copy()
        for b, row in enumerate(rows):
            d = int(agreed[b])
            tokens[b, lengths[b] : lengths[b] + d] = continuation[b, :d]
            if d < draft_length and labels[b, d] == labels[b, d]:
                q = seen.law_probabilities[b, d]
                x = _refused(
                    seen.law_ids[b, d], q, trace.ids[row + d], masses[row + d],
                    residual_uniforms[row], int(continuation[b, d]),
                )  # fmt: skip
                tokens[b, lengths[b] + d] = x
                used[b] += 1
        requests = texts.requests_of(
            tokens, np.arange(going.size), lengths + used, budget, texts.handles[going]
        )
        requests.budgets[:] -= used
        rest = drafter.draft(requests)
        assert rest.features is not None
        for b, row in enumerate(rows):
            u, more = int(used[b]), int(rest.lengths[b])
            found.drawn[row, :u] = seen.features[b, :u]
            found.drawn[row, u : u + more] = rest.features[b, :more]
            found.drawn[row, u : u + more, DEPTH] += u
            found.drafted[row] = u + more
        found.agreed[rows] = agreed

    walk_groups(trace, _groups(make_drafter, found.groups), step, draft_length)
    return found


def greedy_places(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    draft_length: int,
    together: int = 1,
) -> Courses:
    """What greedy decoding would have shown along a text that was sampled.

    The label of a place is whether the argmaxes of the drafter and of the target agree; a chain is
    accepted up to the first that does not. Only for fitting and judging predictions.
    """
    found = empty_courses(trace, draft_length, together)
    best = np.append(trace.ids[:, 0], np.full(draft_length, -1, np.int32))

    def step(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        going = texts.going
        if not going.size:
            return
        rows = texts.begins[going] + emitted
        requests = texts.requests(going, emitted, budget)
        cold = replace(requests, temperatures=np.zeros(len(requests)))
        seen = drafter.follow(cold, texts.continuation(going, emitted, budget, draft_length))
        assert seen.features is not None
        agree = seen.law_ids[:, :, 0] == best[rows[:, None] + np.arange(draft_length)]
        there = ~np.isnan(seen.features[:, :, 0])
        found.shown[rows] = seen.features
        found.labels[rows] = np.where(there, agree, np.nan)
        wrong = ~(agree & there)
        found.agreed[rows] = np.where(wrong.any(axis=1), wrong.argmax(axis=1), draft_length)

    walk_groups(trace, _groups(make_drafter, found.groups), step, draft_length)
    return found


def empty_courses(trace: Trace, draft_length: int, together: int) -> Courses:
    """Nothing yet, for answers side by side; those to a prompt stand together."""
    for name, value in (("draft_length", draft_length), ("together", together)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    order = np.argsort(trace.answer_prompts, kind="stable").tolist()
    n = len(trace)
    return Courses(
        shown=np.full((n, draft_length, len(NAMES)), np.nan, np.float32),
        labels=np.full((n, draft_length), np.nan),
        drawn=np.full((n, draft_length, len(NAMES)), np.nan, np.float32),
        drafted=np.zeros(n, np.int64),
        agreed=np.zeros(n, np.int64),
        groups=tuple(tuple(order[i : i + together]) for i in range(0, len(order), together)),
    )


def _groups(
    make_drafter: Callable[[], Drafter], groups: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[Drafter, list[int]]]:
    drafter = make_drafter()
    yield from ((drafter, list(group)) for group in groups)


def _refused(
    law_ids: Ints, q: Doubles, head: Ints, p: Doubles, uniform: float, emitted: int
) -> int:
    """A token of (q - p)+, which the emitted one, refused, cannot be."""
    same = law_ids[:, None] == head[None, :]
    excess = np.maximum(q - np.where(same, p[None, :], 0.0).sum(axis=1), 0.0)
    excess[(law_ids < 0) | (law_ids == emitted)] = 0.0
    total = excess.sum()
    if total <= 0:  # the head's rounding: p stands for more than it gives
        return int(law_ids[0])
    place = np.searchsorted(np.cumsum(excess), uniform * total, side="right")
    return int(law_ids[min(int(place), law_ids.shape[0] - 1)])
