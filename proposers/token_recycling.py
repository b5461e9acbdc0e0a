"""Token Recycling: for each token, the candidates that the target last gave for its successor.

An adjacency table M[x] = the k most probable next tokens of the latest law that the target computed
after x, whatever stood before x. A draft follows the first candidates: x_1 = M[x_0][0], x_2 =
M[x_1][0], and so on, until a token without a row. Every verified row overwrites one row of the
table, rows behind refused drafts too; that is the recycling. The paper also takes in the prompt's
rows, which vLLM does not compute: here a prompt's own successors fill the rows that are empty.

Source: Turning Trash into Treasure, arXiv 2408.08696, sections 3.1 and 3.2; its tree, breadth-first
over M, is for several paths.
"""

from typing import Any

import numpy as np
from numba import njit

from proposers.batch import (
    Doubles,
    DraftRequests,
    Drafts,
    Followed,
    Ints,
    VerifiedRows,
    follow_chain,
    point_masses,
)


@njit(cache=True, nogil=True)
def _observe(table: Any, masses: Any, tokens: Any, begins: Any, ends: Any, ids: Any, p: Any) -> Any:
    k = min(table.shape[1], ids.shape[1])
    for r in range(ends.shape[0]):
        if ends[r] == begins[r]:
            continue
        token = tokens[ends[r] - 1]
        if 0 <= token < table.shape[0] and ids[r, 0] >= 0:
            table[token, :k] = ids[r, :k]
            table[token, k:] = -1
            masses[token] = p[r, 0]


@njit(cache=True, nogil=True)
def _observe_text(table: Any, masses: Any, text: Any) -> Any:
    for i in range(text.shape[0] - 1):
        token = text[i]
        if 0 <= token < table.shape[0] and masses[token] == 0:  # no law has been seen there
            table[token, 0] = text[i + 1]


@njit(cache=True, nogil=True)
def _draft(
    table: Any,
    masses: Any,
    tokens: Any,
    rows: Any,
    lengths: Any,
    budgets: Any,
    out_tokens: Any,
    out_lengths: Any,
    out_expected: Any,
) -> Any:
    for b in range(rows.shape[0]):
        if lengths[b] == 0:
            continue
        token = tokens[rows[b], lengths[b] - 1]
        survival = 1.0
        for i in range(min(out_tokens.shape[1], budgets[b])):
            if token < 0 or token >= table.shape[0]:
                break
            survival *= masses[token]
            token = table[token, 0]
            if token < 0:
                break
            out_expected[b] += survival
            out_tokens[b, i] = token
            out_lengths[b] = i + 1


class TokenRecyclingDrafter:
    """Deterministic drafts from the adjacency table: q is a point mass on every drafted token.

    The table is shared by all requests and allocated once: ``capacity`` rows of
    ``4 * (candidates + 1)`` bytes. Tokens of a higher id have no row.

    Parameters
    ----------
    draft_length
        Most tokens drafted for a request, K >= 1.
    candidates
        Candidates kept for each token, k >= 1. A chain reads the first only.
    capacity
        Tokens that have a row, at least 1; the vocabularies of 2026 fit the default.
    prompt_visits
        Whether prompts fill rows that no law has filled.

    Raises
    ------
    ValueError
        For a parameter outside its range.
    """

    wants_rows = True
    wants_emitted = False
    has_groups = False

    def __init__(
        self,
        *,
        draft_length: int,
        candidates: int = 8,
        capacity: int = 2**18,
        prompt_visits: bool = True,
    ) -> None:
        for name, value in (
            ("draft_length", draft_length),
            ("candidates", candidates),
            ("capacity", capacity),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        self.draft_length, self.prompt_visits = draft_length, prompt_visits
        self.table = np.full((capacity, candidates), -1, np.int32)
        self.masses = np.zeros(capacity, np.float32)  # the first candidate's, 0 from a prompt

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Fill empty rows from a prompt, shape (n,) int32."""
        if self.prompt_visits:
            _observe_text(self.table, self.masses, prompt)

    def observe(self, rows: VerifiedRows) -> None:
        """Overwrite the row of each context's last token, in the order of the rows."""
        _observe(
            self.table, self.masses, rows.tokens, rows.begins, rows.ends,
            rows.ids, rows.probabilities,
        )  # fmt: skip

    def draft(self, requests: DraftRequests) -> Drafts:
        """Follow the first candidates for up to ``min(draft_length, budget)`` tokens."""
        return self.propose(requests)[0]

    def propose(self, requests: DraftRequests) -> tuple[Drafts, Doubles]:
        """:meth:`draft`, and the length that would be accepted if each law were the last one."""
        batch = len(requests)
        tokens = np.full((batch, self.draft_length), -1, np.int32)
        lengths, expected = np.zeros(batch, np.int64), np.zeros(batch)
        _draft(
            self.table, self.masses, requests.tokens, requests.rows, requests.lengths,
            requests.budgets, tokens, lengths, expected,
        )  # fmt: skip
        return point_masses(tokens, lengths), expected

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The candidates as point masses along a continuation."""
        return follow_chain(self.draft(requests), continuation)

    def finish(self, handle: int) -> None:
        """Nothing is kept for a request."""
