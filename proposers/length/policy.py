"""What a length policy is asked and told, and the simplest policies.

A policy cuts chains that are drafted already: of request r the first ``lengths[r]`` tokens are
verified, the others are dropped unseen. That leaves the output's law as it is if and only if no
token is dropped because of what it is (ALGORITHMS.md 5, trap 1), for all requests of a step
together:

    Reveal the drafts one by one. At any moment a request has one candidate, its next token: of it
    the prefix x_<i and the law q_i are known, the token is not. A policy is *adapted* if it picks
    the next candidate, or stops, by what is known at that moment; only then is the token drawn.
    Then, given everything it has looked at, x_i ~ q_i still, which is all that a verification rule
    asks for; what was never revealed might as well never have been drawn.

A policy that decides for each request by its own prefixes is adapted (:class:`Fixed`,
:class:`Refusal`, all of :mod:`proposers.length.baselines`); so is one that takes the tokens of all
requests in decreasing survival and stops for good (:mod:`proposers.length.threshold`), since
survival falls along a request. One that looks at all features first and then takes the best number
is not: the features of x_{i+1} tell of x_i, and whether x_i is verified must not depend on them;
nor may two requests each be cut by the other's later tokens, which leaves each one's law right and
makes their answers dependent. Tests enumerate such mutants and see them refuted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numba import njit

from proposers.batch import Doubles, Floats, Longs

UNBOUNDED = 1 << 30


@dataclass(frozen=True, slots=True)
class Candidates:
    """The chains of one step, and what limits them.

    ``acceptance[b, i]`` estimates P(draft i of request b is accepted | those before it were), nan
    where nothing was drafted; ``caps`` are each request's own limits (0: no speculation), known
    before anything was drafted: never the lengths of the chains, which tell of their tokens.
    ``budget`` are the drafts that fit into the step; ``others`` are tokens in the step besides one
    for each request (prefills). ``features`` may be None for policies that do not read them.

    Shapes: handles, caps (B,) int64; acceptance (B, K) float64; features (B, K, F) float32.
    """

    handles: Longs
    acceptance: Doubles
    caps: Longs
    features: Floats | None = None
    budget: int = UNBOUNDED
    others: int = 0

    def __len__(self) -> int:
        return int(self.handles.shape[0])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step: ``seconds`` of all of it, ``overhead`` of which drafting took.

    ``drafted`` were verified and ``accepted`` became text; each request emits one token more. nan
    seconds (a step with prefills, say) teach nothing about time.

    Shapes: handles, drafted, accepted (B,) int64.
    """

    handles: Longs
    drafted: Longs
    accepted: Longs
    seconds: float
    overhead: float = 0.0

    @property
    def emitted(self) -> int:
        """Tokens that became text."""
        return int(self.accepted.sum()) + int(self.handles.shape[0])


class StepTimes(Protocol):
    """The engine's step time against the tokens in it (proposers/length/step_times.py)."""

    def seconds(self, tokens: Any) -> Any:
        """T(n), in seconds, of a number or an array of numbers."""
        ...


class LengthPolicy(Protocol):
    """How many drafts of each request are verified; one instance sees every step."""

    def ahead(self, handles: Longs, longest: int) -> int:
        """The most that any request may need, 0..``longest``, asked before anything is drafted.

        With 0 the step drafts nothing and :meth:`lengths` is not called.
        """
        ...

    def lengths(self, step: Candidates) -> Longs:
        """How many drafts to verify of each request, (B,) int64."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from a step, whether or not it drafted, before the next one is decided."""
        ...

    def finish(self, handle: int) -> None:
        """Forget a request that has ended."""
        ...


@runtime_checkable
class TreePolicy(LengthPolicy, Protocol):
    """A policy that can also decide on trees, while they are drafted."""

    def floor(self, requests: int) -> float:
        """The least survival of a token that is drafted and verified, asked before any is drawn.

        It is the same for all nodes of all trees of a step of so many requests, so no token is
        dropped because of what it is.
        """
        ...


