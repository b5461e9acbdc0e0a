"""The best acceptance any lossless rule can reach with k candidates, with its certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.laws import LIFT, Floats, check_candidates, row_blocks, top_tokens
from theory.race import prefix_probabilities

Drafts = Literal["iid", "without_replacement", "top_plus_one"]
SORTED_BELOW = 1024
"""Vocabulary up to which whole blocks of rows are sorted at once; above, rows are binned."""
Solver = Callable[[Floats, Floats, int], tuple[Floats, NDArray[np.bool_]]]


@dataclass(frozen=True)
class OptimalAcceptance:
    """value = 1 + P(H) - Q(H), shape (...); witness H, bool of shape (..., V)."""

    value: Floats
    witness: NDArray[np.bool_]


def optimal_acceptance(
    p: ArrayLike, q: ArrayLike, k: int, *, drafts: Drafts = "iid"
) -> OptimalAcceptance:
    """Largest P(some candidate is the emitted token) over all couplings of p with k drafts from q.

    alpha* = 1 + min over H of P(H) - Q(H), Q(H) = P(all k candidates lie in H): the dual of the
    transport problem (Sun et al. 2023, arXiv 2310.15141; Hu et al. 2025, arXiv 2502.18779). A
    prefix of the tokens in order of p/q attains it for iid and without-replacement drafts
    (docs/theory.md, statements 3 and 4); top_plus_one (the k-1 most probable tokens of q, plus one
    draw from the rest) has p(top) + sum over the rest of min(p, q~).

    p, q: shape (..., V), broadcast. iid and top_plus_one cost O(V log V) a row at most and mostly
    O(V); without_replacement O(V k nodes), error at most `theory.race.ERROR_BOUND` = 1e-9.
    Raises ValueError for bad laws, k < 1, and k above the support of q where no token repeats.
    """
    if drafts not in get_args(Drafts):
        raise ValueError(f"drafts must be one of {get_args(Drafts)}; got {drafts!r}")
    check_candidates(k)
    solve: Solver = {
        "iid": _iid,
        "without_replacement": _without_replacement,
        "top_plus_one": _top_plus_one,
    }[drafts]
    shape, blocks = row_blocks(p, q)
    value = np.empty(shape[:-1])
    witness = np.empty(shape, dtype=bool)
    values, members = value.reshape(-1), witness.reshape(-1, shape[-1])
    for rows, target, draft in blocks:
        check_candidates(k, None if drafts == "iid" else draft)
        values[rows], members[rows] = solve(target, draft, k)
    return OptimalAcceptance(value, witness)


def _iid(p: Floats, q: Floats, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    if p.shape[-1] <= SORTED_BELOW:
        order = np.argsort(_ratio(p, q), axis=-1)
        inside_p = np.cumsum(np.take_along_axis(p, order, axis=-1), axis=-1)
        inside_q = np.cumsum(np.take_along_axis(q, order, axis=-1), axis=-1)
        return _best_prefix(order, inside_p, inside_q**k)
    value = np.empty(p.shape[0])
    witness = np.empty(p.shape, dtype=bool)
    for row, (target, draft) in enumerate(zip(p, q, strict=True)):
        value[row], witness[row] = _iid_row(target, draft, k)
    return value, witness


def _iid_row(p: Floats, q: Floats, k: int) -> tuple[float, NDArray[np.bool_]]:
    """The best prefix in order of p/q, found by sorting only the bins that can hold it.

    Tokens are counted into bins of width w = k/B of p/q (from k on, no token gains). Inside a bin
    P(H) - q(H)^k is at least its value at one of the two edges, less w q(bin): bins whose bound is
    not below the best edge are never sorted.
    """
    size = min(4096, max(16, p.size))
    ratio = _ratio(p, q)
    bins = (np.minimum(ratio, k) * (size / k)).astype(np.intp)
    np.minimum(bins, size, out=bins)
    mass_p = np.bincount(bins, p, size + 1)[:size]
    mass_q = np.bincount(bins, q, size + 1)[:size]
    edge_p: Floats = np.cumsum(mass_p).astype(np.float64, copy=False)
    edge_q: Floats = np.cumsum(mass_q).astype(np.float64, copy=False)
    edge = edge_p - edge_q**k
    stop = int(np.argmin(edge))
    if edge[stop] < 0:
        least, inside = float(edge[stop]), bins <= stop
    else:
        least, inside = 0.0, np.zeros(p.size, dtype=bool)
    open_bins = np.append(edge - (k / size) * (1 + 1e-9) * mass_q < least, False)
    tokens = np.flatnonzero(open_bins[bins])
    if tokens.size:
        tokens = tokens[np.argsort(ratio[tokens])]
        home = bins[tokens]
        first = np.searchsorted(home, home)  # position of the first open token of the same bin
        gap = _within(p[tokens], first, (edge_p - mass_p)[home])
        gap -= _within(q[tokens], first, (edge_q - mass_q)[home]) ** k
        best = int(np.argmin(gap))
        if gap[best] < least:
            least, inside = float(gap[best]), bins < home[best]
            inside[tokens[first[best] : best + 1]] = True
    return min(max(1 + least, 0.0), 1.0), inside


def _within(mass: Floats, first: NDArray[np.intp], before: Floats) -> Floats:
    """Running mass of each token's bin, on top of the mass `before` the bin."""
    running = np.cumsum(mass)
    return np.asarray(running - (running - mass)[first] + before)


def _without_replacement(p: Floats, q: Floats, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    order = np.argsort(_ratio(p, q * LIFT), axis=-1)  # lifted: no two ratios are both infinite
    inside_p = np.cumsum(np.take_along_axis(p, order, axis=-1), axis=-1)
    all_inside = np.zeros(p.shape)
    for row, law, ranks in zip(all_inside, q, order, strict=True):
        ranked = law[ranks]
        support = np.flatnonzero(ranked)
        # tokens outside the support sort last (p > 0), or change neither side (p = 0)
        row[support] = prefix_probabilities(ranked[support], k)
        row[support[-1] :] = row[support[-1]]
    return _best_prefix(order, inside_p, all_inside)


def _top_plus_one(p: Floats, q: Floats, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    top = top_tokens(q, k - 1)
    rest = np.where(top, 0.0, q)
    rest /= rest.sum(axis=-1, keepdims=True)
    value = np.where(top, p, np.minimum(p, rest)).sum(axis=-1)
    return np.minimum(value, 1.0), top | (p < rest)


def _ratio(p: Floats, q: Floats) -> Floats:
    """p/q, infinite outside the support of q."""
    with np.errstate(over="ignore"):
        return np.asarray(np.divide(p, q, out=np.full(p.shape, np.inf), where=q > 0))


def _best_prefix(
    order: NDArray[np.intp], inside_p: Floats, inside_q: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """The prefix of `order` with the smallest P(H) - Q(H), or the empty set."""
    gap = inside_p - inside_q
    best = np.argmin(gap, axis=-1)
    least = np.take_along_axis(gap, best[:, None], axis=-1)[:, 0]
    last = np.where(least < 0, best, -1)
    witness = np.zeros(order.shape, dtype=bool)
    chosen = np.arange(order.shape[-1]) <= last[:, None]
    np.put_along_axis(witness, order, chosen, axis=-1)
    return np.clip(1 + np.minimum(least, 0.0), 0.0, 1.0), witness
