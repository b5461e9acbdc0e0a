"""The rules on a GPU: the results of :mod:`vllm_plugin.rules` and :mod:`vllm_plugin.nodes`.

One kernel judges the nodes and one the chains, a program each, on q's support alone; then
:mod:`vllm_plugin.emission_triton` draws the tokens. Arithmetic is float64, without atomics.
``sparse_optimal`` takes its coupling from main memory (:mod:`vllm_plugin.sparse_flow`).
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_plugin import nodes, paths, rules
from vllm_plugin.emission import on_support
from vllm_plugin.emission_triton import emit
from vllm_plugin.nodes import BISECTIONS, Nodes, Verdict
from vllm_plugin.paths import Paths
from vllm_plugin.rules import Chains

_TINY = tl.constexpr(1e-300)  # below float32, so that it is a float64
_TOKEN = tl.constexpr(nodes.RULES.index("token"))
_MATCH = tl.constexpr(nodes.RULES.index("match"))
_KSEQ = tl.constexpr(nodes.RULES.index("kseq"))
_RRS = tl.constexpr(nodes.RULES.index("rrs"))
_TOP_PLUS_ONE = tl.constexpr(nodes.RULES.index("top_plus_one"))


@triton.jit
def _positive(x):  # type: ignore[no-untyped-def]
    return tl.where(x < 0, 0.0, x)  # a NaN stays one


@triton.jit
def _read_support(p_ptr, stride, vocabulary, row, ids, law):  # type: ignore[no-untyped-def]
    used = law > 0
    q = tl.where(used, law, 0.0)
    q = q / tl.maximum(tl.sum(q, 0), _TINY)
    known = used & (ids >= 0) & (ids < vocabulary)
    held = tl.load(p_ptr + row * stride + ids, mask=known, other=0.0).to(tl.float64)
    return held, q


@triton.jit
def _offers(held, q, rho, n, K: tl.constexpr):  # type: ignore[no-untyped-def]
    beta = tl.minimum(tl.sum(tl.minimum(q, held / rho), 0), 1.0)
    total = tl.full((), 0.0, tl.float64)
    miss = tl.full((), 1.0, tl.float64)
    for j in range(K):
        total += tl.where(j < n, miss, 0.0)
        miss = miss * (1.0 - beta)
    return total


@triton.jit(do_not_specialize=["count_rows"])
def _nodes_kernel(  # type: ignore[no-untyped-def]
    p_ptr, stride, count_rows, vocabulary, rows_ptr, candidates_ptr, ids_ptr, law_ptr, u_ptr,
    accepted_ptr, emit_rows_ptr, held_ptr, weights_ptr,
    RULE: tl.constexpr, K: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Accepted candidate of node b, or -1, and p and the weights on the support of its q."""
    b = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, EB)
    ids = tl.load(ids_ptr + b * E + e, mask=e < E, other=-1)
    law = tl.load(law_ptr + b * E + e, mask=e < E, other=0.0)
    row = tl.load(rows_ptr + b)
    lawful = (row >= 0) & (row < count_rows)
    held, q = _read_support(p_ptr, stride, vocabulary, tl.where(lawful, row, 0), ids, law)
    weights = held
    accepted = tl.full((), -1, tl.int64)
    going = tl.full((), 1, tl.int32)
    n = tl.full((), 0, tl.int32)
    if RULE == _TOP_PLUS_ONE:
        for j in range(K):
            n += (tl.load(candidates_ptr + b * K + j) >= 0).to(tl.int32)
        rest = q
        for j in range(K):
            x = tl.load(candidates_ptr + b * K + j)
            rest = tl.where((ids == x) & (j < n - 1), 0.0, rest)
        rest = rest / tl.maximum(tl.sum(rest, 0), _TINY)
        for j in range(K):
            x = tl.load(candidates_ptr + b * K + j)
            drawn = (ids == x) & (rest > 0) & (j == n - 1)
            u = tl.load(u_ptr + b * K + j)
            p_x = tl.sum(tl.where(drawn, held, 0.0), 0)
            q_x = tl.sum(tl.where(drawn, rest, 0.0), 0)
            accepted = tl.where(u * q_x < p_x, j, accepted)
            weights = tl.where(q_x > 0, _positive(held - rest), weights)
    elif RULE == _KSEQ:
        for j in range(K):
            x = tl.load(candidates_ptr + b * K + j)
            sound = tl.sum(((ids == x) & (q > 0)).to(tl.int32), 0) > 0
            going = tl.where(sound, going, 0)
            n += going
        low = tl.full((), 1.0, tl.float64)
        high = tl.maximum(n, 1).to(tl.float64)
        for _ in range(STEPS):
            rho = 0.5 * (low + high)
            lossless = _offers(held, q, rho, n, K) <= rho
            low = tl.where(lossless, low, rho)
            high = tl.where(lossless, rho, high)
        kept = tl.minimum(q, held / high)
        weights = _positive(held - _offers(held, q, high, n, K) * kept)
        for j in range(K):
            x = tl.load(candidates_ptr + b * K + j)
            u = tl.load(u_ptr + b * K + j)
            p_x = tl.sum(tl.where(ids == x, held, 0.0), 0)
            q_x = tl.sum(tl.where(ids == x, q, 0.0), 0)
            take = (j < n) & (accepted < 0) & (u * q_x < p_x / high)
            accepted = tl.where(take, j, accepted)
    elif RULE != _MATCH:
        left = q
        beyond = _positive(1.0 - tl.sum(held, 0))
        for j in range(1 if RULE == _TOKEN else K):
            x = tl.load(candidates_ptr + b * K + j)
            u = tl.load(u_ptr + b * K + j)
            drawn = (ids == x) & (left > 0)
            going = tl.where(tl.sum(drawn.to(tl.int32), 0) > 0, going, 0)
            scaled = left
            if RULE != _TOKEN:
                whole = tl.sum(weights, 0) + beyond
                scaled = left * (whole / tl.maximum(tl.sum(left, 0), _TINY))
            p_x = tl.sum(tl.where(drawn, weights, 0.0), 0)
            q_x = tl.sum(tl.where(drawn, scaled, 0.0), 0)
            accepted = tl.where((going > 0) & (accepted < 0) & (u * q_x < p_x), j, accepted)
            weights = tl.where(going > 0, _positive(weights - scaled), weights)
            if (RULE != _TOKEN) & (RULE != _RRS):
                left = tl.where(drawn & (going > 0), 0.0, left)
    accepted = tl.where(lawful, accepted, -1)
    tl.store(accepted_ptr + b, accepted)
    tl.store(emit_rows_ptr + b, tl.where(lawful & (accepted < 0), row, -1))
    tl.store(held_ptr + b * E + e, held, mask=e < E)
    tl.store(weights_ptr + b * E + e, weights, mask=e < E)


