"""What a place's chances look like before anything was learned: a logistic regression.

    P(accepted) = sigma(w . b(f)),   sigma(z) = 1/(1 + exp(-z)),

with the features f of :mod:`proposers.length.features` and the basis b of :func:`write_basis`: an
intercept for each matched order, and another for contexts seen once; the log-odds of both top
probabilities; count, entropy, kept mass, depth and temperature, and a few products of them.
``benchmarks/acceptance.py`` fits w on recorded traces and says how well it does on others' prompts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from proposers.length.features import (
    COUNT,
    DEPTH,
    ENTROPY,
    KEPT,
    MATCHED,
    MEAN_TOP,
    TEMPERATURE,
    TOP,
)

ORDERS = 6
"""Longer matches count as this one."""
SIZE = 2 * ORDERS + 16


@njit(inline="always")
def log_odds(chance: Any) -> Any:
    """log(c/(1-c)), bounded: chances of 0 and 1 are taken for 0.02 and 0.98, or so."""
    return math.log((chance + 0.02) / (1.02 - chance))


@njit(inline="always")
def write_basis(features: Any, out: Any) -> Any:
    """b(f), shape (SIZE,): see the module; all zero where no context was matched."""
    out[:] = 0.0
    matched = min(int(features[MATCHED]), ORDERS)
    if matched < 1:
        return
    once = 1.0 if features[COUNT] <= 1.01 else 0.0
    greedy = 1.0 if features[TEMPERATURE] == 0 else 0.0
    heat = min(features[TEMPERATURE], 2.0)
    mean, top = log_odds(min(features[MEAN_TOP], 1.0)), log_odds(min(features[TOP], 1.0))
    out[matched - 1] = 1.0
    out[ORDERS + matched - 1] = once
    rest = out[2 * ORDERS :]
    rest[0], rest[1] = mean, top
    rest[2] = min(math.log2(max(features[COUNT], 1.0)), 4.0)
    rest[3], rest[4] = features[ENTROPY], features[KEPT]
    rest[5], rest[6] = math.log(1.0 + features[DEPTH]), heat
    rest[7], rest[8] = once * mean, once * top
    rest[9] = mean if matched > 3 else 0.0
    rest[10], rest[11], rest[12] = heat * features[MEAN_TOP], heat * matched, once * heat
    rest[13], rest[14], rest[15] = greedy, greedy * mean, greedy * once


@njit(cache=True, nogil=True)
def design(features: Any, out: Any) -> Any:
    """The basis of many places, shapes (N, F) and (N, SIZE)."""
    for k in range(features.shape[0]):
        write_basis(features[k], out[k])


# benchmarks/acceptance.py --print-weights on 20,753 tokens that SmolLM2-135M gave on Spec-Bench
# (120 answers to 30 questions at T = 0.7, 96 to 24 at T = 1; STAND of order 6, decay 0.5), one
# answer after the other and 16 side by side, and the same places at T = 0. Fitted on half of the
# prompts it has a calibration error of .019 to .057 on the other half, .012 to .030 once it learns.
WEIGHTS = np.array(
    [
        *(-0.833, -0.1, 0.115, 0.122, 0.239, 0.843),  # matched orders 1..6
        *(-0.356, 0.183, 0.628, 0.691, 0.483, 0.198),  # the same, seen once
        *(0.761, -0.085, 0.43, -0.762, -0.164, 0.07, 1.684, -0.43),
        *(0.039, 0.191, -2.382, -0.029, -0.181, -0.266, -0.005, -0.162),
    ]
)
