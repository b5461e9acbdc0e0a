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
    batch: Any, order: int, stretches: Sequence[Stretch], laws: Laws, emitted: Sequence[Ints] | None
) -> VerifiedRows:
    """The step for :meth:`proposers.Drafter.observe`; ``emitted`` by place in the batch.

    Of each text only the last ``order`` tokens are shown.
    """
    ids, probabilities = laws
    texts: list[Ints] = []
    begins: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    at = 0
    for s in stretches:
        tail = batch.token_ids_cpu[s.index, max(0, s.text_length - order) : s.text_length]
        texts += [tail, s.tokens]
        begins.append(np.full(s.rows.shape[0], at, np.int64))
        ends.append(at + tail.shape[0] + s.behind)
        at += tail.shape[0] + s.tokens.shape[0]
    tokens, temperatures = np.zeros(0, np.int32), np.zeros(0)
    # A row that is no law (NaN, or nothing left of it) teaches nothing.
    sound = np.isfinite(probabilities).all(axis=1) & (ids[:, 0] >= 0)
    if emitted is not None:
        tokens = np.concatenate([s.emitted_at(emitted[s.index]) for s in stretches])[sound]
        of_request = batch.temperature_cpu[[s.index for s in stretches]].astype(np.float64)
        temperatures = np.repeat(of_request, [s.rows.shape[0] for s in stretches])[sound]
    return VerifiedRows(
        np.concatenate(texts).astype(np.int32, copy=False),
        np.concatenate(begins)[sound],
        np.concatenate(ends)[sound],
        ids[sound],
        probabilities[sound],
        tokens,
        temperatures,
    )
