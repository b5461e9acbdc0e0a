"""ADED: drafts found in a tri-gram table by a tree search that weighs exploration.

The search grows a tree whose root is the text's last two tokens and whose edges are the table's
successors. Each of its rounds walks down to the draft's full depth or an unknown pair, at every
node s along the edge a of greatest

    PUCT(s, a) = Q(s, a) + E(s) P(a | s) sqrt(N(s)) / (1 + N(s, a)),
    E(s) = c_1 + log((N(s) + c_2 + 1) / c_2),   N(s) = sum_a N(s, a),

of equals the most probable; then the path's value, the length that the table expects to be accepted
of it, ``sum_i prod_{j <= i} P_j / K``, enters the mean Q of its edges. The chain follows the most
visited edges. Nothing is drawn at random: the chain is a function of table and text.

Source: ADED, arXiv 2407.12021, written from its description (tri-gram matrix, Monte-Carlo tree
search scored by PUCT); the constants are those of Schrittwieser et al. 2020, arXiv 1911.08265,
appendix B, and the value is the one that fits a chain. Its draft tree is for several paths.
"""

import math
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
from proposers.trigrams import ORDER, TrigramTable, pair_slot

BASE = 19652.0  # c_2


@njit(inline="always")
def _best_edge(p: Any, visits: Any, values: Any, exploration: Any) -> Any:
    """The edge of greatest PUCT; edges come most probable first, so ties go to the likelier."""
    total = visits.sum()
    scale = (exploration + math.log((total + BASE + 1) / BASE)) * math.sqrt(total)
    best, edge = -1.0, 0
    for a in range(p.shape[0]):
        if p[a] <= 0:
            break
        q = values[a] / visits[a] if visits[a] else 0.0
        score = q + scale * p[a] / (1 + visits[a])
        if score > best:
            best, edge = score, a
    return edge


@njit(cache=True, nogil=True)
def search(
    table: Any, first: Any, second: Any, depth: Any, rounds: Any, exploration: Any, out: Any
) -> Any:
    """The best path's tokens into ``out`` (depth,); returns (its length, its expected length)."""
    entries = table.ids.shape[1]
    size = rounds * depth + 1
    keys = np.empty(ORDER, np.uint64)
    pairs = np.empty((size, ORDER), np.int32)
    slots = np.empty(size, np.int64)
    children = np.empty((size, entries), np.int32)
    visits = np.empty((size, entries), np.int32)
    values = np.empty((size, entries))
    nodes, edges = np.empty(depth, np.int64), np.empty(depth, np.int64)
    pairs[0, 0], pairs[0, 1] = first, second
    slots[0] = pair_slot(table, pairs[0], keys)
    children[0], visits[0], values[0] = -1, 0, 0
    if slots[0] < 0:
        return 0, 0.0
    count = 1
    for _ in range(rounds):
        node, reached, survival, value = 0, 0, 1.0, 0.0
        while reached < depth and slots[node] >= 0:
            slot = slots[node]
            edge = _best_edge(table.probabilities[slot], visits[node], values[node], exploration)
            nodes[reached], edges[reached] = node, edge
            reached += 1
            survival *= table.probabilities[slot, edge]
            value += survival
            if children[node, edge] < 0:
                children[node, edge] = count
                pairs[count, 0], pairs[count, 1] = pairs[node, 1], table.ids[slot, edge]
                slots[count] = pair_slot(table, pairs[count], keys)
                children[count], visits[count], values[count] = -1, 0, 0
                count += 1
            node = children[node, edge]
        for i in range(reached):
            visits[nodes[i], edges[i]] += 1
            values[nodes[i], edges[i]] += value / depth
    node, length, survival, expected = 0, 0, 1.0, 0.0
    while length < depth and slots[node] >= 0:
        edge = np.argmax(visits[node])
        if visits[node, edge] == 0:
            break
        out[length] = table.ids[slots[node], edge]
        survival *= table.probabilities[slots[node], edge]
        expected += survival
        length += 1
        node = children[node, edge]
    return length, expected


