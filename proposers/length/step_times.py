"""The engine's own step time against the number of tokens in the step, learned while it serves.

T(n) is a curve of :mod:`proposers.length.rising_curve`. Steps that hold a prompt are not learned
from: a decode step's cost per token is another one.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proposers.length.rising_curve import (
    FIRST_SPREAD,
    PRIOR_SLOPE,
    RECENT,
    add,
    fit,
    rescale,
)
from proposers.length.step_times_file import KNOTS, SUMS, Stored, read, write

Doubles = NDArray[np.float64]

MEMORY = 64.0
"""Steps between two knots that a new one counts against."""
FIRST_LEVEL = 0.02  # seconds; only seen before the first step
_PLACES: list[float] = KNOTS.tolist()
_FIRST = 8  # steps whose median gives the level


class StepTimes:
    """T(n), the seconds of a decode step with n tokens in it.

    Parameters
    ----------
    memory
        How many earlier steps of about as many tokens a new one counts against, 1 or more.

    Raises
    ------
    ValueError
        For another memory.
    """

    def __init__(self, memory: float = MEMORY) -> None:
        if not memory >= 1:
            raise ValueError(f"memory is {memory!r} steps; it must be 1 or more")
        self.memory = float(memory)
        self.steps = 0
        self.about: Mapping[str, Any] = {}
        self._sums = np.zeros((KNOTS.size - 1, SUMS))
        self._spreads = np.full(KNOTS.size - 1, FIRST_SPREAD)
        self._curve = _prior(FIRST_LEVEL)
        self._recent = np.zeros(RECENT + 1)
        self._first: list[tuple[float, float]] = []

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a decode step with so many tokens in it, drafts included.

        The first steps set the level of the prior by their median, so that one slow step among
        them does not. Raises ValueError unless both are positive and finite.
        """
        if not (tokens >= 1 and 0 < seconds < math.inf):
            raise ValueError(
                f"a step has 1 or more tokens and takes some time; got {tokens!r} tokens and "
                f"{seconds!r} s"
            )
        if self.steps < _FIRST:
            self._begin(float(tokens), float(seconds))
        else:
            point = float(tokens), float(seconds)
            rescale(KNOTS, self._curve, self._sums, self._spreads, self._recent, *point)
            self._add(*point)
        self.steps += 1
        fit(KNOTS, self._sums, self._curve[0], self._curve)

    def _begin(self, tokens: float, seconds: float) -> None:
        """Start again from all steps so far."""
        self._first.append((tokens, seconds))
        n, t = np.array(self._first).T
        self._curve = _prior(float(np.median(t / np.interp(n, KNOTS, _prior(1.0)))))
        self._sums[:] = 0
        self._spreads[:] = FIRST_SPREAD
        for one in self._first:
            self._add(*one)
        if len(self._first) == _FIRST:
            self._first.clear()

    def _add(self, tokens: float, seconds: float) -> None:
        add(KNOTS, self._curve, self._sums, self._spreads, self.memory, tokens, seconds)

    def seconds(self, tokens: ArrayLike) -> Any:
        """T(n), of the shape of n; below 1 as at 1, beyond the last knot a straight line.

        T(n) is positive and never falls. A Python number gives a float.
        """
        if isinstance(tokens, int | float):  # several times a step
            return self._at(tokens)
        n = np.asarray(tokens, np.float64)
        slope = (self._curve[-1] - self._curve[-2]) / (KNOTS[-1] - KNOTS[-2])
        beyond: Doubles = slope * np.maximum(n - KNOTS[-1], 0.0)
        return beyond + np.interp(n, KNOTS, self._curve)

    def _at(self, n: float) -> float:
        if n <= _PLACES[0]:
            return float(self._curve[0])
        i = min(bisect_right(_PLACES, n), len(_PLACES) - 1)
        before, behind = self._curve[i - 1 : i + 1].tolist()
        share = (n - _PLACES[i - 1]) / (_PLACES[i] - _PLACES[i - 1])
        return float(before + share * (behind - before))

    def marginal(self, tokens: ArrayLike) -> Doubles:
        """T(n + 1) - T(n), 0 or more, of the shape of n."""
        n = np.asarray(tokens, np.float64)
        found: Doubles = np.maximum(self.seconds(n + 1) - self.seconds(n), 0.0)
        return found

    def observed(self) -> Doubles:
        """By interval between two knots, how many steps it remembers."""
        return self._sums[:, 0].copy()

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the curve to a JSON file, whole or not at all; OSError where it cannot be written.

        ``about`` says where it was measured; its "hardware" is what :meth:`load` compares.
        """
        about = self.about if about is None else about
        write(path, Stored(self._curve, self._sums, self._spreads, self.steps, about))

    @classmethod
    def load(cls, path: Path, *, memory: float = MEMORY, hardware: str | None = None) -> Self:
        """The curve in a file that :meth:`save` wrote; what it remembers is cut to ``memory``.

        Raises
        ------
        StepTimesError
            As :func:`proposers.length.step_times_file.read`.
        """
        made, held = cls(memory), read(path, hardware=hardware)
        made.steps = max(held.steps, _FIRST)
        made.about = held.about
        made._curve, made._spreads = held.curve, held.spreads
        full = np.maximum(held.sums[:, 0], made.memory) / made.memory
        made._sums = held.sums / full[:, None]
        return made


def _prior(level: float) -> Doubles:
    """What is believed before any step: a straight line from ``level`` seconds at one token."""
    return level * (1.0 + PRIOR_SLOPE * (KNOTS - 1.0))
