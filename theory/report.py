"""Bounds of many rows: per k, scheme and rule, the acceptance, the optimum and the gap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from theory.acceptance import RULES, Rule, acceptance_rate
from theory.inputs import Row
from theory.laws import Floats
from theory.optimum import Drafts, optimal_acceptance
from theory.recursive import MAX_SEQUENCES, estimate_without_replacement

SCHEME: dict[Rule, Drafts] = {
    "token": "iid",
    "match": "iid",
    "coupled": "iid",
    "kseq": "iid",
    "rrs": "iid",
    "rrs_without_replacement": "without_replacement",
    "sparse_optimal": "without_replacement",
    "top_plus_one": "top_plus_one",
}
"""The drafts each rule verifies: its gap is measured against the optimum for these drafts."""
OPTIMAL: tuple[Rule, ...] = ("sparse_optimal", "top_plus_one")
"""Rules that reach that optimum, so that it need not be computed twice."""


@dataclass(frozen=True)
class Spread:
    """Mean and quantiles over rows."""

    mean: float
    q10: float
    median: float
    q90: float


@dataclass(frozen=True)
class Bound:
    """One line of the report. rule None: the optimum itself. rows: how many could be computed (k is
    at most the support where no token repeats); standard_error > 0: a Monte Carlo mean."""

    k: int
    drafts: Drafts
    rule: Rule | None
    rows: int
    acceptance: Spread
    optimum: float
    gap: float
    standard_error: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def bounds(
    rows: Iterable[Row], candidates: Sequence[int], schemes: Sequence[Drafts], rules: Sequence[Rule]
) -> tuple[Spread, list[Bound]]:
    """1 - TV over all rows, and one `Bound` for each k, scheme and rule of that scheme.

    Raises ValueError for k < 1, unknown names, and when no row can offer k candidates.
    """
    for rule in rules:
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    floor: list[float] = []
    optima: dict[tuple[int, Drafts], list[float]] = {}
    found: dict[tuple[int, Rule], list[tuple[float, float]]] = {}
    for p, q in rows:
        floor.append(float(np.minimum(p, q).sum()))
        support = int(np.count_nonzero(q))
        for k in candidates:
            for drafts in schemes:
                if drafts != "iid" and k > support:
                    continue
                best = float(optimal_acceptance(p, q, k, drafts=drafts).value)
                optima.setdefault((k, drafts), []).append(best)
                for rule in (r for r in rules if SCHEME[r] == drafts):
                    rate = (best, 0.0) if rule in OPTIMAL else _acceptance(p, q, k, rule)
                    found.setdefault((k, rule), []).append(rate)
    if not floor:
        raise ValueError("there are no rows")
    table = []
    for (k, drafts), values in sorted(optima.items(), key=lambda item: item[0][0]):
        optimum = float(np.mean(values))
        table.append(Bound(k, drafts, None, len(values), spread(values), optimum, 0.0))
        for rule in (r for r in rules if SCHEME[r] == drafts):
            rates, errors = np.array(found[k, rule]).T
            error = float(np.sqrt(np.sum(errors**2)) / errors.size)
            seen = spread(rates)
            table.append(
                Bound(k, drafts, rule, rates.size, seen, optimum, optimum - seen.mean, error)
            )
    if not table:
        raise ValueError("no row has as many drafted tokens as the smallest k: use drafts 'iid'")
    return spread(floor), table


def spread(values: Sequence[float] | Floats) -> Spread:
    """Mean and 10, 50, 90 % quantiles."""
    data = np.asarray(values, dtype=np.float64)
    low, middle, high = np.quantile(data, [0.1, 0.5, 0.9])
    return Spread(float(data.mean()), float(low), float(middle), float(high))


def _acceptance(p: Floats, q: Floats, k: int, rule: Rule) -> tuple[float, float]:
    """Acceptance and standard error: only the sum over too many refused sequences is sampled."""
    long = int(np.count_nonzero(q)) ** (k - 1) > MAX_SEQUENCES
    if rule == "rrs_without_replacement" and long:
        return estimate_without_replacement(p, q, k)
    return float(acceptance_rate(p, q, k, rule=rule)), 0.0
