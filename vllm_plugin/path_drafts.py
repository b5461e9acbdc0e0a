"""Several drafted paths of one request: the flat list that the engine is given, and its rows.

The scheduler knows one list of drafts a request. Paths are sent in it one after another, each but
the first behind a copy of the last accepted token:

    path 0, last, path 1, last, path 2, ...

so that the scheduled tokens, ``last`` and the list, are rows of the form (last, path). A path that
is a beginning of another is not sent: the other's rows judge it. The same holds wherever paths
share a prefix; each prefix is judged by one row, that of the first path sent that has it. So a path
whose own tokens were not evaluated, because lanes or tokens were short, is still judged as far as
some row stands behind its prefix (:mod:`vllm_plugin.pending` says why that must be).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from vllm_plugin.flat_drafts import FlatDrafts

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PendingPaths:
    """Paths of one request that wait, and the length of the text they follow.

    tokens (P, L), lengths (P,), law_ids (P, L, E), laws (P, L, E) as in
    :class:`proposers.path_batch.PathDrafts`; ``sent`` (S,) the paths in the flat list, in order,
    and ``separators`` (S,) the place of the token in front of each of them, -1 for the first.
    """

    text_length: int
    tokens: Ints
    lengths: Longs
    law_ids: Ints
    laws: Doubles
    sent: Longs
    separators: Longs

    @staticmethod
    def of(
        text_length: int, tokens: Ints, lengths: Longs, law_ids: Ints, laws: Doubles, *, most: int
    ) -> PendingPaths:
        """Choose what to send: at most ``most`` >= 1 paths, the first ones that are needed."""
        sent = _needed(tokens, lengths)[:most]
        ends = np.cumsum(lengths[sent] + 1) - 1  # a path's tokens and the separator behind it
        separators = np.concatenate([[-1], ends[:-1]]).astype(np.int64)
        return PendingPaths(text_length, tokens, lengths, law_ids, laws, sent, separators)

    def flat(self, last: int) -> FlatDrafts:
        """The list for the engine; ``last`` is the last accepted token."""
        flat = FlatDrafts()
        for number, path in enumerate(self.sent):
            flat += [last] * (number > 0) + self.tokens[path, : self.lengths[path]].tolist()
        flat.distinct = _distinct(self.tokens, self.lengths, self.sent).tolist()
        return flat

    def agrees(self, scheduled: Ints, last: int) -> bool:
        """Whether these are the first of the flat list's tokens, so that its layout holds."""
        for number, path in enumerate(self.sent):
            begin = int(self.separators[number])
            if begin >= scheduled.shape[0]:
                return True
            here = scheduled[begin + 1 : begin + 1 + int(self.lengths[path])]
            if (begin >= 0 and scheduled[begin] != last) or not np.array_equal(
                here, self.tokens[path, : here.shape[0]]
            ):
                return False
        whole = int(self.separators[-1]) + 1 + int(self.lengths[self.sent[-1]])
        return scheduled.shape[0] <= whole

    def rows(self, inputs: int) -> Longs:
        """The row behind every prefix of every path, (P, L + 1), -1 where none was evaluated.

        Rows are counted from the request's first; ``inputs`` is the number of its tokens in the
        step, the last accepted one included.
        """
        return np.asarray(_rows(self.tokens, self.lengths, self.sent, self.separators, inputs))

    def left_over(self, emitted: Ints, inputs: int) -> PendingPaths | None:
        """The unjudged rest of the paths that begin with the emitted tokens, if there is any.

        None if the row behind the emitted tokens was evaluated: then all that was to be judged has
        been. The separators of the result are set when it is sent again (:meth:`of`).
        """
        m = emitted.shape[0]
        if not 0 < m < self.tokens.shape[1]:
            return None
        alive = (self.lengths > m) & (self.tokens[:, :m] == emitted).all(axis=1)
        if not alive.any() or (self.rows(inputs)[alive, m] >= 0).any():
            return None
        rest = self.lengths[alive] - m
        return PendingPaths.of(
            self.text_length + m, self.tokens[alive, m:], rest, self.law_ids[alive, m:],
            self.laws[alive, m:], most=rest.shape[0],
        )  # fmt: skip

    def limited(self, most: int) -> PendingPaths:
        """The same drafts with at most ``most`` paths sent."""
        return PendingPaths.of(
            self.text_length, self.tokens, self.lengths, self.law_ids, self.laws, most=most
        )


@njit(cache=True, nogil=True)
def _common(tokens: Any, lengths: Any, i: Any, j: Any) -> Any:
    n = 0
    while n < lengths[i] and n < lengths[j] and tokens[i, n] == tokens[j, n]:
        n += 1
    return n


@njit(cache=True, nogil=True)
def _needed(tokens: Any, lengths: Any) -> Any:
    """Paths that are no beginning of another one, equal ones once."""
    count = lengths.shape[0]
    needed = np.empty(count, np.int64)
    n = 0
    for j in range(count):
        own = lengths[j] > 0
        for i in range(count):
            if i != j and own and _common(tokens, lengths, i, j) == lengths[j]:
                own = lengths[i] == lengths[j] and j < i
        if own:
            needed[n] = j
            n += 1
    return needed[:n]


@njit(cache=True, nogil=True)
def _rows(tokens: Any, lengths: Any, sent: Any, separators: Any, inputs: Any) -> Any:
    count, steps = tokens.shape
    rows = np.full((count, steps + 1), -1)
    for j in range(count):
        for number in range(sent.shape[0]):
            for t in range(_common(tokens, lengths, sent[number], j) + 1):
                at = separators[number] + 1 + t
                if rows[j, t] < 0 and at < inputs:
                    rows[j, t] = at
    return rows


@njit(cache=True, nogil=True)
def _distinct(tokens: Any, lengths: Any, sent: Any) -> Any:
    """How many different drafts stand among the first 0, 1, 2.. tokens of the flat list."""
    total = 1
    for path in sent:
        total += lengths[path] + 1
    counts = np.zeros(total, np.int64)
    at = 0
    for number in range(sent.shape[0]):
        shared = 0
        for earlier in range(number):
            shared = max(shared, _common(tokens, lengths, sent[earlier], sent[number]))
        if number > 0:
            counts[at + 1] = counts[at]
            at += 1
        for t in range(lengths[sent[number]]):
            counts[at + 1] = counts[at] + (t >= shared)
            at += 1
    return counts[: at + 1]
