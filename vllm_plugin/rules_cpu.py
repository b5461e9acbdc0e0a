"""The token and the block rule on a CPU: the results of :mod:`vllm_plugin.rules`, in one pass.

The same pure functions of (p, q, drafts, uniforms), compiled: on a CPU the dozens of small torch
operations of the tensor version cost more than the arithmetic. Differential tests hold the two
together on the same uniforms.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from vllm_plugin.rules import PLACEHOLDER, Chains

_STRETCH = 64


@njit(cache=True, nogil=True)
def _law_of(token: Any, ids: Any, law: Any) -> Any:
    total = 0.0
    for e in range(ids.shape[0]):
        if ids[e] == token:
            total += law[e]
    return total


@njit(cache=True, nogil=True)
def _residual_mass(row: Any, scale: Any, ids: Any, law: Any) -> Any:
    """sum over tokens of (scale p - q)+, from q's support alone."""
    covered, residual = 0.0, 0.0
    for e in range(ids.shape[0]):
        if law[e] > 0:
            p = np.float64(row[ids[e]])
            covered += p
            residual += max(scale * p - law[e], 0.0)
    return residual + scale * max(1 - covered, 0.0)


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc", "contract"})
def _sum(row: Any, begin: Any, end: Any) -> Any:
    total = np.float32(0)
    for x in range(begin, end):
        total += row[x]
    return np.float64(total)


@njit(cache=True, nogil=True)
def _quantile(row: Any, u: Any, sums: Any) -> Any:
    """The token at quantile u of unnormalised weights, one that has weight; two levels."""
    total, last = 0.0, 0
    for s in range(sums.shape[0]):
        sums[s] = _sum(row, s * _STRETCH, min((s + 1) * _STRETCH, row.shape[0]))
        if sums[s] > 0:
            last = s
        total += sums[s]
    target, before = u * total, 0.0
    for s in range(last + 1):
        if sums[s] > 0 and (s == last or before + sums[s] > target):
            token = s * _STRETCH
            for x in range(s * _STRETCH, min((s + 1) * _STRETCH, row.shape[0])):
                if row[x] > 0:
                    token = x
                    before += row[x]
                    if before > target:
                        break
            return token
        before += sums[s]
    return row.shape[0] - 1


@njit(cache=True, nogil=True)
def _verify(
    block: Any, p: Any, first_rows: Any, lengths: Any, has_bonus: Any, tokens: Any, law_ids: Any,
    law: Any, u_accept: Any, u_emit: Any, out: Any,
) -> None:  # fmt: skip
    weights = np.empty(p.shape[1], p.dtype)
    sums = np.empty((p.shape[1] + _STRETCH - 1) // _STRETCH)
    for b in range(lengths.shape[0]):
        first, n = first_rows[b], lengths[b]
        kept, reach, scale = 0, 1.0, 1.0
        for i in range(n):
            token = tokens[b, i]
            p_x = np.float64(p[first + i, token])
            q_x = _law_of(token, law_ids[b, i], law[b, i])
            if not block:
                if not u_accept[b, i] * q_x < p_x:
                    break
                kept = i + 1
                continue
            reach = min(1.0, reach * p_x / q_x)
            threshold = reach
            if i + 1 < n:
                mass = _residual_mass(p[first + i + 1], reach, law_ids[b, i + 1], law[b, i + 1])
                slack = mass + 1 - reach
                threshold = mass / slack if slack > 0 else 1.0
            if u_accept[b, i] < threshold:
                kept, scale = i + 1, reach
            if reach == 0:
                break
        for i in range(kept):
            out[b, i] = tokens[b, i]
        if kept == n and not has_bonus[b]:
            continue
        row = p[first + kept]
        if kept < n:
            weights[:] = row
            row = weights
            for e in range(law_ids.shape[2]):
                taken = np.float32(law[b, kept, e] / scale)
                row[law_ids[b, kept, e]] -= taken
            for e in range(law_ids.shape[2]):
                row[law_ids[b, kept, e]] = max(row[law_ids[b, kept, e]], np.float32(0))
        out[b, kept] = _quantile(row, u_emit[b], sums)


def _run(block: bool, p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    batch, steps = chains.tokens.shape
    out = np.full((batch, steps + 1), PLACEHOLDER, np.int32)
    # Contiguous, so that numba sees one type whatever the batch and compiles once.
    _verify(
        block, p.contiguous().numpy(), chains.first_rows.numpy(), chains.lengths.numpy(),
        chains.has_bonus.numpy(), chains.tokens.numpy(), chains.law_ids.numpy(),
        chains.law.numpy(), np.ascontiguousarray(u_accept), np.ascontiguousarray(u_emit), out,
    )  # fmt: skip
    return torch.from_numpy(out)


def verify_token(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_token` for tensors in main memory."""
    return _run(False, p, chains, u_accept, u_emit)


def verify_block(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_block` for tensors in main memory."""
    return _run(True, p, chains, u_accept, u_emit)
