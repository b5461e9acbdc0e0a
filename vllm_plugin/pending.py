"""Drafts that wait to be verified, and what is left of them when the engine cut them off.

Nothing that was drawn may be dropped because of what it is (ALGORITHMS.md 5, trap 1), and whether
the engine evaluates a draft can depend on how long the list of drafts is, which can depend on the
tokens in it: a request whose list needs one block too many is preempted. So a draft whose row was
evaluated is judged even where its own was not, and drafts behind an accepted one that were not
judged are carried over: they are sent again in the next step, with the laws they were drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Chain:
    """Drafts to verify and their laws: tokens (n,), law_ids (n, E), law (n, E)."""

    tokens: Ints
    law_ids: Ints
    law: NDArray[np.float64]
    has_bonus: bool


NO_DRAFTS = Chain(
    np.zeros(0, np.int32), np.zeros((0, 1), np.int32), np.zeros((0, 1)), has_bonus=True
)


def point_masses(tokens: Ints) -> Chain:
    """The chain of drafts that nobody drew (vLLM's own fillers): q is a point mass on each."""
    return Chain(tokens, tokens[:, None], np.ones((tokens.shape[0], 1)), has_bonus=True)


@dataclass(frozen=True, slots=True)
class PendingDraft:
    """One chain of one request that waits, and the length of the text it follows."""

    text_length: int
    tokens: Ints  # (n,)
    law_ids: Ints  # (n, E)
    law: NDArray[np.float64]  # (n, E)

    def flat(self) -> list[int]:
        """The drafts as the engine is given them."""
        tokens: list[int] = self.tokens.tolist()
        return tokens

    def chain(self, scheduled: Ints) -> Chain | None:
        """The chain to verify when the engine scheduled these tokens; None if they are not ours.

        When the engine cut drafts off (a token budget, or a grammar that refused one), the first
        one cut is still judged: its row was evaluated as the row after the last scheduled draft.
        Sampling that row from p instead would be biased, since a grammar looks at the token
        (ALGORITHMS.md 5, trap 4). There is then no row for a bonus token.
        """
        n = scheduled.shape[0]
        if n > self.tokens.shape[0] or not np.array_equal(scheduled, self.tokens[:n]):
            return None
        m = min(n + 1, self.tokens.shape[0])
        return Chain(self.tokens[:m], self.law_ids[:m], self.law[:m], has_bonus=m == n)

    def left_over(self, emitted: Ints) -> PendingDraft | None:
        """What was not judged behind the emitted tokens, if these are the first ``m`` drafts.

        ``emitted``: all that a cut chain of ``m`` drafts can emit. The next drafts were drawn from
        their prefix alone, so they are as good as new ones.
        """
        m = emitted.shape[0]
        if not 0 < m < self.tokens.shape[0] or not np.array_equal(emitted, self.tokens[:m]):
            return None
        return PendingDraft(self.text_length + m, self.tokens[m:], self.law_ids[m:], self.law[m:])
