"""The batches that cross the border between an engine adapter and a drafter."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Unsigned = NDArray[np.uint64]


def _nothing() -> Ints:
    return np.zeros(0, np.int32)


def _unknown() -> Doubles:
    return np.zeros(0)


def _group_0() -> Unsigned:
    return np.zeros(0, np.uint64)


def _check_groups(groups: Unsigned, count: int, what: str) -> None:
    """A kernel would read past the end of too short an array: somebody else's group."""
    if groups.dtype != np.uint64 or groups.shape not in ((count,), (0,)):
        raise ValueError(
            f"groups is {groups.dtype} of shape {groups.shape} for {count} {what}; "
            f"give a uint64 for each, or none when all are in group 0"
        )


@dataclass(frozen=True, slots=True)
class VerifiedRows:
    """Target laws that one engine step computed anyway, with the contexts they belong to.

    Row r is the law of the token that follows ``tokens[begins[r]:ends[r]]``; several rows may share
    a stretch of ``tokens`` (a chain of drafts). Laws are at temperature 1, before top-k and top-p.
    ``emitted[r]`` is the token that the row's request emitted there, -1 where it emitted none (rows
    behind a refused draft) or where that is not known; ``temperatures[r]`` is the request's. Both
    are empty when nothing is known. ``groups[r]`` is the group of the row's request
    (:mod:`proposers.context_keys`); empty, the default, means that all are in group 0.

    Shapes: tokens (S,) int32; begins, ends (R,) int64; ids (R, E) int32, most probable first,
    padded with -1; probabilities (R, E) float32; emitted (R,) or (0,) int32; temperatures (R,) or
    (0,) float64; groups (R,) or (0,) uint64.

    Raises
    ------
    ValueError
        For groups of another shape or type.
    """

    tokens: Ints
    begins: Longs
    ends: Longs
    ids: Ints
    probabilities: Floats
    emitted: Ints = field(default_factory=_nothing)
    temperatures: Doubles = field(default_factory=_unknown)
    groups: Unsigned = field(default_factory=_group_0)

    def __post_init__(self) -> None:
        _check_groups(self.groups, self.ends.shape[0], "rows")


class RequestArrays(NamedTuple):
    """The arrays of :class:`DraftRequests` that kernels take, in this order."""

    tokens: Ints
    rows: Longs
    lengths: Longs
    budgets: Longs
    temperatures: Doubles
    top_k: Longs
    top_p: Doubles
    noise_keys: Unsigned
    groups: Unsigned


@dataclass(frozen=True, slots=True)
class DraftRequests:
    """The requests that want drafts in this step.

    ``tokens[rows[b], :lengths[b]]`` is the text of request b so far. A temperature of 0 asks for
    argmax drafts; ``top_k`` 0 and ``top_p`` 1 mean no cut. ``noise_keys[b]`` is 0 for a request
    that draws from the drafter's own stream, otherwise the key of its position-keyed noise
    (:mod:`proposers.noise`). ``handles[b]`` is the number under which the request was started,
    ``groups[b]`` its group (:mod:`proposers.context_keys`): a drafter that keeps groups apart
    drafts nothing that it learned from another one. Empty groups, the default, mean that all are in
    group 0.

    Shapes: tokens (any, L) int32; rows, lengths, budgets, handles (B,) int64; temperatures, top_p
    (B,) float64; top_k (B,) int64; noise_keys (B,) uint64; groups (B,) or (0,) uint64.

    Raises
    ------
    ValueError
        For groups of another shape or type.
    """

    tokens: Ints
    rows: Longs
    lengths: Longs
    budgets: Longs
    temperatures: Doubles
    top_k: Longs
    top_p: Doubles
    noise_keys: Unsigned
    handles: Longs
    groups: Unsigned = field(default_factory=_group_0)

    def __post_init__(self) -> None:
        _check_groups(self.groups, self.rows.shape[0], "requests")

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def arrays(self) -> RequestArrays:
        """What a kernel takes."""
        return RequestArrays(
            self.tokens, self.rows, self.lengths, self.budgets, self.temperatures,
            self.top_k, self.top_p, self.noise_keys, self.groups,
        )  # fmt: skip

    def subset(self, which: Any) -> "DraftRequests":
        """Some of the requests, by index or mask; the token buffer is shared."""
        picked = {
            name: getattr(self, name)[which]
            for name in (
                "rows", "lengths", "budgets", "temperatures", "top_k", "top_p", "noise_keys",
                "handles",
            )
        }  # fmt: skip
        groups = self.groups[which] if self.groups.size else self.groups
        return DraftRequests(tokens=self.tokens, groups=groups, **picked)


