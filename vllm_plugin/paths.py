"""Several drafted paths of one request, verified together: a node rule walks down what they share.

At each depth the paths that begin with what was emitted survive; a node rule of
:mod:`vllm_plugin.nodes` decides on their next tokens with constants for the number that survived;
the walk stops at the first refusal, or after the last depth with a bonus token.

Source: Sun et al. arXiv 2310.15141 (SpecTr), section 4, there for K-SEQ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_plugin.emission import PLACEHOLDER
from vllm_plugin.nodes import DISTINCT, Nodes, Verdict


@dataclass(frozen=True, slots=True)
class Paths:
    """Up to P paths of up to L >= 1 drafts for each of B requests, with the laws of their drafts.

    rows (B, P, L + 1) int64: the row of p after the first d drafts of a path, which judges its next
    draft or gives the bonus token; -1 where it was not evaluated. tokens (B, P, L) int64, -1 after
    the end of a path. law_ids (B, P, L, E) int64 and law (B, P, L, E) float64: q of each draft, as
    in :class:`vllm_plugin.nodes.Nodes`. An absent path has rows and tokens -1.

    Where paths share a prefix, p and q there must be equal too; those of the first path are used.
    How long a path is must not depend on the values of the drafts it lacks.
    """

    rows: Tensor
    tokens: Tensor
    law_ids: Tensor
    law: Tensor


Decide = Callable[[str, Tensor, Nodes, Tensor, Tensor], Verdict]


def walk(
    decide: Decide, rule: str, p: Tensor, paths: Paths, u_accept: Tensor, u_emit: Tensor
) -> tuple[Tensor, Tensor]:
    """Verify every request's paths by a rule: the emitted tokens, and the path they lie on.

    The candidates of a depth are the survivors' drafts in path order; for the rules of
    :data:`vllm_plugin.nodes.DISTINCT` only the first path of each different draft counts. Survivors
    without a draft or a row at that depth offer nothing; if none offers, the first that has a row
    gives the bonus token. Bad input as in :mod:`vllm_plugin.nodes`.

    decide: a back end's node decision; rule and scheme of drafting must be a legal pair
    (:data:`theory.accepted_mass.LEGAL`). p (N, V); u_accept (B, L, P) and u_emit (B, L + 1)
    float64, independent uniforms in [0, 1), u_accept[b, d, j] for the j-th candidate of depth d.

    Returns (B, L + 1) int32, the emitted tokens and then -1, and (B,) int64, the first path that
    begins with the accepted tokens (all but the last one emitted).
    """
    batch, count, steps = paths.tokens.shape
    each = torch.arange(batch, device=p.device)
    emitted = torch.full((batch, steps + 1), PLACEHOLDER, dtype=torch.int32, device=p.device)
    alive = torch.ones((batch, count), dtype=torch.bool, device=p.device)
    going = torch.ones(batch, dtype=torch.bool, device=p.device)
    winner = torch.zeros(batch, dtype=torch.int64, device=p.device)
    for d in range(steps + 1):
        here = alive & (paths.rows[:, :, d] >= 0) & (paths.rows[:, :, d] < p.shape[0])
        if d < steps:
            drafts = torch.where(here, paths.tokens[:, :, d], PLACEHOLDER)
            offered = drafts >= 0
            leader = torch.where(offered.any(dim=1), _first(offered), _first(here))
            law_ids, law = paths.law_ids[each, leader, d], paths.law[each, leader, d]
            candidates, uniforms = _compact(drafts, offered, rule), u_accept[:, d]
        else:  # only the bonus is left
            leader = _first(here)
            law_ids, law = paths.law_ids[:, 0, 0], torch.zeros_like(paths.law[:, 0, 0])
            candidates = torch.full_like(paths.tokens[:, :1, 0], PLACEHOLDER)
            uniforms = torch.ones_like(u_emit[:, :1])
        rows = torch.where(going & here.any(dim=1), paths.rows[each, leader, d], -1)
        token, accepted = decide(
            rule, p, Nodes(rows, candidates, law_ids, law), uniforms, u_emit[:, d]
        )
        emitted[:, d] = torch.where(rows >= 0, token, PLACEHOLDER)
        going = (rows >= 0) & (accepted >= 0)
        if d < steps:
            alive = alive & (paths.tokens[:, :, d] == token[:, None]) & going[:, None]
            winner = torch.where(going, _first(alive), winner)
    return emitted, winner


def _compact(drafts: Tensor, offered: Tensor, rule: str) -> Tensor:
    """The offered drafts in path order, then -1; each different one once if the rule wants it."""
    if rule in DISTINCT:
        equal = drafts[:, :, None] == drafts[:, None]
        offered = offered & ~equal.tril(diagonal=-1).any(dim=-1)
    order = (~offered).int().argsort(dim=1, stable=True)
    return torch.where(offered, drafts, PLACEHOLDER).gather(1, order)


def _first(which: Tensor) -> Tensor:
    return which.int().argmax(dim=1)
