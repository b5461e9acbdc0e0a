"""One node decided for given candidates and uniforms: the exact counterpart of the runtime rules.

A rule is the chances with which its candidates are accepted, each given that all before it were
refused, and the law of the token that is emitted when all are refused. Everything is computed in
Fractions. Whole node laws, by enumeration, are in `theory.exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from theory.acceptance import Rule
from theory.exact import ONE, ZERO, Law, kseq_rho, residual, without
from theory.exact_flow import optimal_coupling

RHO_BITS = 44
"""K-SEQ's rho is at most 2^-44 above rho*, and lossless exactly."""


def judgement(
    p: Law, q: Law, candidates: Sequence[int], *, rule: Rule
) -> tuple[tuple[Fraction, ...], Law]:
    """Chance of each candidate, and the law of the token after all are refused (or zeros).

    p, q: laws over the same V tokens; candidates in draw order. The first candidate that q cannot
    have drawn (not a token, of probability 0, or repeated for a rule of different candidates) ends
    the offers. For "match", and for all but the last candidate of "top_plus_one", the chances are
    0: they are reached by the emitted token. Raises ValueError for "coupled", which is no rule of
    this form.
    """
    chances = [ZERO] * len(candidates)
    if rule == "match":
        return tuple(chances), p
    if rule == "top_plus_one":
        last = sum(x >= 0 for x in candidates) - 1
        rest = [ZERO if i in candidates[:last] else mass for i, mass in enumerate(q)]
        whole = sum(rest)
        if last < 0 or not _drawable(rest, candidates[last]):
            return tuple(chances), p
        rest = [mass / whole for mass in rest]
        chances[last] = min(ONE, p[candidates[last]] / rest[candidates[last]])
        return tuple(chances), residual(p, rest)
    offered = _offered(
        q, candidates, distinct=rule in ("rrs_without_replacement", "sparse_optimal")
    )
    if not offered:
        return tuple(chances), p
    if rule == "token":
        chances[0] = min(ONE, p[offered[0]] / q[offered[0]])
        return tuple(chances), residual(p, q)
    if rule == "kseq":
        rho = kseq_rho(p, q, len(offered), bits=RHO_BITS)
        kept = [min(b, a / rho) for a, b in zip(p, q, strict=True)]
        beta = sum(kept)
        looked_at = sum((1 - beta) ** j for j in range(len(offered)))
        for j, x in enumerate(offered):
            chances[j] = kept[x] / q[x]
        return tuple(chances), residual(p, [looked_at * mass for mass in kept])
    if rule in ("rrs", "rrs_without_replacement"):
        target, draft = p, q
        for j, x in enumerate(offered):
            chances[j] = min(ONE, target[x] / draft[x])
            target = residual(target, draft)
            draft = draft if rule == "rrs" else without(draft, x)
        return tuple(chances), target
    if rule == "sparse_optimal":
        coupling, law = optimal_coupling(p, q, len(offered), "without_replacement")
        members = tuple(sorted(offered))
        left = law[members]
        for j, x in enumerate(offered):
            mass = coupling.get((x, members), ZERO)
            chances[j] = mass / left if left else ZERO
            left -= mass
        taken = [sum((s for (i, _), s in coupling.items() if i == y), ZERO) for y in range(len(p))]
        return tuple(chances), residual(p, taken)
    raise ValueError(f"rule {rule!r} does not offer its candidates one after the other")


def decide(
    p: Law,
    q: Law,
    candidates: Sequence[int],
    u_accept: Sequence[Fraction],
    u_emit: Fraction,
    *,
    rule: Rule,
) -> tuple[int, int]:
    """Emitted token and index of the accepted candidate, or -1, for given uniforms in [0, 1).

    Candidate j is accepted if all before it were refused and u_accept[j] < chances[j]; else the
    token is the first with cumulative residual law above u_emit, and it is accepted too if it is a
    candidate of "match" or "top_plus_one". The runtime's `vllm_plugin.nodes.decide` gives the same
    for the same uniforms; for "sparse_optimal" only where the optimal coupling is unique.
    """
    chances, law = judgement(p, q, candidates, rule=rule)
    for j, chance in enumerate(chances):
        if u_accept[j] < chance:
            return candidates[j], j
    if not any(law):  # refused by rounding only, with exact arithmetic never
        law = p
    mass, token = ZERO, max(y for y, chance in enumerate(law) if chance)
    for y, chance in enumerate(law):
        mass += chance
        if mass > u_emit:
            token = y
            break
    if rule in ("match", "top_plus_one") and token in candidates:
        return token, list(candidates).index(token)
    return token, -1


def _drawable(q: Sequence[Fraction], x: int) -> bool:
    return 0 <= x < len(q) and q[x] > 0


def _offered(q: Law, candidates: Sequence[int], *, distinct: bool) -> list[int]:
    offered: list[int] = []
    for x in candidates:
        if not _drawable(q, x) or (distinct and x in offered):
            break
        offered.append(x)
    return offered
