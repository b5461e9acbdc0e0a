"""Joint laws of whole emitted sequences in fractions.Fraction, for node rules and the block rule.

A model is a function from the tokens so far to the law of the next one. Losslessness is a statement
about sequences: what a step emits, continued by the target itself, must be the target's own law of
the first L tokens (`completed`), jointly and exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import product

from theory.acceptance import Rule
from theory.exact import ONE, ZERO, Law, NodeLaw, node_law, residual

Tokens = tuple[int, ...]
Model = Callable[[Tokens], Law]
SequenceLaw = dict[Tokens, Fraction]
Node = Callable[[Law, Law, int], NodeLaw]


def target_law(target: Model, length: int) -> SequenceLaw:
    """Law of the first `length` tokens of the target."""
    return completed({(): ONE}, target, length)


def completed(emitted: Mapping[Tokens, Fraction], target: Model, length: int) -> SequenceLaw:
    """Law of the first `length` tokens when emitted sequences are continued by the target."""
    law: SequenceLaw = {}
    for tokens, mass in emitted.items():
        if len(tokens) >= length:
            _add(law, tokens[:length], mass)
            continue
        grown = {(*tokens, y): mass * chance for y, chance in enumerate(target(tokens)) if chance}
        for more, chance in completed(grown, target, length).items():
            _add(law, more, chance)
    return law


def expected_tokens(emitted: Mapping[Tokens, Fraction]) -> Fraction:
    """Block efficiency: mean length of what one step emits."""
    return sum((len(tokens) * mass for tokens, mass in emitted.items()), ZERO)


def emitted_law(
    target: Model,
    draft: Model,
    length: int,
    k: int,
    *,
    rule: Rule | Node,
    candidates: str = "tree",
) -> SequenceLaw:
    """Law of the tokens of one step with draft length `length` and k candidates at a node.

    candidates = "tree": k fresh candidates at every depth. "paths": k independent draft sequences
    (iid rules only); those that begin with what was emitted survive and the rule is applied to them
    with constants for the number that survived (SpecTr, arXiv 2310.15141, section 4). The step ends
    with the first refusal, or with one bonus token from the target. `rule` may also be a function
    (p, q, k) -> node law: the wrong verifiers are tested through this.
    """
    node: Node = rule if callable(rule) else lambda p, q, n: node_law(p, q, n, rule=rule)
    if candidates not in ("tree", "paths"):
        raise ValueError(f"candidates must be 'tree' or 'paths'; got {candidates!r}")
    if candidates == "paths" and rule not in ("token", "match", "kseq", "rrs"):
        raise ValueError(f"independent paths need a rule for iid candidates; got {rule!r}")

    def step(prefix: Tokens, depth: int, offers: int) -> SequenceLaw:
        p = target(prefix)
        if depth == length:
            return {(y,): mass for y, mass in enumerate(p) if mass}
        groups: dict[tuple[int, bool, int], Fraction] = {}
        for (drawn, y, accepted), mass in node(p, draft(prefix), offers).items():
            alive = drawn.count(y) if candidates == "paths" else offers
            key = (y, accepted, alive if accepted else 0)
            groups[key] = groups.get(key, ZERO) + mass
        law: SequenceLaw = {}
        for (y, accepted, alive), mass in groups.items():
            after = step((*prefix, y), depth + 1, alive) if accepted else {(): ONE}
            for rest, chance in after.items():
                _add(law, (y, *rest), mass * chance)
        return law

    return step((), 0, k)


def block_emitted_law(target: Model, draft: Model, length: int) -> SequenceLaw:
    """Law of the tokens of one step of block verification (Sun et al. 2024, arXiv 2403.10444).

    r_0 = 1, r_i = min(1, r_{i-1} p(x_i)/q(x_i)); Z_i = sum (r_i p - q)+ with the laws after x_i;
    h_i = Z_i/(Z_i + 1 - r_i) for i < K, h_K = r_K; keep the largest i with u_i <= h_i, then emit
    one token from norm((r_i p - q)+), or from p at i = K.
    """
    law: SequenceLaw = {}
    for drawn, chance in _drafted(target, draft, length):
        _, keep, corrections = block_constants(target, draft, drawn)
        alive = chance
        for i in range(length, -1, -1):
            kept = alive * keep[i]
            alive -= kept
            for y, mass in enumerate(corrections[i]):
                if kept * mass:
                    _add(law, (*drawn[:i], y), kept * mass)
    return law


def block_constants(
    target: Model, draft: Model, drawn: Tokens
) -> tuple[list[Fraction], list[Fraction], list[Law]]:
    """r_i, h_i and the correction law after each prefix of `drawn`, i = 0..K; h_0 = 1."""
    length = len(drawn)
    ratios, keep, corrections = [ONE], [], []
    for i in range(length + 1):
        p = target(drawn[:i])
        if i < length:
            q = draft(drawn[:i])
            scaled = [ratios[i] * mass for mass in p]
            excess = sum((max(a - b, ZERO) for a, b in zip(scaled, q, strict=True)), ZERO)
            # 0/0 only if r_i = 1 and p = q: nothing has to be corrected here
            whole = excess + 1 - ratios[i]
            keep.append(ONE if i == 0 else excess / whole if whole else ZERO)
            corrections.append(residual(scaled, q))
            ratios.append(min(ONE, ratios[i] * p[drawn[i]] / q[drawn[i]]))
        else:
            keep.append(ratios[i])
            corrections.append(p)
    return ratios, keep, corrections


def _drafted(target: Model, draft: Model, length: int) -> list[tuple[Tokens, Fraction]]:
    """Every drafted sequence with its probability."""
    size = len(target(()))
    law = []
    for drawn in product(range(size), repeat=length):
        chance = ONE
        for i, x in enumerate(drawn):
            chance *= draft(drawn[:i])[x]
            if not chance:
                break
        if chance:
            law.append((drawn, chance))
    return law


def _add(law: SequenceLaw, tokens: Tokens, mass: Fraction) -> None:
    law[tokens] = law.get(tokens, ZERO) + mass
