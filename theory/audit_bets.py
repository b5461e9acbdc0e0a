"""Evidence against a sampler: bets that a right one makes lose on average, however long they run.

A bet's wealth is a product of factors, one a sampled token, each of conditional mean at most 1 when
the token's law is within total variation `slack` of the measured one. So wealth is a nonnegative
supermartingale of mean at most 1, any average of wealths is one too, and by Ville's inequality
(1939) it ever reaches 1/budget with probability at most `budget`: whenever one stops.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from theory.head_law import HeadLaw
from theory.laws import Floats

TILTS = np.array([s * t for t in (0.02, 0.06, 0.2, 0.6, 2.0, 5.0) for s in (1.0, -1.0)])
CONCENTRATIONS = np.array([4.0, 32.0, 256.0])
_SMALLEST_BIN = 0.02
_FIRST_VISITS = 2  # most prefixes come once: remember only those that come back


def tilted_log_factors(chances: Floats, happened: Floats, slack: Floats) -> Floats:
    """Sum over n tokens of the log factors exp(theta X) / sup E exp(theta X), shape (E, tilts).

    chances, happened (n, E): probability of each event under the measured law, and whether it
    happened; slack (n,): total variation within which the true law lies, so that the supremum is at
    min(p + slack, 1) for theta > 0 and at max(p - slack, 0) below. Exponential tilts are the
    likelihood ratios against laws that give an event more or less than it is due. Where an event
    was not posed (NaN) nothing is bet on it.
    """
    total: Floats = np.empty((chances.shape[1], TILTS.size))
    for i, theta in enumerate(TILTS):
        side = slack[:, None] if theta > 0 else -slack[:, None]
        edge = np.clip(chances + side, 0.0, 1.0)
        total[:, i] = np.nansum(theta * happened - np.log1p(edge * np.expm1(theta)), axis=0)
    return total


class PrefixBets:
    """Bets on tokens after each prefix that comes back: has this very law been followed?

    Per prefix, the bins are the tokens of at least 2 % and the rest. The bet on bin b after counts
    c is g(b) = w(b)/P(b) with w = (a P + c)/(a + n), the prediction of a Dirichlet(a P) prior;
    divided by 1 + slack (max g - min g), its mean is at most 1 for every law within the slack.
    Factors of all prefixes multiply into one wealth per concentration a.
    """

    def __init__(self) -> None:
        self.log_wealth: Floats = np.zeros(CONCENTRATIONS.size)
        self._visits: dict[Hashable, int] = {}
        self._prefixes: dict[Hashable, tuple[dict[int, int], Floats, Floats]] = {}

    def bet(self, prefix: Hashable, law: HeadLaw, token: int, slack: float) -> None:
        """Settle the bet on `token` after `prefix`, whose law was measured as `law`."""
        known = self._prefixes.get(prefix)
        if known is None:
            visits = self._visits[prefix] = self._visits.get(prefix, 0) + 1
            if visits < _FIRST_VISITS:
                return
            own = law.tokens[law.masses >= _SMALLEST_BIN]
            mass = law.masses[law.masses >= _SMALLEST_BIN]
            if 1 - mass.sum() < _SMALLEST_BIN:  # too little for a bin: the last one takes it
                own, mass = own[:-1], mass[:-1]
            bins = {int(x): i for i, x in enumerate(own)}
            p = np.append(mass, 1 - mass.sum())
            known = self._prefixes[prefix] = bins, p, np.zeros(p.size)
        bins, p, counts = known
        if p.size == 1:
            return
        b = bins.get(token, p.size - 1)
        a = CONCENTRATIONS[:, None]
        gains = (a * p + counts) / (a + counts.sum()) / p
        spread = gains.max(axis=1) - gains.min(axis=1)
        self.log_wealth += np.log(gains[:, b]) - np.log1p(slack * spread)
        counts[b] += 1
