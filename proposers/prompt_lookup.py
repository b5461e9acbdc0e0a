"""Prompt lookup with back-off: copy what followed the last earlier occurrence of the suffix."""

from typing import Any

import numpy as np
from numba import njit

from proposers.batch import DraftRequests, Drafts, Followed, Ints, VerifiedRows, follow_chain


@njit(cache=True, nogil=True)
def _last_occurrence(text: Any, length: Any, longest: Any, shortest: Any) -> Any:
    """Where the continuation of the suffix begins: longest match first, then the latest; or -1."""
    best, where = 0, -1
    for end in range(length - 1, 0, -1):  # text[:end] ends like text[:length] does
        matched = 0
        limit = min(longest, end)
        while matched < limit and text[end - 1 - matched] == text[length - 1 - matched]:
            matched += 1
        if matched > best:
            best, where = matched, end
            if best == longest:
                break
    return where if best >= shortest else -1


@njit(cache=True, nogil=True)
def _draft(
    tokens: Any,
    rows: Any,
    lengths: Any,
    budgets: Any,
    longest: Any,
    shortest: Any,
    out_tokens: Any,
    out_lengths: Any,
) -> Any:
    for b in range(rows.shape[0]):
        text = tokens[rows[b]]
        begin = _last_occurrence(text, lengths[b], longest, shortest)
        if begin < 0:
            continue
        n = min(min(out_tokens.shape[1], budgets[b]), lengths[b] - begin)
        out_tokens[b, :n] = text[begin : begin + n]
        out_lengths[b] = n


class PromptLookupDrafter:
    """Deterministic drafts: q is a point mass on every drafted token.

    The longest suffix of the text, of ``longest`` down to ``shortest`` tokens, that occurred before
    is looked up (its latest occurrence), and what followed it is proposed.

    Raises
    ------
    ValueError
        Unless ``1 <= shortest <= longest`` and ``draft_length >= 1``.
    """

    wants_rows = False
    wants_emitted = False

    def __init__(self, *, draft_length: int, longest: int = 4, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"matches of {shortest}..{longest} tokens were asked for; "
                "need 1 <= shortest <= longest"
            )
        if draft_length < 1:
            raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
        self.draft_length, self.longest, self.shortest = draft_length, longest, shortest

    def start(self, handle: int, prompt: Ints) -> None:
        """Nothing to learn: the text itself is the table."""

    def observe(self, rows: VerifiedRows) -> None:
        """Nothing to learn from target laws."""

    def draft(self, requests: DraftRequests) -> Drafts:
        """Propose up to ``min(draft_length, budget)`` copied tokens for every request."""
        batch, steps = len(requests), self.draft_length
        tokens = np.full((batch, steps), -1, np.int32)
        lengths = np.zeros(batch, np.int64)
        _draft(
            requests.tokens, requests.rows, requests.lengths, requests.budgets,
            self.longest, self.shortest, tokens, lengths,
        )  # fmt: skip
        law = (tokens >= 0).astype(np.float64)
        return Drafts(tokens, lengths, tokens[:, :, None], law[:, :, None])

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The copied tokens as point masses along a continuation."""
        return follow_chain(self.draft(requests), continuation)

    def finish(self, handle: int) -> None:
        """Nothing is kept for a request."""