# Chains are of another length at every step: no kernel of its own for each.
@triton.jit(do_not_specialize=["K"])
def _chains_kernel(  # type: ignore[no-untyped-def]
    p_ptr, stride, vocabulary, first_ptr, lengths_ptr, bonus_ptr, tokens_ptr, ids_ptr, law_ptr,
    u_ptr, kept_ptr, emit_rows_ptr, last_ids_ptr, held_ptr, weights_ptr, K,
    BLOCK_RULE: tl.constexpr, E: tl.constexpr, EB: tl.constexpr,
):  # fmt: skip
    """How many drafts of chain b are kept, and row, support and weights of the draw after them."""
    b = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, EB)
    first = tl.load(first_ptr + b)
    length = tl.load(lengths_ptr + b)
    n = tl.full((), 0, tl.int64)
    going = tl.full((), 1, tl.int64)
    for i in range(K):
        at = b * K + i
        ids = tl.load(ids_ptr + at * E + e, mask=e < E, other=-1)
        law = tl.load(law_ptr + at * E + e, mask=e < E, other=0.0)
        drawn = (ids == tl.load(tokens_ptr + at)) & (law > 0)
        going = tl.where((tl.sum(drawn.to(tl.int32), 0) > 0) & (i < length), going, 0)
        n += going
    bonus = (tl.load(bonus_ptr + b) != 0) | (n < length)
    kept = tl.full((), 0, tl.int64)
    reach = tl.full((), 1.0, tl.float64)
    scale = tl.full((), 1.0, tl.float64)
    going = tl.full((), 1, tl.int64)
    for i in range(K):
        at = b * K + i
        inside = i < n
        ids = tl.load(ids_ptr + at * E + e, mask=(e < E) & inside, other=-1)
        law = tl.load(law_ptr + at * E + e, mask=(e < E) & inside, other=0.0)
        held, q = _read_support(p_ptr, stride, vocabulary, first + i, ids, law)
        drawn = ids == tl.load(tokens_ptr + at)
        p_x = tl.sum(tl.where(drawn, held, 0.0), 0)
        q_x = tl.sum(tl.where(drawn, q, 0.0), 0)
        u = tl.load(u_ptr + at)
        if BLOCK_RULE:
            reach = tl.where(inside, reach * p_x / tl.where(q_x > 0, q_x, 1.0), reach)
            reach = tl.where(reach > 1, 1.0, reach)
            follows = i + 1 < n
            ids = tl.load(ids_ptr + (at + 1) * E + e, mask=(e < E) & follows, other=-1)
            law = tl.load(law_ptr + (at + 1) * E + e, mask=(e < E) & follows, other=0.0)
            held, q = _read_support(p_ptr, stride, vocabulary, first + i + 1, ids, law)
            beyond = reach * _positive(1.0 - tl.sum(held, 0))
            mass = tl.sum(_positive(reach * held - q), 0) + beyond
            slack = mass + 1.0 - reach
            threshold = tl.where(slack <= 0, 1.0, mass / tl.where(slack <= 0, 1.0, slack))
            take = inside & (u < tl.where(follows, threshold, reach))
            kept = tl.where(take, i + 1, kept)
            scale = tl.where(take, reach, scale)
        else:
            going = tl.where(inside & (u * q_x < p_x), going, 0)
            kept += going
    whole = kept == n
    at = b * K + tl.minimum(kept, K - 1)
    ids = tl.load(ids_ptr + at * E + e, mask=(e < E) & (kept < n), other=-1)
    law = tl.load(law_ptr + at * E + e, mask=(e < E) & (kept < n), other=0.0)
    held, q = _read_support(p_ptr, stride, vocabulary, first + kept, ids, law)
    tl.store(kept_ptr + b, kept)
    tl.store(emit_rows_ptr + b, tl.where(whole & (bonus == 0), -1, first + kept))
    tl.store(last_ids_ptr + b * E + e, ids, mask=e < E)
    tl.store(held_ptr + b * E + e, held, mask=e < E)
    tl.store(weights_ptr + b * E + e, _positive(held - q / tl.maximum(scale, _TINY)), mask=e < E)


