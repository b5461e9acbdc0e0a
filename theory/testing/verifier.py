"""What the kit tests: a sampler, together with the drafting it was made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from theory.laws import Floats, Ints
from theory.testing.schemes import IID, Scheme

Kind = Literal["node", "chain"]
Sampler = Callable[[Floats, Floats, Ints, Floats], Ints]
"""(p, q, candidates, uniforms) -> tokens, a batch of B independent rows. The arrays are the
sampler's own: it may write in them.

kind "node": p (B, V) float64, the target law; q (B, V) float64, the law the candidates were drawn
from; candidates (B, k) int64 in draw order, -1 after the last one offered; uniforms (B, k + 1)
float64 in [0, 1), independent: k acceptance coins in the order of the candidates, then one for the
token that is emitted after all were refused. Returns (B,) integers, the emitted tokens.

kind "chain": one chain of K drafts. p (B, K + 1, V), row i the law after the first i drafts; q
(B, K, V), row i the law that draft i was drawn from; candidates (B, K), -1 after the last; uniforms
(B, K + 1). Returns (B, K + 1) integers: the emitted tokens, 1 to K + 1 of them, then -1.

A sampler with randomness of its own ignores the uniforms; it is tested statistically then.
"""


@dataclass(frozen=True)
class Verifier:
    """A sampler that says what it is and which drafting it belongs to; itself a `Sampler`."""

    name: str
    about: str
    sampler: Sampler
    kind: Kind = "node"
    drafts: Scheme = IID

    def __call__(self, p: Floats, q: Floats, candidates: Ints, uniforms: Floats) -> Ints:
        """Tokens, as the sampler emits them."""
        return self.sampler(p, q, candidates, uniforms)
