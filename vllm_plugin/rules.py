"""Verification rules for one chain: pure functions of (p, q, drafts, uniforms) to emitted tokens.

Notation (ALGORITHMS.md): p is the target law of a row after every sampling parameter, q the law a
draft was drawn from. One chain of drafts x_1..x_K is verified per request: row i holds
``p_i = p(. | x_1..x_i)``, so row 0 judges x_1, and row K, where it exists, gives the bonus token.
Every rule emits an accepted prefix of the chain and then at most one token of its own, so that the
emitted sequence has exactly the law p whatever q was.

Bad input has the results of :mod:`vllm_plugin.nodes`: the chain ends before the first draft that q
cannot have drawn, whose row then gives the bonus token; q is normalised; a row of p that is no law
emits nothing, so that the sequence ends before it, or is empty.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vllm_plugin.emission import PLACEHOLDER as PLACEHOLDER  # exported too
from vllm_plugin.emission import emit, on_support

_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Chains:
    """One chain of drafts for each of B requests, with the sparse laws they were drawn from.

    Shapes: first_rows (B,) int64, the row of p that judges x_1, the others follow it; lengths (B,)
    int64, drafts in the chain, at most K; has_bonus (B,) bool, whether row ``lengths`` of the chain
    was evaluated too (it was not for a chain whose last draft the engine cut off before the
    forward); tokens (B, K) int64; law_ids (B, K, E) int64 and law (B, K, E) float64, q of each
    draft, with probability 0 in unused entries. Everything beyond a chain's length is ignored.
    """

    first_rows: Tensor
    lengths: Tensor
    has_bonus: Tensor
    tokens: Tensor
    law_ids: Tensor
    law: Tensor


Emit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A back end's draw, as :func:`vllm_plugin.emission.emit`."""


