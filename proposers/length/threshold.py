r"""The renewal-reward threshold: verify a token while its gain per second beats the achieved rate.

A step of B requests emits ``B + sum s`` tokens in the mean, s = a_1...a_i the survival of each
verified draft, and takes T(n) seconds, n its tokens. Tokens per second in the long run are
E[tokens]/E[seconds] (renewal-reward), and the best policy maximises, at lambda = that maximum,

    E[ B + sum s - lambda T(n) ],      term by term:  s > lambda (T(n+1) - T(n)),

one threshold for all requests (ALGORITHMS.md 6; with a price c1 for a discarded token
``s/lambda - c1 (1 - s) > T(n+1) - T(n)``, which for a constant T is SpecDec++'s
``1 - s < 1/(1 + c1 lambda)``: :func:`theory.stopping.refusal_threshold` with cost 1/lambda).
Where all steps are alike, lambda is the maximum of (B + sum s)/T(n) over n, found by Dinkelbach's
iteration: start from any lambda, take the tokens that pay, let lambda be the ratio they achieve.
Steps are not alike, easy text and hard alternate, and then that maximum would verify too much
where text is hard; lambda is the *mean* rate, and following the achieved one is the same iteration
over time: each policy's rate prices the next one's tokens, and rises until it prices its own.

The achieved rate is kept as a ratio to plain decoding's, ``B/T(B)``, for each power of two of B:
requests come and go faster than a mean forgets. It is never taken for less than 1, since drafting
nothing is always allowed.

Greedy and adapted (:mod:`proposers.length.policy`): the candidate with the largest survival is
taken or all end. Where T has a step and then a plateau, the next token alone may not pay but
several would; they are guessed from what is known, each request's next tokens as likely as its
candidate, never read.

Trees are drafted node by node where the survival of a node is known, so a step gets one bound on it
in advance: the price of a token in the middle of as many as the last steps verified.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from proposers.batch import Longs
from proposers.length.policy import Candidates, Outcome, StepTimes

_BUCKETS = 16
_PRIOR_TOKENS = 8.0


@njit(inline="always")
def _best(survival: Any) -> Any:
    best = 0
    for b in range(1, survival.shape[0]):
        if survival[b] > survival[best]:
            best = b
    return best


@njit(inline="always")
def _several_pay(
    survival: Any, chances: Any, left: Any, times: Any, n: Any, token: Any, discard: Any,
    lookahead: Any, guess: Any, room: Any,
) -> Any:  # fmt: skip
    """Whether up to ``lookahead`` tokens like the candidates would pay together."""
    guess[:] = survival
    room[:] = left
    gain = 0.0
    for m in range(min(lookahead, times.shape[0] - 1 - n)):
        b = _best(guess)
        if guess[b] <= 0:
            break
        gain += guess[b] * (token + discard) - discard - (times[n + m + 1] - times[n + m])
        if gain > 0:
            return True
        room[b] -= 1
        guess[b] = guess[b] * chances[b] if room[b] > 0 else 0.0
    return False


@njit(cache=True, nogil=True)
def choose(
    acceptance: Any, caps: Any, times: Any, token: Any, discard: Any, lookahead: Any, lengths: Any
) -> Any:
    """Take tokens in decreasing survival while they pay; ``lengths`` are written.

    ``times[n]`` are the seconds of a step with n drafts, as many as may be verified; ``token`` the
    seconds that a token is worth, 1/lambda; ``discard`` the price of a discarded one. Where a chain
    ends is not known before its last token is: no guess may use it.
    """
    batch, most = acceptance.shape
    survival, chances = np.zeros(batch), np.zeros(batch)
    guess, left, room = np.empty(batch), np.empty(batch, np.int64), np.empty(batch, np.int64)
    for b in range(batch):
        lengths[b] = 0
        left[b] = min(caps[b], most)
        if left[b] > 0 and acceptance[b, 0] > 0:  # nan: nothing was drafted
            survival[b] = chances[b] = acceptance[b, 0]
    n = 0
    while batch and n + 1 < times.shape[0]:
        b = _best(survival)
        s = survival[b]
        if s <= 0:
            break
        gain = s * (token + discard) - discard - (times[n + 1] - times[n])
        if gain <= 0 and not _several_pay(
            survival, chances, left, times, n, token, discard, lookahead, guess, room
        ):
            break
        # From here on the token itself is known, and with it the place behind it.
        n += 1
        lengths[b] += 1
        left[b] -= 1
        survival[b] = 0.0
        if left[b] > 0 and acceptance[b, lengths[b]] > 0:
            chances[b] = acceptance[b, lengths[b]]
            survival[b] = s * chances[b]
    return n


class Threshold:
    """The threshold policy of this module.

    Parameters
    ----------
    step_times
        The engine's T(n).
    rate
        Tokens per second, lambda, if it is given and not learned.
    discard_cost
        Seconds that a discarded draft costs besides T, c1.
    lookahead
        How many tokens may be guessed to pay together; 0: each must pay alone.
    memory
        Steps after which a step weighs 1/e in the achieved rate.

    Raises
    ------
    ValueError
        For a value outside its range.
    """

    def __init__(
        self,
        step_times: StepTimes,
        *,
        rate: float | None = None,
        discard_cost: float = 0.0,
        lookahead: int = 8,
        memory: float = 200.0,
    ) -> None:
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"rate is {rate}; it must be above 0 tokens per second")
        if not 0 <= discard_cost < math.inf:
            raise ValueError(f"discard_cost is {discard_cost}; it must be 0 seconds or more")
        if lookahead < 0 or not memory >= 1:
            raise ValueError(
                f"lookahead must be 0 or more and memory 1 or more; got {lookahead} and {memory}"
            )
        self.step_times, self.rate = step_times, rate
        self.discard_cost, self.lookahead = discard_cost, lookahead
        self._keep = math.exp(-1 / memory)
        self._tokens = [_PRIOR_TOKENS] * _BUCKETS
        self._plain = [_PRIOR_TOKENS] * _BUCKETS
        self._seen = [False] * _BUCKETS
        self._drafted = [0.0] * _BUCKETS  # tokens verified in a step, in the mean

    def speedup(self, requests: int) -> float:
        """Achieved rate over plain decoding's, at least 1, at about so many requests."""
        bucket = _bucket(requests)
        if not self._seen[bucket] and any(self._seen):  # the nearest that was met
            seen = [known for known in range(_BUCKETS) if self._seen[known]]
            bucket = min(seen, key=lambda known: abs(known - bucket))
        return max(1.0, self._tokens[bucket] / self._plain[bucket])

    def token_seconds(self, requests: int, others: int = 0) -> float:
        """What a token is worth, 1/lambda."""
        if self.rate is not None:
            return 1 / self.rate
        plain = float(self.step_times.seconds(requests + others)) / requests
        return plain / self.speedup(requests)

    def ahead(self, handles: Longs, longest: int) -> int:
        """Everything: what is drafted is cheap, what is verified is not."""
        return longest

    def lengths(self, step: Candidates) -> Longs:
        """The tokens that pay, in decreasing survival."""
        found = np.zeros(len(step), np.int64)
        # Not where chains end: that tells of their tokens.
        most = min(int(np.maximum(step.caps, 0).sum()), step.acceptance.size, step.budget)
        if most > 0:
            plain = len(step) + step.others
            times = np.asarray(self.step_times.seconds(np.arange(plain, plain + most + 1)))
            choose(
                step.acceptance, step.caps, times, self.token_seconds(len(step), step.others),
                self.discard_cost, self.lookahead, found,
            )  # fmt: skip
        return found

    def price(self, requests: int, drafts: float, others: int = 0) -> float:
        """The least survival that pays for a token about the ``drafts``-th of a step."""
        plain, span = requests + others, max(self.lookahead, 1)
        first, last = plain + max(drafts - span, 0.0), plain + drafts + span
        ends = [float(self.step_times.seconds(about)) for about in (first, last)]
        each = (ends[1] - ends[0]) / (last - first)
        token = self.token_seconds(requests, others)
        return (each + self.discard_cost) / (token + self.discard_cost)

    def floor(self, requests: int) -> float:
        """The price of a token in the middle of a usual step."""
        return self.price(requests, self._drafted[_bucket(requests)])

    def observe(self, outcome: Outcome) -> None:
        """Follow the achieved rate."""
        requests = outcome.handles.shape[0]
        if not requests or math.isnan(outcome.seconds):
            return
        bucket = _bucket(requests)
        drafted = int(outcome.drafted.sum())
        self._drafted[bucket] += (1 - self._keep) * (drafted - self._drafted[bucket])
        model = float(self.step_times.seconds(requests + drafted))
        seconds = min(max(outcome.seconds, 0.5 * model), 2 * model)  # a pause is no step time
        plain = seconds * requests / float(self.step_times.seconds(requests))
        if not self._seen[bucket]:
            ratio = self.speedup(requests)
            self._tokens[bucket] = _PRIOR_TOKENS * ratio
            self._seen[bucket] = True
        self._tokens[bucket] = self._tokens[bucket] * self._keep + outcome.emitted / requests
        self._plain[bucket] = self._plain[bucket] * self._keep + plain / requests

    def finish(self, handle: int) -> None:
        """Nothing is kept for a request."""


def _bucket(requests: int) -> int:
    return min(requests.bit_length() - 1, _BUCKETS - 1)
