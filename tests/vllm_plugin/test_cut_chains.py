"""One chain in an engine that cuts it off by its length: exactly p, unless a draft is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction as F
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from tests.vllm_plugin.cut_engine import (
    HORIZON,
    K,
    Law,
    Text,
    V,
    draft,
    drawn_chains,
    joined,
    settled,
    target,
    tokens,
    total_variation,
)
from theory.exact import residual
from theory.exact_sequences import block_constants
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.pending import NO_DRAFTS, Chain, PendingDraft


def preempted(length: int) -> int:
    """A long list needs a block too many: the request is preempted, and comes back without it."""
    return 0 if length >= K else length


def short_of_tokens(length: int) -> int:
    """The step's token budget is used up."""
    return min(length, 1)


def token_verdict(text: Text, chain: Chain) -> Iterator[tuple[Text, float]]:
    kept, mass = [], 1.0
    for x in chain.tokens.tolist():
        p, q = target((*text, *kept)), draft((*text, *kept))
        chance = float(min(F(1), p[x] / q[x]))
        if chance < 1:
            for y, other in enumerate(residual(p, q)):
                yield (*kept, y), mass * (1 - chance) * float(other)
        kept.append(x)
        mass *= chance
    yield from last((*text, *kept), tuple(kept), mass, chain)


def block_verdict(text: Text, chain: Chain) -> Iterator[tuple[Text, float]]:
    drafts = tuple(chain.tokens.tolist())
    _, keep, corrections = block_constants(
        lambda more: target(text + more), lambda more: draft(text + more), drafts
    )
    alive = F(1)
    for i in range(len(drafts), -1, -1):
        kept = alive * keep[i]
        alive -= kept
        if i == len(drafts):
            yield from last(text + drafts, drafts, float(kept), chain)
        elif kept:
            for y, mass in enumerate(corrections[i]):
                yield (*drafts[:i], y), float(kept * mass)


def last(text: Text, kept: Text, mass: float, chain: Chain) -> Iterator[tuple[Text, float]]:
    if not chain.has_bonus:
        yield kept, mass
        return
    for y, chance in enumerate(target(text)):
        yield (*kept, y), mass * float(chance)


Verdict = Callable[[Text, Chain], Iterator[tuple[Text, float]]]
CHAIN_VERDICTS: dict[str, Verdict] = {"token": token_verdict, "block": block_verdict}


def chain_law(rule: str, cut: Callable[[int], int], mutant: str = "") -> Law:
    """Law of the first tokens when lists are cut; mutants "drop" and "sample" forget drafts."""

    @cache
    def fresh(state: Text, left: int) -> Law:
        parts = [((), chance, judged(state, chain, left)) for chain, chance in drawn_chains(state)]
        return joined(parts)

    @cache
    def judged(state: Text, drafts: Text, left: int) -> Law:
        held = tokens(*drafts)
        law = np.array([draft(state + drafts[:i]) for i in range(len(drafts))], np.float64)
        ids = np.broadcast_to(np.arange(V, dtype=np.int32), law.shape)
        waiting = PendingDraft(0, held, ids, law)
        evaluated = cut(len(drafts))
        chain = waiting.chain(held[:evaluated])
        assert chain is not None
        if mutant == "sample" and not evaluated:
            chain = NO_DRAFTS
        request = SimpleNamespace(index=0, pending=waiting, chain=chain)
        parts = []
        for emitted, mass in CHAIN_VERDICTS[rule](state, chain):
            if not mass:
                continue
            rest = None if mutant == "drop" else settled(V1Adapter, request, emitted)
            now = emitted[:left]
            after: Law = {(): 1.0}
            if len(emitted) < left:
                end = (*state, *emitted)[-1:]
                more = left - len(emitted)
                after = fresh(end, more) if rest is None else judged(end, tuple(rest.flat()), more)
            parts.append((now, mass, after))
        return joined(parts)

    return fresh((), HORIZON)


@pytest.mark.parametrize(
    ("rule", "cut"), [("token", preempted), ("token", short_of_tokens), ("block", short_of_tokens)]
)
def test_a_chain_that_was_cut_keeps_the_law(rule: str, cut: Callable[[int], int]) -> None:
    assert total_variation(chain_law(rule, cut)) < 1e-12


@pytest.mark.parametrize(("mutant", "distance"), [("drop", 0.004), ("sample", 0.004)])
def test_drafts_that_are_forgotten_bend_the_law(mutant: str, distance: float) -> None:
    assert total_variation(chain_law("token", preempted, mutant)) > distance


def test_the_block_rule_asks_for_more_than_nothing_forgotten() -> None:
    """It weighs a draft by those behind it, so a cut must not look at what it cuts off."""
    assert total_variation(chain_law("block", preempted)) > 0.04
