"""The best acceptance any lossless rule can reach with k candidates, with its certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.laws import Floats, as_pair, check_candidates, row_blocks, top_tokens
from theory.race import prefix_probabilities

Drafts = Literal["iid", "without_replacement", "top_plus_one"]
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

    p, q: shape (..., V), broadcast. iid and top_plus_one cost O(V log V) a row; without_replacement
    O(V k nodes), error at most `theory.race.ERROR_BOUND` = 1e-9.
    Raises ValueError for bad laws, k < 1, and k above the support of q where no token repeats.
    """
    if drafts not in get_args(Drafts):
        raise ValueError(f"drafts must be one of {get_args(Drafts)}; got {drafts!r}")
    target, draft = as_pair(p, q)
    check_candidates(k, None if drafts == "iid" else draft)
    solve: Solver = {
        "iid": _iid,
        "without_replacement": _without_replacement,
        "top_plus_one": _top_plus_one,
    }[drafts]
    shape, size = target.shape[:-1], target.shape[-1]
    target, draft = target.reshape(-1, size), draft.reshape(-1, size)
    value = np.empty(target.shape[0])
    witness = np.empty(target.shape, dtype=bool)
    for rows in row_blocks(target.shape[0], size):
        value[rows], witness[rows] = solve(target[rows], draft[rows], k)
    return OptimalAcceptance(value.reshape(shape), witness.reshape(*shape, size))


def _iid(p: Floats, q: Floats, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    order = np.argsort(_ratio(p, q), axis=-1)
    inside_p = np.cumsum(np.take_along_axis(p, order, axis=-1), axis=-1)
    inside_q = np.cumsum(np.take_along_axis(q, order, axis=-1), axis=-1)
    return _best_prefix(order, inside_p, inside_q**k)


def _without_replacement(p: Floats, q: Floats, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    order = np.argsort(_ratio(p, q), axis=-1)
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
    for row, ranks, stop in zip(witness, order, last + 1, strict=True):
        row[ranks[:stop]] = True
    return np.clip(1 + np.minimum(least, 0.0), 0.0, 1.0), witness
