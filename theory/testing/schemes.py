"""How candidates come about: the law they are drawn from, the draw itself, and which noise it uses.

A verifier is lossless only together with the drafting that it was made for, and some mistakes live
in the drafting: so a scheme is an object of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from theory.candidates import tuple_law
from theory.laws import Floats, Ints
from theory.optimum import Drafts
from theory.testing.draws import inverse_cdf

Draw = Callable[[Floats, Floats], Ints]
"""(q (B, V), noise (B, k) uniforms in [0, 1)) -> candidates (B, k), -1 after the last offered."""
TupleLaw = Callable[[Floats, int], dict[tuple[int, ...], float]]
"""(q (V,), k) -> probability of every tuple of candidates, as `draw` gives them."""
Share = Callable[[Floats, Floats], Floats]
"""(noise (B, k), uniforms (B, k + 1)) -> the uniforms that the verifier is handed."""
SchemeName = Literal["iid", "without_replacement", "top_plus_one"]


@dataclass(frozen=True)
class Scheme:
    """A way of drafting.

    draw: the candidates from q and noise. law: their exact law, which lets the kit enumerate them;
    None makes it integrate over the draft noise too. share: what a verifier sees of the draft's
    noise: None is right (independent uniforms); a function can hand noise on, which is a mistake
    that `theory.testing.wrong_verifiers` ships. Give `law` only where `share` is None.
    distinct: no token is offered twice, so that k is at most the support of q.
    """

    name: str
    draw: Draw
    law: TupleLaw | None = None
    share: Share | None = None
    distinct: bool = False

    def __post_init__(self) -> None:
        if self.law is not None and self.share is not None:
            raise ValueError(
                f"scheme {self.name!r} shares noise, so its candidates cannot be enumerated apart "
                "from it: leave law=None"
            )


def scheme(drafts: str | Scheme) -> Scheme:
    """The scheme of a name of `theory.optimum.Drafts`, or the scheme itself.

    Raises ValueError for an unknown name.
    """
    if isinstance(drafts, Scheme):
        return drafts
    if drafts not in _SCHEMES:
        raise ValueError(f"drafts must be a Scheme or one of {get_args(Drafts)}; got {drafts!r}")
    return _SCHEMES[drafts]


def draw_iid(q: Floats, noise: Floats) -> Ints:
    """k independent draws from q, each by inverse transform of its own column of the noise."""
    return np.stack([inverse_cdf(q, noise[:, j]) for j in range(noise.shape[1])], axis=1)


def draw_without_replacement(q: Floats, noise: Floats) -> Ints:
    """k draws in order, each from what the draws before it left of q; -1 once q is used up."""
    left = q.copy()
    each = np.arange(q.shape[0])
    drawn = np.empty(noise.shape, dtype=np.int64)
    for j in range(noise.shape[1]):
        some = left.sum(axis=1) > 0
        x = inverse_cdf(left, noise[:, j])
        drawn[:, j] = np.where(some, x, -1)
        left[each, x] = 0.0
    return drawn


def draw_top_plus_one(q: Floats, noise: Floats) -> Ints:
    """The k-1 most probable tokens, ties to the lower index, and one draw from the others."""
    count = noise.shape[1] - 1
    top = np.argsort(-q, axis=1, kind="stable")[:, :count]
    rest = q.copy()
    np.put_along_axis(rest, top, 0.0, axis=1)
    last = np.where(rest.sum(axis=1) > 0, inverse_cdf(rest, noise[:, -1]), -1)
    return np.asarray(np.concatenate([top, last[:, None]], axis=1), dtype=np.int64)


def _law(q: Floats, k: int, drafts: Drafts) -> dict[tuple[int, ...], float]:
    return tuple_law(q.tolist(), k, drafts)


IID = Scheme("iid", draw_iid, partial(_law, drafts="iid"))
WITHOUT_REPLACEMENT = Scheme(
    "without_replacement",
    draw_without_replacement,
    partial(_law, drafts="without_replacement"),
    distinct=True,
)
TOP_PLUS_ONE = Scheme(
    "top_plus_one", draw_top_plus_one, partial(_law, drafts="top_plus_one"), distinct=True
)
_SCHEMES = {s.name: s for s in (IID, WITHOUT_REPLACEMENT, TOP_PLUS_ONE)}
