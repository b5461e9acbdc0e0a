"""Recursive rejection without replacement, exactly: the refused mass is all that has to be known.

After refusing x_1..x_j the target residual is norm((p - lambda q)+) for one number lambda, and a
refused token never returns (it was refused because p < lambda q there). With Z(l) = sum (p - l q)+,
c = 1/(1 - q(refused)), a refusal moves lambda to lambda + c Z(lambda), and step j refuses with
probability Z(new)/Z(old). One sorted table gives every Z, so only the k-1 first refusals are
enumerated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from theory.laws import LIFT, Floats, Ints, as_pair, check_candidates

MAX_SEQUENCES = 4_000_000
"""Largest number of refused sequences that are enumerated (support^(k-1))."""


def refusal_without_replacement(p: Floats, q: Floats, k: int) -> float:
    """P(all k candidates are refused) for laws of shape (V,); O(V log V + support^(k-1)).

    Raises ValueError above `MAX_SEQUENCES`: use `estimate_without_replacement` there.
    """
    refused = 0.0
    for offer in _offers(p, q, k):
        if offer.step == k - 1:
            refused = float(np.sum(offer.weight * offer.after / offer.left))
    return refused


def accepted_without_replacement(p: Floats, q: Floats, k: int) -> Floats:
    """P(y is emitted because it was offered and accepted), shape (V,), for laws of shape (V,).

    After refusals that lead to lambda, an offer is y with chance c q(y) and is taken with
    min(1, r(y) / (c q(y))), r(y) = (p(y) - lambda q(y))+ / Z(lambda), which is 0 on what was
    refused. Cost and errors as in `refusal_without_replacement`, whose complement is the sum.
    """
    mass = np.zeros(p.shape)
    support = np.flatnonzero(q)
    for offer in _offers(p, q, k):
        target = np.maximum(offer.p - offer.scale[:, None] * offer.q, 0.0) / offer.left[:, None]
        draft = offer.q / offer.there[:, None]
        mass[support] += offer.weight @ np.minimum(target, draft)
    return np.minimum(mass, p)


class _Offer(NamedTuple):
    """Candidate `step` is offered, after each sequence of refusals: rows of n sequences."""

    step: int
    p: Floats  # on the support of q
    q: Floats
    weight: Floats  # (n,) probability of the sequence
    there: Floats  # (n,) q(tokens not refused), 1/c
    scale: Floats  # (n,) lambda
    left: Floats  # (n,) Z(lambda), and what it is if this offer is refused too
    after: Floats


def _offers(p: Floats, q: Floats, k: int) -> Iterator[_Offer]:
    """Offer after offer, with every sequence of refusals that can precede it."""
    support = np.flatnonzero(q)
    if support.size ** (k - 1) > MAX_SEQUENCES:
        raise ValueError(
            f"rrs_without_replacement with k = {k} and {support.size} drafted tokens needs "
            f"{support.size}^{k - 1} sequences, above {MAX_SEQUENCES}: cut q to its most probable "
            "tokens, use a smaller k, or theory.estimate_without_replacement"
        )
    q = q * LIFT  # and lambda divided by it
    excess = _Excess(p, q)
    p, q = p[support], q[support]
    weight, scale, left = np.ones(1), np.zeros(1), np.ones(1)  # probability, lambda, Z(lambda)
    taken = np.zeros((1, 0), dtype=np.int64)
    for step in range(k):
        if not weight.size:
            return
        there = _mass_left(q, taken)
        grown = scale + left / there
        after = excess(grown)
        yield _Offer(step, p, q, weight, there, scale, left, after)
        if step == k - 1:
            return
        # P(x drawn and refused) = (c q(x) - r(x))+ for x not refused before
        with np.errstate(over="ignore", invalid="ignore"):  # at tokens refused before
            refuse = np.maximum(grown[:, None] * q - p, 0.0)
            refuse -= np.maximum(scale[:, None] * q - p, 0.0)
        refuse /= left[:, None]
        for column in range(step):
            refuse[np.arange(weight.size), taken[:, column]] = 0.0
        parent, token = np.nonzero((refuse > 0) & (after > 0)[:, None])
        weight = weight[parent] * refuse[parent, token]
        scale, left = grown[parent], after[parent]
        taken = np.concatenate([taken[parent], token[:, None]], axis=1)


def without_replacement_law(p: Floats, q: Floats, k: int) -> Floats:
    """Law of the emitted token for laws of shape (V,), by following every refused sequence."""
    support = np.flatnonzero(q)
    if support.size ** (k - 1) > MAX_SEQUENCES // 20:
        raise ValueError(
            f"the law of rrs_without_replacement needs {support.size}^{k - 1} sequences, above "
            f"{MAX_SEQUENCES // 20}: cut q to its most probable tokens or use a smaller k"
        )

    def emitted(target: Floats, draft: Floats, offers: int) -> Floats:
        if offers == 0:
            return target
        kept = np.minimum(target, draft)
        law = kept.copy()
        excess = np.maximum(target - draft, 0.0)
        mass = excess.sum()
        if mass <= 0:
            return law
        for token in np.flatnonzero(draft > target):
            rest = draft.copy()
            rest[token] = 0.0
            total = rest.sum()
            if total > 0:
                law += (draft[token] - target[token]) * emitted(
                    excess / mass, rest / total, offers - 1
                )
            else:
                law += (draft[token] - target[token]) * excess / mass
        return law

    return emitted(p, q, k)


def estimate_without_replacement(
    p: Floats, q: Floats, k: int, *, samples: int = 4096, seed: int = 0
) -> tuple[float, float]:
    """Monte Carlo acceptance of rrs_without_replacement, with its standard error.

    Draws the first k-1 candidates of `samples` races and multiplies exact refusals; the last
    candidate is integrated exactly. For laws of shape (V,) whose exact sum is too long.
    """
    p, q = as_pair(p, q)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, for a standard error; got {samples}")
    if p.ndim != 1:
        raise ValueError(f"one pair of laws of shape (V,) is needed; got shape {p.shape}")
    check_candidates(k, q)
    rng = np.random.default_rng(seed)
    q = q * LIFT  # as in `refusal_without_replacement`
    excess = _Excess(p, q)
    p, q = p[q > 0], q[q > 0]
    weight, scale, left = np.ones(samples), np.zeros(samples), np.ones(samples)
    drawn = _race(q, k - 1, samples, rng)
    for column in range(k):
        there = _mass_left(q, drawn[:, :column])
        grown = scale + left / there
        after = excess(grown)
        safe = np.where(left > 0, left, 1.0)
        if column == k - 1:
            weight *= np.where(left > 0, after / safe, 0.0)
            break
        token = drawn[:, column]
        draft = q[token] / there
        target = np.maximum(p[token] - scale * q[token], 0.0) / safe
        weight *= np.where(left > 0, 1 - np.minimum(1.0, target / draft), 0.0)
        scale, left = grown, after
    return float(1 - weight.mean()), float(weight.std(ddof=1) / np.sqrt(samples))


def _mass_left(q: Floats, taken: Ints) -> Floats:
    """q(tokens not taken) for rows of different tokens, shape (n, j): sums, hardly a subtraction.

    The j most probable tokens are added up one by one. If a light token is taken, a heavier one is
    not, so what is subtracted from the mass of the light ones is never most of the result.
    """
    count = taken.shape[1]
    order = np.argpartition(q, min(q.size - count, q.size - 1))
    heavy, light = order[q.size - count :], order[: q.size - count]
    gone = (taken[:, :, None] == heavy).any(axis=1)
    rare = ~(taken[:, :, None] == heavy).any(axis=2)
    return np.asarray(
        np.where(gone, 0.0, q[heavy]).sum(axis=1)
        + (q[light].sum() - np.where(rare, q[taken], 0.0).sum(axis=1))
    )


def _race(q: Floats, count: int, samples: int, rng: np.random.Generator) -> Ints:
    """`count` different tokens a row, in draw order, by inverse transform of what is left.

    The running sum goes from rare to probable, so that the rare ones keep their digits.
    """
    order = np.argsort(q)
    ranked = q[order]
    before = np.append(0.0, np.cumsum(ranked))
    drawn = np.zeros((samples, count), dtype=np.int64)
    for column in range(count):
        ranks = np.sort(drawn[:, :column], axis=1)
        todo = np.arange(samples)
        while todo.size:
            gone = ranks[todo]
            place = rng.random(todo.size) * _mass_left(ranked, gone)
            for rank in gone.T:
                place = np.where(place >= before[rank], place + ranked[rank], place)
            found = np.searchsorted(before, place, side="right") - 1
            drawn[todo, column] = np.clip(found, 0, q.size - 1)
            again = (gone == drawn[todo, column, None]).any(axis=1)  # by rounding only
            todo = todo[again]
    return np.asarray(order[drawn], dtype=np.int64)


class _Excess:
    """Z(l) = sum (p - l q)+ for many l at once, by one sort and suffix sums."""

    def __init__(self, p: Floats, q: Floats) -> None:
        ratio = np.divide(p, q, out=np.full(p.shape, np.inf), where=q > 0)
        order = np.argsort(ratio)
        self._ratio = ratio[order]
        self._p = np.append(np.cumsum(p[order][::-1])[::-1], 0.0)
        self._q = np.append(np.cumsum(q[order][::-1])[::-1], 0.0)

    def __call__(self, scale: Floats) -> Floats:
        first = np.searchsorted(self._ratio, scale, side="right")
        return np.asarray(np.maximum(self._p[first] - scale * self._q[first], 0.0))
