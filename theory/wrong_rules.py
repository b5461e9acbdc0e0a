"""Negative controls: wrong verifiers, each the kind of mistake that looks right, in exact form.

A test of losslessness that does not reject every one of these is not a test. Each is a function
(p, q, k) -> node law (`theory.exact.NodeLaw`), so that it runs wherever a right rule runs; the
numbers of the traps are those of docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from theory.candidates import top_ranked, tuple_law
from theory.exact import (
    ONE,
    ZERO,
    Drawn,
    Law,
    NodeLaw,
    Verdict,
    kseq_verdict,
    residual,
    rrs_verdict,
    rrs_without_replacement_verdict,
    token_verdict,
)
from theory.exact_sequences import Model, SequenceLaw, Tokens, block_constants
from theory.optimum import Drafts

WrongRule = Callable[[Law, Law, int], NodeLaw]


def dropped_rare_draws(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 1: a drawn token is thrown away because q gave it less than 2/5; then p is sampled."""
    return _node(q, 1, lambda drawn: _stale(p, q, drawn, keep=q[drawn[0]] >= Fraction(2, 5)))


def republished_draft_law(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 2: verified with a law that moved since the draw (here: half way to uniform)."""
    newer = tuple((mass + Fraction(1, len(q))) / 2 for mass in q)
    return _node(q, 1, lambda drawn: token_verdict(p, newer, drawn))


def shared_noise(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 3: the uniform that drew the token by inverse transform also decides on it."""

    def verdict(drawn: Drawn) -> Verdict:
        x = drawn[0]
        start = sum(q[:x], ZERO)
        chance = min(max(min(ONE, p[x] / q[x]) - start, ZERO) / q[x], ONE)
        return _either(x, chance, residual(p, q))

    return _node(q, 1, verdict)


def target_instead_of_residual(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 4: after a refusal (a grammar cut counts as one) the token comes from p, not (p-q)+."""
    return _node(q, 1, lambda drawn: _either(drawn[0], min(ONE, p[drawn[0]] / q[drawn[0]]), p))


def unnormalised_draft_law(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 6: drafts come from q cut to all but its rarest token, but not renormalised."""
    rarest = min((i for i in range(len(q)) if q[i]), key=lambda i: (q[i], i))
    rest = sum((mass for i, mass in enumerate(q) if i != rarest), ZERO)
    if not rest:
        return _node(q, 1, lambda drawn: token_verdict(p, q, drawn))
    cut = tuple(ZERO if i == rarest else mass for i, mass in enumerate(q))
    drafted = tuple(mass / rest for mass in cut)
    return _node(drafted, 1, lambda drawn: token_verdict(p, cut, drawn))


def rrs_without_renormalising(p: Law, q: Law, k: int) -> NodeLaw:
    """Refused tokens leave q, but what is left is not renormalised."""

    def verdict(drawn: Drawn) -> Verdict:
        result: Verdict = {}
        alive, target, draft = ONE, p, q
        for x in drawn:
            chance = min(ONE, target[x] / draft[x])
            result[x, True] = result.get((x, True), ZERO) + alive * chance
            alive *= 1 - chance
            if not alive:
                return result
            target = residual(target, draft)
            draft = tuple(ZERO if i == x else mass for i, mass in enumerate(draft))
        for y, mass in enumerate(target):
            result[y, False] = result.get((y, False), ZERO) + alive * mass
        return result

    return _node(q, k, verdict, "without_replacement")


def rrs_with_one_target(p: Law, q: Law, k: int) -> NodeLaw:
    """Every candidate is offered to p itself: the target is not replaced by the residual."""

    def verdict(drawn: Drawn) -> Verdict:
        result: Verdict = {}
        alive = ONE
        for x in drawn:
            chance = min(ONE, p[x] / q[x])
            result[x, True] = result.get((x, True), ZERO) + alive * chance
            alive *= 1 - chance
        for y, mass in enumerate(residual(p, q)):
            result[y, False] = result.get((y, False), ZERO) + alive * mass
        return result

    return _node(q, k, verdict)


def rrs_on_distinct_draws(p: Law, q: Law, k: int) -> NodeLaw:
    """Candidates drawn without replacement, verified as if they were iid."""
    return _node(q, k, lambda drawn: rrs_verdict(p, q, drawn), "without_replacement")


def kseq_with_rho_one(p: Law, q: Law, k: int) -> NodeLaw:
    """K-SEQ with rho = 1: tests pass too often for any residual to repair."""
    return _node(q, k, lambda drawn: kseq_verdict(p, q, drawn, ONE))


def kseq_with_the_token_residual(p: Law, q: Law, k: int) -> NodeLaw:
    """K-SEQ with rho = k, but the token rule's residual after k refusals."""

    def verdict(drawn: Drawn) -> Verdict:
        right = kseq_verdict(p, q, drawn, Fraction(k))
        result = {key: mass for key, mass in right.items() if key[1]}
        alive = 1 - sum(result.values(), ZERO)
        for y, mass in enumerate(residual(p, q) if p != q else p):
            result[y, False] = result.get((y, False), ZERO) + alive * mass
        return result

    return _node(q, k, verdict)


def top_plus_one_with_q(p: Law, q: Law, k: int) -> NodeLaw:
    """The extra draw of top-plus-one is tested against q instead of q restricted to the others."""

    def verdict(drawn: Drawn) -> Verdict:
        top = top_ranked(q, k - 1)
        right = token_verdict(p, q, drawn[-1:])
        result: Verdict = {}
        for (y, accepted), mass in right.items():
            key = (y, accepted or y in top)
            result[key] = result.get(key, ZERO) + mass
        return result

    return _node(q, k, verdict, "top_plus_one")


def likelier_token_wins(p: Law, q: Law, k: int) -> NodeLaw:
    """Accept x exactly when p(x) >= q(x): no coin."""
    return _node(
        q, 1, lambda drawn: _either(drawn[0], Fraction(p[drawn[0]] >= q[drawn[0]]), residual(p, q))
    )


def residual_not_clipped(p: Law, q: Law, k: int) -> NodeLaw:
    """After a refusal the token comes from norm(|p - q|): the sign was lost, not cut at 0."""
    gaps = [abs(a - b) for a, b in zip(p, q, strict=True)]
    whole = sum(gaps, ZERO)
    left = tuple(gap / whole if whole else gap for gap in gaps)
    return _node(q, 1, lambda drawn: _either(drawn[0], min(ONE, p[drawn[0]] / q[drawn[0]]), left))


def equality_with_the_residual(p: Law, q: Law, k: int) -> NodeLaw:
    """A sampled draft is accepted if it equals a draw from p, and else replaced from (p-q)+."""
    left = residual(p, q)
    return _node(q, 1, lambda drawn: _either(drawn[0], p[drawn[0]], left if any(left) else p))


def grammar_refusal_from_p(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 4: a draft that the grammar forbids (p = 0) is taken away and its place sampled from p.

    Ordinary refusals are answered rightly.
    """

    def verdict(drawn: Drawn) -> Verdict:
        forbidden = p[drawn[0]] == 0
        return _either(drawn[0], ZERO, p) if forbidden else token_verdict(p, q, drawn)

    return _node(q, 1, verdict)


def renormalised_over_valid_tokens(p: Law, q: Law, k: int) -> NodeLaw:
    """Trap 4: drafts drawn from q, verified with q renormalised over what the grammar allows."""
    allowed = tuple(b if a else ZERO for a, b in zip(p, q, strict=True))
    whole = sum(allowed, ZERO)
    if not whole:
        return _node(q, 1, lambda drawn: token_verdict(p, q, drawn))
    claimed = tuple(mass / whole for mass in allowed)

    def verdict(drawn: Drawn) -> Verdict:
        if not claimed[drawn[0]]:
            left = residual(p, claimed)
            return _either(drawn[0], ZERO, left if any(left) else p)
        return token_verdict(p, claimed, drawn)

    return _node(q, 1, verdict)


def wrong_temperature(p: Law, q: Law, k: int) -> NodeLaw:
    """Drafts drawn at one temperature, verified with q at half of it (q squared, normalised)."""
    whole = sum((mass * mass for mass in q), ZERO)
    colder = tuple(mass * mass / whole for mass in q)
    return _node(q, 1, lambda drawn: token_verdict(p, colder, drawn))


def siblings_out_of_draw_order(p: Law, q: Law, k: int) -> NodeLaw:
    """Recursive rejection without replacement, offered most probable first, not as drawn."""

    def verdict(drawn: Drawn) -> Verdict:
        ranked = tuple(sorted(drawn, key=lambda x: (-q[x], x)))
        return rrs_without_replacement_verdict(p, q, ranked)

    return _node(q, k, verdict, "without_replacement")


WRONG_RULES: dict[str, WrongRule] = {
    rule.__name__: rule
    for rule in (
        dropped_rare_draws,
        republished_draft_law,
        shared_noise,
        target_instead_of_residual,
        unnormalised_draft_law,
        rrs_without_renormalising,
        rrs_with_one_target,
        rrs_on_distinct_draws,
        kseq_with_rho_one,
        kseq_with_the_token_residual,
        top_plus_one_with_q,
        likelier_token_wins,
        residual_not_clipped,
        equality_with_the_residual,
        grammar_refusal_from_p,
        renormalised_over_valid_tokens,
        wrong_temperature,
        siblings_out_of_draw_order,
    )
}
"""Wrong node rules by name. Those that concern several candidates show their fault for k >= 2, the
grammar's where p has zeros. `theory.testing.wrong_verifiers` makes them samplers."""


def block_up_to_the_first_failure(
    target: Model, draft: Model, drafted: list[tuple[Tokens, Fraction]]
) -> SequenceLaw:
    """The block rule's h_i, but stopping at the first failed test instead of keeping the largest i.

    `drafted`: sequences with their probabilities, as the drafter draws them.
    """
    law: SequenceLaw = {}
    for drawn, chance in drafted:
        _, keep, corrections = block_constants(target, draft, drawn)
        alive = chance
        for i in range(len(drawn) + 1):
            passed = alive * keep[i + 1] if i < len(drawn) else ZERO
            for y, mass in enumerate(corrections[i]):
                if (alive - passed) * mass:
                    tokens = (*drawn[:i], y)
                    law[tokens] = law.get(tokens, ZERO) + (alive - passed) * mass
            alive = passed
    return law


def _node(q: Law, k: int, verdict: Callable[[Drawn], Verdict], scheme: Drafts = "iid") -> NodeLaw:
    joint: NodeLaw = {}
    for drawn, chance in tuple_law(q, k, scheme).items():
        for (y, accepted), mass in verdict(drawn).items():
            joint[drawn, y, accepted] = chance * mass
    return joint


def _either(x: int, chance: Fraction, otherwise: Law) -> Verdict:
    """x with `chance`, else a token from `otherwise`."""
    result: Verdict = {(x, True): chance}
    for y, mass in enumerate(otherwise):
        result[y, False] = (1 - chance) * mass
    return result


def _stale(p: Law, q: Law, drawn: Drawn, *, keep: bool) -> Verdict:
    if keep:
        return token_verdict(p, q, drawn)
    return {(y, False): mass for y, mass in enumerate(p)}
