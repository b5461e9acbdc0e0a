"""Which token a node accepts: P(y is emitted as an accepted candidate), for every y and rule.

The acceptance of `theory.acceptance` is the sum over y. A replay of recorded text needs the terms:
given that y was emitted, it was an accepted candidate with probability m(y)/p(y).
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from theory.acceptance import Rule, kseq_rho, residual
from theory.laws import Floats, Ints, as_pair, check_candidates, top_tokens
from theory.optimum import Drafts, optimal_acceptance
from theory.race import prefix_probabilities
from theory.recursive import accepted_without_replacement

LEGAL: dict[Rule, tuple[Drafts, ...]] = {
    "token": ("iid",),
    "match": ("iid", "without_replacement", "top_plus_one"),
    "kseq": ("iid",),
    "rrs": ("iid",),
    "rrs_without_replacement": ("without_replacement",),
    "sparse_optimal": ("without_replacement",),
    "top_plus_one": ("top_plus_one",),
}
"""The ways of drafting k candidates that a rule is right for."""


def accepted_mass(
    p: ArrayLike,
    q: ArrayLike,
    k: int,
    *,
    rule: Rule,
    drafts: Drafts | None = None,
    tokens: Ints | None = None,
) -> Floats:
    """m(y) = P(y is emitted as an accepted candidate), shape (..., V); m <= p.

    token: min(p, q). match: p(y) P(y is a candidate). kseq: min(q, p/rho) (1-(1-beta)^k)/beta. rrs:
    sum over the offers of P(refused before) min(r, q). top_plus_one: p(y) on the k-1 most probable
    tokens of q, min(p, q~) on the others. rrs_without_replacement: see `theory.recursive`.

    sparse_optimal: optimal couplings differ in which tokens they accept, not in how often they
    accept. This is the one that serves the tokens in order of q as far as is possible without
    loss: what the first j of them can be given together is an optimum with p restricted to them, so
    m is a difference of two optima. (Sets that k draws can hit are a polymatroid, whose greedy
    vertex this is; Edmonds 1970.)

    p, q: shape (..., V), broadcast; `drafts` is how the candidates of "match" are drawn (iid unless
    given); with `tokens`, shape (...), only m of these tokens is returned, in that shape. Raises
    ValueError for bad laws, a rule without accepted candidates ("coupled"), drafts that the rule is
    not right for, k < 1, and k above the support of q for drafts that are all different.
    """
    target, draft = as_pair(p, q)
    chosen = check_drafts(rule, drafts)
    check_candidates(k, draft if chosen != "iid" else None)
    if rule == "sparse_optimal":
        if tokens is not None:
            return _served_in_order(target, draft, k, tokens)
        each = [
            _served_in_order(target, draft, k, np.full(target.shape[:-1], y))
            for y in range(target.shape[-1])
        ]
        return np.stack(each, axis=-1)
    if rule == "match":
        chance = inclusion(draft, k, drafts=chosen, tokens=tokens)
        return (target if tokens is None else _of(target, tokens)) * chance
    mass = _RULES[rule](target, draft, k)
    return mass if tokens is None else _of(mass, tokens)


def accepted_survivors(p: ArrayLike, q: ArrayLike, k: int, tokens: Ints, *, rule: Rule) -> Floats:
    """P(y is accepted and c of the k iid candidates are y), c = 1..k, shape (..., k).

    Sequences that begin with what was emitted survive (SpecTr, arXiv 2310.15141, section 4), so
    the next node has c candidates. With b = q(y) and a_j the chance that offer j takes a y, the
    offers before j are refused, those behind it are free:

        sum_j [prod_{i<j} (R_i + b (1 - a_i) z)] b a_j z [(1 - b) + b z]^(k-j),

    whose coefficient of z^c is the answer; R_i is the mass of other tokens that offer i refuses.
    The sum over c is m(y). p, q: shape (..., V), broadcast; tokens (...): y. Rules "kseq", "rrs"
    and "match". Errors as in `accepted_mass`.
    """
    target, draft = as_pair(p, q)
    check_candidates(k)
    if rule not in ("kseq", "rrs", "match"):
        raise ValueError(f"rule must be one of kseq, rrs, match; got {rule!r}")
    b = _of(draft, tokens)
    found = np.zeros((*target.shape[:-1], k + 1))
    if rule == "match":
        own = _of(target, tokens)
        for c in range(1, k + 1):
            found[..., c] = own * comb(k, c) * b**c * (1 - b) ** (k - c)
        return found[..., 1:]
    before = np.zeros_like(found)  # of the refused, by how many of them are y
    before[..., 0] = 1.0
    for j, kept in enumerate(_offers(target, draft, k, rule)):
        own = _of(kept, tokens)  # b a_j
        again = np.maximum(b - own, 0.0)  # b (1 - a_j)
        others = np.maximum(1 - kept.sum(axis=-1) - again, 0.0)
        free = k - 1 - j
        for more in range(free + 1):
            chance = own * comb(free, more) * b**more * (1 - b) ** (free - more)
            found[..., 1 + more :] += chance[..., None] * before[..., : k - more]
        moved = before * again[..., None]
        before *= others[..., None]
        before[..., 1:] += moved[..., :-1]
    return found[..., 1:]


def inclusion(q: ArrayLike, k: int, *, drafts: Drafts, tokens: Ints | None = None) -> Floats:
    """P(y is among the k candidates), shape (..., V), or (...) for given tokens.

    iid: 1-(1-q)^k. Without replacement: one minus P(all candidates lie in the other tokens). The
    k-1 most probable tokens of top_plus_one are certain, the others have q~.
    """
    draft, _ = as_pair(q, q)
    check_candidates(k, draft if drafts != "iid" else None)
    if drafts == "without_replacement":
        size = draft.shape[-1]
        wanted = np.arange(size) if tokens is None else np.asarray(tokens)[..., None]
        at = np.broadcast_to(wanted, (*draft.shape[:-1], np.shape(wanted)[-1]))
        found = [
            [_included(law, k, int(y)) for y in row]
            for law, row in zip(draft.reshape(-1, size), at.reshape(-1, at.shape[-1]), strict=True)
        ]
        each = np.array(found, np.float64).reshape(at.shape)
        return each if tokens is None else each[..., 0]
    if drafts == "iid":
        with np.errstate(divide="ignore"):
            chance = np.asarray(-np.expm1(k * np.log1p(-np.minimum(draft, 1.0))))
    else:
        rows = draft.reshape(-1, draft.shape[-1])
        top = top_tokens(rows, k - 1)
        chance = np.where(top, 1.0, _of_the_rest(rows, top)).reshape(draft.shape)
    return chance if tokens is None else _of(chance, tokens)


def _included(q: Floats, k: int, y: int) -> float:
    """P(y is among k draws without replacement), for one law of shape (V,)."""
    if q[y] <= 0:
        return 0.0
    others = np.delete(q, y)
    others = others[others > 0]
    if others.size < k:
        return 1.0
    return float(1 - prefix_probabilities(np.append(others, q[y]), k)[-2])


def _of(values: Floats, tokens: Ints) -> Floats:
    """The values of one token a row."""
    return np.take_along_axis(values, np.asarray(tokens)[..., None], axis=-1)[..., 0]


def check_drafts(rule: Rule, drafts: Drafts | None = None) -> Drafts:
    """How the candidates are drafted: what was given, or what the rule needs.

    Raises ValueError, naming what is legal, for a rule that is not right for these drafts.
    """
    if rule not in LEGAL:
        raise ValueError(f"rule must be one of {', '.join(LEGAL)}; got {rule!r}")
    chosen = drafts or LEGAL[rule][0]
    if chosen not in LEGAL[rule]:
        fit = [name for name, ways in LEGAL.items() if chosen in ways]
        raise ValueError(
            f"rule {rule!r} is right for {' or '.join(LEGAL[rule])} drafts, not for {chosen!r}"
            + (f"; {chosen} drafts go with {', '.join(fit)}" if fit else "")
        )
    return chosen


def _offers(p: Floats, q: Floats, k: int, rule: Rule) -> list[Floats]:
    """For each of k iid offers: P(it is y and is accepted | all before were refused), (..., V)."""
    if rule == "kseq":
        return [np.minimum(q, p / kseq_rho(p, q, k)[..., None])] * k
    offers, target = [], p
    for _ in range(k):
        offers.append(np.minimum(target, q))
        target = residual(target, q)
    return offers


def _by_offers(rule: Rule) -> Callable[[Floats, Floats, int], Floats]:
    def mass(p: Floats, q: Floats, k: int) -> Floats:
        found, refused = np.zeros(p.shape), np.ones((*p.shape[:-1], 1))
        for kept in _offers(p, q, k, rule):
            found += refused * kept
            refused = refused * np.clip(1 - kept.sum(axis=-1, keepdims=True), 0.0, 1.0)
        return found

    return mass


def _without_replacement(p: Floats, q: Floats, k: int) -> Floats:
    size = p.shape[-1]
    pairs = zip(p.reshape(-1, size), q.reshape(-1, size), strict=True)
    rows = [accepted_without_replacement(a, b, k) for a, b in pairs]
    return np.array(rows).reshape(p.shape)


def _top_plus_one(p: Floats, q: Floats, k: int) -> Floats:
    rows = q.reshape(-1, q.shape[-1])
    top = top_tokens(rows, k - 1)
    rest = _of_the_rest(rows, top).reshape(q.shape)
    return np.where(top.reshape(q.shape), p, np.minimum(p, rest))


def _of_the_rest(q: Floats, top: Floats | np.ndarray) -> Floats:
    """q~: q restricted to the tokens outside `top`."""
    rest = np.where(top, 0.0, q)
    return np.asarray(rest / rest.sum(axis=-1, keepdims=True))


def _served_in_order(p: Floats, q: Floats, k: int, tokens: Ints) -> Floats:
    """What y adds to the optimum of the tokens before it, in order of q (ties: lower index)."""
    at = np.asarray(tokens)[..., None]
    own = np.take_along_axis(q, at, axis=-1)
    earlier = (q > own) | ((q == own) & (np.arange(q.shape[-1]) < at))
    with_it = earlier | (np.arange(q.shape[-1]) == at)
    optima = []
    for part in (earlier, with_it):
        held = np.where(part, p, 0.0)
        rest = np.maximum(1 - held.sum(axis=-1, keepdims=True), 0.0)
        never = np.zeros_like(rest)
        optima.append(
            optimal_acceptance(
                np.concatenate([held, rest], axis=-1),
                np.concatenate([q, never], axis=-1),
                k,
                drafts="without_replacement",
            ).value
        )
    return np.asarray(np.where(own[..., 0] > 0, np.maximum(optima[1] - optima[0], 0.0), 0.0))


_RULES: dict[Rule, Callable[[Floats, Floats, int], Floats]] = {
    "token": lambda p, q, k: np.minimum(p, q),
    "kseq": _by_offers("kseq"),
    "rrs": _by_offers("rrs"),
    "rrs_without_replacement": _without_replacement,
    "top_plus_one": _top_plus_one,
}
