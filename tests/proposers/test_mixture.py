"""The mixture of a context's law with those of shorter ones, against its formula."""

import numpy as np
import pytest
from numba import njit

from proposers.context_keys import SALT, context_keys
from proposers.mixture import LEAST, mix
from proposers.table import ENTRIES, StandTable, find_or_claim, longest_match

V = 40
TEXT = np.array([7, 3, 5, 2, 9], np.int32)


@njit
def _keys(order):  # type: ignore[no-untyped-def]
    keys = np.empty(order, np.uint64)
    context_keys(TEXT, 0, TEXT.shape[0], order, keys, SALT)
    return keys


@njit
def _claim(table, key):  # type: ignore[no-untyped-def]
    return find_or_claim(table, key)


@njit
def _mixed(table, keys, strength, ids, law):  # type: ignore[no-untyped-def]
    slot, matched = longest_match(table, keys, keys.shape[0])
    return mix(table, keys, slot, matched, strength, ids, law)


def filled(rng: np.random.Generator, sizes: list[int]) -> tuple[StandTable, list[int]]:
    """Contexts of 1, 2, .. tokens with random laws over few tokens; size 0: not in the table."""
    table = StandTable(order=len(sizes), budget_bytes=2**16)
    slots = []
    for key, size in zip(_keys(len(sizes)), sizes, strict=True):
        slots.append(_claim(table.arrays, key) if size else -1)
        if size:
            law = np.sort(rng.dirichlet(np.ones(size)) * rng.uniform(0.5, 1))[::-1]
            table.arrays.ids[slots[-1], :size] = rng.permutation(14)[:size]
            table.arrays.probabilities[slots[-1], :size] = law
            table.arrays.counts[slots[-1]] = rng.uniform(0.5, 4)
    return table, slots


@pytest.mark.parametrize(
    "sizes", [[10], [10, 10], [3, 4, 1, 2], [1, 0, 5], [0, 4], [10, 0, 0, 10], [1, 1, 1, 1, 1]]
)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 5.0])
def test_it_is_the_formula_most_probable_first(sizes: list[int], strength: float) -> None:
    rng = np.random.default_rng(sum(sizes) + int(10 * strength))
    for _ in range(30):
        table, slots = filled(rng, sizes)
        arrays = table.arrays
        ids, law = np.full(2 * ENTRIES, 99, np.int32), np.zeros(2 * ENTRIES)
        n = _mixed(arrays, _keys(len(sizes)), strength, ids, law)
        wanted, rest = np.zeros(V), 1.0
        known = [slot for slot in reversed(slots) if slot >= 0]
        for slot in known:
            c = float(arrays.counts[slot])
            share = 1.0 if slot == known[-1] else c / (c + strength)
            held = arrays.ids[slot] >= 0
            wanted[arrays.ids[slot][held]] += rest * share * arrays.probabilities[slot][held]
            rest *= 1 - share
            if rest < LEAST:
                break
        got = np.zeros(V)
        got[ids[:n]] = law[:n]
        assert n == np.count_nonzero(wanted) == len(set(ids[:n].tolist()))
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        assert (np.diff(law[:n]) <= 0).all()
        assert (ids[n:] == -1).all()


def test_what_does_not_fit_is_the_least_probable() -> None:
    rng = np.random.default_rng(4)
    table, _ = filled(rng, [10, 10, 10])
    whole = np.full(V, -1, np.int32), np.zeros(V)
    cut = np.full(5, -1, np.int32), np.zeros(5)
    n = _mixed(table.arrays, _keys(3), 1.0, *whole)
    assert n > 5
    assert _mixed(table.arrays, _keys(3), 1.0, *cut) == 5
    assert cut[1].min() >= 0.8 * whole[1][4]  # a token may come in twice, and lose its first share