@dataclass(frozen=True, slots=True)
class Drafts:
    """Drafted tokens and the laws they were really drawn from.

    ``q[b, i]`` is the law of ``tokens[b, i]`` given the text and ``tokens[b, :i]``: probability
    ``law_probabilities[b, i, e]`` on ``law_ids[b, i, e]``, entries with id -1 are empty and have
    probability 0, and all together sum to 1. Position i holds a draft when ``i < lengths[b]``.

    ``features`` is what each place showed before its token was drawn
    (:mod:`proposers.length.features`); None for drafters that have none.

    Shapes: tokens (B, K) int32; lengths (B,) int64; law_ids (B, K, E) int32; law_probabilities
    (B, K, E) float64; features (B, K, F) float32.
    """

    tokens: Ints
    lengths: Longs
    law_ids: Ints
    law_probabilities: Doubles
    features: Floats | None = None

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


@dataclass(frozen=True, slots=True)
class Followed:
    """A drafter's laws along a continuation that is given instead of drawn.

    ``q[b, i]`` is the probability that its law gives to ``continuation[b, i]`` after the text and
    ``continuation[b, :i]``; -1 where a chain that had followed the continuation so far would hold
    no draft i, and from there on. ``law_ids``, ``law_probabilities`` and ``features`` are those of
    :class:`Drafts`. What stands behind a q of 0 is undefined: no chain gets there.

    Shapes: q (B, K) float64; law_ids (B, K, E) int32; law_probabilities (B, K, E) float64; features
    (B, K, F) float32.
    """

    q: Doubles
    law_ids: Ints
    law_probabilities: Doubles
    features: Floats | None = None


def point_masses(tokens: Ints, lengths: Longs) -> Drafts:
    """Drafts that nobody drew: q is a point mass on each token, shape (B, K), -1 behind its end."""
    law = (tokens >= 0).astype(np.float64)
    return Drafts(tokens, lengths, tokens[:, :, None], law[:, :, None])


def follow_chain(drafts: Drafts, continuation: Ints) -> Followed:
    """:class:`Followed` of a drafter whose laws are point masses: its one chain decides.

    Shape of continuation: (B, K) int32, padded with -1 behind its end.
    """
    steps = drafts.tokens.shape[1]
    held = np.arange(steps) < drafts.lengths[:, None]
    agrees = held & (drafts.tokens == continuation)
    reached = np.ones_like(held)
    reached[:, 1:] = np.logical_and.accumulate(agrees, axis=1)[:, :-1]
    q = np.where(held & reached & (continuation >= 0), agrees.astype(np.float64), -1.0)
    return Followed(q, drafts.law_ids, drafts.law_probabilities)


class Drafter(Protocol):
    """What an engine adapter, and a replay, needs of a drafter.

    Requests have handles, numbers that are never used twice. ``draft`` and ``follow`` take a
    request's whole text, so a drafter that keeps something for each request learns its emitted
    tokens from there; a request may be drafted for without having been started (its prompt was not
    text), and is then without such state.
    """

    @property
    def wants_rows(self) -> bool:
        """Whether ``observe`` learns from target laws, so that the engine should collect them."""
        ...

    @property
    def wants_emitted(self) -> bool:
        """Whether ``observe`` also asks which token each row emitted."""
        ...

    @property
    def has_groups(self) -> bool:
        """Whether a draft never holds what was learned from a request of another group.

        Groups still share the memory, in which contexts of one may evict another's.
        """
        ...

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Take in the prompt of a request that begins to decode, and of which group it is."""
        ...

    def observe(self, rows: VerifiedRows) -> None:
        """Take in the target laws of one step."""
        ...

    def draft(self, requests: DraftRequests) -> Drafts:
        """Propose tokens for every request."""
        ...

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The laws along a continuation, shape (B, K) int32 padded with -1; nothing is drawn.

        A ``draft`` in the same state would have drawn from the same laws as long as it drew these
        tokens.
        """
        ...

    def finish(self, handle: int) -> None:
        """Forget a request that has ended; also called for requests that were never started."""
        ...
