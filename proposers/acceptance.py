"""How likely a draft is to be accepted, from its prefix and its law alone: when to stop drafting.

Verifying a token costs time on a CPU, and in a full batch everywhere, so a chain should end where
its next token will hardly be reached. What may be looked at is limited: the prefix and the law q,
never the token about to be drawn, or the output is biased (ALGORITHMS.md 5, trap 1).
"""

from typing import Any

import numpy as np
from numba import njit

# By the matched order (6 and more share the last): acceptance = base + slope * top for contexts
# with one visit, base + slope * top + flat * T (1 - top) for others. Least squares over SmolLM2's
# 74,000 recorded positions on Spec-Bench at T = 0, 0.7 and 1 (order 6, decay 0.5, interpolation 1),
# one table for all or one for each answer, each draft weighted by the chance that it is reached, on
# half of the prompts. On the other half predicted and true acceptance are .56 and .58 at T = 0, .44
# and .47 at 0.7, .30 and .28 at 1 with one table for all.
_ONCE = np.array(
    [[0.23, 0.0], [0.09, 0.53], [0.12, 0.63], [0.13, 0.61], [0.23, 0.53], [0.45, 0.38]]
)
_OFTEN = np.array(
    [
        [-0.08, 0.58, 0.2],
        [-0.1, 0.9, 0.17],
        [-0.13, 0.99, 0.2],
        [-0.28, 1.18, 0.35],
        [-0.29, 1.16, 0.36],
        [0.1, 0.89, 0.03],
    ]
)
_LEAST = 0.02


@njit(inline="always")
def expected_acceptance(matched: Any, order: Any, count: Any, top: Any, temperature: Any) -> Any:
    """A rough P(accepted) of a draft from a context of ``matched`` tokens of at most ``order``.

    ``count`` are the context's visits (after decay), ``top`` the mass of the most probable token
    in the mixture that is drafted from, at temperature 1. A match as long as the table allows may
    be the end of a longer one, and is taken for one of twice its length, as tables of order 1 to 5
    show on the same recordings. Only a stopping rule may use it: it is an estimate, no law.
    """
    length = 2 * matched if matched == order else matched
    known = min(length, _ONCE.shape[0]) - 1
    sure = min(top, 1.0)
    if count <= 1:
        return _ONCE[known, 0] + _ONCE[known, 1] * sure
    flat = min(temperature, 1.0) * (1.0 - sure)
    chance = _OFTEN[known, 0] + _OFTEN[known, 1] * sure + _OFTEN[known, 2] * flat
    return max(chance, _LEAST)
