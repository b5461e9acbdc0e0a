"""The laws of candidate sets: which tokens a drafting scheme offers at one node, in any arithmetic.

Works on floats and on fractions.Fraction alike, by enumeration; for small vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations_with_replacement, product
from math import comb
from typing import TypeVar

import numpy as np

from theory.laws import Ints
from theory.optimum import Drafts

Number = TypeVar("Number", float, Fraction)
MAX_TUPLES = 2_000_000
"""Largest number of candidate tuples that are enumerated."""


def top_ranked(q: Sequence[Number], count: int) -> tuple[int, ...]:
    """The `count` most probable tokens, most probable first; ties go to the lower index."""
    return tuple(sorted(range(len(q)), key=lambda i: (-q[i], i))[:count])


def tuple_law(q: Sequence[Number], k: int, drafts: Drafts) -> dict[tuple[int, ...], Number]:
    """P(candidates offered in this order), for tuples of positive probability.

    q: probabilities of one token each, floats or Fractions. Raises ValueError when V^k is above
    `MAX_TUPLES` or the scheme has no k different tokens to offer.
    """
    support = [i for i, mass in enumerate(q) if mass > 0]
    if drafts != "iid" and len(support) < k:
        raise ValueError(f"k = {k} different candidates need a support of k; q has {len(support)}")
    if drafts == "top_plus_one":
        top: tuple[int, ...] = top_ranked(q, k - 1)
        rest = [i for i in support if i not in top]
        mass = sum(q[i] for i in rest)
        return {(*top, i): q[i] / mass for i in rest}
    if len(support) ** k > MAX_TUPLES:
        raise ValueError(
            f"{len(support)}^{k} candidate tuples are above {MAX_TUPLES}: use a smaller vocabulary"
        )
    law: dict[tuple[int, ...], Number] = {}
    for drawn in product(support, repeat=k):
        if drafts == "without_replacement" and len(set(drawn)) < k:
            continue
        chance, left = q[drawn[0]], [i for i in support if i != drawn[0]]
        for token in drawn[1:]:
            # the masses that are left are summed, not subtracted: no cancellation for tiny ones
            whole = sum(q[i] for i in left) if drafts == "without_replacement" else 1
            chance = chance * (q[token] / whole)  # in this order: denormal masses survive
            left = [i for i in left if i != token]
        law[drawn] = chance
    return law


def set_law(q: Sequence[Number], k: int, drafts: Drafts) -> dict[tuple[int, ...], Number]:
    """P(the set of candidates is this one), keyed by the sorted different tokens."""
    law: dict[tuple[int, ...], Number] = {}
    found = _multiset_law(q, k) if drafts == "iid" else tuple_law(q, k, drafts).items()
    for drawn, chance in found:
        key = tuple(sorted(set(drawn)))
        law[key] = law[key] + chance if key in law else chance
    return law


def _multiset_law(q: Sequence[Number], k: int) -> Iterator[tuple[tuple[int, ...], Number]]:
    """Multisets of k iid draws: multinomial probabilities, k! times fewer than the tuples."""
    support = [i for i, mass in enumerate(q) if mass > 0]
    if comb(len(support) + k - 1, k) > MAX_TUPLES:
        raise ValueError(
            f"{k} draws from {len(support)} tokens have more than {MAX_TUPLES} outcomes: use a "
            "smaller vocabulary or k"
        )
    for drawn in combinations_with_replacement(support, k):
        chance, run = q[drawn[0]], 1
        for place in range(1, k):  # multinomial coefficient times masses, one draw at a time
            run = run + 1 if drawn[place] == drawn[place - 1] else 1
            chance = chance * q[drawn[place]] * (place + 1) / run
        yield drawn, chance


def incidence(sets: Sequence[tuple[int, ...]]) -> tuple[Ints, Ints]:
    """Token and set of every edge (token i, set t containing i), as two int arrays."""
    tokens = [i for members in sets for i in members]
    owners = [t for t, members in enumerate(sets) for _ in members]
    return np.array(tokens, dtype=np.int64), np.array(owners, dtype=np.int64)
