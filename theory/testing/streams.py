"""Are the noise streams of drafting, acceptance and emission independent? Trap 3, tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from theory.equivalence import plan_fit
from theory.laws import Floats

CELLS = 8


@dataclass(frozen=True)
class StreamPair:
    """Streams `first` at i and `second` at i + lag: their correlation, and whether they depend."""

    first: str
    second: str
    lag: int
    correlation: float
    p_value: float
    dependent: bool


@dataclass(frozen=True)
class StreamReport:
    """pairs: every pair and lag tested; n: numbers of each stream; power: P(a dependence is found)
    if it moves the joint law of the cells by TV 0.05, at the least visible place."""

    pairs: tuple[StreamPair, ...]
    n: int
    budget: float
    power: float

    @property
    def independent(self) -> bool:
        """Whether no pair was found dependent."""
        return not any(pair.dependent for pair in self.pairs)

    def __str__(self) -> str:
        found = [pair for pair in self.pairs if pair.dependent]
        head = f"{len(self.pairs)} pairs of streams, {self.n} numbers each, budget {self.budget:g}"
        lines = [
            f"  {pair.first}[i] and {pair.second}[i{pair.lag:+d}] depend on each other: "
            f"correlation {pair.correlation:+.3f}, p = {pair.p_value:.3g}"
            for pair in found
        ]
        end = (
            [] if found else [f"  independent; TV 0.05 is found with probability {self.power:.3f}"]
        )
        return "\n".join([head, *lines, *end])


def check_streams(
    streams: Mapping[str, ArrayLike], *, budget: float = 1e-9, lags: int = 4
) -> StreamReport:
    """Test that streams of uniforms are uniform and independent, of each other and of themselves.

    streams: name -> uniforms in [0, 1), of one length n, in the order in which they are used. Every
    pair is tested at lags -lags..lags and every stream with itself at 1..lags: the 8 x 8 cells of
    the two numbers against 1/64 each, by `theory.equivalence`, which also sees what a correlation
    does not. Where a stream meets itself, each number is used in one pair only, so that the pairs
    are independent draws. All tests together call independent streams dependent with probability
    `budget` at most.

    Raises ValueError for streams of different length, of less than 1000 numbers or outside [0, 1).
    """
    values = {
        name: np.asarray(stream, dtype=np.float64).ravel() for name, stream in streams.items()
    }
    sizes = {v.size for v in values.values()}
    if len(sizes) != 1 or min(sizes) < 1000:
        raise ValueError(f"streams need one length of 1000 or more; got {sorted(sizes)}")
    for name, v in values.items():
        if not (v.min() >= 0 and v.max() < 1):
            raise ValueError(f"stream {name!r} must hold numbers in [0, 1)")
    wanted = [(a, b, lag) for a, b in combinations(values, 2) for lag in range(-lags, lags + 1)] + [
        (a, a, lag) for a in values for lag in range(1, lags + 1)
    ]
    law = np.full(CELLS * CELLS, 1 / CELLS**2)
    pairs, power = [], 1.0
    for a, b, lag in wanted:
        x, y = _meet(values[a], values[b], lag, apart=a == b)
        plan = plan_fit(law, x.size, false_alarm=budget, tests=len(wanted))
        cells = (x * CELLS).astype(np.int64) * CELLS + (y * CELLS).astype(np.int64)
        result = plan.evaluate(np.bincount(cells, minlength=law.size))
        power = min(power, plan.power(0.05, simulations=0))
        correlation = float(np.corrcoef(x, y)[0, 1])
        pairs.append(StreamPair(a, b, lag, correlation, result.p_value, result.rejected))
    return StreamReport(tuple(pairs), min(sizes), budget, power)


def _meet(x: Floats, y: Floats, lag: int, *, apart: bool) -> tuple[Floats, Floats]:
    """x[i] and y[i + lag]; for a stream with itself, every number in one pair only."""
    start = max(0, -lag)
    stop = min(x.size, y.size - lag)
    places = np.arange(start, stop)
    if apart:
        places = places[places // lag % 2 == 0]
    return x[places], y[places + lag]
