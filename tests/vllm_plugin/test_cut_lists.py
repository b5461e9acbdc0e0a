"""Lists of drafts that the engine cuts by their length, which depends on the tokens: the law is p.

A toy engine by exact enumeration. How many drafts of a list it evaluates depends on the list's
length, and a chain ends behind token 0. What is judged and what is carried over is decided by the
plugin's own PendingDraft, PendingPaths, PathRequest and adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from fractions import Fraction as F
from functools import cache
from itertools import permutations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from theory.exact import (
    kseq_rho,
    kseq_verdict,
    match_verdict,
    residual,
    rrs_verdict,
    rrs_without_replacement_verdict,
    top_plus_one_verdict,
)
from theory.exact_sequences import block_constants
from vllm_plugin.adapter_v1 import V1Adapter
from vllm_plugin.path_adapter import PathAdapter
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.path_verifier import PathRequest
from vllm_plugin.pending import NO_DRAFTS, Chain, PendingDraft

# Markov laws by the last token; the last row is the start.
V, K, HORIZON = 3, 3, 4
P = [
    (F(1, 2), F(3, 10), F(1, 5)),
    (F(1, 8), F(5, 8), F(1, 4)),
    (F(1, 3), F(1, 6), F(1, 2)),
    (F(3, 5), F(3, 10), F(1, 10)),
]
Q = [
    (F(1, 10), F(1, 5), F(7, 10)),
    (F(1, 2), F(1, 5), F(3, 10)),
    (F(1, 8), F(1, 4), F(5, 8)),
    (F(3, 10), F(1, 5), F(1, 2)),
]
Text = tuple[int, ...]
Law = dict[Text, float]


def tokens(*given: int) -> NDArray[np.int32]:
    return np.array(given, np.int32)


def target(text: Text) -> tuple[F, ...]:
    return P[text[-1] if text else V]


def draft(text: Text) -> tuple[F, ...]:
    return Q[text[-1] if text else V]


def drawn_chains(text: Text) -> Iterator[tuple[Text, float]]:
    """Chains of up to K drafts, which end behind token 0."""
    going: list[tuple[Text, float]] = [((), 1.0)]
    while going:
        chain, chance = going.pop()
        if len(chain) == K or (chain and chain[-1] == 0):
            yield chain, chance
        else:
            law = draft(text + chain)
            going += [((*chain, x), chance * float(law[x])) for x in range(V)]


def preempted(length: int) -> int:
    """A long list needs a block too many: the request is preempted, and comes back without it."""
    return 0 if length >= K else length


def short_of_tokens(length: int) -> int:
    """The step's token budget is used up."""
    return min(length, 1)


def completed(found: Law) -> float:
    """Total variation between the law of the first HORIZON tokens and that of the target."""
    exact: Law = {(): 1.0}
    for _ in range(HORIZON):
        exact = {
            (*text, y): mass * float(target(text)[y])
            for text, mass in exact.items()
            for y in range(V)
        }
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    return sum(abs(found.get(text, 0.0) - mass) for text, mass in exact.items()) / 2


def joined(parts: list[tuple[Text, float, Law]]) -> Law:
    law: Law = {}
    for emitted, mass, after in parts:
        for more, chance in after.items():
            text = emitted + more
            law[text] = law.get(text, 0.0) + mass * chance
    return law


def settled(kind: type[V1Adapter], request: Any, emitted: Text) -> Any:
    """What the plugin's adapter keeps of a request's drafts when it has emitted these tokens."""
    rows = SimpleNamespace(commit=lambda emitted: None)
    runner = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a"]))
    adapter: Any = SimpleNamespace(left_over={}, runner=runner, rows=rows)
    kind.settle(adapter, [request], [tokens(*emitted)])
    return adapter.left_over.get("a")


# One chain.
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
    assert completed(chain_law(rule, cut)) < 1e-12


@pytest.mark.parametrize(("mutant", "distance"), [("drop", 0.004), ("sample", 0.004)])
def test_drafts_that_are_forgotten_bend_the_law(mutant: str, distance: float) -> None:
    assert completed(chain_law("token", preempted, mutant)) > distance


