"""Counts over a finite outcome space, and the bins they are merged into."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from theory.laws import Floats, Ints, as_law

Counts = ArrayLike | Mapping[int, int]
"""An array of the law's size, or {flat cell index: count}."""


def joint_counts(sequences: ArrayLike, vocabulary: int) -> dict[int, int]:
    """Sparse counts of sequences, keyed as the flat index of the array law[x1, ..., xL].

    `sequences`: integers of shape (n, L). Raises ValueError for tokens outside the vocabulary.
    """
    tokens = np.asarray(sequences, dtype=np.int64)
    if tokens.ndim != 2 or (tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary):
        raise ValueError(
            f"sequences must have shape (n, L), tokens in [0, {vocabulary}); got {tokens.shape}"
        )
    flat = tokens @ (vocabulary ** np.arange(tokens.shape[1] - 1, -1, -1))
    cells, counts = np.unique(flat, return_counts=True)
    return {int(cell): int(count) for cell, count in zip(cells, counts, strict=True)}


def merge_bins(expected: ArrayLike, n: int, min_expected: float = 5.0) -> Ints:
    """Label each cell with a bin so that every bin expects at least `min_expected` of n counts.

    Cells that expect enough keep a bin of their own; the others are joined in ascending order of
    probability (a function of the law and n only). Label -1 marks impossible cells (probability
    exactly 0). Returns int64 labels of the law's size.
    """
    law = as_law(np.ravel(expected), "expected")
    labels = np.full(law.size, -1, dtype=np.int64)
    order = np.argsort(law, kind="stable")
    order = order[law[order] > 0]
    mean = law[order] * n
    small = int(np.searchsorted(mean, min_expected))
    running = np.concatenate([[0.0], np.cumsum(mean[:small])])
    start, label = 0, 0
    while start < small and running[small] - running[start] >= min_expected:
        stop = int(np.searchsorted(running, running[start] + min_expected))
        labels[order[start:stop]] = label
        start, label = min(stop, small), label + 1
    if (
        start < small and label == 0 and small < order.size
    ):  # too little to fill a bin: join the smallest full cell
        small += 1
        label = 1
    labels[order[start:small]] = max(label - 1, 0)
    label = max(label, 1) if small else 0
    labels[order[small:]] = label + np.arange(order.size - small)
    return labels


def sparse_counts(counts: Counts, size: int) -> tuple[Ints, Ints]:
    """Flat cell indices and their counts."""
    if isinstance(counts, Mapping):
        cells = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
        values = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    else:
        dense = np.asarray(counts).ravel()
        if dense.size != size or not np.all(dense == np.floor(dense)):
            raise ValueError(
                f"counts must be {size} integers; got {dense.size} values of type {dense.dtype}"
            )
        cells = np.flatnonzero(dense)
        values = dense[cells].astype(np.int64)
    if cells.size and (cells.min() < 0 or cells.max() >= size or values.min() < 0):
        raise ValueError(f"counts must be nonnegative, on cells 0..{size - 1}")
    return cells, values


def log_dirichlet_ratio(observed: Ints, law: Floats, a: float) -> Floats:
    """log of DirichletMultinomial(observed; a P) / Multinomial(observed; P), shape (..., bins)."""
    whole = _log_rise(np.float64(a), observed.sum(axis=-1))
    return np.asarray(_log_rise(a * law, observed).sum(axis=-1) - whole, dtype=np.float64)


def _log_rise(x: Floats | np.float64, c: Ints) -> Floats:
    """log of x (x+1) ... (x+c-1) / x^c; Stirling's series above 1,000, where gammaln cancels."""
    large = np.maximum(x, 1e3)
    series = (large + c - 0.5) * np.log1p(c / large) - c + (1 / (large + c) - 1 / large) / 12
    small = np.minimum(x, 1e3)
    exact = gammaln(small + c) - gammaln(small) - c * np.log(small)
    return np.where(x > 1e3, series, exact)