def drafted_lengths(step: Candidates) -> Longs:
    """How many drafts of each request there are within its cap, (B,) int64."""
    missing = np.isnan(step.acceptance)
    lengths = np.where(missing.any(axis=1), missing.argmax(axis=1), missing.shape[1])
    return np.asarray(np.minimum(lengths, np.maximum(step.caps, 0)), np.int64)


@njit(cache=True, nogil=True)
def _shared(lengths: Any, budget: Any) -> Any:
    """Cut to a budget, the deepest tokens first, of equal depth the last request's."""
    total = lengths.sum()
    while total > budget:
        longest = lengths.max()
        for b in range(lengths.shape[0] - 1, -1, -1):
            if lengths[b] == longest and total > budget:
                lengths[b] -= 1
                total -= 1


def within(step: Candidates, lengths: Longs) -> Longs:
    """Lengths within what was drafted, each request's cap and the step's budget.

    Beyond the budget the deepest tokens go first: token i stays if those of lesser depth, and those
    of its own in requests before it, leave room for it. All of these are decided by what is known
    before it is revealed, so the cut is adapted where the lengths are.
    """
    found = np.minimum(lengths, drafted_lengths(step))
    if found.sum() > step.budget:
        _shared(found, max(step.budget, 0))
    return found


@njit(cache=True, nogil=True)
def _surviving(acceptance: Any, floor: Any, lengths: Any) -> Any:
    for b in range(lengths.shape[0]):
        survival, n = 1.0, 0
        for i in range(min(lengths[b], acceptance.shape[1])):
            survival *= acceptance[b, i]
            if not survival >= floor:  # nor if it is nan: nothing was drafted
                break
            n += 1
        lengths[b] = n


def surviving(acceptance: Doubles, floor: float, lengths: Longs) -> Longs:
    """How many of each chain's first ``lengths`` tokens survive with at least ``floor``, (B,)."""
    found = lengths.copy()
    _surviving(acceptance, floor, found)
    return found


@dataclass
class Fixed:
    """Always ``length`` tokens: what speculation does without a policy."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 0:
            raise ValueError(f"length is {self.length}; it must be 0 or more")

    def ahead(self, handles: Longs, longest: int) -> int:
        """Its own length."""
        return min(self.length, longest)

    def lengths(self, step: Candidates) -> Longs:
        """Its own length, as far as drafts go."""
        return within(step, np.full(len(step), self.length, np.int64))

    def floor(self, requests: int) -> float:
        """0: whatever is drafted."""
        return 0.0

    def observe(self, outcome: Outcome) -> None:
        """Nothing is learned."""

    def finish(self, handle: int) -> None:
        """Nothing is kept."""


@dataclass
class Refusal:
    """SpecDec++'s rule: verify a token while P(it or one before it is refused) < ``refusal``, h.

    ``1 - a_1 ... a_i < h`` (arXiv 2405.19715, theorem 1; its h is 0.7). There the predictor sees
    x_i and the chain stops behind it; here it sees q_i and stops before it, sooner by one token.
    """

    refusal: float = 0.7
    longest: int = field(default=UNBOUNDED)

    def __post_init__(self) -> None:
        if not 0 < self.refusal <= 1:
            raise ValueError(f"refusal is {self.refusal}; it must lie in (0, 1]")

    def ahead(self, handles: Longs, longest: int) -> int:
        """Everything."""
        return min(longest, self.longest)

    def lengths(self, step: Candidates) -> Longs:
        """As many as survive with more than 1 - h."""
        survival = np.nancumprod(step.acceptance, axis=1)
        fits = 1.0 - survival < self.refusal  # falls along a request
        return within(step, np.minimum(fits.sum(axis=1), self.longest).astype(np.int64))

    def floor(self, requests: int) -> float:
        """1 - h."""
        return 1.0 - self.refusal

    def observe(self, outcome: Outcome) -> None:
        """Nothing is learned."""

    def finish(self, handle: int) -> None:
        """Nothing is kept."""
