"""Verification rules at one node in fractions.Fraction, by enumeration of drafts and coins.

Everything else about a rule follows from its node law: P(candidates drafted, token emitted, was it
a candidate accepted). Small vocabularies only (V <= 5, k <= 3 in well under a second). Arguments
come in the same order as in `theory.acceptance`; sequences are in `theory.exact_sequences`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from theory.acceptance import RULES, Rule
from theory.candidates import top_ranked, tuple_law
from theory.exact_flow import optimal_coupling
from theory.optimum import Drafts

Law = tuple[Fraction, ...]
Drawn = tuple[int, ...]
NodeLaw = dict[tuple[Drawn, int, bool], Fraction]
"""(candidates in draw order, emitted token, accepted) -> probability."""
Verdict = dict[tuple[int, bool], Fraction]
"""(emitted token, accepted) -> probability given the candidates."""

ZERO, ONE = Fraction(0), Fraction(1)


def law(values: Sequence[Fraction | int | str]) -> Law:
    """A tuple of Fractions that sums to 1 exactly; raises ValueError otherwise."""
    exact = tuple(Fraction(value) for value in values)
    if not exact or min(exact) < 0 or sum(exact) != 1:
        raise ValueError(f"an exact law is nonnegative and sums to exactly 1; got {values!r}")
    return exact


def residual(p: Sequence[Fraction], q: Sequence[Fraction]) -> Law:
    """norm((p - q)+), or all zeros where nothing is left (reached with probability 0)."""
    excess = [max(a - b, ZERO) for a, b in zip(p, q, strict=True)]
    mass = sum(excess)
    return tuple(e / mass if mass else ZERO for e in excess)


def node_law(p: Law, q: Law, k: int, *, rule: Rule) -> NodeLaw:
    """Joint law of (candidates, emitted token, accepted) for a rule; values sum to 1.

    Raises ValueError for unequal lengths, an unknown rule, k < 1, and k above the support of q for
    the rules that never offer a token twice.
    """
    if len(p) != len(q) or k < 1 or rule not in RULES:
        raise ValueError(f"got p of {len(p)} and q of {len(q)} tokens, k = {k}, rule {rule!r}")
    law(p), law(q)
    if rule == "coupled":
        return _coupled(p, q)
    if rule == "sparse_optimal":
        return _sparse_optimal(p, q, k)
    scheme: Drafts = "iid"
    if rule == "rrs_without_replacement":
        scheme = "without_replacement"
    elif rule == "top_plus_one":
        scheme = "top_plus_one"
    if rule == "kseq":
        ratio = kseq_rho(p, q, k)
        return _follow(q, k, scheme, lambda drawn: kseq_verdict(p, q, drawn, ratio))
    verdict = {
        "token": token_verdict,
        "match": match_verdict,
        "rrs": rrs_verdict,
        "rrs_without_replacement": rrs_without_replacement_verdict,
        "top_plus_one": top_plus_one_verdict,
    }[rule]
    return _follow(q, k, scheme, lambda drawn: verdict(p, q, drawn))


def acceptance_rate(p: Law, q: Law, k: int, *, rule: Rule) -> Fraction:
    """P(some candidate is accepted), as a Fraction; see `theory.acceptance.acceptance_rate`."""
    joint = node_law(p, q, k, rule=rule)
    return sum((mass for (_, _, accepted), mass in joint.items() if accepted), ZERO)


def output_law(p: Law, q: Law, k: int, *, rule: Rule) -> Law:
    """Law of the emitted token, as Fractions: equal to p, exactly, for every rule."""
    return emitted_token(node_law(p, q, k, rule=rule), len(p))


def emitted_token(joint: Mapping[tuple[Drawn, int, bool], Fraction], size: int) -> Law:
    """Marginal law of the emitted token of a node law over a vocabulary of `size`."""
    mass = [ZERO] * size
    for (_, token, _), chance in joint.items():
        mass[token] += chance
    return tuple(mass)


def token_verdict(p: Law, q: Law, drawn: Drawn) -> Verdict:
    """Accept the first candidate with min(1, p/q), else emit from norm((p-q)+)."""
    return _offer(p, q, drawn[:1], lambda p, q, _: (residual(p, q), q))


def match_verdict(p: Law, q: Law, drawn: Drawn) -> Verdict:
    """Emit y ~ p, which is accepted if it is a candidate."""
    return {(y, y in drawn): mass for y, mass in enumerate(p) if mass}


def kseq_verdict(p: Law, q: Law, drawn: Drawn, rho: Fraction) -> Verdict:
    """Accept each candidate with min(1, p/(rho q)); SpecTr, arXiv 2310.15141, Algorithm 2."""
    beta = sum((min(b, a / rho) for a, b in zip(p, q, strict=True)), ZERO)
    offers = (1 - (1 - beta) ** len(drawn)) / beta if beta else ZERO
    verdict: Verdict = {}
    alive = ONE
    for x in drawn:
        chance = min(ONE, p[x] / (rho * q[x]))
        _add(verdict, x, True, alive * chance)
        alive *= 1 - chance
    left = residual(p, [offers * min(b, a / rho) for a, b in zip(p, q, strict=True)])
    for y, mass in enumerate(left):
        _add(verdict, y, False, alive * mass)
    return verdict


def rrs_verdict(p: Law, q: Law, drawn: Drawn) -> Verdict:
    """Recursive rejection, iid candidates: the target becomes norm((r-q)+) after each refusal."""
    return _offer(p, q, drawn, lambda r, s, _: (residual(r, s), s))


def rrs_without_replacement_verdict(p: Law, q: Law, drawn: Drawn) -> Verdict:
    """Recursive rejection, different candidates: the refused token leaves q, q is renormalised."""
    return _offer(p, q, drawn, lambda r, s, x: (residual(r, s), without(s, x)))


def top_plus_one_verdict(p: Law, q: Law, drawn: Drawn) -> Verdict:
    """A token step of the last candidate against q~; a residual token among the top counts."""
    top = drawn[:-1]
    rest = tuple(ZERO if i in top else mass for i, mass in enumerate(q))
    whole = sum(rest)
    verdict = token_verdict(p, tuple(mass / whole for mass in rest), drawn[-1:])
    result: Verdict = {}
    for (y, accepted), mass in verdict.items():
        _add(result, y, accepted or y in top, mass)
    return result


def without(q: Sequence[Fraction], token: int) -> Law:
    """q with one token removed, renormalised; all zeros when nothing is left."""
    rest = [ZERO if i == token else mass for i, mass in enumerate(q)]
    whole = sum(rest)
    return tuple(mass / whole if whole else ZERO for mass in rest)


def kseq_rho(p: Law, q: Law, k: int, *, bits: int = 12) -> Fraction:
    """A rational rho at most 2^-bits above rho*: any rho >= rho* keeps K-SEQ lossless, exactly."""
    low, high = ONE, Fraction(k)
    while high - low > Fraction(1, 2**bits):
        rho = (low + high) / 2
        beta = sum((min(b, a / rho) for a, b in zip(p, q, strict=True)), ZERO)
        low, high = (low, rho) if 1 - (1 - beta) ** k <= rho * beta else (rho, high)
    beta = sum((min(a, b) for a, b in zip(p, q, strict=True)), ZERO)
    return ONE if 1 - (1 - beta) ** k <= beta else high


def _offer(
    p: Law, q: Law, drawn: Drawn, refuse: Callable[[Law, Law, int], tuple[Law, Law]]
) -> Verdict:
    """Offer the candidates in order by ratio tests; `refuse` gives the next target and draft."""
    verdict: Verdict = {}
    alive, target, draft = ONE, p, q
    for x in drawn:
        chance = min(ONE, target[x] / draft[x])
        _add(verdict, x, True, alive * chance)
        alive *= 1 - chance
        if not alive:
            return verdict
        target, draft = refuse(target, draft, x)
    for y, mass in enumerate(target):
        _add(verdict, y, False, alive * mass)
    return verdict


def _follow(q: Law, k: int, scheme: Drafts, verdict: Callable[[Drawn], Verdict]) -> NodeLaw:
    joint: NodeLaw = {}
    for drawn, chance in tuple_law(q, k, scheme).items():
        for (y, accepted), mass in verdict(drawn).items():
            joint[drawn, y, accepted] = chance * mass
    return joint


def _sparse_optimal(p: Law, q: Law, k: int) -> NodeLaw:
    coupling, chances = optimal_coupling(p, q, k, "without_replacement")
    taken = [sum((s for (i, _), s in coupling.items() if i == y), ZERO) for y in range(len(p))]
    left = residual(p, taken)
    joint: NodeLaw = {}
    for members, chance in chances.items():
        alive = chance
        for i in members:
            mass = coupling.get((i, members), ZERO)
            alive -= mass
            if mass:
                joint[members, i, True] = mass
        for y, mass in enumerate(left):
            if alive * mass:
                # the residual may be a candidate whose mass is used up: a refusal all the same
                joint[members, y, False] = alive * mass
    return joint


def _coupled(p: Law, q: Law) -> NodeLaw:
    """Joint law of argmin E/q and argmin E/p with shared exponentials E, by exact integration.

    For x != y: P = integral over u in [q_y/p_y, q_x/p_x] of q_x p_y / L(u)^2 du, where u = s/t is
    the ratio of the two arrival times and L(u) = sum_i max(q_i, p_i u), linear between the breaks
    q_i/p_i; for x = y = i: 1 / sum_j max(p_j/p_i, q_j/q_i). (Daliri et al. 2024, 2408.07978.)
    """
    size = range(len(p))
    joint: NodeLaw = {}
    breaks = sorted({q[i] / p[i] for i in size if p[i]})
    for x in (i for i in size if q[i]):
        for y in (i for i in size if p[i]):
            if x == y:
                whole = sum((max(p[j] / p[x], q[j] / q[x]) for j in size), ZERO)
                joint[(x,), x, True] = 1 / whole
                continue
            low, high = q[y] / p[y], q[x] / p[x] if p[x] else None
            mass = ZERO
            cuts = [low, *(b for b in breaks if b > low and (high is None or b < high)), high]
            for a, b in pairwise(cuts):
                if a is None or (b is not None and b <= a):
                    continue
                at = sum((max(q[i], p[i] * a) for i in size), ZERO)
                if b is None:  # beyond every break L(u) grows with slope sum p_i = 1 there
                    slope = sum((p[i] for i in size if not p[i] or q[i] / p[i] <= a), ZERO)
                    mass += 1 / (slope * at)
                else:
                    mass += (b - a) / (at * sum((max(q[i], p[i] * b) for i in size), ZERO))
            if mass:
                joint[(x,), y, False] = q[x] * p[y] * mass
    return joint


def _add(verdict: Verdict, token: int, accepted: bool, mass: Fraction) -> None:
    if mass:
        verdict[token, accepted] = verdict.get((token, accepted), ZERO) + mass


__all__ = ["NodeLaw", "acceptance_rate", "law", "node_law", "output_law", "top_ranked"]
