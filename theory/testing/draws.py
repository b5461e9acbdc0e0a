"""Batched inverse transforms in numpy: how every sampler and scheme of the kit turns u into x."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from theory.laws import Floats, Ints


def inverse_cdf(weights: Floats, u: Floats) -> Ints:
    """The first token whose cumulative weight exceeds u times the total; it has weight of its own.

    weights (B, V) nonnegative, unnormalised; u (B,) in [0, 1). Returns (B,) int64; token 0 for a
    row without any weight.
    """
    mass = np.cumsum(weights, axis=1)
    total = mass[:, -1:]
    token = np.sum(mass <= u[:, None] * total, axis=1)
    last = np.argmax(mass >= total, axis=1)  # rounding may put u times the total at the total
    return np.asarray(np.minimum(token, last), dtype=np.int64)


def mass_of(laws: Floats, tokens: Ints) -> Floats:
    """laws[b, tokens[b]], shape (B,); 0 where the token is -1."""
    mass = laws[np.arange(tokens.size), np.maximum(tokens, 0)]
    return np.where(tokens >= 0, mass, 0.0)


def residual(p: Floats, q: Floats) -> Floats:
    """(p - q)+, unnormalised, (B, V); p in rows where nothing is left (refusal impossible)."""
    excess = np.maximum(p - q, 0.0)
    return np.where(excess.sum(axis=1, keepdims=True) > 0, excess, p)


def distinct_rows(*arrays: NDArray[np.float64] | Ints) -> tuple[Ints, Ints]:
    """(first, inverse): the index of the first of each set of equal rows, and each row's set.

    Rows are compared over all arrays (B, ...) at once, through a random projection that is checked:
    sorting rows themselves would take most of the time of a check.
    """
    flat = np.concatenate([a.reshape(a.shape[0], -1).astype(np.float64) for a in arrays], axis=1)
    weights = np.random.default_rng(0).random(flat.shape[1]) + 0.5
    _, first, inverse = np.unique(flat @ weights, return_index=True, return_inverse=True)
    if not np.array_equal(flat[first][inverse], flat):
        _, first, inverse = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def per_distinct_row(
    function: Callable[..., Floats], *arrays: NDArray[np.float64] | Ints
) -> Floats:
    """function(*arrays), computed once for each set of equal rows; it must treat rows alone."""
    first, inverse = distinct_rows(*arrays)
    return np.asarray(function(*(a[first] for a in arrays)))[inverse]
