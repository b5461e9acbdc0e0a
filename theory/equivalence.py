"""Does a sampler follow the exact law? Tests with declared false-alarm budget and power.

What is guaranteed about P(rejected | the law is right) <= false_alarm / tests, and by what:

- method "mixture" (default): for every n, law and level. 1/E is a p-value because E[E] = 1.
- method "g", guarantee "finite_sample": for every n, law and level. Agrawal 2020, Theorem 1.2
  (arXiv 1904.02291): P(n KL(phat, P) >= x) <= exp(-x) (e x/df)^df for x > df.
- method "chi2", guarantee "finite_sample": for every n, law and level. Bousquet's form of
  Talagrand's inequality for the norm of the whitened counts (Bousquet 2002, Theorem 2.3).
- "g" and "chi2" with guarantee "asymptotic": only as n grows. At 1e-9 with 5 expected counts a bin
  the true rate is far above the declared one (shown in tests/theory/test_equivalence.py).

The mixture's threshold is the Chernoff bound of the chi-square law: close to the textbook test in
power, and exact. Bins are merged from the law and n alone, never from the counts, so merging costs
no validity; deviations *inside* a merged bin are invisible (`FitPlan.merged_mass` reports them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import xlogy
from scipy.stats import chi2, ncx2

from theory.bins import Counts, joint_counts, log_dirichlet_ratio, merge_bins, sparse_counts
from theory.laws import Floats, Ints, as_law
from theory.sequential import SequentialFit, tv_upper_bound

__all__ = [
    "FitPlan",
    "FitResult",
    "SequentialFit",
    "goodness_of_fit",
    "joint_counts",
    "merge_bins",
    "plan_fit",
    "sample_size",
    "tv_upper_bound",
]
Method = Literal["mixture", "g", "chi2"]
Guarantee = Literal["finite_sample", "asymptotic"]
Alternative = Literal["half", "largest"]


@dataclass(frozen=True)
class FitPlan:
    """A test fixed before any data: partition, level, threshold and power."""

    n: int
    false_alarm: float
    method: Method
    guarantee: Guarantee
    labels: Ints = field(repr=False)
    law: Floats = field(repr=False)
    merged_mass: float

    @property
    def degrees_of_freedom(self) -> int:
        """Bins minus one."""
        return self.law.size - 1

    @property
    def concentration(self) -> float:
        """Concentration a of the Dirichlet(a P) mixture that rejects the smallest chi-square."""
        ratio = _chernoff_point(2 * -np.log(self.false_alarm) / max(self.degrees_of_freedom, 1)) - 1
        return self.n / ratio

    @property
    def threshold(self) -> float:
        """Smallest rejected value of the statistic (log E, G or chi-square)."""
        df, level = self.degrees_of_freedom, -np.log(self.false_alarm)
        if self.method == "mixture":
            return float(level)
        if df == 0:
            return float("inf")
        if self.guarantee == "asymptotic":
            return float(chi2.isf(self.false_alarm, df))
        if self.method == "g":
            return float(2 * df * _chernoff_point(level / df))
        bound, variance = self._bousquet()
        return float((np.sqrt(df) + np.sqrt(2 * level * variance) + bound * level / 3) ** 2)

    def _bousquet(self) -> tuple[float, float]:
        bound = float(np.sqrt((1 / self.law.min() - 1) / self.n))
        return bound, 1 + 2 * bound * float(np.sqrt(self.degrees_of_freedom))

    def alternative(self, tv: float, name: Alternative = "half") -> Floats:
        """The named law over the bins at total variation `tv` from the plan's law.

        "half": a set A of bins with mass as near 1/2 as the greedy order finds gains tv, its
        complement loses tv, each in proportion to the law. Every law at that TV of the bins has
        sum (Q-P)^2/P >= 4 tv^2, with equality here when P(A) = 1/2: the least visible alternative.
        "largest": tv is taken from the most probable bin (then from the next, when it is empty) and
        given to the other bins in proportion to their mass.
        """
        if not 0 <= tv <= 1:
            raise ValueError(f"tv must lie in [0, 1]; got {tv}")
        order = np.argsort(-self.law, kind="stable")
        if name == "half":
            side = np.zeros(self.law.size, dtype=bool)
            mass = 0.0
            for i in order:
                if mass + self.law[i] <= 0.5:
                    side[i], mass = True, mass + self.law[i]
            if mass == 0.0:  # one bin above 1/2: it loses, the others gain
                side[order[1:]], mass = True, 1 - self.law[order[0]]
            if tv > 1 - mass or mass <= 0:
                raise ValueError(
                    f"no 'half' alternative at tv {tv}: the losing bins hold {1 - mass:.4g}"
                )
            return np.where(side, self.law * (1 + tv / mass), self.law * (1 - tv / (1 - mass)))
        running = np.cumsum(self.law[order])
        taken = np.diff(np.minimum(running, tv), prepend=0.0)
        loses = taken > 0
        rest = self.law[order][~loses]
        if rest.sum() <= 0:
            raise ValueError(
                f"no 'largest' alternative at tv {tv}: no bin is left to receive the mass"
            )
        other = self.law.copy()
        other[order[loses]] -= taken[loses]
        other[order[~loses]] += tv * rest / rest.sum()
        return other

    def power(
        self, tv: float, name: Alternative = "half", *, simulations: int = 1000, seed: int = 0
    ) -> float:
        """P(rejected | the alternative `name` at total variation `tv` between the *bins*).

        From `simulations` exact multinomial draws (standard error at most 0.5/sqrt(simulations));
        0 asks for the noncentral chi-square approximation with noncentrality n sum (Q-P)^2/P,
        which is off by up to 0.15 in mid range.
        """
        return self.power_against(self.alternative(tv, name), simulations=simulations, seed=seed)

    def power_against(self, bins: Floats, *, simulations: int = 1000, seed: int = 0) -> float:
        """P(rejected | the counts of the bins follow the law `bins`); see `power`."""
        df = self.degrees_of_freedom
        if df == 0:
            return 0.0
        if simulations:
            rng = np.random.default_rng(seed)
            chunk = max(1, 2**20 // bins.size)
            hits, done = 0, 0
            while done < simulations:
                size = min(chunk, simulations - done)
                draws = rng.multinomial(self.n, bins / bins.sum(), size=size)
                hits += int(np.sum(self._statistic(draws) >= self.threshold))
                done += size
            return hits / simulations
        edge = self.threshold
        if self.method == "mixture":  # log E ~ r/(1+r) chi2/2 - df/2 log(1+r), r = n/a
            ratio = self.n / self.concentration
            edge = (2 * edge + df * np.log1p(ratio)) * (1 + ratio) / ratio
        noncentrality = self.n * float(np.sum((bins - self.law) ** 2 / self.law))
        if noncentrality == 0:
            return float(chi2.sf(edge, df))
        return float(ncx2.sf(edge, df, noncentrality))

    def _statistic(self, observed: Ints) -> Floats:
        """The statistic of counts of shape (..., bins)."""
        if self.method == "mixture":
            return log_dirichlet_ratio(observed, self.law, self.concentration)
        expected = self.n * self.law
        if self.method == "chi2":
            terms = (observed - expected) ** 2 / expected
        else:
            terms = 2 * xlogy(observed, observed / expected)
        return np.asarray(terms.sum(axis=-1), dtype=np.float64)

    def _p_value(self, statistic: float) -> float:
        df = self.degrees_of_freedom
        if self.method == "mixture":
            return float(min(1.0, np.exp(-statistic)))
        if df == 0:
            return 1.0
        if self.guarantee == "asymptotic":
            return float(chi2.sf(statistic, df))
        if self.method == "g":
            x = max(statistic / (2 * df), 1.0)
            return float(np.exp(-df * (x - 1 - np.log(x))))
        bound, variance = self._bousquet()
        excess = max(np.sqrt(statistic) - np.sqrt(df), 0.0)
        root = 2 * excess / (np.sqrt(2 * variance) + np.sqrt(2 * variance + 4 * bound * excess / 3))
        return float(np.exp(-(root**2)))

    def evaluate(self, counts: Counts) -> FitResult:
        """Apply the plan to n counts: an array of the law's size or {flat cell: count}."""
        cells, values = sparse_counts(counts, self.labels.size)
        if int(values.sum()) != self.n:
            raise ValueError(f"the plan was made for n = {self.n} counts; got {int(values.sum())}")
        impossible = int(values[self.labels[cells] < 0].sum())
        possible = self.labels[cells] >= 0
        observed = np.bincount(
            self.labels[cells[possible]], values[possible], self.law.size
        ).astype(np.int64)
        if impossible:
            return FitResult(self, float("inf"), 0.0, True, impossible)
        statistic = float(self._statistic(observed))
        return FitResult(self, statistic, self._p_value(statistic), statistic >= self.threshold, 0)