def test_the_block_rule_asks_for_more_than_nothing_forgotten() -> None:
    """It weighs a draft by those behind it, so a cut must not look at what it cuts off."""
    assert completed(chain_law("block", preempted)) > 0.04


# Several paths, judged node by node along PathRequest's walk.
NodeVerdict = Callable[[tuple[F, ...], tuple[F, ...], Text], dict[tuple[int, bool], F]]
rho_of = cache(kseq_rho)  # not the smallest rho: what was refused can then be emitted all the same
NODE_VERDICTS: dict[str, NodeVerdict] = {
    "kseq": lambda p, q, drawn: kseq_verdict(p, q, drawn, rho_of(p, q, len(drawn))),
    "rrs": rrs_verdict,
    "rrs_without_replacement": rrs_without_replacement_verdict,
    "top_plus_one": top_plus_one_verdict,
    "match": match_verdict,
}
SENT = 2  # paths of a request


@cache
def node_verdict(
    rule: str, p: tuple[F, ...], q: tuple[F, ...], drawn: Text
) -> dict[tuple[int, bool], F]:
    return NODE_VERDICTS[rule](p, q, drawn)


def candidates_of(scheme: str, law: tuple[F, ...]) -> list[tuple[Text, float]]:
    """Both candidates of a node in draw order, with the chance of that order."""
    if scheme == "without_replacement":
        return [
            ((x, y), float(law[x] * law[y] / (1 - law[x]))) for x, y in permutations(range(V), 2)
        ]
    assert scheme == "top_plus_one"
    top = max(range(V), key=lambda x: law[x])
    return [((top, x), float(law[x] / (1 - law[top]))) for x in range(V) if x != top]


def drawn_paths(scheme: str, text: Text) -> Iterator[tuple[tuple[Text, ...], float]]:
    """Two iid chains, or two children of the root with a chain behind each."""
    if scheme == "iid":
        for pair in product(list(drawn_chains(text)), repeat=SENT):
            yield tuple(chain for chain, _ in pair), pair[0][1] * pair[1][1]
        return
    for roots, chance in candidates_of(scheme, draft(text)):
        behind = []
        for x in roots:
            chains = [c for c in drawn_chains(text) if c[0][0] == x]
            whole = sum(mass for _, mass in chains)
            behind.append([(chain, mass / whole) for chain, mass in chains])
        for one, two in product(*behind):
            yield (one[0], two[0]), chance * one[1] * two[1]


def lost_lanes(paths: PendingPaths) -> tuple[PendingPaths, int]:
    """Its lanes or its blocks were taken back because the list is long: only the root is left."""
    inputs = len(paths.flat(0)) + 1
    return paths, 1 if inputs > 5 else inputs


def few_lanes(paths: PendingPaths) -> tuple[PendingPaths, int]:
    """Scratch blocks for a short path only."""
    needed = [int(n) for n in paths.lengths[paths.sent[1:]]]
    paths = paths.limited(1 if any(n > 2 for n in needed) else SENT)
    return paths, len(paths.flat(0)) + 1


def few_tokens(paths: PendingPaths) -> tuple[PendingPaths, int]:
    """The token budget ends within the list."""
    return paths, min(len(paths.flat(0)), 3) + 1


