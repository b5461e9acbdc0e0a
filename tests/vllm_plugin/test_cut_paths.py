"""Several paths in an engine that cuts their list by its length: exactly p, node by node.

What is judged, where a walk goes and what is left over is decided by the plugin's own PendingPaths,
PathRequest and PathAdapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from fractions import Fraction as F
from functools import cache
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from tests.vllm_plugin.cut_engine import (
    HORIZON,
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
from theory.exact import (
    kseq_rho,
    kseq_verdict,
    match_verdict,
    rrs_verdict,
    rrs_without_replacement_verdict,
    top_plus_one_verdict,
)
from vllm_plugin.path_adapter import PathAdapter
from vllm_plugin.path_drafts import PendingPaths
from vllm_plugin.path_verifier import PathRequest

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
    assert total_variation(path_law(rule, PAIRS[rule], CUTS[cut])) < 1e-12


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
    assert total_variation(path_law(rule, PAIRS[rule], CUTS[cut], mutant)) > distance
