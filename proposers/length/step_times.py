"""The engine's own step time against the number of tokens in the step, learned while it serves.

T(n) is a curve of :mod:`proposers.length.rising_curve`. Steps that hold a prompt are not learned
from: a decode step's cost per token is another one.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proposers.length.rising_curve import (
    FIRST_SPREAD,
    KNOTS,
    PRIOR_SLOPE,
    RECENT,
    SUMS,
    add,
    fit,
    rescale,
)
from theory.whole_file import whole

Doubles = NDArray[np.float64]

FORMAT = "specproof step times"
VERSION = 1
MEMORY = 64.0
"""Steps between two knots that a new one counts against."""
FIRST_LEVEL = 0.02  # seconds; only seen before the first step
_FIRST = 8  # steps whose median gives the level
_SAME = 1e-6  # relative; what the values in a file may differ from those of its sums


class StepTimesError(ValueError):
    """A file that holds no usable step times; its text is one sentence."""


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

    def seconds(self, tokens: ArrayLike) -> Doubles:
        """T(n), of the shape of n; below 1 as at 1, beyond the last knot a straight line.

        T(n) is positive and never falls.
        """
        n = np.asarray(tokens, np.float64)
        slope = (self._curve[-1] - self._curve[-2]) / (KNOTS[-1] - KNOTS[-2])
        beyond: Doubles = slope * np.maximum(n - KNOTS[-1], 0.0)
        return beyond + np.interp(n, KNOTS, self._curve)

    def marginal(self, tokens: ArrayLike) -> Doubles:
        """T(n + 1) - T(n), 0 or more, of the shape of n."""
        n = np.asarray(tokens, np.float64)
        return np.maximum(self.seconds(n + 1) - self.seconds(n), 0.0)

    def observed(self) -> Doubles:
        """By interval between two knots, how many steps it remembers."""
        return self._sums[:, 0].copy()

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the curve to a JSON file, whole or not at all; OSError where it cannot be written.

        ``about`` says where it was measured; its "hardware" is what :meth:`load` compares.
        """
        held = {
            "format": FORMAT,
            "version": VERSION,
            "about": dict(self.about if about is None else about),
            "steps": self.steps,
            "tokens": KNOTS.astype(int).tolist(),
            "seconds": self._curve.tolist(),
            "sums": self._sums.tolist(),
            "spreads": self._spreads.tolist(),
        }
        with whole(path) as file:
            file.write(json.dumps(held, indent=1, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: Path, *, memory: float = MEMORY, hardware: str | None = None) -> Self:
        """The curve in a file that :meth:`save` wrote; what it remembers is cut to ``memory``.

        Raises
        ------
        StepTimesError
            One sentence, when the file cannot be read, is another kind, another version or damaged,
            or when ``hardware`` is given and not what it was measured on.
        """
        made = cls(memory)
        try:
            held = json.loads(path.read_bytes())
        except OSError as error:
            raise StepTimesError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            raise StepTimesError(f"{path} holds no step times: it is not JSON") from None
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise StepTimesError(f'{path} holds no step times: its "format" is not "{FORMAT}"')
        if type(held.get("version")) is not int or held["version"] != VERSION:
            raise StepTimesError(
                f"{path} has step times of version {held.get('version')!r}, but this specproof "
                f"reads version {VERSION}; measure again with `specproof profile`"
            )
        try:
            made._restore(held)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise StepTimesError(
                f"{path} is damaged ({error}); measure again with `specproof profile`"
            ) from None
        found = made.about.get("hardware")
        if hardware is not None and found != hardware:
            raise StepTimesError(
                f"{path} was measured on {found or 'an unnamed machine'}, but this one is "
                f"{hardware}; measure again with `specproof profile`"
            )
        return made

    def _restore(self, held: Mapping[str, Any]) -> None:
        """Take over what a file says; an error whose text says what is wrong with it."""
        if held["tokens"] != KNOTS.tolist():
            raise ValueError("its tokens are not the knots of this version")
        curve, sums, spreads = (
            np.array(held[name], np.float64) for name in ("seconds", "sums", "spreads")
        )
        for name, array, like in (
            ("seconds", curve, self._curve),
            ("sums", sums, self._sums),
            ("spreads", spreads, self._spreads),
        ):
            if array.shape != like.shape or not np.isfinite(array).all():
                raise ValueError(f"its {name} are not {like.size} numbers")
        if curve.min() <= 0 or np.diff(curve).min() < 0:
            raise ValueError("its seconds are not positive, or they fall")
        if sums.min() < 0 or spreads.min() <= 0:
            raise ValueError("its sums or spreads are negative")
        w, wu, wuu = sums[:, :3].T
        if (wu * wu > w * wuu * (1 + _SAME) + _SAME).any():
            raise ValueError("its sums are those of no steps")
        steps = held["steps"]
        if type(steps) is not int or steps < 0:
            raise ValueError(f"its number of steps is {steps!r}")
        self.steps = max(steps, _FIRST)
        self.about = dict(held["about"])
        self._curve, self._spreads = curve, spreads
        full = np.maximum(w, self.memory) / self.memory
        self._sums = sums / full[:, None]


def _prior(level: float) -> Doubles:
    """What is believed before any step: a straight line from ``level`` seconds at one token."""
    return level * (1.0 + PRIOR_SLOPE * (KNOTS - 1.0))
