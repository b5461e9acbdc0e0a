"""Verification rules at one node: k candidates in draw order, one token emitted with law p.

Every rule is two things, computed from p and q on q's support alone: the **chances** with which the
candidates are accepted, each given that all before it were refused, and the **weights** that the
support's tokens keep when all are refused (off the support the law stays p). Both are functions of
(p, q, candidates); the uniforms only choose. The exact counterpart is :mod:`theory.judgement`.

Bad input has a defined result, which is lossless wherever it can be:

* A candidate that q cannot have drawn (outside q's support, -1, or repeated where candidates are
  distinct) ends the offers, as when q's support is smaller than k. The emitted token has law p
  (for sparse_optimal, if how many are offered does not depend on which they are).
* q is normalised first; without any mass there are no offers.
* A token of q outside p's vocabulary has p = 0: it is refused.
* A one-hot p (temperature 0) emits its token, whatever was drafted.
* A row of p with a NaN or without mass, or a row index outside p, gives token -1 and accepts
  nothing; other nodes of the batch are not touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_plugin import sparse_flow
from vllm_plugin.emission import emit, on_support

RULES = (
    "token", "match", "kseq", "rrs", "rrs_without_replacement", "top_plus_one", "sparse_optimal",
)  # fmt: skip
DISTINCT = ("rrs_without_replacement", "top_plus_one", "sparse_optimal")
"""Rules whose candidates are all different."""
LANDING = ("match", "top_plus_one")
"""Rules whose emitted token counts as accepted when it is a candidate."""
BISECTIONS = 52
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Nodes:
    """One node for each of B requests.

    rows (B,) int64, the row of p that judges the candidates; candidates (B, k) int64 in draw order,
    -1 after the last; law_ids (B, E) int64 and law (B, E) float64, the law q that they were drawn
    from, with probability 0 in unused entries; ids of used entries differ. For top_plus_one the
    last candidate is the draw from q without the others, and the others are any fixed tokens.
    """

    rows: Tensor
    candidates: Tensor
    law_ids: Tensor
    law: Tensor


Verdict = tuple[Tensor, Tensor]
"""Emitted token and index of the accepted candidate, or -1: both (B,) int64."""
NodeRule = Callable[[Tensor, Nodes, Tensor, Tensor], Verdict]
Judgement = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def decide(
    rule: str, p: Tensor, nodes: Nodes, u_accept: Tensor, u_emit: Tensor
) -> tuple[Tensor, Tensor]:
    """Decide each node by a rule of :data:`RULES`: the emitted token and the accepted candidate.

    Candidate j is accepted if all before it were refused and ``u_accept[:, j] < chances[:, j]``;
    after k refusals the token is drawn from norm(weights) with ``u_emit``. For the rules of
    :data:`LANDING` that token is accepted too if it is a candidate. p (N, V) float32 or float64;
    u_accept (B, k), u_emit (B,) float64, independent uniforms in [0, 1). Returns two (B,) int64
    tensors: the tokens, and the index of the accepted candidate or -1.
    """
    held, q = on_support(p, nodes.rows, nodes.law_ids, nodes.law)
    chances, weights = judge(rule, held, q, nodes)
    known = (nodes.rows >= 0) & (nodes.rows < p.shape[0])
    accepted = torch.where(known, first_below(u_accept, chances), -1)
    token = emit(p, nodes.rows, nodes.law_ids, held, weights, u_emit)
    return landed(rule, nodes.candidates, accepted, token)


def judge(rule: str, held: Tensor, q: Tensor, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """Chances (B, k) and weights (B, E) of a rule; held, q (B, E) float64 as on_support gives."""
    hits = (nodes.candidates[:, :, None] == nodes.law_ids[:, None]) & (q > 0)[:, None]
    if rule == "match":
        return torch.zeros_like(hits[:, :, 0], dtype=q.dtype), held
    if rule == "top_plus_one":
        return _top_plus_one(held, q, nodes.candidates, hits)
    offered = hits.any(dim=-1)
    if rule in DISTINCT:
        offered = offered & ~_repeated(nodes.candidates)
    offered = offered.long().cumprod(dim=1).bool()
    slots = hits.int().argmax(dim=-1)
    return _JUDGEMENTS[rule](held, q, slots, offered)


def _token(p: Tensor, q: Tensor, slots: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
    """Accept the first candidate with min(1, p/q); weights (p - q)+.

    Source: Leviathan et al. arXiv 2211.17192, algorithm 1; Chen et al. arXiv 2302.01318.
    """
    chances = _ratio(p, q, slots) * offered
    chances[:, 1:] = 0
    return chances, torch.where(offered[:, :1], (p - q).clamp(min=0), p)


def _kseq(p: Tensor, q: Tensor, slots: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
    """Accept each of n candidates with min(1, p/(rho q)); weights p - c min(q, p/rho).

    With ``beta(rho) = sum min(q, p/rho)`` and ``c(rho) = sum_{j<n} (1 - beta)^j`` (SpecTr's
    (1 - (1 - beta)^n)/beta without its cancellation) the rule is lossless for every rho with
    c(rho) <= rho; the smallest one, by bisection, accepts most often.

    Source: Sun et al. arXiv 2310.15141, algorithm 2.
    """
    count = offered.sum(dim=1)
    low, high = torch.ones_like(p[:, 0]), count.clamp(min=1).to(p.dtype)
    for _ in range(BISECTIONS):
        rho = 0.5 * (low + high)
        lossless = _offers(p, q, rho, count, slots.shape[1]) <= rho
        low, high = torch.where(lossless, low, rho), torch.where(lossless, rho, high)
    rho = high[:, None]
    kept = torch.minimum(q, p / rho)
    taken = _offers(p, q, high, count, slots.shape[1])[:, None] * kept
    return _ratio(p / rho, q, slots) * offered, (p - taken).clamp(min=0)


def _offers(p: Tensor, q: Tensor, rho: Tensor, count: Tensor, k: int) -> Tensor:
    """c(rho): the mean number of candidates looked at."""
    beta = torch.minimum(q, p / rho[:, None]).sum(dim=1).clamp(max=1)
    total, miss = torch.zeros_like(beta), torch.ones_like(beta)
    for j in range(k):
        total = torch.where(j < count, total + miss, total)
        miss = miss * (1 - beta)
    return total


def _rrs(p: Tensor, q: Tensor, slots: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
    """Accept x with min(1, r(x)/q(x)), else r becomes norm((r - q)+), and the next is offered.

    Source: recursive rejection for iid candidates, Miao et al. arXiv 2305.09781 (SpecInfer).
    """
    return _recursive(p, q, slots, offered, replace=True)


def _rrs_without_replacement(
    p: Tensor, q: Tensor, slots: Tensor, offered: Tensor
) -> tuple[Tensor, Tensor]:
    """As _rrs, and each refused candidate leaves q, which is renormalised.

    Source: Chen et al. arXiv 2402.12374 (Sequoia); Jeon et al. arXiv 2402.14160 (RSD).
    """
    return _recursive(p, q, slots, offered, replace=False)


def _recursive(
    p: Tensor, q: Tensor, slots: Tensor, offered: Tensor, *, replace: bool
) -> tuple[Tensor, Tensor]:
    """r is kept unnormalised: off the support it stays p, on it ``weights``, in all ``total``."""
    weights, left = p, q
    beyond = (1 - p.sum(dim=1)).clamp(min=0)
    chances = torch.zeros_like(slots, dtype=p.dtype)
    for j in range(slots.shape[1]):
        slot, here = slots[:, j : j + 1], offered[:, j : j + 1]
        total = (weights.sum(dim=1) + beyond)[:, None]
        scaled = left * (total / left.sum(dim=1, keepdim=True).clamp(min=_TINY))
        chances[:, j : j + 1] = _ratio(weights, scaled, slot) * here
        weights = torch.where(here, (weights - scaled).clamp(min=0), weights)
        if not replace:
            left = torch.where(here, left.scatter(1, slot, 0.0), left)
    return chances, weights


def _top_plus_one(p: Tensor, q: Tensor, candidates: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
    """A token step of the last candidate against q~, which is q without the others, normalised.

    Source: the greedy scheme of Hu et al. arXiv 2502.18779, section 5.
    """
    last = (candidates >= 0).sum(dim=1) - 1
    places = torch.arange(candidates.shape[1], device=p.device)
    top = (hits & (places < last[:, None])[:, :, None]).any(dim=1)
    rest = torch.where(top, 0.0, q)
    rest = rest / rest.sum(dim=1, keepdim=True).clamp(min=_TINY)
    drawn = (hits & (places == last[:, None])[:, :, None]).any(dim=1) & (rest > 0)
    chances = torch.where(drawn, p / rest, 0.0).sum(dim=1).clamp(max=1)
    taken = torch.where(drawn.any(dim=1, keepdim=True), rest, 0.0)
    return torch.where(places == last[:, None], chances[:, None], 0.0), (p - taken).clamp(min=0)


def _sparse_optimal(p: Tensor, q: Tensor, slots: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
    """The optimal coupling of the candidates' set with p; weights are what it leaves of p.

    The maximum flow is computed in main memory (:mod:`vllm_plugin.sparse_flow`), on any device.
    """
    chances, weights = sparse_flow.judge_nodes(
        *(t.detach().cpu().numpy() for t in (p, q, slots, offered))
    )
    return torch.from_numpy(chances).to(p.device), torch.from_numpy(weights).to(p.device)


_JUDGEMENTS: dict[str, Judgement] = {
    "token": _token,
    "kseq": _kseq,
    "rrs": _rrs,
    "rrs_without_replacement": _rrs_without_replacement,
    "sparse_optimal": _sparse_optimal,
}


def _ratio(p: Tensor, q: Tensor, slots: Tensor) -> Tensor:
    """min(1, p/q) of the candidates, (B, k); 0 where q is 0."""
    p, q = p.gather(1, slots), q.gather(1, slots)
    return torch.where(q > 0, p / q, 0.0).clamp(max=1)


def _repeated(candidates: Tensor) -> Tensor:
    """Whether each candidate stands earlier in its row already, (B, k)."""
    equal = candidates[:, :, None] == candidates[:, None]
    return equal.tril(diagonal=-1).any(dim=-1)


def first_below(u: Tensor, chances: Tensor) -> Tensor:
    """The first column with u < chance, or -1: (B,) int64."""
    accepted = u < chances
    return torch.where(accepted.any(dim=1), accepted.int().argmax(dim=1), -1)


def landed(rule: str, candidates: Tensor, accepted: Tensor, token: Tensor) -> Verdict:
    """The verdict, from the candidate accepted by its chance, or -1, and the token drawn else."""
    if rule in LANDING:
        equal = (candidates == token[:, None]) & (token >= 0)[:, None]
        reached = torch.where(equal.any(dim=1), equal.int().argmax(dim=1), -1)
        accepted = torch.where(accepted < 0, reached, accepted)
    chosen = candidates.gather(1, accepted.clamp(min=0)[:, None])[:, 0]
    return torch.where(accepted >= 0, chosen, token), accepted
