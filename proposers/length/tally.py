"""What the decisions about draft lengths came to, added up for whoever watches a server."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Doubles, Longs

STOPS = ("does_not_pay", "no_context", "draft_length", "limit", "off")
"""Why a request has no more drafts: the next one does not pay; none could be drafted; there are as
many as drafters give; as many as the request may have; drafting is off in this step."""
_DOES_NOT_PAY, _NO_CONTEXT, _DRAFT_LENGTH, _LIMIT, _OFF = range(len(STOPS))
DECILES = 10


class Tally:
    """Sums since the last :meth:`clear`.

    ``stops`` (5,) by :data:`STOPS`; ``chosen`` (longest + 1,) requests by the drafts they got;
    ``predicted``, ``realised``, ``judged`` (10,): sums over drafts that were judged, by the decile
    of their predicted acceptance, of that, of acceptances, and of ones; ``accepted``, ``wasted``
    drafts and ``emitted`` tokens.
    """

    def __init__(self, longest: int) -> None:
        self.stops = np.zeros(len(STOPS))
        self.chosen = np.zeros(longest + 1)
        self.predicted, self.realised, self.judged = np.zeros((3, DECILES))
        self.accepted = self.wasted = self.emitted = 0

    def off(self, requests: int) -> None:
        """A step that drafts for none of so many requests."""
        self.stops[_OFF] += requests
        self.chosen[0] += requests

    def cut(self, lengths: Longs, drafted: Longs, caps: Longs) -> None:
        """Requests get ``lengths`` of ``drafted`` tokens, and may have ``caps``; all (B,)."""
        _cut(lengths, drafted, caps, self.stops, self.chosen)

    def verified(self, expected: Doubles, rows: Longs, drafted: Longs, accepted: Longs) -> None:
        """Drafts were judged: ``accepted`` of ``drafted``, both (B,), and one token more emitted.

        ``expected[rows[b]]`` is what was predicted of request b's drafts; a row of -1: nothing was.
        """
        _verified(expected, rows, drafted, accepted, self.predicted, self.realised, self.judged)
        kept = int(np.minimum(accepted, drafted).sum())
        self.accepted += kept
        self.wasted += int(drafted.sum()) - kept
        self.emitted += int(accepted.sum()) + accepted.shape[0]

    def clear(self) -> None:
        """Begin again."""
        for sums in (self.stops, self.chosen, self.predicted, self.realised, self.judged):
            sums[:] = 0
        self.accepted = self.wasted = self.emitted = 0


@njit(cache=True, nogil=True)
def _cut(lengths: Any, drafted: Any, caps: Any, stops: Any, chosen: Any) -> Any:
    longest = chosen.shape[0] - 1
    for b in range(lengths.shape[0]):
        n = lengths[b]
        chosen[min(n, longest)] += 1
        if n < drafted[b]:
            stops[_DOES_NOT_PAY] += 1
        elif n >= longest:
            stops[_DRAFT_LENGTH] += 1
        elif n >= caps[b]:
            stops[_LIMIT] += 1
        else:
            stops[_NO_CONTEXT] += 1


@njit(cache=True, nogil=True)
def _verified(
    expected: Any,
    rows: Any,
    drafted: Any,
    accepted: Any,
    predicted: Any,
    realised: Any,
    judged: Any,
) -> Any:
    for b in range(rows.shape[0]):
        if rows[b] < 0:
            continue
        for i in range(min(drafted[b], accepted[b] + 1, expected.shape[1])):
            chance = expected[rows[b], i]
            if chance == chance:
                place = min(int(chance * DECILES), DECILES - 1)
                predicted[place] += chance
                judged[place] += 1
                if i < accepted[b]:
                    realised[place] += 1
