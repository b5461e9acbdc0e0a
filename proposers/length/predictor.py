"""How likely a drafted token is to be accepted: a prior, corrected by what was seen online.

The prior's estimate a0 = sigma(w . b(f)) (:mod:`proposers.length.prior`) is corrected twice, each
time by a cell's mean error, shrunk towards none by ``shrinkage`` n0:

    a <- a + sum_k g^(n-k) (label_k - a_k) / (n0 + sum_k g^(n-k)),

first in the cell of a0's decile, then in that of (matched order, visits, fifth of a0). The sums run
over the n labels of the cell, g = ``keep`` forgets, so the estimate follows a change of traffic
within about 1/(1-g) labels of a cell; without data it is the prior. A drafter that shows no
features has cells by depth. An estimate only: policies use it, no law depends on it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from proposers.atomic_file import replacing
from proposers.batch import Doubles, Floats
from proposers.length.features import COUNT, DEPTH, MATCHED, NAMES
from proposers.length.prior import ORDERS, SIZE, WEIGHTS, write_basis

DECILES, FIFTHS, VISITS = 10, 5, 3
CELLS = (ORDERS + 1) * VISITS * FIFTHS
LEAST, MOST = 0.005, 0.995
DRIFT = 0.9
"""Factor on what is predicted behind two drafts. Labels come from emitted text, but a draft's
prefix was drawn and may be refused already, and what follows a wrong token looks as good: on
SmolLM2's traces survivals of .05 to .15 at depths from 2 on were realised as .83 of themselves.
Tokens/s of the threshold policy rise by 0.1 to 1 % for 0.9, and hardly change down to 0.85."""
BARE = 0.35
"""What a draft without features is given at first."""
FORMAT, VERSION = "specproof acceptance", 1
_PATIENCE = 10.0


@njit(inline="always")
def _prior(features: Any, weights: Any, basis: Any) -> Any:
    if features[MATCHED] < 1:
        return BARE
    write_basis(features, basis)
    z = 0.0
    for i in range(basis.shape[0]):
        z += weights[i] * basis[i]
    return 1.0 / (1.0 + math.exp(-min(max(z, -30.0), 30.0)))


@njit(inline="always")
def _cell(features: Any, prior: Any) -> Any:
    matched = min(max(int(features[MATCHED]), 0), ORDERS)
    visits = 0 if features[COUNT] <= 1.01 else (1 if features[COUNT] < 3 else 2)
    level = min(int(prior * FIFTHS), FIFTHS - 1)
    if matched == 0:  # the depth is all there is to tell
        level, visits = min(int(features[DEPTH]), VISITS * FIFTHS - 1), 0
    return (matched * VISITS + visits) * FIFTHS + level


@njit(inline="always")
def _corrected(chance: Any, cell: Any, errors: Any, counts: Any, shrinkage: Any) -> Any:
    moved = chance + errors[cell] / (shrinkage + counts[cell])
    return min(max(moved, LEAST), MOST)


@njit(cache=True, nogil=True)
def _predict(
    features: Any, weights: Any, errors: Any, counts: Any, shrinkage: Any, out: Any
) -> Any:
    basis = np.empty(SIZE)
    for b in range(features.shape[0]):
        for i in range(features.shape[1]):
            here = features[b, i]
            if here[MATCHED] != here[MATCHED]:  # nothing was drafted here
                continue
            prior = _prior(here, weights, basis)
            decile = min(int(prior * DECILES), DECILES - 1)
            first = _corrected(prior, decile, errors, counts, shrinkage)
            cell = DECILES + _cell(here, prior)
            out[b, i] = _corrected(first, cell, errors, counts, shrinkage)


@njit(cache=True, nogil=True)
def _learn(
    features: Any, labels: Any, weights: Any, errors: Any, counts: Any, shrinkage: Any, keep: Any
) -> Any:
    basis = np.empty(SIZE)
    learned = 0
    for k in range(features.shape[0]):
        here, label = features[k], labels[k]
        if here[MATCHED] != here[MATCHED] or label != label:
            continue
        prior = _prior(here, weights, basis)
        decile = min(int(prior * DECILES), DECILES - 1)
        cell = DECILES + _cell(here, prior)
        first = _corrected(prior, decile, errors, counts, shrinkage)
        errors[decile] = errors[decile] * keep + label - prior
        counts[decile] = counts[decile] * keep + 1.0
        errors[cell] = errors[cell] * keep + label - first
        counts[cell] = counts[cell] * keep + 1.0
        learned += 1
    return learned


class AcceptancePredictor:
    """Predicts the conditional acceptance of drafted tokens and learns it; see the module.

    Parameters
    ----------
    weights
        The prior's, shape (SIZE,); those that were fitted on SmolLM2's recorded answers by default.
    shrinkage
        Labels that weigh as much as the prior in a cell, n0 > 0.
    keep
        What a label's weight keeps when the next one comes to its cell, g in (0, 1].

    Raises
    ------
    ValueError
        For a value outside its range and weights of another shape.
    """

    def __init__(
        self, weights: Doubles = WEIGHTS, *, shrinkage: float = 50.0, keep: float = 0.999
    ) -> None:
        if weights.shape != (SIZE,) or not np.isfinite(weights).all():
            raise ValueError(f"weights must be {SIZE} finite numbers; got shape {weights.shape}")
        if not 0 < shrinkage < math.inf:
            raise ValueError(f"shrinkage is {shrinkage}; it must be above 0")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; it must lie in (0, 1]")
        self.weights = np.array(weights, np.float64)
        self.shrinkage, self.keep = float(shrinkage), float(keep)
        self.errors = np.zeros(DECILES + CELLS)
        self.counts = np.zeros(DECILES + CELLS)
        self.learned = 0

    def predict(self, features: Floats) -> Doubles:
        """P(accepted | all before it were), shape (B, K), of features (B, K, F); nan stays nan."""
        if features.ndim != 3 or features.shape[2] != len(NAMES):
            raise ValueError(f"features must have shape (B, K, {len(NAMES)}); got {features.shape}")
        out = np.full(features.shape[:2], np.nan)
        _predict(features, self.weights, self.errors, self.counts, self.shrinkage, out)
        return out

    def predict_drafts(self, features: Floats) -> Doubles:
        """:meth:`predict` along drawn chains, whose places begin at depth 0: see ``DRIFT``."""
        out = self.predict(features)
        out[:, 2:] *= DRIFT
        return out

    def learn(self, features: Floats, accepted: Doubles) -> None:
        """Take in labels in [0, 1], shape (...), of features (..., F), in their order.

        Soft labels are best: those of :func:`proposers.length.shadow.shadow_labels`. A label or a
        feature of nan teaches nothing.
        """
        if features.shape != (*accepted.shape, len(NAMES)):
            raise ValueError(
                f"features must have the shape of accepted and {len(NAMES)} more; got "
                f"{features.shape} and {accepted.shape}"
            )
        flat = accepted.reshape(-1)
        if ((flat < 0) | (flat > 1)).any():
            raise ValueError("accepted must lie in [0, 1], or be nan where it is not known")
        self.learned += _learn(
            features.reshape(-1, len(NAMES)), flat, self.weights, self.errors, self.counts,
            self.shrinkage, self.keep,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write everything as JSON, replacing the file as a whole."""
        held = {
            "format": FORMAT, "version": VERSION, "shrinkage": self.shrinkage, "keep": self.keep,
            "learned": self.learned, "weights": self.weights.tolist(),
            "errors": self.errors.tolist(), "counts": self.counts.tolist(),
        }  # fmt: skip
        with replacing(path, patience=_PATIENCE) as file:
            file.write(json.dumps(held).encode())

    @classmethod
    def load(cls, path: Path) -> AcceptancePredictor:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            In one sentence, for a file that is broken, of another kind or of another version.
        OSError
            When it cannot be read.
        """
        try:
            held = json.loads(path.read_bytes())
        except ValueError:
            raise ValueError(f"{path} is not JSON: delete it, or give another file") from None
        if not isinstance(held, dict) or held.get("format") != FORMAT:
            raise ValueError(f"{path} does not hold acceptances: its format is not {FORMAT!r}")
        if held.get("version") != VERSION:
            raise ValueError(
                f"{path} is of version {held.get('version')!r}; this program reads {VERSION}"
            )
        try:
            made = cls(
                _numbers(held, "weights", SIZE),
                shrinkage=float(held["shrinkage"]),
                keep=float(held["keep"]),
            )
            made.errors = _numbers(held, "errors", DECILES + CELLS)
            made.counts = _numbers(held, "counts", DECILES + CELLS)
            made.learned = int(held["learned"])
            if (made.counts < 0).any() or (np.abs(made.errors) > made.counts + 1e-6).any():
                raise ValueError("more error than labels")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is broken ({error}): delete it, or give another") from None
        return made


def _numbers(held: dict[str, Any], name: str, size: int) -> Doubles:
    found = np.array(held[name], np.float64)
    if found.shape != (size,) or not np.isfinite(found).all():
        raise ValueError(f"{name} must be {size} finite numbers")
    return found
