"""Prompt lookup with back-off: copy what followed an earlier occurrence of the suffix.

The longest suffix of the text, of ``longest`` down to ``shortest`` tokens, that occurred before is
looked up, and what followed it is proposed. Of several occurrences of that length the latest one is
taken, or the earliest, which is what vLLM's ``ngram`` does (vllm/v1/spec_decode/ngram_proposer.py).
Source: prompt lookup decoding (Saxena, 2023).
"""

from typing import Any, Literal

import numpy as np
from numba import njit

from proposers.batch import (
    DraftRequests,
    Drafts,
    Followed,
    Ints,
    Longs,
    VerifiedRows,
    follow_chain,
    point_masses,
)

MOST_MATCHED = 32


@njit(inline="always")
def _matched(text: Any, end: Any, length: Any, longest: Any) -> Any:
    """How many tokens, at most ``longest``, text[:end] and text[:length] end with in common."""
    limit = min(longest, end)
    matched = 0
    while matched < limit and text[end - 1 - matched] == text[length - 1 - matched]:
        matched += 1
    return matched


@njit(cache=True, nogil=True)
def _occurrence(text: Any, length: Any, longest: Any, shortest: Any, earliest: Any) -> Any:
    """Where the continuation begins, longest match first; or -1."""
    best, where = 0, -1
    for step in range(1, length):
        end = step if earliest else length - step
        matched = _matched(text, end, length, longest)
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
    earliest: Any,
    out_tokens: Any,
    out_lengths: Any,
    out_matched: Any,
) -> Any:
    for b in range(rows.shape[0]):
        text = tokens[rows[b]]
        begin = _occurrence(text, lengths[b], longest, shortest, earliest)
        if begin < 0:
            continue
        out_matched[b] = _matched(text, begin, lengths[b], MOST_MATCHED)
        n = max(0, min(min(out_tokens.shape[1], budgets[b]), lengths[b] - begin))
        out_tokens[b, :n] = text[begin : begin + n]
        out_lengths[b] = n


class PromptLookupDrafter:
    """Deterministic drafts: q is a point mass on every drafted token.

    Parameters
    ----------
    draft_length
        Most tokens drafted for a request, K >= 1.
    longest, shortest
        Lengths of the suffixes looked up, in tokens.
    occurrence
        Which earlier occurrence of the longest match is copied from; ``"earliest"`` is vLLM's.

    Raises
    ------
    ValueError
        Unless ``1 <= shortest <= longest`` and ``draft_length >= 1``, or for another occurrence.
    """

    wants_rows = False
    wants_emitted = False
    has_groups = True

    def __init__(
        self,
        *,
        draft_length: int,
        longest: int = 4,
        shortest: int = 1,
        occurrence: Literal["latest", "earliest"] = "latest",
    ) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"matches of {shortest}..{longest} tokens were asked for; "
                "need 1 <= shortest <= longest"
            )
        if draft_length < 1:
            raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
        if occurrence not in ("latest", "earliest"):
            raise ValueError(f"occurrence is {occurrence!r}; it must be 'latest' or 'earliest'")
        self.draft_length, self.longest, self.shortest = draft_length, longest, shortest
        self._earliest = occurrence == "earliest"

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Nothing to learn: the text itself is the table."""

    def observe(self, rows: VerifiedRows) -> None:
        """Nothing to learn from target laws."""

    def draft(self, requests: DraftRequests) -> Drafts:
        """Propose up to ``min(draft_length, budget)`` copied tokens for every request."""
        return self.propose(requests)[0]

    def propose(self, requests: DraftRequests) -> tuple[Drafts, Longs]:
        """:meth:`draft`, and how far back text and copied place agree, at most ``MOST_MATCHED``."""
        batch, steps = len(requests), self.draft_length
        tokens = np.full((batch, steps), -1, np.int32)
        lengths, matched = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        _draft(
            requests.tokens, requests.rows, requests.lengths, requests.budgets,
            self.longest, self.shortest, self._earliest, tokens, lengths, matched,
        )  # fmt: skip
        return point_masses(tokens, lengths), matched

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The copied tokens as point masses along a continuation."""
        return follow_chain(self.draft(requests), continuation)

    def finish(self, handle: int) -> None:
        """Nothing is kept for a request."""
