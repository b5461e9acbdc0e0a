"""A next-token law known by its head: the most probable tokens, and how much mass is left.

An engine reports log probabilities of the k most probable tokens at temperature 1. At temperature T
the law is p^(1/T) over its sum, and the sum needs the tail too. The tail is known by two facts
only: its mass m, and that none of its R tokens is more probable than the last one of the head.
That bounds its share (Jensen's inequality in one direction, the last one's mass in the other);
`slack` is how far the law can be off because of it, in total variation over any bins that keep the
tail together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from theory.laws import Floats, Ints

_ROUNDING = 1e-9  # a head that lacks no more than this is the whole law


@dataclass(frozen=True, slots=True)
class HeadLaw:
    """tokens (m,) by falling probability; masses (m,) at the temperature; slack as above."""

    tokens: Ints
    masses: Floats
    slack: float

    @property
    def tail(self) -> float:
        """Probability that the token is none of the head."""
        return max(0.0, 1.0 - float(self.masses.sum()))

    def mass_of(self, token: int) -> float | None:
        """Probability of a token of the head; None for one of the tail."""
        place = np.flatnonzero(self.tokens == token)
        return float(self.masses[place[0]]) if place.size else None


def tempered_head(
    tokens: ArrayLike,
    log_masses: ArrayLike,
    temperature: float,
    *,
    vocabulary: int | None = None,
    keep: int = 64,
) -> HeadLaw:
    """The law at `temperature` from the most probable tokens' log probabilities at temperature 1.

    p_T(x) = p(x)^(1/T) / (sum over the head of p^(1/T) + t), where t, the tail's part, lies between
    R (m/R)^(1/T) and m p_k^(1/T - 1) for T <= 1, and between the same two in the other order above.
    Shapes (k,) and (k,); `vocabulary` None leaves R unknown, which costs nothing for T <= 1 and
    leaves the law undetermined (slack 1) above. The first `keep` tokens stay in the head.

    Raises ValueError for a temperature that is not positive and for values that are no log law.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    logs = np.asarray(log_masses, dtype=np.float64)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    if ids.ndim != 1 or ids.shape != logs.shape or ids.size == 0:
        raise ValueError(f"need as many tokens as log masses; got {ids.shape} and {logs.shape}")
    if np.isnan(logs).any() or logs.max() > 1e-3:
        raise ValueError("log probabilities must be at most 0 and not NaN")
    order = np.lexsort((ids, -logs))  # ties by token id: the order must not depend on the input's
    ids, logs = ids[order], logs[order]
    rest = None if vocabulary is None else max(vocabulary - ids.size, 0)
    missing = max(0.0, 1.0 - float(np.exp(logs).sum()))
    low, high = _tail_weight(missing, float(logs[-1]), 1 / temperature, rest)
    weights = np.exp(logs / temperature)
    head = float(weights.sum())
    share_low, share_high = (t / (head + t) if np.isfinite(t) else 1.0 for t in (low, high))
    share = (share_low + share_high) / 2
    masses = weights / head * (1 - share)
    return HeadLaw(ids[:keep], masses[:keep], (share_high - share_low) / 2)


def _tail_weight(
    mass: float, log_last: float, power: float, rest: int | None
) -> tuple[float, float]:
    """Bounds on the sum of p^power over a tail of `rest` tokens, each at most exp(log_last)."""
    if mass < _ROUNDING or rest == 0:
        return 0.0, 0.0
    capped = mass * np.exp((power - 1) * log_last)
    if rest is None:
        spread = 0.0 if power > 1 else (mass if power == 1 else np.inf)
    else:
        spread = rest * (mass / rest) ** power
    low, high = sorted((float(capped), float(spread)))
    return low, high


def head_distance(one: HeadLaw, other: HeadLaw) -> float:
    """TV of two laws given that the token is in both heads: free of what is unknown of the tails.

    1 when the heads have no token in common.
    """
    _, a, b = np.intersect1d(one.tokens, other.tokens, return_indices=True)
    p, q = one.masses[a], other.masses[b]
    if not (p.sum() > 0 and q.sum() > 0):
        return 1.0
    return float(np.abs(p / p.sum() - q / q.sum()).sum()) / 2