@dataclass(frozen=True)
class FitResult:
    """Outcome of a plan. `impossible`: counts where the law is exactly 0; one rejects."""

    plan: FitPlan
    statistic: float
    p_value: float
    rejected: bool
    impossible: int

    @property
    def n(self) -> int:
        """Number of observations."""
        return self.plan.n

    @property
    def threshold(self) -> float:
        """Smallest rejected value of the statistic."""
        return self.plan.threshold

    @property
    def degrees_of_freedom(self) -> int:
        """Bins minus one."""
        return self.plan.degrees_of_freedom

    def power(self, tv: float, name: Alternative = "half") -> float:
        """Power of the plan that gave this result; see `FitPlan.power`."""
        return self.plan.power(tv, name)


def plan_fit(
    expected: ArrayLike,
    n: int,
    *,
    false_alarm: float = 1e-9,
    tests: int = 1,
    method: Method = "mixture",
    guarantee: Guarantee = "finite_sample",
    min_expected: float = 5.0,
) -> FitPlan:
    """Fix a test of n counts against the law `expected` (any shape) before seeing them.

    `false_alarm` is the budget of the whole suite; this test spends false_alarm / tests
    (Bonferroni). Raises ValueError for a vector that is not a law, n < 1, a budget outside (0, 1),
    tests < 1 or an unknown method.
    """
    law = as_law(np.ravel(expected), "expected")
    if n < 1 or tests < 1 or not 0 < false_alarm < 1:
        raise ValueError(
            f"need n >= 1, tests >= 1, 0 < false_alarm < 1; got {n}, {tests}, {false_alarm}"
        )
    if method not in ("mixture", "g", "chi2") or guarantee not in ("finite_sample", "asymptotic"):
        raise ValueError(f"unknown method {method!r} or guarantee {guarantee!r}")
    if method == "mixture" and guarantee == "asymptotic":
        raise ValueError(
            "the mixture test is always finite_sample; choose method 'g' or 'chi2' for asymptotic"
        )
    labels = merge_bins(law, n, min_expected)
    possible = labels >= 0
    bins = np.bincount(labels[possible], law[possible])
    sizes = np.bincount(labels[possible])
    merged = float(bins[sizes > 1].sum())
    return FitPlan(n, false_alarm / tests, method, guarantee, labels, bins / bins.sum(), merged)


