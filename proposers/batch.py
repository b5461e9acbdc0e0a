"""The batches that cross the border between an engine adapter and a drafter."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VerifiedRows:
    """Target laws that one engine step computed anyway, with the contexts they belong to.

    Row r is the law of the token that follows ``tokens[begins[r]:ends[r]]``; several rows may share
    a stretch of ``tokens`` (a chain of drafts). Laws are at temperature 1, before top-k and top-p.

    Shapes: tokens (S,) int32; begins, ends (R,) int64; ids (R, E) int32, most probable first,
    padded with -1; probabilities (R, E) float32.
    """

    tokens: Ints
    begins: Longs
    ends: Longs
    ids: Ints
    probabilities: Floats


@dataclass(frozen=True, slots=True)
class DraftRequests:
    """The requests that want drafts in this step.

    ``tokens[rows[b], :lengths[b]]`` is the text of request b so far. A temperature of 0 asks for
    argmax drafts; ``top_k`` 0 and ``top_p`` 1 mean no cut. ``noise_keys[b]`` is 0 for a request
    that draws from the drafter's own stream, otherwise the key of its position-keyed noise
    (:mod:`proposers.noise`).

    Shapes: tokens (any, L) int32; rows, lengths, budgets (B,) int64; temperatures, top_p (B,)
    float64; top_k (B,) int64; noise_keys (B,) uint64.
    """

    tokens: Ints
    rows: Longs
    lengths: Longs
    budgets: Longs
    temperatures: Doubles
    top_k: Longs
    top_p: Doubles
    noise_keys: NDArray[np.uint64]

    def __len__(self) -> int:
        return int(self.rows.shape[0])


@dataclass(frozen=True, slots=True)
class Drafts:
    """Drafted tokens and the laws they were really drawn from.

    ``q[b, i]`` is the law of ``tokens[b, i]`` given the text and ``tokens[b, :i]``: probability
    ``law_probabilities[b, i, e]`` on ``law_ids[b, i, e]``, entries with id -1 are empty and have
    probability 0, and all together sum to 1. Position i holds a draft when ``i < lengths[b]``.

    Shapes: tokens (B, K) int32; lengths (B,) int64; law_ids (B, K, E) int32; law_probabilities
    (B, K, E) float64.
    """

    tokens: Ints
    lengths: Longs
    law_ids: Ints
    law_probabilities: Doubles

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


class Drafter(Protocol):
    """What an engine adapter needs of a drafter; one call of each per engine step."""

    @property
    def wants_rows(self) -> bool:
        """Whether ``observe`` learns from target laws, so that the engine should collect them."""
        ...

    def start(self, prompt: Ints) -> None:
        """Take in the prompt of a request that begins to decode."""
        ...

    def observe(self, rows: VerifiedRows) -> None:
        """Take in the target laws of one step."""
        ...

    def draft(self, requests: DraftRequests) -> Drafts:
        """Propose tokens for every request."""
        ...