@njit(cache=True, nogil=True)
def _draft(
    table: Any,
    tokens: Any,
    rows: Any,
    lengths: Any,
    budgets: Any,
    rounds: Any,
    exploration: Any,
    out_tokens: Any,
    out_lengths: Any,
    out_expected: Any,
) -> Any:
    for b in range(rows.shape[0]):
        end = lengths[b]
        depth = min(out_tokens.shape[1], budgets[b])
        if end < ORDER or depth < 1:
            continue
        text = tokens[rows[b]]
        out_lengths[b], out_expected[b] = search(
            table, text[end - 2], text[end - 1], depth, rounds, exploration, out_tokens[b]
        )


class AdedDrafter:
    """Deterministic drafts from the tri-gram search: q is a point mass on every drafted token.

    Parameters
    ----------
    table
        The frequencies, shared by every request; they learn prompts and emitted tokens.
    draft_length
        Most tokens drafted for a request, K >= 1.
    rounds
        Walks of the search for each draft, at least 1.
    exploration
        c_1 of the search, >= 0; at 0 it walks where the table expects most.
    prompt_visits
        Whether prompts enter the table.

    Raises
    ------
    ValueError
        For a parameter outside its range.
    """

    wants_rows = False
    wants_emitted = False
    has_groups = False

    def __init__(
        self,
        table: TrigramTable,
        *,
        draft_length: int,
        rounds: int = 32,
        exploration: float = 1.25,
        prompt_visits: bool = True,
    ) -> None:
        if draft_length < 1:
            raise ValueError(f"draft_length is {draft_length}; it must be 1 or more")
        if rounds < 1:
            raise ValueError(f"rounds is {rounds}; it must be 1 or more")
        if not 0 <= exploration < math.inf:
            raise ValueError(f"exploration is {exploration}; it must be 0 or more")
        self.table, self.draft_length = table, draft_length
        self.rounds, self.exploration = rounds, float(exploration)
        self.prompt_visits = prompt_visits
        self._learned: dict[int, int] = {}  # tokens of each started request that the table holds

    def start(self, handle: int, prompt: Ints, group: int = 0) -> None:
        """Take in a prompt, shape (n,) int32."""
        if self.prompt_visits:
            self.table.learn_prompt(prompt)
        self._learned[handle] = prompt.shape[0]

    def observe(self, rows: VerifiedRows) -> None:
        """Nothing to learn from target laws: the table counts what was emitted."""

    def draft(self, requests: DraftRequests) -> Drafts:
        """Take in what each text gained, then search for up to ``min(draft_length, budget)``."""
        return self.propose(requests)[0]

    def propose(self, requests: DraftRequests) -> tuple[Drafts, Doubles]:
        """:meth:`draft`, and the accepted length that the table expects of each chain."""
        self._learn(requests)
        batch = len(requests)
        tokens = np.full((batch, self.draft_length), -1, np.int32)
        lengths, expected = np.zeros(batch, np.int64), np.zeros(batch)
        _draft(
            self.table.arrays, requests.tokens, requests.rows, requests.lengths, requests.budgets,
            self.rounds, self.exploration, tokens, lengths, expected,
        )  # fmt: skip
        return point_masses(tokens, lengths), expected

    def follow(self, requests: DraftRequests, continuation: Ints) -> Followed:
        """The path found, as point masses along a continuation."""
        return follow_chain(self.draft(requests), continuation)

    def finish(self, handle: int) -> None:
        """Forget how far the request's text was read; what it taught stays."""
        self._learned.pop(handle, None)

    def _learn(self, requests: DraftRequests) -> None:
        for b in range(len(requests)):
            handle, end = int(requests.handles[b]), int(requests.lengths[b])
            begin = self._learned.get(handle, end)
            if begin < end:
                self.table.learn(requests.tokens[requests.rows[b], :end], begin)
                self._learned[handle] = end
