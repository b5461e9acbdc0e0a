"""Exact acceptance and exact output law of every verification rule, at real vocabulary sizes.

p is the target, q the draft, k the candidates of one node. Rules "token", "match", "kseq" and
"rrs" draw iid from q; "rrs_without_replacement" and "sparse_optimal" draw k different tokens in
order; "top_plus_one" takes the k-1 most probable tokens of q and one draw from the others;
"coupled" draws one token from the exponentials that also choose the target's. "token" and
"coupled" look at one candidate, whatever k is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from theory.laws import LIFT, Floats, as_pair, check_candidates, top_tokens
from theory.optimum import optimal_acceptance
from theory.recursive import refusal_without_replacement, without_replacement_law
from theory.transport import emitted_by_plan

Rule = Literal[
    "token",
    "match",
    "kseq",
    "rrs",
    "rrs_without_replacement",
    "top_plus_one",
    "sparse_optimal",
    "coupled",
]
RULES: tuple[Rule, ...] = get_args(Rule)
DISTINCT: tuple[Rule, ...] = ("rrs_without_replacement", "top_plus_one", "sparse_optimal")
"""Rules whose candidates are all different, so that k is at most the support of q."""


def acceptance_rate(p: ArrayLike, q: ArrayLike, k: int, *, rule: Rule) -> Floats:
    """P(some candidate is accepted at a node), exactly, shape (...).

    token: 1 - TV(p, q). match: sum p (1 - (1-q)^k), which is p(set) for a deterministic candidate.
    kseq: 1 - (1-beta(rho*))^k. rrs: one minus the product of the refusals. top_plus_one: p(top) +
    sum over the rest of min(p, q~). sparse_optimal: the optimum without replacement. coupled:
    sum_i 1 / sum_j max(p_j/p_i, q_j/q_i) (Daliri, Musco, Suresh 2024, arXiv 2408.07978).

    p, q: shape (..., V), broadcast. O(V log V) a row at most, but for rrs_without_replacement,
    O(support^(k-1)): see `theory.recursive`. Raises ValueError for bad laws, an unknown rule,
    k < 1, and k above the support of q for the rules that never offer a token twice.
    """
    target, draft = _checked(p, q, k, rule)
    if rule == "sparse_optimal":
        return optimal_acceptance(target, draft, k, drafts="without_replacement").value
    if rule == "top_plus_one":
        return optimal_acceptance(target, draft, k, drafts="top_plus_one").value
    if rule == "kseq":
        return 1 - (1 - _beta(target, draft, kseq_rho(target, draft, k))) ** k
    if rule == "match":
        return np.asarray(np.sum(target * -np.expm1(k * _log1m(draft)), axis=-1))
    if rule == "rrs":
        return 1 - _rrs(target, draft, k)[0]
    if rule == "rrs_without_replacement":
        return 1 - _rowwise(target, draft, k, refusal_without_replacement)
    if rule == "coupled":
        return _rowwise(target, draft, k, _coupled)
    return np.asarray(np.minimum(target, draft).sum(axis=-1))


def output_law(p: ArrayLike, q: ArrayLike, k: int, *, rule: Rule) -> Floats:
    """Exact law of the emitted token, shape (..., V), followed through the rule's own mechanics.

    Every rule here is lossless, so the answer is p: the function exists to show it, and for rules
    that someone changes. "match" and "coupled" emit a draw from p by construction. Cost and errors
    as in `acceptance_rate`; sparse_optimal solves a transport problem a row (`theory.transport`).
    """
    target, draft = _checked(p, q, k, rule)
    if rule in ("match", "coupled"):
        return target.copy()
    if rule == "kseq":
        return _kseq_law(target, draft, k)
    if rule == "rrs":
        return _rrs(target, draft, k)[1]
    if rule == "rrs_without_replacement":
        return _rowwise(target, draft, k, without_replacement_law)
    if rule == "sparse_optimal":
        return _rowwise(target, draft, k, emitted_by_plan)
    if rule == "top_plus_one":
        rest = np.where(_top(draft, k - 1), 0.0, draft)
        draft = rest / rest.sum(axis=-1, keepdims=True)
    kept = np.minimum(target, draft)
    refused = 1 - kept.sum(axis=-1, keepdims=True)
    return np.asarray(kept + refused * residual(target, draft))


def residual(p: Floats, q: Floats) -> Floats:
    """norm((p - q)+) over the last axis; p itself where nothing is left (refusal is impossible)."""
    excess = np.maximum(p - q, 0.0)
    mass = excess.sum(axis=-1, keepdims=True)
    return np.where(mass > 0, excess / np.where(mass > 0, mass, 1.0), p)


def kseq_rho(p: ArrayLike, q: ArrayLike, k: int) -> Floats:
    """rho* in [1, k] with 1-(1-beta(rho))^k = rho beta(rho), beta(rho) = sum min(q, p/rho).

    Shape (...). Newton's method kept inside a bisection bracket; 1 where the supports are disjoint.
    Sun et al. 2023, arXiv 2310.15141, Algorithm 2: with it K-SEQ is lossless and accepts at least
    (1-(1-1/k)^k) of the optimum. Errors as in `acceptance_rate`.
    """
    target, draft = as_pair(p, q)
    check_candidates(k)
    low = np.ones(target.shape[:-1])
    high = np.full(target.shape[:-1], float(k))
    rho = 0.5 * (low + high)
    for _ in range(100):
        scaled = rho[..., None] * draft
        accepted = np.minimum(scaled, target).sum(axis=-1)  # rho beta(rho)
        slope = np.where(scaled < target, draft, 0.0).sum(axis=-1)
        beta = accepted / rho
        miss = np.clip(1 - beta, 0.0, 1.0)
        value = 1 - miss**k - accepted
        low, high = np.where(value > 0, rho, low), np.where(value > 0, high, rho)
        tilt = k * miss ** (k - 1) * (slope - beta) / rho - slope
        with np.errstate(divide="ignore", invalid="ignore"):
            step = rho - value / tilt
        inside = (step > low) & (step < high)
        new = np.where(inside, step, 0.5 * (low + high))
        done = bool(np.all(np.abs(new - rho) <= 1e-15 * rho))
        rho = new
        if done:
            break
    return np.asarray(np.where(np.minimum(target, draft).sum(axis=-1) > 0, rho, 1.0))


def _beta(p: Floats, q: Floats, rho: Floats) -> Floats:
    return np.asarray(np.clip(np.minimum(q, p / rho[..., None]).sum(axis=-1), 0.0, 1.0))


def _kseq_law(p: Floats, q: Floats, k: int) -> Floats:
    rho = kseq_rho(p, q, k)[..., None]
    kept = np.minimum(q, p / rho)
    beta = kept.sum(axis=-1, keepdims=True)
    refused = np.clip(1 - beta, 0.0, 1.0) ** k
    offers = np.where(beta > 0, (1 - refused) / np.where(beta > 0, beta, 1.0), 0.0)
    return np.asarray(offers * kept + refused * residual(p, offers * kept))


def _rrs(p: Floats, q: Floats, k: int) -> tuple[Floats, Floats]:
    """Refusal of all k iid candidates, and the law of the emitted token."""
    refused = np.ones((*p.shape[:-1], 1))
    law = np.zeros(p.shape)
    target = p
    for _ in range(k):
        kept = np.minimum(target, q)
        law = law + refused * kept
        refused = refused * np.clip(1 - kept.sum(axis=-1, keepdims=True), 0.0, 1.0)
        target = residual(target, q)
    return refused[..., 0], law + refused * target


def _coupled(p: Floats, q: Floats, k: int) -> float:
    """sum_i 1/sum_j max(p_j/p_i, q_j/q_i): j's p counts where p_j/q_j >= p_i/q_i, else its q."""
    some = (p > 0) | (q > 0)
    p, q = p[some], q[some]
    ratio = np.divide(p, LIFT * q, out=np.full(p.shape, np.inf), where=q > 0)  # only its order
    order = np.argsort(ratio)
    p, q = p[order], q[order]
    above = np.cumsum(p[::-1])[::-1]
    below = np.cumsum(q) - q
    both = (p > 0) & (q > 0)
    with np.errstate(over="ignore"):
        return float(np.sum(1 / (above[both] / p[both] + below[both] / q[both])))


def _log1m(q: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-np.minimum(q, 1.0)))


def _top(draft: Floats, count: int) -> Floats:
    size = draft.shape[-1]
    return np.asarray(top_tokens(draft.reshape(-1, size), count).reshape(draft.shape))


def _rowwise(
    p: Floats, q: Floats, k: int, function: Callable[[Floats, Floats, int], float | Floats]
) -> Floats:
    size = p.shape[-1]
    rows = [
        function(a, b, k) for a, b in zip(p.reshape(-1, size), q.reshape(-1, size), strict=True)
    ]
    result = np.asarray(rows, dtype=np.float64)
    return result.reshape((*p.shape[:-1], *result.shape[1:]))


def _checked(p: ArrayLike, q: ArrayLike, k: int, rule: Rule) -> tuple[Floats, Floats]:
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}; got {rule!r}")
    target, draft = as_pair(p, q)
    check_candidates(k, draft if rule in DISTINCT else None)
    return target, draft
