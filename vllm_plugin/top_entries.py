"""The table's view of a target row: its ten most probable tokens at temperature 1.

Runs over every sampled row of every step, so it reads the vocabulary twice at memory speed: once
for the maximum of each stretch of 64 logits (which also says where the top ten can be), once for
the normaliser. The result feeds drafts only; its last digits cannot bend the output law.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from proposers import ENTRIES

_STRETCH = 64
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


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc", "contract"})
def _stretch_maxima(row: Any, maxima: Any) -> Any:
    for s in range(maxima.shape[0]):
        part = row[s * _STRETCH : min((s + 1) * _STRETCH, row.shape[0])]
        top = part[0]
        for i in range(part.shape[0]):
            top = max(top, part[i])
        maxima[s] = top


@njit(cache=True, nogil=True)
def _top_entries(logits: Any, rows: Any, ids: Any, probabilities: Any) -> Any:
    entries, vocabulary = ids.shape[1], logits.shape[1]
    maxima = np.empty((vocabulary + _STRETCH - 1) // _STRETCH, np.float32)
    sums = np.empty(_BLOCK, np.float32)
    bits = np.empty(_BLOCK, np.int32)
    scale = bits.view(np.float32)
    best = np.empty(entries, np.float32)
    for r in range(rows.shape[0]):
        row = logits[rows[r]]
        _stretch_maxima(row, maxima)
        held = 0
        for s in range(maxima.shape[0]):
            if held == entries and maxima[s] <= best[entries - 1]:
                continue
            for x in range(s * _STRETCH, min((s + 1) * _STRETCH, vocabulary)):
                value = row[x]
                if value == -np.inf or (held == entries and value <= best[entries - 1]):
                    continue
                if held < entries:
                    held += 1
                i = held - 1
                while i > 0 and best[i - 1] < value:
                    best[i], ids[r, i] = best[i - 1], ids[r, i - 1]
                    i -= 1
                best[i], ids[r, i] = value, x
        ids[r, held:] = -1
        probabilities[r, held:] = 0
        if held:
            total = _normaliser(row, best[0], sums, bits, scale)
            for e in range(held):
                probabilities[r, e] = np.exp(best[e] - best[0]) / total


def top_entries(
    logits: torch.Tensor, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The ``ENTRIES`` most probable tokens of some rows of ``softmax(logits)``.

    logits (N, V) float32, -inf allowed; rows (R,) int64. Returns ids (R, ENTRIES) int32, most
    probable first and padded with -1, and probabilities (R, ENTRIES) float32.
    """
    ids = np.empty((rows.shape[0], ENTRIES), np.int32)
    probabilities = np.empty((rows.shape[0], ENTRIES), np.float32)
    if logits.device.type == "cpu":
        _top_entries(logits.numpy(), rows, ids, probabilities)
        return ids, probabilities
    picked = logits[torch.from_numpy(rows).to(logits.device)]
    count = min(ENTRIES, picked.shape[1])
    values, indices = picked.topk(count, dim=-1)
    law = (values - picked.logsumexp(dim=-1, keepdim=True)).exp()
    ids[:, :count] = torch.where(law > 0, indices, -1).cpu().numpy()
    probabilities[:, :count] = law.cpu().numpy()
    ids[:, count:] = -1
    probabilities[:, count:] = 0
    return ids, probabilities
