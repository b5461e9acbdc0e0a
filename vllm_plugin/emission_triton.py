"""The results of :mod:`vllm_plugin.emission` on a GPU.

Two kernels: the sums of the vocabulary's blocks, then the block and the token at the wanted
quantile, so that the vocabulary is read once. Sums are float64, without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # tokens of the vocabulary a program


@triton.jit
def _read_block(  # type: ignore[no-untyped-def]
    p_ptr, stride, vocabulary, row, block, ids_ptr, held_ptr, weights_ptr, b,
    E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Masses of a block of the vocabulary, with the support's weights in place."""
    x = block * BLOCK + tl.arange(0, BLOCK)
    mass = tl.load(p_ptr + row * stride + x, mask=x < vocabulary, other=0.0).to(tl.float64)
    for e in range(E):
        weight = tl.load(weights_ptr + b * E + e)
        other = weight != tl.load(held_ptr + b * E + e)
        mass = tl.where((x == tl.load(ids_ptr + b * E + e)) & other, weight, mass)
    return tl.where(x < vocabulary, mass, 0.0)


@triton.jit(do_not_specialize=["count_rows"])
def _sums_kernel(  # type: ignore[no-untyped-def]
    p_ptr, stride, count_rows, vocabulary, rows_ptr, ids_ptr, held_ptr, weights_ptr, sums_ptr,
    E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    row = tl.load(rows_ptr + b)
    if (row >= 0) & (row < count_rows):
        mass = _read_block(
            p_ptr, stride, vocabulary, row, block, ids_ptr, held_ptr, weights_ptr, b, E, BLOCK
        )
        tl.store(sums_ptr + b * tl.num_programs(1) + block, tl.sum(mass, 0))


@triton.jit(do_not_specialize=["count_rows"])
def _draw_kernel(  # type: ignore[no-untyped-def]
    p_ptr, stride, count_rows, vocabulary, rows_ptr, ids_ptr, held_ptr, weights_ptr, sums_ptr,
    u_ptr, tokens_ptr, S, SB: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token at quantile u of row b: the block of the vocabulary first, then the token."""
    b = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + b)
    token = tl.full((), -1, tl.int64)
    if (row >= 0) & (row < count_rows):
        u = tl.load(u_ptr + b)
        s = tl.arange(0, SB)
        sums = tl.load(sums_ptr + b * S + s, mask=s < S, other=0.0)
        before = tl.cumsum(sums, 0) - sums
        total = tl.sum(sums, 0)
        target = u * total
        some = sums > 0
        last = tl.max(tl.where(some, s, -1), 0)
        block = tl.min(tl.where(some & (before + sums > target), s, last), 0)
        if (total > 0) & (total < float("inf")):
            mass = _read_block(
                p_ptr, stride, vocabulary, row, block.to(tl.int64), ids_ptr, held_ptr, weights_ptr,
                b, E, BLOCK,
            )  # fmt: skip
            target -= tl.sum(tl.where(s == block, before, 0.0), 0)
            x = tl.arange(0, BLOCK)
            last = tl.max(tl.where(mass > 0, x, -1), 0)
            place = tl.where((mass > 0) & (tl.cumsum(mass, 0) > target), x, last)
            token = block.to(tl.int64) * BLOCK + tl.min(place, 0)
        elif total == 0:  # nothing is left, so p lives on the support
            e = tl.arange(0, EB)
            held = tl.load(held_ptr + b * E + e, mask=e < E, other=0.0)
            whole = tl.sum(held, 0)
            last = tl.max(tl.where(held > 0, e, -1), 0)
            place = tl.where((held > 0) & (tl.cumsum(held, 0) > u * whole), e, last)
            place = tl.min(place, 0)
            if whole > 0:
                token = tl.load(ids_ptr + b * E + place)
    tl.store(tokens_ptr + b, token)


def emit(
    p: Tensor, rows: Tensor, law_ids: Tensor, held: Tensor, weights: Tensor, u: Tensor
) -> Tensor:
    """:func:`vllm_plugin.emission.emit` on a GPU."""
    batch, entries = law_ids.shape
    p, u = p.contiguous(), u.contiguous()
    count = triton.cdiv(p.shape[1], _BLOCK)
    sums = torch.empty((batch, count), dtype=torch.float64, device=p.device)
    tokens = torch.empty(batch, dtype=torch.int64, device=p.device)
    shared = (
        p, p.stride(0), p.shape[0], p.shape[1], rows.contiguous(), law_ids.contiguous(),
        held.contiguous(), weights.contiguous(), sums,
    )  # fmt: skip
    if batch:
        _sums_kernel[(batch, count)](*shared, E=entries, BLOCK=_BLOCK, num_warps=4)
        _draw_kernel[(batch,)](
            *shared, u, tokens, count, SB=triton.next_power_of_2(count), E=entries,
            EB=triton.next_power_of_2(entries), BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return tokens