def path_law(rule: str, scheme: str, cut: Any, mutant: str = "") -> Law:
    """As chain_law for two paths; "rejected" carries drafts on behind a token that was refused."""

    @cache
    def fresh(state: Text, left: int) -> Law:
        parts = [
            ((), chance, judged(state, paths, left)) for paths, chance in drawn_paths(scheme, state)
        ]
        return joined(parts)

    @cache
    def judged(state: Text, paths: tuple[Text, ...], left: int) -> Law:
        held = np.full((len(paths), max(map(len, paths))), -1, np.int32)
        laws = np.zeros((*held.shape, V))
        for j, path in enumerate(paths):
            held[j, : len(path)] = path
            for i in range(len(path)):
                laws[j, i] = np.array(draft(state + path[:i]), np.float64)
        ids = np.broadcast_to(np.arange(V, dtype=np.int32), laws.shape)
        lengths = np.array([len(path) for path in paths])
        waiting, inputs = cut(PendingPaths.of(0, held, lengths, ids, laws, most=SENT))
        whole = inputs == len(waiting.flat(0)) + 1 and len(waiting.sent) == len(
            PendingPaths.of(0, held, lengths, ids, laws, most=SENT).sent
        )
        request = asked(waiting, inputs)
        if mutant == "sample" and not whole:
            request = replace(request, lengths=np.zeros_like(lengths))
        if mutant == "unsent":  # paths that are not in the list are no candidates
            kept = np.where(np.isin(np.arange(len(paths)), waiting.sent), lengths, 0)
            request = replace(request, lengths=kept)
        parts = []
        for ended, mass in walked(state, rule, request):
            emitted = tuple(ended.emitted)
            rest = None if mutant == "drop" else settled(PathAdapter, ended, emitted)
            if mutant == "rejected":
                rest = waiting.left_over(tokens(*emitted), inputs)
            after: Law = {(): 1.0}
            if len(emitted) < left:
                end = (*state, *emitted)[-1:]
                more = left - len(emitted)
                after = fresh(end, more) if rest is None else judged(end, rows_of(rest), more)
            parts.append((emitted[:left], mass, after))
        return joined(parts)

    return fresh((), HORIZON)


def asked(waiting: PendingPaths, inputs: int) -> PathRequest:
    return PathRequest(
        index=0, text_length=0, first_row=0, key=0, discarded=False, tokens=waiting.tokens,
        lengths=waiting.lengths, law_ids=waiting.law_ids, laws=waiting.laws,
        rows=waiting.rows(inputs), pending=waiting, inputs=inputs,
    )  # fmt: skip


def rows_of(paths: PendingPaths) -> tuple[Text, ...]:
    return tuple(
        tuple(row[:n].tolist()) for row, n in zip(paths.tokens, paths.lengths, strict=True)
    )


def walked(state: Text, rule: str, request: PathRequest) -> Iterator[tuple[PathRequest, float]]:
    """Every way that a request's walk can go, with its chance."""
    going = [(request, 1.0)]
    while going:
        now, mass = going.pop()
        if not now.going:
            yield now, mass
            continue
        depth, text = len(now.emitted), (*state, *now.emitted)
        offered = now.tokens[now.candidates(), depth].tolist() if now.candidates().size else []
        if rule not in ("kseq", "rrs"):
            offered = list(dict.fromkeys(offered))
        if offered:
            verdict = node_verdict(rule, target(text), draft(text), tuple(offered))
        else:
            verdict = {(y, False): p for y, p in enumerate(target(text))}
        for (y, accepted), chance in verdict.items():
            if chance:
                following = copy(now)
                following.emitted, following.alive = now.emitted.copy(), now.alive.copy()
                following.take(y, accepted)
                going.append((following, mass * float(chance)))


CUTS = {"lanes lost": lost_lanes, "few lanes": few_lanes, "few tokens": few_tokens}
PAIRS = {
    "kseq": "iid",
    "rrs": "iid",
    "rrs_without_replacement": "without_replacement",
    "top_plus_one": "top_plus_one",
    "match": "without_replacement",
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("rule", PAIRS)
def test_paths_that_were_cut_keep_the_law(rule: str, cut: str) -> None:
    assert completed(path_law(rule, PAIRS[rule], CUTS[cut])) < 1e-12


@pytest.mark.parametrize(
    ("mutant", "rule", "cut", "distance"),
    [
        ("drop", "kseq", "lanes lost", 0.02),
        ("drop", "rrs_without_replacement", "lanes lost", 0.02),
        ("drop", "top_plus_one", "few lanes", 0.02),
        ("sample", "kseq", "few lanes", 0.02),
        ("sample", "kseq", "lanes lost", 0.02),
        ("sample", "top_plus_one", "lanes lost", 0.02),
        ("unsent", "kseq", "few lanes", 0.01),
        ("unsent", "rrs_without_replacement", "few lanes", 0.01),
        ("rejected", "kseq", "lanes lost", 1e-7),
        ("rejected", "kseq", "few lanes", 1e-7),
    ],
)
def test_paths_that_are_forgotten_or_kept_too_long_bend_the_law(
    mutant: str, rule: str, cut: str, distance: float
) -> None:
    assert completed(path_law(rule, PAIRS[rule], CUTS[cut], mutant)) > distance
