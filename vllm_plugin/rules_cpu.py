"""The chain rules on a CPU: the results of :mod:`vllm_plugin.rules`, in one pass.

The same pure functions of (p, q, drafts, uniforms), compiled: on a CPU the dozens of small torch
operations of the tensor version cost more than the arithmetic. Differential tests hold the two
together on the same uniforms.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from vllm_plugin.emission import PLACEHOLDER
from vllm_plugin.emission_cpu import STRETCH, emit_row, positive, read_support
from vllm_plugin.rules import Chains

_TOKEN, _BLOCK, _DRAWS = range(3)


@njit(cache=True, nogil=True, error_model="numpy")
def _mass_of(token: Any, ids: Any, law: Any) -> Any:
    for e in range(ids.shape[0]):
        if ids[e] == token and law[e] > 0:
            return law[e]
    return 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _residual_mass(scale: Any, held: Any, q: Any) -> Any:
    """sum over tokens of (scale p - q)+, from q's support alone."""
    covered, residual = 0.0, 0.0
    for e in range(q.shape[0]):
        covered += held[e]
        residual += positive(scale * held[e] - q[e])
    return residual + scale * max(1 - covered, 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _kept(
    block: Any, p: Any, first: Any, n: Any, tokens: Any, law_ids: Any, law: Any, u: Any, held: Any,
    q: Any,
) -> Any:  # fmt: skip
    """How many drafts of a chain are kept, and the scale r of p in the residual after them."""
    kept, reach, scale = 0, 1.0, 1.0
    if n:
        read_support(p[first], law_ids[0], law[0], held, q)
    for i in range(n):
        p_x, q_x = _mass_of(tokens[i], law_ids[i], held), _mass_of(tokens[i], law_ids[i], q)
        if not block:
            if not u[i] * q_x < p_x:
                break
            kept = i + 1
        else:
            reach *= p_x / q_x
            if reach > 1:  # a NaN stays one, and is never above a uniform
                reach = 1.0
        if i + 1 < n:
            read_support(p[first + i + 1], law_ids[i + 1], law[i + 1], held, q)
        if block:
            threshold = reach
            if i + 1 < n:
                mass = _residual_mass(reach, held, q)
                slack = mass + 1 - reach
                threshold = 1.0 if slack <= 0 else mass / slack
            if u[i] < threshold:
                kept, scale = i + 1, reach
            if reach == 0:
                break
    return kept, scale


@njit(cache=True, nogil=True, error_model="numpy")
def _verify(
    rule: Any, p: Any, first_rows: Any, lengths: Any, has_bonus: Any, tokens: Any, law_ids: Any,
    law: Any, u_accept: Any, u_emit: Any, out: Any,
) -> None:  # fmt: skip
    entries = law_ids.shape[2]
    held, q, weights = np.empty(entries), np.empty(entries), np.empty(entries)
    sums, stretch = np.empty((p.shape[1] + STRETCH - 1) // STRETCH), np.empty(STRETCH)
    for b in range(lengths.shape[0]):
        first, n, bonus = first_rows[b], lengths[b], has_bonus[b]
        if rule == _DRAWS:
            q[:] = 0.0
            for i in range(n + 1 if bonus else n):
                u = u_accept[b, i] if i < n else u_emit[b]
                out[b, i] = emit_row(p[first + i], law_ids[b, 0], q, q, q, u, sums, stretch)
                if i == n or out[b, i] < 0 or out[b, i] != tokens[b, i]:
                    break
            continue
        for i in range(n):
            if _mass_of(tokens[b, i], law_ids[b, i], law[b, i]) == 0:
                n, bonus = i, True
                break
        kept, scale = _kept(
            rule == _BLOCK, p, first, n, tokens[b], law_ids[b], law[b], u_accept[b], held, q
        )
        for i in range(kept):
            out[b, i] = tokens[b, i]
        if kept == n:
            if not bonus:
                continue
            held[:], q[:], weights[:] = 0.0, 0.0, 0.0
        else:
            read_support(p[first + kept], law_ids[b, kept], law[b, kept], held, q)
            for e in range(entries):
                weights[e] = positive(held[e] - q[e] / scale)
        ids = law_ids[b, min(kept, law_ids.shape[1] - 1)]
        out[b, kept] = emit_row(p[first + kept], ids, q, held, weights, u_emit[b], sums, stretch)


def _run(rule: int, p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    batch, steps = chains.tokens.shape
    out = np.full((batch, steps + 1), PLACEHOLDER, np.int32)
    # Contiguous, so that numba sees one type whatever the batch and compiles once.
    _verify(
        rule, p.contiguous().numpy(), chains.first_rows.numpy(), chains.lengths.numpy(),
        chains.has_bonus.numpy(), chains.tokens.numpy(), chains.law_ids.numpy(),
        chains.law.numpy(), np.ascontiguousarray(u_accept), np.ascontiguousarray(u_emit), out,
    )  # fmt: skip
    return torch.from_numpy(out)


def verify_token(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_token` for tensors in main memory."""
    return _run(_TOKEN, p, chains, u_accept, u_emit)


def verify_block(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_block` for tensors in main memory."""
    return _run(_BLOCK, p, chains, u_accept, u_emit)


def verify_draws(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_draws` for tensors in main memory."""
    return _run(_DRAWS, p, chains, u_accept, u_emit)
