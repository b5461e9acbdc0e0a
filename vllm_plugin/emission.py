"""The one draw that every rule ends with: from p with its masses on q's support replaced.

The law after a refusal differs from p on q's at most E tokens only, whatever the rule: unnormalised
it is p off the support and some smaller weight on each token of it. So a rule decides on E numbers,
and the vocabulary is read here alone.
"""

import torch
from torch import Tensor

PLACEHOLDER = -1
_STRETCH = 64


def on_support(p: Tensor, rows: Tensor, law_ids: Tensor, law: Tensor) -> tuple[Tensor, Tensor]:
    """p(x) and the normalised q(x) of every entry of sparse laws, both float64.

    p (N, V); rows (...), of which those outside p count as its nearest row; law_ids, law (..., E).
    Entries whose probability is not positive are unused: 0 in both results. q is normalised here,
    since any sampler of unnormalised weights draws from their normalised law. A token outside the
    vocabulary has p = 0.
    """
    used = law > 0
    q = torch.where(used, law, 0.0).double()
    q = q / q.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
    known = used & (law_ids >= 0) & (law_ids < p.shape[1])
    rows = rows.clamp(0, p.shape[0] - 1)[..., None]
    held = p[rows, law_ids.clamp(0, p.shape[1] - 1)].double()
    return torch.where(known, held, 0.0), q


def emit(
    p: Tensor, rows: Tensor, law_ids: Tensor, held: Tensor, weights: Tensor, u: Tensor
) -> Tensor:
    """The token at quantile u of p with ``weights`` for ``held`` on the support: (B,) int64.

    p (N, V) float32 or float64; rows (B,) int64; law_ids (B, E) int64; held (B, E) float64, p on
    the support as :func:`on_support` gives it; weights (B, E) float64 in [0, held]; u (B,) float64
    in [0, 1). The token always has p > 0. Where nothing is left of p (by rounding: the refusal that
    leads there has probability 0), p lives on the support, and the token is drawn from ``held``. A
    row that is no law, with a NaN or without mass, or that lies outside p, gives -1.
    """
    law = p[rows.clamp(0, p.shape[0] - 1)]
    # As a sum with the differences, so that unused entries may name any token.
    law.scatter_add_(1, law_ids.clamp(0, p.shape[1] - 1), (weights - held).to(law.dtype))
    token, mass = _quantile(law, u)
    spare = held.cumsum(dim=1)
    whole = spare[:, -1]
    entry = _first_above(spare.nan_to_num(0.0), (u * whole).nan_to_num(0.0)[:, None])
    token = torch.where(mass > 0, token, law_ids.gather(1, entry)[:, 0])
    lawful = mass.isfinite() & ((mass > 0) | (whole > 0)) & (rows >= 0) & (rows < p.shape[0])
    return torch.where(lawful, token, PLACEHOLDER)


def _quantile(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The token at quantile u of unnormalised weights, one of positive weight; and their sum.

    Two levels, so that the vocabulary is read once at full speed: first the stretch of ``_STRETCH``
    tokens, then the token in it.
    """
    size = weights.shape[1]
    short = -size % _STRETCH
    if short:
        weights = torch.nn.functional.pad(weights, (0, short))
    stretches = weights.view(weights.shape[0], -1, _STRETCH)
    sums = stretches.sum(dim=-1).double()
    mass = sums.cumsum(dim=1)
    whole = mass[:, -1]
    lawful = (whole > 0) & whole.isfinite()
    mass = torch.where(lawful[:, None], mass, 0.0)
    target = u[:, None] * mass[:, -1:]
    stretch = _first_above(mass, target)
    before = mass.gather(1, stretch) - sums.gather(1, stretch)
    inside = stretches.gather(1, stretch[:, :, None].expand(-1, -1, _STRETCH))[:, 0]
    inside = torch.where(lawful[:, None], inside, 0.0).double().cumsum(dim=1)
    token = _first_above(inside, (target - before).nan_to_num(0.0).clamp(min=0))
    return (stretch * _STRETCH + token)[:, 0].clamp(max=size - 1), whole


def _first_above(mass: Tensor, target: Tensor) -> Tensor:
    """The first index whose cumulative mass exceeds the target, and one that has mass of its own.

    Rounding may put the target at or beyond the total: then the last index with mass is meant.
    """
    last = torch.searchsorted(mass, mass[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(mass, target.contiguous(), right=True), last)
