"""Probability vectors at the door: what is accepted, and the sentence that refuses the rest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUM_TOLERANCE = 1e-6
LIFT = 2.0**70
"""Times this, the smallest positive float has a finite inverse; products with 2^n are exact."""


def as_floats(values: ArrayLike) -> Floats:
    """`values` as float64; raises ValueError for complex numbers, whose imaginary part would go."""
    if np.iscomplexobj(values):
        raise ValueError("got complex numbers")
    return np.asarray(values, dtype=np.float64)


def as_law(values: ArrayLike, name: str) -> Floats:
    """Return `values` as float64 laws over the last axis, renormalised.

    Shape (..., V), V >= 1. Sums within 1e-6 of 1 are renormalised: float32 softmax outputs pass.
    Raises ValueError for what are no real numbers, NaN or infinite entries, negative entries and
    other sums.
    """
    try:
        law = as_floats(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold real numbers in equal rows; {error}") from error
    if law.ndim == 0 or law.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., V) with V >= 1; got shape {law.shape}")
    total = law.sum(axis=-1, keepdims=True)
    if not np.all(np.isfinite(total)):
        raise ValueError(f"{name} holds NaN or infinite entries; a law has finite probabilities")
    if law.size and law.min() < 0:
        raise ValueError(f"{name} holds {law.min():.6g}; probabilities are at least 0")
    off = np.abs(total - 1).max(initial=0.0)
    if off > SUM_TOLERANCE:
        raise ValueError(
            f"{name} sums to 1 within {off:.3g}; at most {SUM_TOLERANCE} is allowed: normalise it"
        )
    return np.asarray(law / total, dtype=np.float64)


def as_pair(p: ArrayLike, q: ArrayLike) -> tuple[Floats, Floats]:
    """Return target p and draft q as laws of one shape (..., V), leading dimensions broadcast.

    Raises ValueError when the vocabularies differ or the leading dimensions do not broadcast.
    """
    target, draft = as_law(p, "p"), as_law(q, "q")
    shape = _common_shape(target.shape, draft.shape)
    return np.broadcast_to(target, shape), np.broadcast_to(draft, shape)


def _common_shape(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    if p[-1:] != q[-1:]:
        raise ValueError(f"p has shape {p} and q {q}; they need one vocabulary (the last axis)")
    try:
        return np.broadcast_shapes(p, q)
    except ValueError:
        raise ValueError(f"p of shape {p} and q of shape {q} do not broadcast") from None


def check_candidates(k: int, draft: Floats | None = None) -> None:
    """Raise ValueError unless k is an integer >= 1 and at most the support of every row of `draft`.

    `draft` is given for schemes that never offer a token twice.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be an integer >= 1; got {k!r}")
    if draft is not None and draft.size:
        support = int(np.count_nonzero(draft, axis=-1).min())
        if k > support:
            raise ValueError(
                f"k = {k} distinct candidates need a draft law with as many tokens of positive "
                f"probability; q has {support}: use a smaller k or drafts='iid'"
            )


def top_tokens(draft: Floats, count: int) -> NDArray[np.bool_]:
    """Mask of the `count` most probable tokens of each row (R, V); ties go to the lower index."""
    size = draft.shape[-1]
    if count == 0:
        return np.zeros(draft.shape, dtype=bool)
    edge = np.partition(draft, size - count, axis=-1)[..., size - count, None]
    above, tied = draft > edge, draft == edge
    room = count - above.sum(axis=-1, keepdims=True)
    return np.asarray(above | (tied & (np.cumsum(tied, axis=-1) <= room)))


def row_blocks(
    p: ArrayLike, q: ArrayLike, entries: int = 1 << 16
) -> tuple[tuple[int, ...], Iterator[tuple[slice, Floats, Floats]]]:
    """Shape (..., V) of the pair, and its rows in blocks of about `entries` numbers, as laws.

    Each block is checked and renormalised when it is reached, so that a large batch is read once
    and temporaries stay in cache. Errors as in `as_pair`.
    """
    try:
        given_p, given_q = np.asarray(p), np.asarray(q)
    except ValueError:  # rows of unequal length
        as_pair(p, q)  # says what is wrong
        raise
    if given_p.ndim == 0 or given_q.ndim == 0 or given_p.shape[-1] == 0:
        as_pair(given_p, given_q)  # says what is wrong
    shape = _common_shape(given_p.shape, given_q.shape)
    size = shape[-1]
    rows_p = np.broadcast_to(given_p, shape).reshape(-1, size)
    rows_q = np.broadcast_to(given_q, shape).reshape(-1, size)
    step = max(1, entries // size)

    def blocks() -> Iterator[tuple[slice, Floats, Floats]]:
        for start in range(0, rows_p.shape[0], step):
            rows = slice(start, min(start + step, rows_p.shape[0]))
            yield rows, *as_pair(rows_p[rows], rows_q[rows])

    return shape, blocks()
