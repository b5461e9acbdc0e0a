"""Verification rules: pure functions of (p, q, drafts, uniforms) to emitted tokens.

Notation (ALGORITHMS.md): p is the target law of a row after every sampling parameter, q the law a
draft was drawn from. One chain of drafts x_1..x_K is verified per request: row i holds
``p_i = p(. | x_1..x_i)``, so row 0 judges x_1, and row K, where it exists, gives the bonus token.
Every rule emits an accepted prefix of the chain and then at most one token of its own, so that the
emitted sequence has exactly the law p whatever q was.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PLACEHOLDER = -1
_STRETCH = 64
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Chains:
    """One chain of drafts for each of B requests, with the sparse laws they were drawn from.

    Shapes: first_rows (B,) int64, the row of p that judges x_1, the others follow it; lengths (B,)
    int64, drafts in the chain, at most K; has_bonus (B,) bool, whether row ``lengths`` of the chain
    was evaluated too (it was not for a chain whose last draft the engine cut off before the
    forward); tokens (B, K) int64; law_ids (B, K, E) int64 and law (B, K, E) float64, q of each
    draft, normalised, with probability 0 in unused entries. Everything beyond a chain's length is
    ignored but must hold valid token ids.
    """

    first_rows: Tensor
    lengths: Tensor
    has_bonus: Tensor
    tokens: Tensor
    law_ids: Tensor
    law: Tensor


def verify_token(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """Accept x_i with probability min(1, p(x_i)/q(x_i)); else emit y ~ norm((p - q)+) and stop.

    p (N, V) float32, rows of probabilities; u_accept (B, K) and u_emit (B,) float64, independent
    uniforms in [0, 1). Returns (B, K + 1) int32: the emitted tokens, then -1. The expected number
    accepted at a row is 1 - TV(p, q).

    Source: Leviathan et al. arXiv 2211.17192, algorithm 1; Chen et al. arXiv 2302.01318, theorem 1.
    """
    steps = chains.tokens.shape[1]
    p_of_draft, q_of_draft, _ = _gather(p, chains)
    accepted = (u_accept * q_of_draft < p_of_draft) & _in_chain(chains, steps)
    kept = accepted.long().cumprod(dim=1).sum(dim=1)
    return _emit(p, chains, kept, torch.ones_like(u_emit), u_emit)


def verify_block(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """Keep the largest i with u_i < h_i, then correct from norm((r_i p_i - q_{i+1})+).

    ``r_0 = 1``, ``r_i = min(1, r_{i-1} p(x_i)/q(x_i))``, ``Z_i = sum (r_i p_i - q_{i+1})+``,
    ``h_i = Z_i / (Z_i + 1 - r_i)`` for i < K and ``h_K = r_K``. Never fewer tokens in expectation
    than the token rule, and equal to it when every q is a point mass.

    Shapes and result as in :func:`verify_token`; column i-1 of u_accept is u_i.

    Source: Sun et al. arXiv 2403.10444, algorithm 2.
    """
    steps = chains.tokens.shape[1]
    p_of_draft, q_of_draft, p_on_support = _gather(p, chains)
    inside = _in_chain(chains, steps)
    # r_i = exp(S_i - max(0, S_1..S_i)) with S_i the sum of log ratios: the walk reflected at 1.
    ratios = torch.where(inside, p_of_draft / q_of_draft, 0.0)
    walk = ratios.log().cumsum(dim=1)
    reach = (walk - walk.cummax(dim=1).values.clamp(min=0)).exp().nan_to_num(0.0)  # r_1..r_K
    before = reach[:, :-1, None]  # r_i for i = 1..K-1, judged by row i against q_{i+1}
    support, law = p_on_support[:, 1:], chains.law[:, 1:]
    covered = torch.where(law > 0, support, 0.0).sum(dim=-1)
    beyond = reach[:, :-1] * (1 - covered).clamp(min=0)
    residual = torch.where(law > 0, before * support - law, 0.0).clamp(min=0).sum(dim=-1) + beyond
    slack = residual + 1 - reach[:, :-1]
    thresholds = reach.clone()
    thresholds[:, :-1] = torch.where(
        _in_chain(chains, steps)[:, 1:],
        torch.where(slack > 0, residual / slack, 1.0),
        reach[:, :-1],
    )
    accepted = (u_accept < thresholds) & inside
    depth = torch.arange(1, steps + 1, device=p.device)
    kept = (accepted * depth).amax(dim=1)
    scale = torch.cat([torch.ones_like(u_emit)[:, None], reach], dim=1)
    return _emit(p, chains, kept, scale.gather(1, kept[:, None])[:, 0], u_emit)


def verify_match(choices: Tensor, chains: Chains) -> Tensor:
    """Emit the target's own choices y_0, y_1, .. and go on while y_i equals the draft x_{i+1}.

    choices (B, K + 1) int64, y_i drawn from p_i (its argmax for a greedy request) without regard
    to the drafts; entries after the first mismatch are not read. Lossless for any drafts, since
    every emitted token is the target's own. Returns (B, K + 1) int32, padded with -1.
    """
    steps = chains.tokens.shape[1]
    agreed = (choices[:, :steps] == chains.tokens) & _in_chain(chains, steps)
    kept = agreed.long().cumprod(dim=1).sum(dim=1)
    places = torch.arange(steps + 1, device=choices.device)
    last = kept - (~chains.has_bonus & (kept == chains.lengths)).long()
    return torch.where(places <= last[:, None], choices, PLACEHOLDER).int()


def _in_chain(chains: Chains, steps: int) -> Tensor:
    return torch.arange(steps, device=chains.lengths.device) < chains.lengths[:, None]


def _gather(p: Tensor, chains: Chains) -> tuple[Tensor, Tensor, Tensor]:
    """p(x) and q(x) of every draft, (B, K), and p on the support of every q, (B, K, E), float64."""
    steps = chains.tokens.shape[1]
    rows = chains.first_rows[:, None] + torch.arange(steps, device=p.device)
    rows = rows.clamp(max=p.shape[0] - 1)
    p_of_draft = p[rows, chains.tokens].double()
    p_on_support = p[rows[:, :, None], chains.law_ids].double()
    q_of_draft = torch.where(chains.law_ids == chains.tokens[:, :, None], chains.law, 0.0).sum(-1)
    return p_of_draft, q_of_draft, p_on_support


def _emit(p: Tensor, chains: Chains, kept: Tensor, scale: Tensor, u: Tensor) -> Tensor:
    """The kept prefix and one token from norm((scale p - q)+), from p after a whole chain.

    The residual is taken as (p - q/scale)+, the same law: it differs from p on q's support only.
    """
    batch, steps = chains.tokens.shape
    each = torch.arange(batch, device=p.device)
    whole = kept == chains.lengths
    weights = p[(chains.first_rows + kept).clamp(max=p.shape[0] - 1)]
    place = kept.clamp(max=steps - 1)
    support = chains.law_ids[each, place]
    taken = chains.law[each, place] / scale.clamp(min=_TINY)[:, None]
    taken = torch.where(whole[:, None], 0.0, taken).to(weights.dtype)
    weights.scatter_add_(1, support, -taken)
    weights.scatter_(1, support, weights.gather(1, support).clamp(min=0))
    last = _inverse_cdf(weights, u)
    last = torch.where(whole & ~chains.has_bonus, PLACEHOLDER, last)
    places = torch.arange(steps + 1, device=p.device)
    drafts = torch.nn.functional.pad(chains.tokens, (0, 1))
    emitted = torch.where(places == kept[:, None], last[:, None], drafts)
    return torch.where(places <= kept[:, None], emitted, PLACEHOLDER).int()


def _inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The token at quantile u of each row of unnormalised weights, always one of positive weight.

    Two levels, so that the vocabulary is read once at full speed: first the stretch of ``_STRETCH``
    tokens, then the token in it. A row without any weight (a residual that vanished by rounding,
    whose probability is of the order of rounding too) gives its last token.
    """
    short = -weights.shape[1] % _STRETCH
    if short:
        weights = torch.nn.functional.pad(weights, (0, short))
    stretches = weights.view(weights.shape[0], -1, _STRETCH)
    sums = stretches.sum(dim=-1).double()
    mass = sums.cumsum(dim=1)
    target = u[:, None] * mass[:, -1:]
    stretch = _first_above(mass, target)
    before = mass.gather(1, stretch) - sums.gather(1, stretch)
    inside = stretches.gather(1, stretch[:, :, None].expand(-1, -1, _STRETCH))[:, 0]
    token = _first_above(inside.double().cumsum(dim=1), target - before)
    return (stretch * _STRETCH + token)[:, 0].clamp(max=weights.shape[1] - short - 1)


def _first_above(mass: Tensor, target: Tensor) -> Tensor:
    """The first index whose cumulative mass exceeds the target, and one that has mass of its own.

    Rounding may put the target at or beyond the total: then the last index with mass is meant.
    """
    last = torch.searchsorted(mass, mass[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(mass, target.contiguous(), right=True), last)
