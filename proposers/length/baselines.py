"""What others do, as small policies: a table by batch size, confidence, entropy, moving averages.

All decide for each request by its own past and its own prefixes, hence are adapted
(:mod:`proposers.length.policy`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposers.batch import Doubles, Longs
from proposers.length.features import ENTROPY, TOP
from proposers.length.policy import Candidates, Outcome, within


class BatchTable:
    """vLLM's dynamic K: the draft length by the number of running requests.

    ``table`` holds (most requests, K) in rising order of requests; beyond the last, K is 0.
    """

    def __init__(self, table: Sequence[tuple[int, int]]) -> None:
        sizes = [size for size, _ in table]
        if not table or sizes != sorted(set(sizes)) or min(k for _, k in table) < 0:
            raise ValueError(
                f"table must hold (most requests, K), requests rising and K at least 0; got {table}"
            )
        self.table = tuple(table)

    def length(self, requests: int) -> int:
        """K for so many requests."""
        return next((k for most, k in self.table if requests <= most), 0)

    def ahead(self, handles: Longs, longest: int) -> int:
        """What the table says."""
        return min(self.length(handles.shape[0]), longest)

    def lengths(self, step: Candidates) -> Longs:
        """The same for every request."""
        return within(step, np.full(len(step), self.length(len(step)), np.int64))

    def observe(self, outcome: Outcome) -> None:
        """Nothing is learned."""

    def finish(self, handle: int) -> None:
        """Nothing is kept."""


class Confidence:
    """Hugging Face's assisted generation: stop behind the first unsure token.

    A token is unsure if the largest q there is below ``threshold`` (transformers'
    ``assistant_confidence_threshold``, 0.4; it asks for q of the drawn token, and includes that
    token). With ``start`` the length adapts too (its "heuristic" schedule): two more after a step
    whose drafts were all accepted, one less, and at least one, after another.
    """

    def __init__(self, threshold: float = 0.4, start: int | None = None) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must lie in [0, 1]")
        if start is not None and start < 1:
            raise ValueError(f"start is {start}; it must be 1 or more")
        self.threshold, self.start = threshold, start
        self._lengths: dict[int, int] = {}

    def ahead(self, handles: Longs, longest: int) -> int:
        """The largest length among the requests."""
        if self.start is None:
            return longest
        return min(max((self._of(handle) for handle in handles.tolist()), default=0), longest)

    def lengths(self, step: Candidates) -> Longs:
        """Up to and with the first unsure token."""
        found = _behind(_feature(step, TOP) < self.threshold)
        if self.start is not None:
            found = np.minimum(found, [self._of(handle) for handle in step.handles.tolist()])
        return within(step, found)

    def observe(self, outcome: Outcome) -> None:
        """The heuristic schedule, for each request."""
        if self.start is None:
            return
        for handle, drafted, accepted in _rows(outcome):
            if drafted:
                more = 2 if accepted == drafted else -1
                self._lengths[handle] = max(1, self._of(handle) + more)

    def finish(self, handle: int) -> None:
        """Forget its length."""
        self._lengths.pop(handle, None)

    def _of(self, handle: int) -> int:
        assert self.start is not None
        return self._lengths.get(handle, self.start)


class EntropyBound:
    """AdaEDL (arXiv 2410.18351): stop where an entropy bound on the acceptance is too low.

    A token is verified while ``1 - sqrt(gamma H(q)) >= least``. With ``target`` that moves by
    ``step`` after every step that drafted, up where the mean acceptance of drafts lies below the
    target and down where above, both as running means (weights 0.5 and 0.9 on the past).
    """

    def __init__(
        self,
        gamma: float = 0.2,
        least: float = 0.4,
        *,
        target: float | None = None,
        step: float = 0.01,
    ) -> None:
        if not 0 < gamma < math.inf or not 0 <= least <= 1:
            raise ValueError(f"gamma must be above 0 and least in [0, 1]; got {gamma} and {least}")
        if target is not None and not 0 < target < 1:
            raise ValueError(f"target is {target}; it must lie in (0, 1)")
        self.gamma, self.least, self.target, self.step = gamma, least, target, step
        self._acceptance = target or 0.0

    def ahead(self, handles: Longs, longest: int) -> int:
        """Everything."""
        return longest

    def lengths(self, step: Candidates) -> Longs:
        """Before the first token whose bound is too low."""
        bound = 1.0 - np.sqrt(self.gamma * np.maximum(_feature(step, ENTROPY), 0.0))
        return within(step, _before(~(bound >= self.least)))

    def observe(self, outcome: Outcome) -> None:
        """Move what a bound is held against."""
        drafted = int(outcome.drafted.sum())
        if self.target is None or not drafted:
            return
        now = int(outcome.accepted.sum()) / drafted
        self._acceptance = 0.5 * self._acceptance + 0.5 * now
        moved = self.least + math.copysign(self.step, self.target - self._acceptance)
        self.least = min(max(0.9 * self.least + 0.1 * moved, 0.0), 1.0)

    def finish(self, handle: int) -> None:
        """Nothing is kept for a request."""


class MovingAverage:
    """DiffuSpec's controller (arXiv 2510.02358), for chains: the length follows what was accepted.

    ``k = clip(ceil(A) + slack [A >= G], shortest, longest)`` with A and G running means of accepted
    and of drafted lengths of a request, of ``weight`` on the newest. In the paper ceil stands over
    G, how far a diffusion model filled its block before an end token; a chain is always as long as
    it was asked to be, so that would never shrink, and A stands in its place.
    """

    def __init__(
        self, shortest: int = 1, longest: int = 8, *, slack: int = 2, weight: float = 0.5
    ) -> None:
        if not 0 <= shortest <= longest or slack < 0 or not 0 < weight <= 1:
            raise ValueError(
                "shortest <= longest and slack must be 0 or more and weight in (0, 1]; got "
                f"{shortest}, {longest}, {slack} and {weight}"
            )
        self.shortest, self.longest, self.slack, self.weight = shortest, longest, slack, weight
        self._means: dict[int, tuple[float, float]] = {}

    def ahead(self, handles: Longs, longest: int) -> int:
        """The largest length among the requests."""
        return min(max((self._of(handle) for handle in handles.tolist()), default=0), longest)

    def lengths(self, step: Candidates) -> Longs:
        """Each request's own length."""
        return within(step, np.array([self._of(h) for h in step.handles.tolist()], np.int64))

    def observe(self, outcome: Outcome) -> None:
        """Move the means of requests that drafted."""
        for handle, drafted, accepted in _rows(outcome):
            if drafted:
                a, g = self._means.get(handle, (float(accepted), float(drafted)))
                w = self.weight
                self._means[handle] = (a + w * (accepted - a), g + w * (drafted - g))

    def finish(self, handle: int) -> None:
        """Forget its means."""
        self._means.pop(handle, None)

    def _of(self, handle: int) -> int:
        if handle not in self._means:
            return self.longest
        a, g = self._means[handle]
        # A share of a token short of everything is everything: means reach it only in the limit.
        wanted = math.ceil(a) + (self.slack if a >= g - 0.5 else 0)
        return min(max(wanted, self.shortest), self.longest)


def _feature(step: Candidates, name: int) -> Doubles:
    if step.features is None:
        raise ValueError("this policy decides by features of q, and the drafter shows none")
    return np.asarray(step.features[:, :, name], np.float64)


def _before(stops: NDArray[np.bool_]) -> Longs:
    """Tokens before the first stop, (B,)."""
    return np.where(stops.any(axis=1), stops.argmax(axis=1), stops.shape[1]).astype(np.int64)


def _behind(stops: NDArray[np.bool_]) -> Longs:
    """Tokens up to and with the first stop, (B,)."""
    return np.minimum(_before(stops) + 1, stops.shape[1])


def _rows(outcome: Outcome) -> Any:
    return zip(
        outcome.handles.tolist(), outcome.drafted.tolist(), outcome.accepted.tolist(), strict=True
    )
