"""Places weighed by the steps that begin there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_shapes import shapes
from tuned_traces import noisy, recorded

from proposers.replay import make_drafter
from proposers.replay.tree_chances import RankChances, beginnings
from proposers.replay.tree_counts import rank_chances
from proposers.replay.tree_limits import Limits
from proposers.replay.tree_report import judge
from proposers.replay.tree_search import find_shape
from proposers.replay.tree_weighing import fit_shape
from proposers.shape import TreeShape


@pytest.fixture(scope="module")
def noisy_text():
    trace = recorded(noisy, samples=3)
    make = make_drafter("stand", {"min_survival": 0.0, "order": 2}, draft_length=4, tokens=2000)
    return trace, rank_chances(trace, make, depth=4, branching=4, scheme="without_replacement")


def test_beginnings_add_up_to_the_expected_steps_of_every_prompt(noisy_text) -> None:
    trace, chances = noisy_text
    shape = TreeShape(((0,), (0, 0), (0, 1), (1,), (1, 0)))
    found = beginnings(trace.answer_begins, chances.kept(shape))
    steps = judge(trace, chances, [("", shape)])[0].score.steps
    sizes = np.diff(trace.answer_begins)
    by_row = np.repeat(trace.answer_prompts, sizes)
    np.testing.assert_allclose(np.bincount(by_row, found), steps, rtol=1e-12)
    assert found.max() <= 1 + 1e-6
    np.testing.assert_array_equal(found[trace.answer_begins[:-1]], 0)


def copied_or_not() -> tuple[np.ndarray, RankChances]:
    """Ninety places where a chain is right and ten where only the second candidate is.

    Counts ask for a chain: its sixth node is accepted oftener than a second candidate would be. But
    there six or seven accepted drafts are fifteen or thirteen steps, here one or none are nine or
    five.
    """
    w = np.zeros((100, 8, 2), np.float32)
    for t in range(1, 100):
        for i in range(min(8, 90 - t)):
            w[t, i, 0] = 1.0
        if t >= 90 and t < 99:
            w[t, 0, 1] = 1.0
    weights = np.ones(100)
    weights[0] = 0.0
    return np.array([0, 100]), RankChances(w, w, weights)


def test_what_a_long_draft_passes_counts_once() -> None:
    begins, chances = copied_or_not()
    limits = Limits(6)
    by_place, same = fit_shape(begins, chances, limits, method="exact", weighing="places")
    assert same is chances
    assert by_place.children(()) == 1
    by_step, weighed = fit_shape(begins, chances, limits, method="exact")
    assert by_step.children(()) == 2

    def steps(shape: TreeShape) -> float:
        return float(beginnings(begins, chances.kept(shape)).sum())

    assert steps(by_step) < steps(by_place)
    assert weighed.steps == pytest.approx(steps(by_step))
    np.testing.assert_array_equal(weighed.last, chances.last)


@pytest.mark.parametrize("method", ["exact", "greedy", "sequoia"])
def test_steps_are_never_more_than_with_all_places_alike(noisy_text, method) -> None:
    trace, chances = noisy_text
    for limits in (Limits(3), Limits(6), Limits(9, "tokens"), Limits(8, paths=2)):
        found, weighed = fit_shape(trace.answer_begins, chances, limits, method=method)
        assert limits.allow(found)
        plain = find_shape(chances, limits, method)
        alike = beginnings(trace.answer_begins, chances.kept(plain)).sum()
        assert weighed.steps <= alike
        np.testing.assert_array_equal(
            weighed.weights, beginnings(trace.answer_begins, chances.kept(found))
        )


@pytest.mark.parametrize("scheme", ["without_replacement", "top_plus_one"])
def test_exchanges_end_near_the_fewest_steps_of_all_shapes(scheme) -> None:
    """Within 0.5 % of the optimum, which no search of counts is promised to find; never below."""
    trace = recorded(noisy, samples=2)
    make = make_drafter("stand", {"min_survival": 0.0, "order": 2}, draft_length=3, tokens=2000)
    chances = rank_chances(trace, make, depth=3, branching=3, scheme=scheme)
    method = "exact" if chances.separable else "greedy"
    for limits in (
        Limits(3),
        Limits(6),
        Limits(5, paths=2),
        Limits(6, "tokens"),
        Limits(8, "tokens"),
    ):
        _, weighed = fit_shape(trace.answer_begins, chances, limits, method=method)
        fewest = min(
            beginnings(trace.answer_begins, chances.kept(shape)).sum()
            for shape in shapes()
            if limits.allow(shape)
        )
        assert fewest * (1 - 1e-9) <= weighed.steps <= 1.005 * fewest


def test_weights_scale_nothing(noisy_text) -> None:
    _, chances = noisy_text
    twice = replace(chances, weights=2 * chances.weights)
    for method in ("exact", "greedy", "sequoia"):
        for limits in (Limits(5), Limits(7, "tokens")):
            assert find_shape(twice, limits, method) == find_shape(chances, limits, method)
    shape = TreeShape.root_branching(2, 3)
    assert twice.accepted(shape) == pytest.approx(chances.accepted(shape))


def test_another_weighing_is_refused(noisy_text) -> None:
    with pytest.raises(ValueError, match="weighing must be one of steps, places; got 'tokens'"):
        fit_shape(np.array([0, 1]), noisy_text[1], Limits(2), method="exact", weighing="tokens")
