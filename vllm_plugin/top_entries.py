"""The table's view of a target row: its most probable tokens (ten by default) at temperature 1.

Runs over every sampled row of every step, so it reads the vocabulary twice at memory speed: once
for the maxima of columns of 64 logits (which say where they can be), once for the
normaliser. The result feeds drafts only; its last digits cannot bend the output law.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from proposers import ENTRIES

_COLUMN = 64
_BLOCK = 2048
_LOG2E = np.float32(1.4426950408889634)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc", "contract"})
def _normaliser(row: Any, top: Any, stretch_sums: Any, bits: Any, scale: Any) -> Any:
    """sum(exp(row - top)) to about 1e-6: a degree-5 polynomial for 2^f and the exponent by bits."""
    total = 0.0
    for begin in range(0, row.shape[0], _BLOCK):
        n = min(_BLOCK, row.shape[0] - begin)
        part = row[begin : begin + n]
        for i in range(n):
            y = max((part[i] - top) * _LOG2E, np.float32(-126.0))
            whole = np.floor(y)
            f = y - whole
            power = np.float32(1.8775767e-3)
            power = power * f + np.float32(8.9893397e-3)
            power = power * f + np.float32(5.5826318e-2)
            power = power * f + np.float32(2.4015361e-1)
            power = power * f + np.float32(6.9315308e-1)
            power = power * f + np.float32(9.9999994e-1)
            stretch_sums[i] = power
            bits[i] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        subtotal: Any = np.float32(0.0)
        for i in range(n):
            subtotal += stretch_sums[i] * scale[i]
        total += subtotal
    return total


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _column_maxima(row: Any, maxima: Any) -> None:
    """The maxima of the columns when the row is written in lines of ``maxima.shape[0]`` tokens.

    Columns rather than stretches: the inner loop is then elementwise, and compiled to vectors.
    """
    width = maxima.shape[0]
    maxima[:] = row[:width]
    for begin in range(width, row.shape[0], width):
        line = row[begin : begin + width]
        for j in range(line.shape[0]):
            maxima[j] = max(maxima[j], line[j])


@njit(cache=True, nogil=True, inline="always")
def _insert(value: Any, token: Any, held: Any, best: Any, ids: Any) -> Any:
    """Put a value that belongs there into a list sorted downwards; returns its new length."""
    if held < best.shape[0]:
        held += 1
    i = held - 1
    while i > 0 and best[i - 1] < value:
        best[i], ids[i] = best[i - 1], ids[i - 1]
        i -= 1
    best[i], ids[i] = value, token
    return held


@njit(cache=True, nogil=True)
def _top_entries(logits: Any, rows: Any, ids: Any, probabilities: Any) -> Any:
    entries, vocabulary = ids.shape[1], logits.shape[1]
    width = (vocabulary + _COLUMN - 1) // _COLUMN
    maxima = np.empty(width, np.float32)
    columns = np.empty(entries, np.int32)
    sums = np.empty(_BLOCK, np.float32)
    bits = np.empty(_BLOCK, np.int32)
    scale = bits.view(np.float32)
    best = np.empty(entries, np.float32)
    for r in range(rows.shape[0]):
        row = logits[rows[r]]
        _column_maxima(row, maxima)
        # The top tokens stand in as many columns of highest maxima (ties are free to choose).
        found = 0
        for j in range(width):
            if maxima[j] > -np.inf and (found < entries or maxima[j] > best[entries - 1]):
                found = _insert(maxima[j], j, found, best, columns)
        held = 0
        for c in range(found):
            for x in range(columns[c], vocabulary, width):
                value = row[x]
                if value > -np.inf and (held < entries or value > best[entries - 1]):
                    held = _insert(value, x, held, best, ids[r])
        ids[r, held:] = -1
        probabilities[r, held:] = 0
        if held:
            total = _normaliser(row, best[0], sums, bits, scale)
            for e in range(held):
                probabilities[r, e] = np.exp(best[e] - best[0]) / total


def top_entries(
    logits: torch.Tensor, rows: NDArray[np.int64], entries: int = ENTRIES
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The ``entries`` most probable tokens of some rows of ``softmax(logits)``.

    logits (N, V) float32, -inf allowed; rows (R,) int64. Returns ids (R, E) int32, most probable
    first and padded with -1, and probabilities (R, E) float32.
    """
    ids = np.empty((rows.shape[0], entries), np.int32)
    probabilities = np.empty((rows.shape[0], entries), np.float32)
    if logits.device.type == "cpu":
        _top_entries(logits.contiguous().numpy(), rows, ids, probabilities)
        return ids, probabilities
    picked = logits[torch.from_numpy(rows).to(logits.device)]
    count = min(entries, picked.shape[1])
    values, indices = picked.topk(count, dim=-1)
    law = (values - picked.logsumexp(dim=-1, keepdim=True)).exp()
    ids[:, :count] = torch.where(law > 0, indices, -1).cpu().numpy()
    probabilities[:, :count] = law.cpu().numpy()
    ids[:, count:] = -1
    probabilities[:, count:] = 0
    return ids, probabilities
