"""Confidence without a fixed sample size: total variation bounds and an anytime-valid test."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from theory.bins import Counts, log_dirichlet_ratio, merge_bins, sparse_counts
from theory.laws import Floats, as_law


def tv_upper_bound(
    counts: Counts, expected: ArrayLike, *, miss: float = 1e-3, n_bins: int | None = None
) -> float:
    """Upper confidence bound on TV(true law, expected law), wrong with probability at most `miss`.

    TV(phat, P) + sqrt(ln(1/miss)/(2n)): TV(., P) is convex, so its mean over samples is at least
    the truth (Jensen), and one observation moves it by at most 1/n (McDiarmid 1989). Its own noise
    is of order sqrt(cells/n): `n_bins` first joins cells into that many bins of about equal mass,
    which bounds the TV *of the bins*, for spaces larger than the sample.
    """
    law = as_law(np.ravel(expected), "expected")
    cells, values = sparse_counts(counts, law.size)
    if not 0 < miss < 1:
        raise ValueError(f"miss must lie in (0, 1); got {miss}")
    if n_bins is not None:
        labels = np.minimum((np.cumsum(law) - law / 2) * n_bins, n_bins - 1).astype(np.int64)
        law = np.bincount(labels, law, n_bins).astype(np.float64)
        cells = labels[cells]
    n = int(values.sum())
    if n < 1:
        raise ValueError("at least one count is needed")
    seen = np.bincount(cells, values, law.size) / n
    gap = 0.5 * float(np.abs(seen - law).sum())
    return float(min(1.0, gap + np.sqrt(-np.log(miss) / (2 * n))))


class SequentialFit:
    """Anytime-valid test for long runs: look as often as you like, stop when you like.

    E_n = mean over a of [ integral of prod (theta/P)(x_i) over Dirichlet(a P) ] is a nonnegative
    martingale of mean 1 under the law P, so P(some E_n >= 1/false_alarm) <= false_alarm (Ville
    1939). A cell of probability 0 makes it infinite.
    """

    def __init__(
        self,
        expected: ArrayLike,
        *,
        false_alarm: float = 1e-9,
        tests: int = 1,
        planned_n: int | None = None,
    ) -> None:
        """`planned_n` merges cells as `merge_bins` does for that many counts; None keeps them."""
        law = as_law(np.ravel(expected), "expected")
        if tests < 1 or not 0 < false_alarm < 1:
            raise ValueError(f"need tests >= 1 and 0 < false_alarm < 1; got {tests}, {false_alarm}")
        self._labels = (
            np.where(law > 0, np.arange(law.size), -1)
            if planned_n is None
            else merge_bins(law, planned_n)
        )
        inside = self._labels >= 0
        self._law: Floats = np.bincount(self._labels[inside], law[inside]).astype(np.float64)
        self._counts = np.zeros(self._law.size, dtype=np.int64)
        self._grid = max(self._law.size - 1, 1) * 4.0 ** np.arange(12)
        self._impossible = False
        self.false_alarm = false_alarm / tests
        self.n = 0
        self.rejected = False

    @property
    def log_e_value(self) -> float:
        """log E_n: evidence against the law; 1/E_n is a p-value."""
        if self._impossible:
            return float("inf")
        logs = np.array([log_dirichlet_ratio(self._counts, self._law, a) for a in self._grid])
        return float(np.logaddexp.reduce(logs) - np.log(logs.size))

    def update(self, counts: Counts) -> bool:
        """Add counts (array, or mapping {flat cell: count}); True once rejected, for ever."""
        cells, values = sparse_counts(counts, self._labels.size)
        bins = self._labels[cells]
        self._impossible |= bool(np.any(values[bins < 0] > 0))
        np.add.at(self._counts, bins[bins >= 0], values[bins >= 0])
        self.n += int(values.sum())
        self.rejected |= self.log_e_value >= -np.log(self.false_alarm)
        return self.rejected
