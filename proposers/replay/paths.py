"""What k candidates would have offered at every position of a trace: k paths from each step.

Two geometries. With independent drafts ("iid") there are k whole sequences from the drafter's law;
those that begin with what was emitted go on. With different first tokens ("without_replacement",
"top_plus_one") there are k first tokens and one chain behind each, so that one path survives the
first token. A law of fewer than k tokens gives as many different ones as it has: one for a point
mass, whose path is the drafter's plain chain.

Each chain behind a first token is drafted as one of its own: a drafter's rule for ending a chain
(``min_survival``) starts anew there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from proposers.batch import Doubles, Drafter, DraftRequests, Followed, Ints, Longs
from proposers.replay.profiling import Order, Share, check_width, walk
from proposers.replay.texts import Texts
from theory import optimum
from theory.traces import Trace

NEVER_STARTED = -1
"""The handle of texts that are no request's: a drafter keeps nothing for them."""


@dataclass(frozen=True)
class PathProfile:
    """What one drafter offered with k candidates at every emitted position of one trace.

    ``q[t, i]`` as in :class:`proposers.replay.profiling.Profile`, along one path that follows the
    emitted text; ``law_ids[t, i]`` and ``laws[t, i]`` the law that it belongs to, for the depths
    at which several paths can stand (all for iid, the first otherwise). ``lengths[t, j]`` is the
    length of path j of k that were really drafted there.

    Shapes: q (N, K) float64; lengths (N, k) int64; law_ids (N, D, E) int32; laws (N, D, E)
    float64, D = K or 1.
    """

    drafts: optimum.Drafts
    q: Doubles
    lengths: Longs
    law_ids: Ints
    laws: Doubles

    @property
    def draft_length(self) -> int:
        """The K that the drafter was asked for."""
        return int(self.q.shape[1])

    @property
    def candidates(self) -> int:
        """k."""
        return int(self.lengths.shape[1])


