"""Hypothesis strategies for pairs of laws: zeros, ties, equal, disjoint, reversed, near-zero."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

KINDS = ("free", "equal", "disjoint", "reversed", "point p", "point q", "tiny")


@st.composite
def fraction_pairs(draw, max_size=6, kinds=KINDS):
    """(p, q) as tuples of Fractions."""
    size = draw(st.integers(2, max_size))
    weights = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 7]), min_size=size, max_size=size)
    p, q = (list(map(Fraction, draw(weights.filter(any)))) for _ in range(2))
    kind = draw(st.sampled_from(kinds))
    if kind == "equal":
        q = list(p)
    elif kind == "disjoint":
        cut = draw(st.integers(1, size - 1))
        p = [Fraction(i < cut) * (mass + 1) for i, mass in enumerate(p)]
        q = [Fraction(i >= cut) * (mass + 1) for i, mass in enumerate(q)]
    elif kind == "reversed":
        p = sorted(p)
        q = p[::-1]
    elif kind.startswith("point"):
        point = [Fraction(i == size - 1) for i in range(size)]
        p, q = (point, q) if kind == "point p" else (p, point)
    elif kind == "tiny":
        q = [mass + Fraction(1, 10**13) for mass in q]
        p = [mass + Fraction(i % 2, 10**12) for i, mass in enumerate(p)]
    return tuple(m / sum(p) for m in p), tuple(m / sum(q) for m in q)


@st.composite
def float_pairs(draw, max_size=6, kinds=KINDS):
    """(p, q) as float64 arrays."""
    p, q = draw(fraction_pairs(max_size, kinds))
    return np.array(p, dtype=np.float64), np.array(q, dtype=np.float64)


def support(law):
    """Number of tokens of positive probability."""
    return sum(mass > 0 for mass in law)
