"""Block efficiency and ratios against their closed forms."""

import pytest

from theory.speedup import block_efficiency, memory_bound_speedup, wall_clock_ratio


def test_constant_acceptance_is_the_geometric_sum():
    assert block_efficiency([0.8] * 5) == pytest.approx((1 - 0.8**6) / (1 - 0.8))
    assert block_efficiency([]) == 1
    assert block_efficiency([1, 1, 1]) == 4


def test_ratios():
    assert memory_bound_speedup([0.8] * 5) == pytest.approx(block_efficiency([0.8] * 5))
    # Leviathan et al., Theorem 3.8
    assert memory_bound_speedup([0.8] * 5, draft_cost=0.1) == pytest.approx(
        (1 - 0.8**6) / ((1 - 0.8) * (5 * 0.1 + 1))
    )
    assert wall_clock_ratio([0.5], [1.0, 1.5]) == pytest.approx(1.0)
    assert wall_clock_ratio([], [2.0]) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: block_efficiency([1.1]),
        lambda: block_efficiency([float("nan")]),
        lambda: block_efficiency(0.5),
        lambda: wall_clock_ratio([0.5], [1.0]),
        lambda: wall_clock_ratio([0.5], [1.0, 0.0]),
        lambda: memory_bound_speedup([0.5], draft_cost=-1),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call()
