"""What a step teaches the drafter: the target's law at every row, with the text before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proposers import VerifiedRows
from vllm_plugin.top_entries import top_entries

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
ONE_GROUP = np.zeros(0, np.uint64)
Laws = tuple[Ints, NDArray[np.float32]]  # ids and probabilities, (rows, entries)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Drafts of one request with the rows that stand behind them, each row of the step once.

    ``index`` is the request's place in the batch; row ``rows[i]`` of the logits follows its text of
    ``text_length`` tokens and ``tokens[:behind[i]]``. Shapes: tokens (n,); rows, behind (m,).
    """

    index: int
    text_length: int
    tokens: Ints
    rows: NDArray[np.int64]
    behind: NDArray[np.int64]

    @staticmethod
    def chain(index: int, text_length: int, first_row: int, tokens: Ints) -> Stretch:
        """A chain of drafts: a row before each of them, and one behind the last."""
        behind = np.arange(tokens.shape[0] + 1)
        return Stretch(index, text_length, tokens, first_row + behind, behind)

    def emitted_at(self, emitted: Ints) -> Ints:
        """The token that the request emitted at each row, -1 where it emitted none; (m,)."""
        ahead = np.full(self.tokens.shape[0] + 1, -1, np.int32)
        n = min(self.tokens.shape[0], emitted.shape[0])
        same = int(np.logical_and.accumulate(self.tokens[:n] == emitted[:n]).sum())
        known = emitted[: same + 1]
        ahead[: known.shape[0]] = known[: ahead.shape[0]]
        at: Ints = ahead[self.behind]
        return at


def laws_of(logits: Tensor, stretches: Sequence[Stretch], entries: int) -> Laws | None:
    """The heads of the target laws of all their rows, in order; None without any."""
    if not stretches:
        return None
    return top_entries(logits, np.concatenate([s.rows for s in stretches]), entries)


def verified_rows(
    batch: Any,
    order: int,
    stretches: Sequence[Stretch],
    laws: Laws,
    emitted: Sequence[Ints] | None,
    groups: NDArray[np.uint64] = ONE_GROUP,
) -> VerifiedRows:
    """The step for :meth:`proposers.Drafter.observe`; ``emitted`` by place in the batch.

    Of each text only the last ``order`` tokens are shown. ``groups`` (stretches,) are those of the
    requests, empty where all are in the common one.
    """
    ids, probabilities = laws
    plain = not any(s.tokens.shape[0] for s in stretches)
    text, begins, ends = (_last_tokens if plain else _texts)(batch, order, stretches)
    tokens, temperatures = np.zeros(0, np.int32), np.zeros(0)
    # A row that is no law (NaN, or nothing left of it) teaches nothing.
    sound = np.isfinite(probabilities).all(axis=1) & (ids[:, 0] >= 0)
    if emitted is not None:
        if plain:
            first = [emitted[s.index][0] if emitted[s.index].shape[0] else -1 for s in stretches]
            tokens = np.array(first, np.int32)[sound]
        else:
            tokens = np.concatenate([s.emitted_at(emitted[s.index]) for s in stretches])[sound]
        of_request = batch.temperature_cpu[[s.index for s in stretches]].astype(np.float64)
        temperatures = np.repeat(of_request, [s.rows.shape[0] for s in stretches])[sound]
    if groups.size:
        groups = np.repeat(groups, [s.rows.shape[0] for s in stretches])[sound]
    return VerifiedRows(
        text.astype(np.int32, copy=False),
        begins[sound],
        ends[sound],
        ids[sound],
        probabilities[sound],
        tokens,
        temperatures,
        groups,
    )


def _texts(batch: Any, order: int, stretches: Sequence[Stretch]) -> tuple[Ints, Longs, Longs]:
    """The ends of all texts with the drafts behind them, and where each row's context lies."""
    texts: list[Ints] = []
    begins: list[Longs] = []
    ends: list[Longs] = []
    at = 0
    for s in stretches:
        tail = batch.token_ids_cpu[s.index, max(0, s.text_length - order) : s.text_length]
        texts += [tail, s.tokens]
        begins.append(np.full(s.rows.shape[0], at, np.int64))
        ends.append(at + tail.shape[0] + s.behind)
        at += tail.shape[0] + s.tokens.shape[0]
    return np.concatenate(texts), np.concatenate(begins), np.concatenate(ends)


def _last_tokens(batch: Any, order: int, stretches: Sequence[Stretch]) -> tuple[Ints, Longs, Longs]:
    """:func:`_texts` of rows without drafts, one a request: all at once."""
    index = np.array([s.index for s in stretches])
    lengths = np.array([s.text_length for s in stretches])
    place = lengths[:, None] + np.arange(-order, 0)
    held = np.minimum(lengths, order)
    ends = np.cumsum(held)
    text = batch.token_ids_cpu[index[:, None], np.maximum(place, 0)][place >= 0]
    return text, ends - held, ends


def emitted_rows(
    going: Sequence[Any], emitted: Sequence[Ints], steps: int
) -> tuple[Ints, NDArray[np.int64], NDArray[np.int64]]:
    """What chains of up to ``steps`` drafts could have held: tokens (B, steps), counts (B,), rows.

    ``rows`` (B, steps) are those of the laws that :func:`laws_of` gives for these requests, whose
    drafts are chains; tokens are -1 behind the count.
    """
    tokens = np.full((len(going), steps), -1, np.int32)
    counts, first = np.empty(len(going), np.int64), np.empty((len(going), 1), np.int64)
    row = 0
    for b, request in enumerate(going):
        known = emitted[request.index][:steps]
        counts[b], first[b] = known.shape[0], row
        tokens[b, : known.shape[0]] = known
        row += request.scheduled.shape[0] + 1
    return tokens, counts, first + np.arange(steps)
