"""The curve: linear algebra against dense solvers, pooling against scipy's isotonic regression."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy.optimize import isotonic_regression

from proposers.length import rising_curve
from proposers.length.rising_curve import FIRST_SPREAD, RECENT
from proposers.length.step_times_file import KNOTS, SUMS


@njit
def solve(a, b, c, y):
    rising_curve._solve_bands(a, b, c, y)


@njit
def rising(y, weights):
    rising_curve._rising(y, weights)


@njit
def value(knots, curve, n):
    return rising_curve.value(knots, curve, n)


@given(st.integers(0, 2**32 - 1), st.integers(3, 30))
def test_bands_are_solved_as_a_dense_matrix_is(seed, m):
    rng = np.random.default_rng(seed)
    factor = np.tril(np.triu(rng.normal(size=(m, m)), -2))
    matrix, right = factor @ factor.T + 0.1 * np.eye(m), rng.normal(size=m)
    bands = [np.append(np.diagonal(matrix, k), np.zeros(k)) for k in range(3)]
    got = right.copy()
    solve(*bands, got)
    np.testing.assert_allclose(matrix @ got, right, atol=1e-6 * np.linalg.cond(matrix))


values = st.lists(st.floats(-5, 5), min_size=2, max_size=30)


@given(values, st.integers(0, 2**32 - 1))
def test_pooling_is_isotonic_regression(given_values, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 10, len(given_values))
    got = np.array(given_values)
    rising(got, weights)
    expected = isotonic_regression(given_values, weights=weights).x
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_a_value_is_interpolated_and_the_last_line_goes_on():
    curve = np.sqrt(KNOTS)
    for n in (1, 1.5, 4, 5, 95, 6143, 6144):
        assert value(KNOTS, curve, float(n))[0] == pytest.approx(np.interp(n, KNOTS, curve))
    slope = (curve[-1] - curve[-2]) / (KNOTS[-1] - KNOTS[-2])
    assert value(KNOTS, curve, 7000.0)[0] == pytest.approx(curve[-1] + 856 * slope)


def test_the_fit_minimises_what_is_written():
    """Against scipy's dense least squares on rows that are written out one by one."""
    rng = np.random.default_rng(0)
    n, t = rng.choice(np.arange(1, 100), 60), rng.uniform(1, 2, 60)
    t = np.sort(t)[np.argsort(np.argsort(n))]  # rising, so that pooling changes nothing
    curve, level = 1.0 + 0.01 * KNOTS, 1.3
    sums, spreads = np.zeros((KNOTS.size - 1, SUMS)), np.full(KNOTS.size - 1, 10.0)
    for one in zip(n, t, strict=True):
        rising_curve.add(KNOTS, curve, sums, spreads, 1e9, *map(float, one))
    m, rows, right = KNOTS.size, [], []

    def row(weight, target, *entries):
        line = np.zeros(m)
        for place, factor in entries:
            line[place] += factor
        rows.append(np.sqrt(weight) * line)
        right.append(np.sqrt(weight) * target)

    for back, (one, time) in enumerate(zip(n[::-1], t[::-1], strict=True)):
        i = np.searchsorted(KNOTS, one, side="right") - 1
        u = (one - KNOTS[i]) / (KNOTS[i + 1] - KNOTS[i])
        row(rising_curve._FORGET_ALL**back, time, (i, 1 - u), (i + 1, u))
    gaps = np.diff(KNOTS)
    for i, gap in enumerate(gaps):
        target = rising_curve.PRIOR_SLOPE * level * gap
        row(rising_curve._PULL, target, (i, -1.0), (i + 1, 1.0))
    for i in range(1, m - 1):  # how far the line through the two before misses the next one
        r = gaps[i - 1] / gaps[i]
        row(rising_curve._BEND, 0.0, (i - 1, 1.0), (i, -1.0 - r), (i + 1, r))
    row(rising_curve._HOLD, level, (0, 1.0))
    expected = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    rising_curve.fit(KNOTS, sums, level, curve)
    if np.diff(expected).min() > 0:
        np.testing.assert_allclose(curve, expected, rtol=1e-6)
    else:
        pytest.fail("the example is to be one without pooling")


def test_a_change_of_scale_moves_everything_at_once():
    curve = 1.0 + 0.1 * KNOTS
    before = curve.copy()
    sums = np.zeros((KNOTS.size - 1, SUMS))
    spreads = np.full(KNOTS.size - 1, 0.02)
    sums[:, 0] = 20.0
    sums[:, 3] = 20.0 * curve[:-1]
    recent = np.zeros(RECENT + 1)
    for point in range(RECENT):
        n = float(KNOTS[point % 4])
        np.testing.assert_array_equal(curve, before)
        t = 3.0 * value(KNOTS, before, n)[0]
        rising_curve.rescale(KNOTS, curve, sums, spreads, recent, n, t)
    np.testing.assert_allclose(curve, 3 * before)
    np.testing.assert_allclose(sums[:, 3], 60.0 * before[:-1])
    np.testing.assert_allclose(sums[:, 0], 20.0)


@pytest.mark.parametrize("slow", [7, 5])
def test_less_than_half_of_the_points_change_no_scale(slow):
    curve = 1.0 + 0.1 * KNOTS
    before = curve.copy()
    sums, recent = np.full((KNOTS.size - 1, SUMS), 20.0), np.zeros(RECENT + 1)
    spreads = np.full(KNOTS.size - 1, FIRST_SPREAD)
    for point in range(10 * RECENT):
        scale = 9.0 if point % RECENT < slow else 1.0
        t = scale * curve[0]
        rising_curve.rescale(KNOTS, curve, sums, spreads, recent, 1.0, t)
    np.testing.assert_array_equal(curve, before)


def test_places_that_are_hardly_known_change_no_scale():
    curve = 1.0 + 0.1 * KNOTS
    before = curve.copy()
    sums, recent = np.full((KNOTS.size - 1, SUMS), 20.0), np.zeros(RECENT + 1)
    sums[5] = 2.0
    for _ in range(3 * RECENT):
        n = float(KNOTS[5])
        rising_curve.rescale(KNOTS, curve, sums, np.full(len(sums), 0.02), recent, n, 100.0)
    np.testing.assert_array_equal(curve, before)