def profile_paths(
    trace: Trace,
    make_drafter: Callable[[], Drafter],
    *,
    draft_length: int,
    candidates: int,
    drafts: optimum.Drafts,
    share: Share = "all",
    order: Order = "sequential",
    seed: int = 0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> PathProfile:
    """Walk a drafter along a trace as :func:`proposers.replay.profile` does, with k candidates.

    ``seed`` is that of the first tokens' draws; the drafter draws the rest with its own.

    Raises
    ------
    ValueError
        As `profile`, and for fewer than 1 candidate.
    """
    if draft_length < 1 or candidates < 1:
        raise ValueError(
            f"got draft_length {draft_length} and {candidates} candidates; both must be 1 or more"
        )
    depths = draft_length if drafts == "iid" else 1
    size = len(trace)
    q = np.full((size, draft_length), -1.0)
    lengths = np.zeros((size, candidates), np.int64)
    ids: list[Ints] = []
    laws: list[Doubles] = []

    def keep(rows: Longs, followed: Followed) -> None:
        """The laws as far as they are asked for; their width is known from the first ones on."""
        if not ids:
            width = followed.law_ids.shape[2]
            ids.append(np.full((size, depths, width), -1, np.int32))
            laws.append(np.zeros((size, depths, width)))
        q[rows] = followed.q
        ids[0][rows] = followed.law_ids[:, :depths]
        laws[0][rows] = followed.law_probabilities[:, :depths]

    def independent(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        every = np.repeat(texts.alive, candidates)
        drawn = drafter.draft(texts.requests(every, emitted, budget))
        check_width(drawn.tokens.shape[1], draft_length)
        if not texts.going.size:
            return
        rows = texts.begins[texts.going] + emitted
        here = np.isin(texts.alive, texts.going)
        lengths[rows] = drawn.lengths.reshape(-1, candidates)[here]
        continuation = texts.continuation(texts.going, emitted, budget, draft_length)
        keep(rows, drafter.follow(texts.requests(texts.going, emitted, budget), continuation))

    behind = _Behind(candidates, drafts, np.random.default_rng([seed, 0xF125]))

    def different(drafter: Drafter, texts: Texts, emitted: int, budget: int) -> None:
        drawn = drafter.draft(texts.requests(texts.alive, emitted, budget))
        check_width(drawn.tokens.shape[1], draft_length)
        if not texts.going.size:
            return
        rows = texts.begins[texts.going] + emitted
        here = np.isin(texts.alive, texts.going)
        continuation = texts.continuation(texts.going, emitted, budget, draft_length)
        requests = texts.requests(texts.going, emitted, budget)
        followed = drafter.follow(requests, continuation)
        keep(rows, followed)
        lengths[rows, 0] = drawn.lengths[here]
        for place, b in enumerate(texts.going):
            law = followed.law_probabilities[place, 0]
            if np.count_nonzero(law) < 2 or followed.q[place, 0] < 0:
                continue  # a point mass, or no draft at all: the plain chain
            text = texts.tokens[b, : texts.starts[b] + emitted]
            each, along = behind(
                drafter, texts, text, followed.law_ids[place, 0], law, continuation[place], budget
            )
            lengths[rows[place], : each.shape[0]] = each
            q[rows[place], 1:] = along

    step = independent if drafts == "iid" else different
    walk(trace, make_drafter, step, draft_length, share=share, order=order, advance=advance)
    if not ids:
        ids.append(np.full((size, depths, 1), -1, np.int32))
        laws.append(np.zeros((size, depths, 1)))
    return PathProfile(drafts, q, lengths, ids[0], laws[0])


class _Behind:
    """Draws different first tokens and drafts a chain behind each, and behind the emitted one."""

    def __init__(self, count: int, drafts: optimum.Drafts, rng: np.random.Generator) -> None:
        self.count, self.drafts, self.rng = count, drafts, rng

    def __call__(
        self,
        drafter: Drafter,
        texts: Texts,
        text: Ints,
        ids: Ints,
        law: Doubles,
        continuation: Ints,
        budget: int,
    ) -> tuple[Longs, Doubles]:
        """Length of each path, and q of drafts 1.. along the continuation, (K - 1,)."""
        first = ids[self._first(law)]
        along = np.full(continuation.shape[0] - 1, -1.0)
        if budget < 2:
            return np.ones(first.shape[0], np.int64), along
        requests = self._requests(texts, text, first, budget - 1)
        made = drafter.draft(requests)
        # Where the emitted token cannot be drafted, nothing behind it is ever reached.
        if continuation[1] >= 0 and law[ids == continuation[0]].sum() > 0:
            ahead = np.append(continuation[1:], np.int32(-1))[None]
            requests = self._requests(texts, text, continuation[:1], budget - 1)
            along = drafter.follow(requests, ahead).q[0, :-1]
        return 1 + made.lengths, along

    def _first(self, law: Doubles) -> Longs:
        """Entries of the law: by the race of exponentials, or the most probable and one more."""
        support = np.flatnonzero(law)
        count = min(self.count, support.shape[0])
        if self.drafts == "without_replacement":
            arrival = self.rng.exponential(size=support.shape[0]) / law[support]
            return support[np.argsort(arrival)[:count]]
        ranked = support[np.argsort(-law[support], kind="stable")]
        rest = law[ranked[count - 1 :]]
        last = self.rng.choice(ranked[count - 1 :], p=rest / rest.sum())
        return np.append(ranked[: count - 1], last)

    def _requests(self, texts: Texts, text: Ints, first: Ints, budget: int) -> DraftRequests:
        count, length = first.shape[0], text.shape[0] + 1
        tokens = np.empty((count, length), np.int32)
        tokens[:, :-1] = text
        tokens[:, -1] = first
        return texts.requests_of(
            tokens,
            np.arange(count),
            np.full(count, length, np.int64),
            budget,
            np.full(count, NEVER_STARTED, np.int64),
        )
