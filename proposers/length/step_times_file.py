"""The file of step times: what it holds, and one sentence for one that cannot be used.

No numba here: the file is checked in processes that must not load it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from theory.whole_file import whole

Doubles = NDArray[np.float64]

FORMAT = "specproof step times"
VERSION = 1
KNOTS = np.array([1, 2, 3, *(m * 2**k for k in range(2, 13) for m in (1, 1.5))], np.float64)
"""1, 2, 3, 4, 6, 8, 12, 16, 24, ..., 4096, 6144."""
SUMS = 5  # of w, w u, w u^2, w t, w u t, with u = 0..1 from knot to knot
_SAME = 1e-6  # relative; what the values in a file may differ from those of its sums


class StepTimesError(ValueError):
    """A file that holds no usable step times; its text is one sentence."""


@dataclass(frozen=True, slots=True)
class Stored:
    """T at the knots (M,), and what is needed to go on: sums (M - 1, SUMS), spreads (M - 1,)."""

    curve: Doubles
    sums: Doubles
    spreads: Doubles
    steps: int
    about: Mapping[str, Any]


def write(path: Path, held: Stored) -> None:
    """Write the file whole or not at all; OSError where it cannot be written."""
    made = {
        "format": FORMAT,
        "version": VERSION,
        "about": dict(held.about),
        "steps": held.steps,
        "tokens": KNOTS.astype(int).tolist(),
        "seconds": held.curve.tolist(),
        "sums": held.sums.tolist(),
        "spreads": held.spreads.tolist(),
    }
    with whole(path) as file:
        file.write(json.dumps(made, indent=1, allow_nan=False).encode() + b"\n")


def read(path: Path, *, hardware: str | None = None) -> Stored:
    """What :func:`write` wrote.

    Raises
    ------
    StepTimesError
        One sentence, when the file cannot be read, is another kind, another version or damaged,
        or when ``hardware`` is given and not what it was measured on.
    """
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
        found = _stored(held)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise StepTimesError(
            f"{path} is damaged ({error}); measure again with `specproof profile`"
        ) from None
    measured_on = found.about.get("hardware")
    if hardware is not None and measured_on != hardware:
        raise StepTimesError(
            f"{path} was measured on {measured_on or 'an unnamed machine'}, but this one is "
            f"{hardware}; measure again with `specproof profile`"
        )
    return found


def _stored(held: Mapping[str, Any]) -> Stored:
    """Take over what a file says; an error whose text says what is wrong with it."""
    if held["tokens"] != KNOTS.tolist():
        raise ValueError("its tokens are not the knots of this version")
    curve, sums, spreads = (
        np.array(held[name], np.float64) for name in ("seconds", "sums", "spreads")
    )
    knots = KNOTS.size
    for name, array, shape in (
        ("seconds", curve, (knots,)),
        ("sums", sums, (knots - 1, SUMS)),
        ("spreads", spreads, (knots - 1,)),
    ):
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"its {name} are not {np.prod(shape)} numbers")
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
    return Stored(curve, sums, spreads, steps, dict(held["about"]))