def decide(rule: str, p: Tensor, nodes_: Nodes, u_accept: Tensor, u_emit: Tensor) -> Verdict:
    """:func:`vllm_plugin.nodes.decide` on a GPU."""
    batch, k = nodes_.candidates.shape
    entries = nodes_.law.shape[1]
    p = p.contiguous()
    if rule == "sparse_optimal":
        held, q = on_support(p, nodes_.rows, nodes_.law_ids, nodes_.law)
        chances, weights = nodes.judge(rule, held, q, nodes_)
        known = (nodes_.rows >= 0) & (nodes_.rows < p.shape[0])
        accepted = torch.where(known, nodes.first_below(u_accept, chances), -1)
        rows = torch.where(accepted < 0, nodes_.rows, -1)
    else:
        rows, accepted = torch.empty_like(nodes_.rows), torch.empty_like(nodes_.rows)
        held = torch.empty((batch, entries), dtype=torch.float64, device=p.device)
        weights = torch.empty_like(held)
        if batch:
            _nodes_kernel[(batch,)](
                p, p.stride(0), p.shape[0], p.shape[1], nodes_.rows.contiguous(),
                nodes_.candidates.contiguous(), nodes_.law_ids.contiguous(),
                nodes_.law.contiguous(), u_accept.contiguous(), accepted, rows, held, weights,
                RULE=nodes.RULES.index(rule), K=k, E=entries, EB=triton.next_power_of_2(entries),
                STEPS=BISECTIONS, num_warps=1,
            )  # fmt: skip
    token = emit(p, rows, nodes_.law_ids, held, weights, u_emit)
    return nodes.landed(rule, nodes_.candidates, accepted, token)


def walk(
    rule: str, p: Tensor, paths_: Paths, u_accept: Tensor, u_emit: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`vllm_plugin.paths.walk` on a GPU."""
    return paths.walk(decide, rule, p, paths_, u_accept, u_emit)


def _verify(block: bool, p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    batch, steps = chains.tokens.shape
    entries = chains.law.shape[2]
    p = p.contiguous()
    kept, rows = torch.empty_like(chains.lengths), torch.empty_like(chains.lengths)
    ids = torch.empty((batch, entries), dtype=torch.int64, device=p.device)
    held = torch.empty((batch, entries), dtype=torch.float64, device=p.device)
    weights = torch.empty_like(held)
    if batch:
        _chains_kernel[(batch,)](
            p, p.stride(0), p.shape[1], chains.first_rows.contiguous(),
            chains.lengths.contiguous(), chains.has_bonus.to(torch.int8),
            chains.tokens.contiguous(), chains.law_ids.contiguous(), chains.law.contiguous(),
            u_accept.contiguous(), kept, rows, ids, held, weights, steps,
            BLOCK_RULE=block, E=entries, EB=triton.next_power_of_2(entries), num_warps=1,
        )  # fmt: skip
    return rules.assemble(chains, kept, emit(p, rows, ids, held, weights, u_emit))


def verify_token(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_token` on a GPU."""
    return _verify(False, p, chains, u_accept, u_emit)


def verify_block(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """:func:`vllm_plugin.rules.verify_block` on a GPU."""
    return _verify(True, p, chains, u_accept, u_emit)


verify_draws: Any = partial(rules.verify_draws, emit=emit)
"""As :func:`vllm_plugin.rules.verify_draws`, with the draws of this module."""
