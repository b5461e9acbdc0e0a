"""The mixture of a context's law with the next shorter one's, against its formula."""

import numpy as np
import pytest
from numba import njit

from proposers.mixture import mix
from proposers.table import ENTRIES, StandTable


@njit
def mixed(table, longer, shorter, strength, ids, law):  # type: ignore[no-untyped-def]
    return mix(table, longer, shorter, strength, ids, law)


def filled(rng: np.random.Generator, sizes: tuple[int, int]) -> StandTable:
    """A table whose slots 0 and 1 hold random laws over few tokens, so that they share some."""
    table = StandTable(order=1, budget_bytes=2**16)
    for slot, size in enumerate(sizes):
        law = np.sort(rng.dirichlet(np.ones(size)) * rng.uniform(0.5, 1))[::-1]
        table.arrays.ids[slot, :size] = rng.permutation(14)[:size]
        table.arrays.probabilities[slot, :size] = law
        table.arrays.counts[slot] = rng.uniform(0.5, 4)
    return table


@pytest.mark.parametrize("sizes", [(ENTRIES, ENTRIES), (1, ENTRIES), (ENTRIES, 1), (3, 4), (1, 1)])
@pytest.mark.parametrize("strength", [0.3, 1.0, 5.0])
def test_it_is_the_weighted_mean_most_probable_first(
    sizes: tuple[int, int], strength: float
) -> None:
    rng = np.random.default_rng(sum(sizes) + int(10 * strength))
    for _ in range(50):
        table = filled(rng, sizes).arrays
        ids, law = np.full(2 * ENTRIES, 99, np.int32), np.zeros(2 * ENTRIES)
        n = mixed(table, 0, 1, strength, ids, law)
        c = float(table.counts[0])
        wanted = np.zeros(14)
        for slot, weight in ((0, c / (c + strength)), (1, strength / (c + strength))):
            held = table.ids[slot] >= 0
            wanted[table.ids[slot][held]] += weight * table.probabilities[slot][held]
        got = np.zeros(14)
        got[ids[:n]] = law[:n]
        assert n == np.count_nonzero(wanted) == len(set(ids[:n].tolist()))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        assert (np.diff(law[:n]) <= 0).all()
        assert (ids[n:] == -1).all()


@pytest.mark.parametrize(("shorter", "strength"), [(-1, 1.0), (1, 0.0)])
def test_without_a_shorter_context_or_strength_it_is_the_law_itself(
    shorter: int, strength: float
) -> None:
    table = filled(np.random.default_rng(3), (4, 6)).arrays
    ids, law = np.full(2 * ENTRIES, 99, np.int32), np.zeros(2 * ENTRIES)
    assert mixed(table, 0, shorter, strength, ids, law) == 4
    assert ids[:4].tolist() == table.ids[0, :4].tolist()
    np.testing.assert_array_equal(law[:4], table.probabilities[0, :4])