def verify_token(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """Accept x_i with probability min(1, p(x_i)/q(x_i)); else emit y ~ norm((p - q)+) and stop.

    p (N, V) float32 or float64, rows of probabilities; u_accept (B, K) and u_emit (B,) float64,
    independent uniforms in [0, 1). Returns (B, K + 1) int32: the emitted tokens, then -1. The
    expected number accepted at a row is 1 - TV(p, q).

    Source: Leviathan et al. arXiv 2211.17192, algorithm 1; Chen et al. arXiv 2302.01318, theorem 1.
    """
    chains, p_of_draft, q_of_draft, held, q = _read(p, chains)
    accepted = (u_accept * q_of_draft < p_of_draft) & _inside(chains)
    kept = accepted.long().cumprod(dim=1).sum(dim=1)
    return _finish(p, chains, kept, torch.ones_like(u_emit), held, q, u_emit)


def verify_block(p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor) -> Tensor:
    """Keep the largest i with u_i < h_i, then correct from norm((r_i p_i - q_{i+1})+).

    ``r_0 = 1``, ``r_i = min(1, r_{i-1} p(x_i)/q(x_i))``, ``Z_i = sum (r_i p_i - q_{i+1})+``,
    ``h_i = Z_i / (Z_i + 1 - r_i)`` for i < K and ``h_K = r_K``. Never fewer tokens in expectation
    than the token rule, and equal to it when every q is a point mass.

    Shapes and result as in :func:`verify_token`; column i-1 of u_accept is u_i.

    Source: Sun et al. arXiv 2403.10444, algorithm 2.
    """
    chains, p_of_draft, q_of_draft, held, q = _read(p, chains)
    inside = _inside(chains)
    # r_i = exp(S_i - max(0, S_1..S_i)) with S_i the sum of log ratios: the walk reflected at 1.
    ratios = torch.where(inside, p_of_draft / q_of_draft, 0.0)
    walk = ratios.log().cumsum(dim=1)
    reach = (walk - walk.cummax(dim=1).values.clamp(min=0)).exp().nan_to_num(0.0)  # r_1..r_K
    before = reach[:, :-1]  # r_i for i = 1..K-1, judged by row i against q_{i+1}
    beyond = before * (1 - held[:, 1:].sum(dim=-1)).clamp(min=0)
    on_it = (before[:, :, None] * held[:, 1:] - q[:, 1:]).clamp(min=0).sum(dim=-1)
    residual = on_it + beyond
    slack = residual + 1 - before
    thresholds = reach.clone()
    thresholds[:, :-1] = torch.where(
        inside[:, 1:], torch.where(slack <= 0, 1.0, residual / slack), before
    )
    accepted = (u_accept < thresholds) & inside
    depth = torch.arange(1, inside.shape[1] + 1, device=p.device)
    kept = (accepted * depth).amax(dim=1)
    scale = torch.cat([torch.ones_like(u_emit)[:, None], reach], dim=1)
    scale = scale.gather(1, kept[:, None])[:, 0]
    return _finish(p, chains, kept, scale, held, q, u_emit)


def verify_draws(
    p: Tensor, chains: Chains, u_accept: Tensor, u_emit: Tensor, *, emit: Emit = emit
) -> Tensor:
    """Emit draws y_0 ~ p_0, y_1 ~ p_1, .. and go on while y_i equals the draft x_{i+1}.

    The match rule with its draws made here: u_accept[:, i] gives y_i and u_emit the bonus token.
    It needs no q and is right for drafts nobody drew; a row accepts p(x). Shapes and result as in
    :func:`verify_token`.
    """
    batch, steps = chains.tokens.shape
    places = torch.arange(steps + 1, device=p.device)
    rows = chains.first_rows[:, None] + places
    rows = torch.where(places <= chains.lengths[:, None], rows, -1).flatten()
    uniforms = torch.cat([u_accept, u_emit[:, None]], dim=1)
    at_end = places == chains.lengths[:, None]
    uniforms = torch.where(at_end, u_emit[:, None], uniforms).flatten()
    none = torch.zeros((rows.shape[0], 1), dtype=torch.float64, device=p.device)
    choices = emit(p, rows, none.long(), none, none, uniforms)
    return verify_match(choices.view(batch, steps + 1), chains)


def verify_match(choices: Tensor, chains: Chains) -> Tensor:
    """Emit the target's own choices y_0, y_1, .. and go on while y_i equals the draft x_{i+1}.

    choices (B, K + 1) int64, y_i drawn from p_i (its argmax for a greedy request) without regard
    to the drafts; entries after the first mismatch are not read. Lossless for any drafts, since
    every emitted token is the target's own. Returns (B, K + 1) int32, padded with -1.
    """
    steps = chains.tokens.shape[1]
    agreed = (choices[:, :steps] == chains.tokens) & (choices[:, :steps] >= 0) & _inside(chains)
    kept = agreed.long().cumprod(dim=1).sum(dim=1)
    places = torch.arange(steps + 1, device=choices.device)
    last = kept - (~chains.has_bonus & (kept == chains.lengths)).long()
    return torch.where(places <= last[:, None], choices, PLACEHOLDER).int()


def ended_at_void(chains: Chains, q_of_draft: Tensor) -> Chains:
    """The chains up to the first draft that q cannot have drawn; its row gives the bonus token."""
    sound = (q_of_draft > 0) & _inside(chains)
    lengths = sound.long().cumprod(dim=1).sum(dim=1)
    return replace(chains, lengths=lengths, has_bonus=chains.has_bonus | (lengths < chains.lengths))


def assemble(chains: Chains, kept: Tensor, last: Tensor) -> Tensor:
    """The kept prefix of every chain, then its last token, which may be -1: (B, K + 1) int32."""
    places = torch.arange(chains.tokens.shape[1] + 1, device=kept.device)
    drafts = torch.nn.functional.pad(chains.tokens, (0, 1))
    emitted = torch.where(places == kept[:, None], last[:, None], drafts)
    return torch.where(places <= kept[:, None], emitted, PLACEHOLDER).int()


def _inside(chains: Chains) -> Tensor:
    steps = chains.tokens.shape[1]
    return torch.arange(steps, device=chains.lengths.device) < chains.lengths[:, None]


def _read(p: Tensor, chains: Chains) -> tuple[Chains, Tensor, Tensor, Tensor, Tensor]:
    """The sound chains; p(x) and q(x) of every draft (B, K); p and q on its support (B, K, E)."""
    rows = chains.first_rows[:, None] + torch.arange(chains.tokens.shape[1], device=p.device)
    held, q = on_support(p, rows, chains.law_ids, chains.law)
    drawn = chains.law_ids == chains.tokens[:, :, None]
    q_of_draft = torch.where(drawn, q, 0.0).sum(dim=-1)
    p_of_draft = torch.where(drawn, held, 0.0).sum(dim=-1)
    return ended_at_void(chains, q_of_draft), p_of_draft, q_of_draft, held, q


def _finish(
    p: Tensor, chains: Chains, kept: Tensor, scale: Tensor, held: Tensor, q: Tensor, u: Tensor
) -> Tensor:
    """The kept prefix and one token from norm((scale p - q)+), from p after a whole chain.

    The residual is taken as (p - q/scale)+, the same law: it differs from p on q's support only.
    """
    batch, steps = chains.tokens.shape
    each = torch.arange(batch, device=p.device)
    whole = kept == chains.lengths
    place = kept.clamp(max=steps - 1)
    held, q = held[each, place], q[each, place]
    left = (held - q / scale.clamp(min=_TINY)[:, None]).clamp(min=0)
    held = torch.where(whole[:, None], 0.0, held)
    left = torch.where(whole[:, None], held, left)
    rows = torch.where(whole & ~chains.has_bonus, -1, chains.first_rows + kept)
    last = emit(p, rows, chains.law_ids[each, place], held, left, u)
    return assemble(chains, kept, last)
