"""Confidence intervals of ratios of sums over clusters: tokens per step, answers by prompt.

Answers to one prompt resemble each other, so the prompt is what was sampled. The ratio of two sums
over prompts is linearised (the delta method, with the cluster as the unit; Cochran 1977, section
6.4; Liang and Zeger 1986), which needs no resampling and pairs two methods on the same prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from theory.laws import Floats

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the interval that covers the truth with the level asked for.

    ``low`` and ``high`` are None where fewer than two clusters leave nothing to judge by.
    """

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no nan."""
        return {"value": None if np.isnan(self.value) else self.value, "low": self.low,
                "high": self.high}  # fmt: skip


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, level: float = LEVEL
) -> Interval:
    """sum x / sum s over clusters, with R +- t sqrt(n/(n-1) sum (x_i - R s_i)^2) / sum s.

    t is Student's quantile with n - 1 degrees of freedom, n the clusters with any x or s. Shapes
    (A,). Raises ValueError for unequal shapes and a level outside (0, 1).
    """
    x, s = _sums(numerators, denominators)
    pull, value = _pull(x, s)
    return _around(value, pull, (x != 0) | (s != 0), level)


def difference_interval(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    level: float = LEVEL,
) -> Interval:
    """Ratio of the second minus ratio of the first, both on the same clusters, which pair.

    Each is (numerators, denominators), shapes (A,). Errors as in `ratio_interval`.
    """
    one, two = _sums(*first), _sums(*second)
    if one[0].shape != two[0].shape:
        raise ValueError(f"got {one[0].shape} and {two[0].shape} clusters; they must be the same")
    (pull_1, ratio_1), (pull_2, ratio_2) = _pull(*one), _pull(*two)
    live = np.any([array != 0 for array in (*one, *two)], axis=0)
    return _around(ratio_2 - ratio_1, pull_2 - pull_1, live, level)


def _sums(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    x, s = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if x.ndim != 1 or x.shape != s.shape:
        raise ValueError(f"one sum for each cluster is needed; got shapes {x.shape}, {s.shape}")
    return x, s


def _pull(x: Floats, s: Floats) -> tuple[Floats, float]:
    """How far each cluster draws the ratio, and the ratio."""
    whole = s.sum()
    if whole <= 0:
        return np.zeros(x.shape), float("nan")
    value = x.sum() / whole
    return (x - value * s) / whole, float(value)


def _around(value: float, pull: Floats, live: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}")
    n = int(live.sum())
    if n < 2 or np.isnan(value):
        return Interval(value, None, None)
    half = student.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1) * (pull[live] ** 2).sum())
    return Interval(value, float(value - half), float(value + half))
