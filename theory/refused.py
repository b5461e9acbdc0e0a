"""Rows that an engine evaluated behind refused drafts: known to its drafter, part of no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints32 = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RefusedRows:
    """M target laws of a trace's recording, at contexts that drafts led to and the text did not.

    Row r is the law of the token after the prompt, the answer before ``tokens[starts[r]]`` and the
    drafts ``drafts[begins[r]:begins[r + 1]]``, at temperature 1: ``log_masses[r, e]`` of token
    ``ids[r, e]``, most probable first, padded with -1 and -inf. The engine's drafter learned it in
    the step that emitted ``tokens[starts[r]:after[r] + 1]``. Rows stand in the order of ``after``.

    Shapes: starts, after (M,) int64, rows of the trace; begins (M + 1,) int64; drafts (D,) int32;
    ids (M, E) int32; log_masses (M, E) float32.
    """

    starts: Longs
    after: Longs
    begins: Longs
    drafts: Ints32
    ids: Ints32
    log_masses: Floats32

    def __len__(self) -> int:
        return int(self.starts.shape[0])

    def path(self, row: int) -> Ints32:
        """The drafts that led to a row."""
        return self.drafts[self.begins[row] : self.begins[row + 1]]

    def selected(self, number: Longs) -> RefusedRows:
        """The rows of some tokens only; ``number[i]`` is the new place of ``tokens[i]``, or -1."""
        kept = np.flatnonzero(number[self.after] >= 0)
        kept = kept[np.argsort(number[self.after[kept]], kind="stable")]
        sizes = np.diff(self.begins)[kept]
        paths = [self.path(int(row)) for row in kept]
        return RefusedRows(
            starts=number[self.starts[kept]],
            after=number[self.after[kept]],
            begins=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            drafts=np.concatenate([np.zeros(0, np.int32), *paths]),
            ids=self.ids[kept],
            log_masses=self.log_masses[kept],
        )

    @staticmethod
    def joined(parts: Sequence[tuple[RefusedRows, int]]) -> RefusedRows:
        """Rows of several traces that are joined, each with the place where its tokens begin."""
        sizes = [rows.drafts.shape[0] for rows, _ in parts]
        before = np.cumsum([0, *sizes])[:-1]
        return RefusedRows(
            starts=np.concatenate([rows.starts + first for rows, first in parts]),
            after=np.concatenate([rows.after + first for rows, first in parts]),
            begins=np.concatenate(
                [[0], *(rows.begins[1:] + b for (rows, _), b in zip(parts, before, strict=True))]
            ).astype(np.int64),
            drafts=np.concatenate([rows.drafts for rows, _ in parts]),
            ids=np.concatenate([rows.ids for rows, _ in parts]),
            log_masses=np.concatenate([rows.log_masses for rows, _ in parts]),
        )


def none(entries: int) -> RefusedRows:
    """No rows, of laws with so many entries."""
    return RefusedRows(
        *(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(1, np.int64)),
        np.zeros(0, np.int32),
        np.zeros((0, entries), np.int32),
        np.zeros((0, entries), np.float32),
    )


def inconsistency(rows: RefusedRows, answer_begins: Longs, vocabulary: int) -> str | None:
    """What is wrong with the values, in words; None when nothing is."""
    count = len(rows)
    shapes = (rows.after.shape, rows.begins.shape, rows.ids.shape[:1], rows.log_masses.shape)
    if shapes != ((count,), (count + 1,), (count,), rows.ids.shape):
        return "the arrays of refused rows have different lengths"
    if rows.begins[0] != 0 or rows.begins[-1] != rows.drafts.shape[0]:
        return f"refused_begins does not rise from 0 to {rows.drafts.shape[0]}"
    if np.any(np.diff(rows.begins) < 1) or np.any(np.diff(rows.after) < 0):
        return "refused rows have no drafts, or are not sorted"
    if count:
        inside = (rows.starts >= 0) & (rows.after < answer_begins[-1])
        answers = np.searchsorted(answer_begins, [rows.starts, rows.after], "right")
        if not np.all(inside & (rows.starts <= rows.after) & (answers[0] == answers[1])):
            return "refused rows point outside the answers"
    for name, array, least in (("drafts", rows.drafts, 0), ("ids", rows.ids, -1)):
        if array.size and not (array.min() >= least and array.max() < vocabulary):
            return f"refused_{name} holds tokens outside the vocabulary of {vocabulary}"
    laws = rows.log_masses
    if np.isnan(laws).any() or np.any((rows.ids < 0) & ~np.isneginf(laws)):
        return "refused_log_masses stand where there is no token, or are no numbers"
    if np.any(laws[:, 1:] > laws[:, :-1]):
        return "refused_log_masses are not sorted"
    if np.any(np.exp(laws, dtype=np.float64).sum(axis=1) > 1.01):
        return "refused_log_masses are no log probabilities"
    return None
