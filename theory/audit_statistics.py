"""Is a stream of sampled tokens what the exact laws say? One test to refute, one bound to clear.

Given the exact law of each next token, tokens of a lossless sampler are draws from it, whatever was
drafted: given the prefix, and given everything sampled before. Two statements follow, both true at
every moment at once, so that one may look after every batch and stop whenever one likes:

- *Refuted*: evidence E, the average wealth of many bets (theory.audit_bets), reached 1/budget. A
  sampler whose laws are all within the tolerance of the measured ones is refuted with probability
  at most `budget` (Ville's inequality).
- *Cleared*: `tv_bound` is below the resolution. It bounds, with probability 1 - miss, the mean over
  tested tokens of (true - measured probability), for every event in both directions at once:
  for lambda in [0, 1), exp(lambda S_n - psi(lambda) V_n), with S_n = sum (mu_t - X_t),
  V_n = sum (X_t - p_t)^2, psi(lambda) = -ln(1 - lambda) - lambda, is a supermartingale whatever the
  true means mu_t are (Fan, Grama & Liu 2015; Howard et al. 2021, Theorem 4); a mixture over lambda
  gives the bound. For the rank bins the largest of these means is a total variation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from theory.audit_bets import CONCENTRATIONS, TILTS, PrefixBets, tilted_log_factors
from theory.audit_events import EVENTS, TextMemory, event_row
from theory.head_law import HeadLaw
from theory.laws import Floats

LARGEST_SLACK = 0.01
_LAMBDAS = np.array([0.03, 0.1, 0.3])
_PSI = -np.log1p(-_LAMBDAS) - _LAMBDAS


@dataclass(frozen=True, slots=True)
class Look:
    """The state of an audit after some tested tokens."""

    tested: int
    log_evidence: float
    tv_bound: float


@dataclass(frozen=True, slots=True)
class Deviation:
    """One event: how often it happened beyond its due (a difference of probabilities)."""

    event: str
    excess: float
    bound: float
    log_evidence: float


class SequentialAudit:
    """The statistics of an audit, fed one sampled sequence after the other.

    Parameters
    ----------
    budget : probability that a right sampler is ever refuted.
    resolution : the deviation that "cleared" excludes.
    miss : probability that `tv_bound` is ever wrong.
    tolerance : total variation within which measured laws may be off (numerical noise).

    Raises ValueError for a budget, resolution or miss outside (0, 1), or a tolerance outside
    [0, resolution).
    """

    def __init__(
        self,
        *,
        budget: float = 1e-6,
        resolution: float = 0.02,
        miss: float = 0.05,
        tolerance: float = 1e-4,
    ) -> None:
        for name, value in (("budget", budget), ("resolution", resolution), ("miss", miss)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1; got {value}")
        if not 0 <= tolerance < resolution:
            raise ValueError(
                f"the tolerance, {tolerance:.3g}, must be at least 0 and below the resolution, "
                f"{resolution:.3g}: give a coarser resolution or more exact arithmetic"
            )
        self.budget, self.resolution, self.miss = budget, resolution, miss
        self.tolerance = tolerance
        self.memory = TextMemory()
        self.tested = 0
        self.undetermined = 0
        self.curve: list[Look] = []
        self._prefixes = PrefixBets()
        self._log_wealth: Floats = np.zeros((len(EVENTS), TILTS.size))
        self._excess: Floats = np.zeros(len(EVENTS))
        self._squares: Floats = np.zeros(len(EVENTS))
        self._slack = 0.0
        self._peak = 0.0
        self._first_rank: list[float] = []

    def observe(
        self, prompt: Sequence[int], tokens: Sequence[int], laws: Sequence[HeadLaw], skip: int = 1
    ) -> None:
        """Test the tokens of one sequence after its first `skip`; laws[t] is that of tokens[t].

        The first token comes out of the prompt's own forward, where nothing is drafted. Positions
        whose law is not determined within 0.01 are counted in `undetermined` and not tested.
        """
        if len(tokens) != len(laws):
            raise ValueError(f"{len(tokens)} tokens need as many laws; got {len(laws)}")
        start, text = tuple(prompt), list(prompt)
        rows, slacks = [], []
        for t, (token, law) in enumerate(zip(tokens, laws, strict=True)):
            if t >= skip and law.slack > LARGEST_SLACK:
                self.undetermined += 1
            elif t >= skip:
                slack = self.tolerance + law.slack
                echo, habit = self.memory.echo(text), self.memory.habit(text)
                rows.append(event_row(law, token, echo, habit))
                slacks.append(slack)
                self._slack += law.slack
                self._prefixes.bet((start, tuple(tokens[:t])), law, token, slack)
            self.memory.extend(text, token)
            text.append(token)
        if rows:
            chances, happened = (np.array(columns) for columns in zip(*rows, strict=True))
            self.settle(chances, happened, np.array(slacks))

    def settle(self, chances: Floats, happened: Floats, slacks: Floats) -> None:
        """Test n tokens by their events: chances and happened (n, E), slacks (n,)."""
        self._log_wealth += tilted_log_factors(chances, happened, slacks)
        gap = np.nan_to_num(happened - chances)
        self._excess += gap.sum(axis=0)
        self._squares += (gap**2).sum(axis=0)
        self._first_rank.extend(chances[:, 0])
        self.tested += len(chances)
        self._peak = max(self._peak, self.log_evidence)

    @property
    def log_evidence(self) -> float:
        """log E: mean wealth over the events and the three prefix bets, each with equal weight."""
        each = np.append(_log_mean(self._log_wealth, axis=1), self._prefixes.log_wealth)
        return float(_log_mean(each))

    @property
    def threshold(self) -> float:
        """log(1/budget): the evidence that refutes."""
        return float(-np.log(self.budget))

    @property
    def refuted(self) -> bool:
        """Whether the evidence has ever reached the threshold."""
        return self._peak >= self.threshold

    @property
    def tv_bound(self) -> float:
        """Upper bound on the mean deviation of every event, true for ever with 1 - `miss`."""
        if not self.tested:
            return 1.0
        worst = max(self._bound(i) for i in range(len(EVENTS)))
        return min(1.0, worst + self._slack / self.tested)

    @property
    def cleared(self) -> bool:
        """Whether the bound has fallen below the resolution, and nothing was refuted."""
        return not self.refuted and self.tv_bound < self.resolution

    def look(self) -> Look:
        """Record the state for the curve."""
        look = Look(self.tested, self.log_evidence, self.tv_bound)
        self.curve.append(look)
        return look

    def deviations(self) -> list[Deviation]:
        """Every event's excess, with the evidence of its own bets, the strongest first."""
        logs = _log_mean(self._log_wealth, axis=1)
        found = [
            Deviation(name, self._excess[i] / max(self.tested, 1), self._bound(i), float(logs[i]))
            for i, name in enumerate(EVENTS)
        ]
        return sorted(found, key=lambda one: -one.log_evidence)

    def power(self, tv: float) -> float:
        """P(refuted by now | the most probable token is emitted too often, or too seldom, by `tv`).

        The smaller of both, in normal approximation, for the best single bet after its share of the
        average: a lower estimate. Too often: q = p + c (1 - p); too seldom: q = p - c p, with c so
        that the mean of |q - p| over the tested tokens is `tv`. 0 where no c is that large.
        """
        p = np.asarray(self._first_rank)
        if p.size == 0:
            return 0.0
        weight = np.log((len(EVENTS) + CONCENTRATIONS.size) * TILTS.size)
        needed = self.threshold + weight
        powers = []
        for room, sign in ((1 - p, 1.0), (p, -1.0)):
            if room.mean() <= tv:
                powers.append(0.0)
                continue
            q = p + sign * room * tv / room.mean()
            best = 0.0
            for theta in TILTS[sign * TILTS > 0]:
                edge = np.clip(p + np.sign(theta) * self.tolerance, 0.0, 1.0)
                mean = float(np.sum(theta * q - np.log1p(edge * np.expm1(theta))))
                deviation = float(np.sqrt(np.sum(theta**2 * q * (1 - q))))
                best = max(best, float(norm.sf((needed - mean) / max(deviation, 1e-12))))
            powers.append(best)
        return min(powers)

    def _bound(self, event: int) -> float:
        """Upper bound on |mean deviation| of one event, both directions sharing `miss`."""
        if not self.tested:
            return 1.0
        level = float(np.log(2 * len(EVENTS) / self.miss))
        squares = float(self._squares[event])

        def excess(s: float) -> float:
            return float(_log_mean(_LAMBDAS * s - _PSI * squares)) - level

        high = float(np.min((level + np.log(_LAMBDAS.size) + _PSI * squares) / _LAMBDAS))
        noise = brentq(excess, 0.0, high + 1e-9)
        return float(abs(self._excess[event]) + noise) / self.tested


def _log_mean(logs: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.logaddexp.reduce(logs, axis=axis) - np.log(logs.shape[axis]))
