"""Integration over boxes: exact for every function of thresholds, and it knows when it is not."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theory.testing.boxes import NotBoxes, integrate


def tree_function(axes, seed, pieces=4):
    """A random tree of thresholds: cut the axis, then each piece on its own; and its true law."""
    rng = np.random.default_rng(seed)
    law = {}

    def grow(axis, mass):
        if axis == axes:
            code = int(rng.integers(0, 5))
            law[code] = law.get(code, 0.0) + mass
            return code
        cuts = np.sort(rng.random(rng.integers(0, pieces)))
        widths = np.diff(np.concatenate([[0.0], cuts, [1.0]]))
        return cuts, [grow(axis + 1, mass * width) for width in widths]

    root = grow(0, 1.0)

    def one(point):
        node = root
        for u in point:
            node = node[1][int(np.searchsorted(node[0], u, side="right"))]
        return node

    return lambda rows, points: np.array([one(point) for point in points], dtype=np.int64), law


def found_law(boxes):
    codes, inverse = np.unique(boxes.codes, return_inverse=True)
    return dict(zip(codes.tolist(), np.bincount(inverse, boxes.mass).tolist(), strict=True))


@settings(max_examples=25)
@given(st.integers(1, 2), st.integers(0, 10**6))
@example(axes=2, seed=260308)  # half of the mass lies in a box whose middle is in a missed slice
def test_trees_of_thresholds_are_integrated_or_the_error_is_seen(axes, seed):
    evaluate, law = tree_function(axes, seed)
    rng = np.random.default_rng(seed)
    extra = np.zeros((0, 2, axes))
    for _ in range(6):
        boxes = integrate(evaluate, 1, axes, rng, extra=extra)
        wrong = boxes.agreement(evaluate, np.zeros(2000, dtype=np.int64), rng)
        if not wrong.size:
            break
        extra = np.concatenate([extra, wrong[:8]])
    assert not wrong.size
    assert boxes.mass.sum() == pytest.approx(1)
    found = found_law(boxes)
    gap = 0.5 * sum(abs(found.get(c, 0) - law.get(c, 0)) for c in {*found, *law})
    assert gap <= 21 / 2000  # P(2000 points miss more) < 1e-9
    if axes == 1 and len(law) > 1 and min(law.values()) > 0.1:
        assert gap < 1e-2


def test_cuts_are_found_to_ten_digits():
    def evaluate(rows, points):
        return np.searchsorted([0.123456789, 0.5, 0.50001, 0.9], points[:, 0] * 1.0)

    boxes = integrate(evaluate, 1, 1, np.random.default_rng(0))
    widths = np.diff([0, 0.123456789, 0.5, 0.50001, 0.9, 1])
    assert boxes.mass == pytest.approx(widths, abs=1e-9)


def test_rows_are_integrated_apart():
    def evaluate(rows, points):
        return (points[:, 0] < (rows + 1) / 10).astype(np.int64)

    boxes = integrate(evaluate, 9, 1, np.random.default_rng(0))
    accepted = np.bincount(boxes.rows, boxes.mass * boxes.codes)
    assert accepted == pytest.approx(np.arange(1, 10) / 10, abs=1e-9)


def test_a_thin_slice_that_the_grid_misses_is_found_by_the_points():
    def evaluate(rows, points):
        return ((points[:, 0] > 0.51) & (points[:, 0] < 0.54)).astype(np.int64)

    rng = np.random.default_rng(0)
    boxes = integrate(evaluate, 1, 1, rng)
    wrong = boxes.agreement(evaluate, np.zeros(4096, dtype=np.int64), rng)
    assert wrong.size
    again = integrate(evaluate, 1, 1, rng, extra=wrong[:4])
    assert found_law(again)[1] == pytest.approx(0.03, abs=1e-9)
    assert not again.agreement(evaluate, np.zeros(4096, dtype=np.int64), rng).size


def test_what_is_not_constant_on_boxes_is_refused_or_seen():
    def diagonal(rows, points):
        return (points.sum(axis=1) > 1).astype(np.int64)

    def noise(rows, points):
        return (points[:, 0] * 1e6).astype(np.int64)

    rng = np.random.default_rng(0)
    try:
        boxes = integrate(diagonal, 1, 2, rng)
    except NotBoxes:
        pass
    else:
        assert boxes.agreement(diagonal, np.zeros(4096, dtype=np.int64), rng).size
    with pytest.raises(NotBoxes):
        integrate(noise, 1, 1, rng)
