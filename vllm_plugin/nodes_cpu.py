"""The node rules on a CPU: the results of :mod:`vllm_plugin.nodes`, one node in one pass."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from vllm_plugin.emission_cpu import STRETCH, emit_row, positive, read_support
from vllm_plugin.nodes import BISECTIONS, DISTINCT, LANDING, RULES, Nodes, Verdict
from vllm_plugin.paths import Paths
from vllm_plugin.sparse_flow import check_support, judge_node

TOKEN, MATCH, KSEQ, RRS, RRS_WITHOUT_REPLACEMENT, TOP_PLUS_ONE, SPARSE_OPTIMAL = range(len(RULES))
_DISTINCT = tuple(rule in DISTINCT for rule in RULES)
_LANDING = tuple(rule in LANDING for rule in RULES)
_PLACEHOLDER = -1


@njit(cache=True, nogil=True, error_model="numpy")
def _find(candidates: Any, law_ids: Any, q: Any, slots: Any, distinct: Any) -> Any:
    """Entries of the candidates up to the first that q cannot have drawn; returns their count."""
    for j in range(candidates.shape[0]):
        slots[j] = -1
        for e in range(q.shape[0]):
            if q[e] > 0 and law_ids[e] == candidates[j]:
                slots[j] = e
        if slots[j] < 0:
            return j
        if distinct:
            for i in range(j):
                if slots[i] == slots[j]:
                    return j
    return candidates.shape[0]


@njit(cache=True, nogil=True, error_model="numpy")
def _offers(p: Any, q: Any, rho: Any, n: Any) -> Any:
    beta = 0.0
    for e in range(q.shape[0]):
        beta += min(q[e], p[e] / rho)
    beta = min(beta, 1.0)
    total, miss = 0.0, 1.0
    for _ in range(n):
        total += miss
        miss *= 1 - beta
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _kseq(p: Any, q: Any, slots: Any, n: Any, chances: Any, weights: Any) -> None:
    low, high = 1.0, float(n)
    if n > 1:
        for _ in range(BISECTIONS):
            rho = 0.5 * (low + high)
            if _offers(p, q, rho, n) <= rho:
                high = rho
            else:
                low = rho
    offers = _offers(p, q, high, n)
    for j in range(n):
        chances[j] = p[slots[j]] / high / q[slots[j]]
    for e in range(q.shape[0]):
        weights[e] = positive(p[e] - offers * min(q[e], p[e] / high))


@njit(cache=True, nogil=True, error_model="numpy")
def _recursive(
    p: Any, q: Any, slots: Any, n: Any, replace: Any, chances: Any, weights: Any
) -> None:
    left = q.copy()
    beyond = max(1 - p.sum(), 0.0)
    for j in range(n):
        x = slots[j]
        scale = (weights.sum() + beyond) / left.sum()
        if scale > 0:
            chances[j] = weights[x] / (left[x] * scale)
        for e in range(q.shape[0]):
            weights[e] = positive(weights[e] - left[e] * scale)
        if not replace:
            left[x] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _top_plus_one(
    p: Any, q: Any, candidates: Any, law_ids: Any, chances: Any, weights: Any
) -> None:
    last = -1
    for j in range(candidates.shape[0]):
        if candidates[j] >= 0:
            last += 1
    rest = q.copy()
    for e in range(q.shape[0]):
        for j in range(last):
            if law_ids[e] == candidates[j]:
                rest[e] = 0.0
    whole = rest.sum()
    drawn = -1
    for e in range(q.shape[0]):
        if rest[e] > 0 and last >= 0 and law_ids[e] == candidates[last]:
            drawn = e
    if drawn >= 0:
        chances[last] = p[drawn] / (rest[drawn] / whole)
        for e in range(q.shape[0]):
            weights[e] = positive(p[e] - rest[e] / whole)


@njit(cache=True, nogil=True, error_model="numpy")
def _decide(
    rule: Any, row: Any, candidates: Any, law_ids: Any, law: Any, u_accept: Any, u_emit: Any,
    distinct: Any, landing: Any, held: Any, q: Any, weights: Any, chances: Any, slots: Any,
    sums: Any, stretch: Any,
) -> Any:  # fmt: skip
    """Emitted token and accepted candidate of one node; everything from ``held`` on is space."""
    read_support(row, law_ids, law, held, q)
    weights[:] = held
    chances[:] = 0.0
    if rule == TOP_PLUS_ONE:
        _top_plus_one(held, q, candidates, law_ids, chances, weights)
    elif rule != MATCH:
        n = _find(candidates, law_ids, q, slots, distinct)
        if rule == TOKEN:
            n = min(n, 1)
        if n > 0:
            if rule == RRS:
                _recursive(held, q, slots, n, True, chances, weights)
            elif rule == RRS_WITHOUT_REPLACEMENT:
                _recursive(held, q, slots, n, False, chances, weights)
            elif rule == SPARSE_OPTIMAL:
                judge_node(held, q, slots, n, chances, weights)
            else:  # K-SEQ with one candidate is the token rule
                _kseq(held, q, slots, n, chances, weights)
    for j in range(candidates.shape[0]):
        if u_accept[j] < chances[j]:
            return candidates[j], j
    token = emit_row(row, law_ids, q, held, weights, u_emit, sums, stretch)
    if landing and token >= 0:
        for j in range(candidates.shape[0]):
            if candidates[j] == token:
                return token, j
    return token, -1


@njit(cache=True, nogil=True, error_model="numpy")
def _decide_nodes(
    rule: Any, distinct: Any, landing: Any, p: Any, rows: Any, candidates: Any, law_ids: Any,
    law: Any, u_accept: Any, u_emit: Any, tokens: Any, accepted: Any,
) -> None:  # fmt: skip
    entries, k = law.shape[1], candidates.shape[1]
    held, q, weights = np.empty(entries), np.empty(entries), np.empty(entries)
    chances, slots = np.empty(k), np.empty(k, np.int64)
    sums, stretch = np.empty((p.shape[1] + STRETCH - 1) // STRETCH), np.empty(STRETCH)
    for b in range(rows.shape[0]):
        if 0 <= rows[b] < p.shape[0]:
            tokens[b], accepted[b] = _decide(
                rule, p[rows[b]], candidates[b], law_ids[b], law[b], u_accept[b], u_emit[b],
                distinct, landing, held, q, weights, chances, slots, sums, stretch,
            )  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy")
def _walk(
    rule: Any, distinct: Any, landing: Any, p: Any, rows: Any, tokens: Any, law_ids: Any, law: Any,
    u_accept: Any, u_emit: Any, emitted: Any, winner: Any,
) -> None:  # fmt: skip
    batch, count, steps = tokens.shape
    entries = law.shape[3]
    held, q, weights = np.empty(entries), np.empty(entries), np.empty(entries)
    chances, slots = np.empty(count), np.empty(count, np.int64)
    sums, stretch = np.empty((p.shape[1] + STRETCH - 1) // STRETCH), np.empty(STRETCH)
    alive, candidates = np.empty(count, np.bool_), np.empty(count, np.int64)
    no_law = np.zeros(entries)
    for b in range(batch):
        alive[:] = True
        for d in range(steps + 1):
            candidates[:] = _PLACEHOLDER
            n, leader = 0, -1
            for j in range(count):
                if not alive[j] or not 0 <= rows[b, j, d] < p.shape[0]:
                    continue
                if d < steps and tokens[b, j, d] >= 0:
                    if n == 0:
                        leader = j
                    fresh = True
                    if distinct:
                        for i in range(n):
                            fresh &= candidates[i] != tokens[b, j, d]
                    if fresh:
                        candidates[n] = tokens[b, j, d]
                        n += 1
                elif leader < 0:
                    leader = j
            if leader < 0:
                break
            at = min(d, steps - 1)
            token, accepted = _decide(
                rule, p[rows[b, leader, d]], candidates, law_ids[b, leader, at],
                law[b, leader, at] if n else no_law, u_accept[b, at], u_emit[b, d], distinct,
                landing, held, q, weights, chances, slots, sums, stretch,
            )  # fmt: skip
            emitted[b, d] = token
            if accepted < 0:
                break
            winner[b] = -1
            for j in range(count):
                alive[j] &= tokens[b, j, d] == token
                if alive[j] and winner[b] < 0:
                    winner[b] = j


def _arrays(*tensors: Tensor) -> list[Any]:
    """Contiguous, so that numba sees one type whatever the batch and compiles once."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def decide(rule: str, p: Tensor, nodes: Nodes, u_accept: Tensor, u_emit: Tensor) -> Verdict:
    """:func:`vllm_plugin.nodes.decide` for tensors in main memory."""
    _check(rule, nodes.law)
    batch = nodes.rows.shape[0]
    tokens, accepted = np.full(batch, _PLACEHOLDER), np.full(batch, -1)
    code = RULES.index(rule)
    _decide_nodes(
        code, _DISTINCT[code], _LANDING[code],
        *_arrays(p, nodes.rows, nodes.candidates, nodes.law_ids, nodes.law, u_accept, u_emit),
        tokens, accepted,
    )  # fmt: skip
    return torch.from_numpy(tokens), torch.from_numpy(accepted)


def walk(
    rule: str, p: Tensor, paths: Paths, u_accept: Tensor, u_emit: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`vllm_plugin.paths.walk` for tensors in main memory."""
    _check(rule, paths.law)
    batch, _, steps = paths.tokens.shape
    emitted = np.full((batch, steps + 1), _PLACEHOLDER, np.int32)
    winner = np.zeros(batch, np.int64)
    code = RULES.index(rule)
    _walk(
        code, _DISTINCT[code], _LANDING[code],
        *_arrays(p, paths.rows, paths.tokens, paths.law_ids, paths.law, u_accept, u_emit),
        emitted, winner,
    )  # fmt: skip
    return torch.from_numpy(emitted), torch.from_numpy(winner)


def _check(rule: str, law: Tensor) -> None:
    if rule == "sparse_optimal":
        check_support(law.shape[-1])