def goodness_of_fit(
    counts: Counts,
    expected: ArrayLike,
    *,
    false_alarm: float = 1e-9,
    tests: int = 1,
    method: Method = "mixture",
    guarantee: Guarantee = "finite_sample",
    min_expected: float = 5.0,
) -> FitResult:
    """Test counts against an exact law: `plan_fit` for their total, then `FitPlan.evaluate`."""
    law = as_law(np.ravel(expected), "expected")
    n = int(sparse_counts(counts, law.size)[1].sum())
    plan = plan_fit(
        law,
        n,
        false_alarm=false_alarm,
        tests=tests,
        method=method,
        guarantee=guarantee,
        min_expected=min_expected,
    )
    return plan.evaluate(counts)


def sample_size(
    expected: ArrayLike,
    tv: float,
    *,
    power: float = 0.99,
    alternative: Alternative = "half",
    false_alarm: float = 1e-9,
    tests: int = 1,
    method: Method = "mixture",
    guarantee: Guarantee = "finite_sample",
    min_expected: float = 5.0,
) -> int:
    """Counts needed to reject the named alternative at `tv` of the bins with probability `power`.

    Bisection on the chi-square approximation, then steps of 2 % until 1,000 simulated draws agree;
    bins are merged anew for every n tried. Raises ValueError above 2^40.
    """

    def enough(n: int, simulations: int = 0) -> bool:
        plan = plan_fit(
            expected,
            n,
            false_alarm=false_alarm,
            tests=tests,
            method=method,
            guarantee=guarantee,
            min_expected=min_expected,
        )
        if plan.degrees_of_freedom == 0:  # everything merged: nothing can be told yet
            return False
        return plan.power(tv, alternative, simulations=simulations) >= power

    high = 16
    while not enough(high):
        high *= 2
        if high > 2**40:
            raise ValueError(f"no sample below 2^40 reaches power {power} at tv {tv}")
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    while not enough(high, simulations=1000):
        high += max(1, high // 50)
    return high


def _chernoff_point(c: float) -> float:
    """The x > 1 with x - 1 - ln x = c."""
    return float(brentq(lambda x: x - 1 - np.log(x) - c, 1.0, 2.0 + c + np.sqrt(2 * c)))
